"""Let no fork fall into a compilation: the child would wait for ever for the compiler's locks."""

import os
import signal
import threading
from functools import cache

import llvmlite.binding
from numba.core.compiler_lock import global_compiler_lock

_LOCKS = global_compiler_lock, llvmlite.binding.ffi.lib._lock

_SOON = 0.01
"""Seconds after which a signal that came meanwhile is sent again: the fork has returned."""


def _runs_handlers():
    return threading.current_thread() is threading.main_thread()


class _Signals:
    """Signals held back: an exception of a handler would end the wait for the locks, and Python
    prints and forgets what is raised before a fork."""

    def __init__(self):
        self._handlers, self._came = {}, []

    def hold(self):
        if _runs_handlers():
            for number in signal.valid_signals():
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, lambda number, _: self._came.append(number))

    def give_back(self, *, again):
        if not _runs_handlers():
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        came = set(self._came) if again else ()
        self._handlers, self._came = {}, []
        for number in came:
            arguments = threading.main_thread().ident, number
            threading.Timer(_SOON, signal.pthread_kill, arguments).start()


@cache
def guard_forks():
    """From here on a fork waits until the kernel is compiled that another thread is at.

    Some seconds, as it does for the locks of the standard library: half a compilation cannot be
    taken up in the child, for LLVM's memory is not whole. To be called when kernels are defined, so
    that these hooks run before all others here.
    """
    signals = _Signals()

    def take():
        signals.hold()
        for lock in _LOCKS:
            lock.__enter__()

    def give(*, again):
        for lock in reversed(_LOCKS):
            lock.__exit__(None, None, None)
        signals.give_back(again=again)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=take,
            after_in_parent=lambda: give(again=True),
            after_in_child=lambda: give(again=False),
        )
