"""Deal pieces of work to a few threads.

Not Numba's ``parallel=True``: its default threading layer aborts the process when two threads call
it, and its OpenMP layer dies after a fork. Here a call's pieces are cut by the shape alone, and
every piece writes to its own place, so no result depends on the number of threads.
"""

import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

_executor = None
_lock = threading.Lock()


def _forget():
    """After a fork the parent's threads do not exist: start anew on first use."""
    global _executor, _lock
    _executor = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _get_executor():
    global _executor
    with _lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="fastmlp")
        return _executor


class _Deal:
    """The pieces of one call, and who is at work on them."""

    def __init__(self, call, n_pieces):
        self.call, self.n_pieces = call, n_pieces
        self.pieces = itertools.count()
        self.changed = threading.Condition()
        self.n_helping = 0
        self.stopped = False
        self.error = None

    def work(self):
        while not self.stopped and (piece := next(self.pieces)) < self.n_pieces:
            self.call(piece)

    def help(self):
        with self.changed:
            if self.stopped:
                return
            self.n_helping += 1
        try:
            self.work()
        except BaseException as error:
            self.error, self.stopped = error, True  # the caller raises it
            return
        finally:
            with self.changed:
                self.n_helping -= 1
                self.changed.notify()

    def end(self):
        """Return, or raise an interrupt, when nobody is at work, and nobody will be."""
        try:
            with self.changed:
                self.stopped = True
                while self.n_helping:
                    self.changed.wait()
        except BaseException:
            self.end()
            raise


def run_pieces(call, n_pieces):
    """Call ``call(piece)`` for every piece, on up to ``torch.get_num_threads()`` threads.

    The calling thread works too, alone where the interpreter ends and starts no more threads.
    Returns, or raises the first error, when all threads are done; no piece is begun after an error
    or an interrupt.
    """
    n_threads = min(torch.get_num_threads(), n_pieces)
    if n_threads <= 1:
        for piece in range(n_pieces):
            call(piece)
        return
    deal = _Deal(call, n_pieces)
    try:
        with contextlib.suppress(RuntimeError):
            for _ in range(n_threads - 1):
                _get_executor().submit(deal.help)
        deal.work()
    finally:
        # an interrupt must not leave threads writing to tensors that are gone
        deal.end()
    if deal.error:
        raise deal.error
