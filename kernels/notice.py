"""What a program says while it compiles kernels: it waits for seconds, and only once."""

import contextlib
import logging
import threading
from contextvars import ContextVar
from functools import cache

SECONDS = 1.0
"""A wait that nobody wonders about."""


@cache
def _log(text):
    # cached: a process says the same thing once. A warning, for that is what people see unasked
    with contextlib.suppress(ValueError):  # a closed stream
        logging.getLogger("fastmlp").warning("fastmlp: %s", text)


_say = ContextVar("fastmlp_notice", default=_log)


@contextlib.contextmanager
def said_by(say):
    """In this context, in this thread, call ``say(text)`` instead of the logger ``fastmlp``."""
    token = _say.set(say)
    try:
        yield
    finally:
        _say.reset(token)


def soon(text):
    """Say it in a second; returns a function that takes it back, if it is still unsaid."""
    timer = threading.Timer(SECONDS, _say.get(), [text])
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # the interpreter ends: no thread starts any more
        timer.start()
    return timer.cancel
