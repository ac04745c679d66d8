"""What every launcher of this wing needs: dtypes, contiguous tensors, sizes of pieces."""

from functools import reduce

import numpy as np
import torch

from . import pool
from .jit import array_at, entry

PIECE = 65536
"""Numbers in a piece of work: 0.1–0.3 ms of one core, far above the cost of dealing it out."""

MAX_PIECES = 4096
"""Bounds the memory of the partial sums, one vector of parameter gradients a piece."""


def common_dtype(*tensors):
    """The promoted dtype, which is the output's, and the dtype to compute in."""
    dtype = tensors[0].dtype
    for t in tensors:
        if t is not None and t.dtype is not dtype:
            dtype = reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
            break
    return dtype, torch.float64 if dtype is torch.float64 else torch.float32


def ready(dtype, *tensors):
    """The tensors in the compute dtype and contiguous; those that are so already, themselves."""
    return [
        t
        if t is None or (t.dtype is dtype and t.is_contiguous())
        else t.detach().to(dtype).contiguous()
        for t in tensors
    ]


def address(tensor):
    """The address of a tensor's first number; 0 for ``None``."""
    return 0 if tensor is None else tensor.data_ptr()


def cut(n_rows, numbers_per_row, multiple):
    """Rows per piece and number of pieces, from the shape alone.

    A piece has about :data:`PIECE` numbers and a whole multiple of ``multiple`` rows.
    """
    rows = max(PIECE // numbers_per_row, -(-n_rows // MAX_PIECES), 1)
    rows = -(-rows // multiple) * multiple
    return rows, max(-(-n_rows // rows), 1)


def run(kernel, n_rows, rows_per_piece, n_pieces, *arguments):
    """Call ``kernel(*arguments, first_row, last_row)`` for every piece of rows."""
    if n_pieces == 1:
        kernel(*arguments, 0, n_rows)
        return
    pool.run_pieces(
        lambda piece: kernel(
            *arguments, piece * rows_per_piece, min(n_rows, (piece + 1) * rows_per_piece)
        ),
        n_pieces,
    )


def run_summed(kernel, n_rows, rows_per_piece, n_pieces, n_sums, dtype, *arguments):
    """Call ``kernel(*arguments, sums, first_row, last_row)`` for every piece, then add up.

    Each piece writes ``n_sums`` float64 numbers at the address ``sums``; they are added in the
    order of the pieces. Returns the totals, shape ``[n_sums]``; ``None`` where ``n_sums`` is 0.
    """
    if n_sums == 0:
        run(kernel, n_rows, rows_per_piece, n_pieces, *arguments, 0)
        return None
    partial = torch.empty((n_pieces, n_sums), dtype=torch.float64)
    start, row_bytes = partial.data_ptr(), n_sums * partial.element_size()
    if n_pieces == 1:
        kernel(*arguments, start, 0, n_rows)
    else:
        pool.run_pieces(
            lambda piece: kernel(
                *arguments,
                start + piece * row_bytes,
                piece * rows_per_piece,
                min(n_rows, (piece + 1) * rows_per_piece),
            ),
            n_pieces,
        )
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    result = torch.empty(n_sums, dtype=compute)
    _total[compute](start, n_pieces, n_sums, result.data_ptr())
    return result if dtype is compute else result.to(dtype)


@entry
def _total(real):
    def total(partial_at, n_pieces, n_sums, result_at):
        partial = array_at(partial_at, n_pieces * n_sums, np.float64)
        result = array_at(result_at, n_sums, real)
        for i in range(n_sums):
            value = 0.0
            for piece in range(n_pieces):
                value += partial[piece * n_sums + i]
            result[i] = value

    return total
