"""Deal pieces of work to a few threads.

Not Numba's ``parallel=True``: its default threading layer aborts the process when two threads call
it, and its OpenMP layer dies after a fork. Here a call's pieces are cut by the shape alone, and
every piece writes to its own place, so no result depends on the number of threads.
"""

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


def run_pieces(call, n_pieces):
    """Call ``call(piece)`` for every piece, on up to ``torch.get_num_threads()`` threads.

    The calling thread works too. Returns, or raises the first error, when all threads are done.
    """
    n_threads = min(torch.get_num_threads(), n_pieces)
    if n_threads <= 1:
        for piece in range(n_pieces):
            call(piece)
        return
    pieces = itertools.count()

    def work():
        for piece in pieces:
            if piece >= n_pieces:
                return
            call(piece)

    executor = _get_executor()
    helpers = [executor.submit(work) for _ in range(n_threads - 1)]
    try:
        work()
    finally:
        # an interrupt here must not leave threads writing to tensors that are gone; a helper
        # that has not started yet has nothing left to do
        pieces = iter(())
        for helper in helpers:
            if not helper.cancel():
                helper.result()
