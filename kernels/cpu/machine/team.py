"""Run a compiled kernel's pieces on the threads that PyTorch's own operations run on.

PyTorch's OpenMP threads keep spinning for some 10 ms after each of its operations. A second pool
of threads would wait for the cores that they hold: on two cores a kernel of 2 ms then takes 5 to
10. Here the very same threads take the pieces, in compiled code: no wake-up, no Python, no lock.

Not every PyTorch has an OpenMP runtime that can be called from outside (``GOMP_parallel``, which
LLVM's and Intel's runtimes offer on Linux too), and none of them survives a fork: then :func:`run`
says so, and :mod:`.pool` does the work. Before a fork the threads are given back, so that PyTorch's
operations do not wait for them in the child.
"""

import contextlib
import ctypes
import os
import struct
import time
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import array_at, callback


class Strided(NamedTuple):
    """An argument that is ``first + piece * stride`` for each piece."""

    first: int
    stride: int

    def of(self, piece):
        return self.first + piece * self.stride


_HEADER = 6
_N_PIECES, _ROWS, _N_ROWS, _KERNEL, _FAILED = range(1, _HEADER)  # 0: the next piece

_FIRST_PIECES = 4
"""Pieces of a call's first slice, for each thread."""

_SLICE_SECONDS = 0.05
"""What a slice of a call should take: Python sees an interrupt between two."""

_PAUSE_HARD = 2
"""``omp_pause_hard``: the runtime keeps nothing, threads included."""

_forked = False


def _give_back():
    runtime = _runtime() if _runtime.cache_info().currsize else None
    # LLVM's and Intel's runtimes see to forks themselves, and crash when a thread calls this
    if runtime is not None and not hasattr(runtime, "__kmpc_fork_call"):
        with contextlib.suppress(AttributeError):  # OpenMP 5.0, of 2018, has it
            runtime.omp_pause_resource_all(_PAUSE_HARD)


def _forget():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_give_back, after_in_child=_forget)


@cache
def _runtime():
    """The OpenMP runtime that PyTorch calls, or ``None``."""
    if not torch.backends.openmp.is_available():
        return None
    try:
        # what PyTorch's own calls find: it loads its runtime for all to see, after those that the
        # program was started with. A second runtime beside it would not survive a fork
        runtime = ctypes.CDLL(None)
        parallel = runtime.GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    parallel.restype = None
    return runtime


@intrinsic
def _next_piece(typingctx, header_at):
    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], cgutils.intp_t.as_pointer())
        return builder.atomic_rmw("add", place, cgutils.intp_t(1), "monotonic")

    return types.int64(types.int64), codegen


def _caller(kinds):
    """Intrinsic that calls the kernel at an address with arguments from memory and two rows."""

    @intrinsic
    def call(typingctx, kernel_at, arguments_at, piece, first, last):
        def codegen(context, builder, signature, args):
            at, words_at, piece, first, last = args
            word = cgutils.intp_t
            words = builder.inttoptr(words_at, word.as_pointer())
            values, i = [], 0
            for kind in kinds:
                value = builder.load(builder.gep(words, [word(i)]))
                i += 1
                if kind == "d":
                    value = builder.bitcast(value, context.get_value_type(types.float64))
                elif kind == "s":
                    stride = builder.load(builder.gep(words, [word(i)]))
                    value = builder.add(value, builder.mul(piece, stride))
                    i += 1
                values.append(value)
            takes = [types.float64 if kind == "d" else types.int64 for kind in kinds + "qq"]
            convention = context.call_conv
            kernel_type = convention.get_function_type(types.none, takes)
            kernel = builder.inttoptr(at, kernel_type.as_pointer())
            status, _ = convention.call_function(
                builder, kernel, types.none, takes, [*values, first, last]
            )
            return status.is_error

        return types.boolean(*[types.int64] * 5), codegen

    return call


@cache
def _task(kinds):
    """Compiled function of a header's address: takes pieces until there are none left."""
    call = _caller(kinds)

    def task(header_at):
        header = array_at(header_at, _HEADER, np.int64)
        n_pieces, rows, n_rows = header[_N_PIECES], header[_ROWS], header[_N_ROWS]
        kernel_at, arguments_at = header[_KERNEL], header_at + 8 * _HEADER
        piece = _next_piece(header_at)
        while piece < n_pieces:
            first = piece * rows
            last = min(first + rows, n_rows)
            if call(kernel_at, arguments_at, piece, first, last):
                header[_FAILED] = 1
            piece = _next_piece(header_at)

    return callback(task, types.void(types.int64))


@cache
def _address(kernel, kinds):
    """Where the machine code of a kernel lies that takes arguments of these kinds."""
    takes = tuple(types.float64 if kind == "d" else types.int64 for kind in kinds + "qq")
    kernel.compile(takes)
    compiled = kernel.overloads[takes]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def run(kernel, arguments, n_rows, rows_per_piece, first, n_pieces):
    """Call ``kernel(*arguments, first_row, last_row)`` for every piece, if the threads are there.

    Args:
        kernel: An entry point of :func:`.jit.entry`.
        arguments: Integers, floats and :class:`Strided`.
        n_rows: Rows of all pieces.
        rows_per_piece: Rows of each piece but the last.
        first: The piece to begin with.
        n_pieces: The piece before which to end.

    Returns:
        Whether it was done.

    Raises:
        MemoryError: A kernel could not allocate its scratch memory.
    """
    if _forked or (runtime := _runtime()) is None:
        return False
    kinds, words = "", []
    for argument in arguments:
        if isinstance(argument, Strided):
            kinds += "s"
            words += argument
        else:
            kinds += "d" if isinstance(argument, float) else "q"
            words.append(argument)
    layout = f"={_HEADER}q{kinds.replace('s', 'qq')}"
    header = [0, n_pieces, rows_per_piece, n_rows, _address(kernel, kinds), 0]
    memory = ctypes.create_string_buffer(struct.pack(layout, *header, *words))
    state = (ctypes.c_int64 * _HEADER).from_buffer(memory)
    at, task = ctypes.addressof(memory), _task(kinds).address
    n_threads = torch.get_num_threads()
    n_next = _FIRST_PIECES * n_threads
    while first < n_pieces:
        last = min(n_pieces, first + n_next)
        state[0], state[_N_PIECES] = first, last
        began = time.perf_counter()
        runtime.GOMP_parallel(task, at, n_threads, 0)
        if state[_FAILED]:
            raise MemoryError(f"not enough memory for the scratch space of {kernel.__name__}")
        factor = _SLICE_SECONDS / max(time.perf_counter() - began, 1e-6)
        first, n_next = last, max(1, int(n_next * min(factor, 16.0)))
    return True
