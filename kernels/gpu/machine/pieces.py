"""Sums over all rows in two stages: one partial vector per piece of rows, then pieces in order.

Pieces are cut by the shape alone, and no atomics are used: the result is the same bit for bit on
every device and in every run.
"""

import torch
import triton
import triton.language as tl

from .launch import config_for
from .plans import empty, launch

# a piece has at least this many elements, so that its last reduction does not dominate
MIN_PIECE_ELEMENTS = 8192
# three programs of the parameter gradients fit on a multiprocessor: 1024 is some waves of them
MAX_PIECES = 1024
# bound on the partial sums in memory, in values
MAX_PARTIALS = 1 << 22


@triton.jit
def sum_pieces_kernel(
    partial_ptr,
    out_ptr,
    n_rows0,
    n_cols0,
    n_rows1,
    n_cols1,
    COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """out = column sums of two matrices that lie one after the other in memory.

    Shapes: partial [n_rows0, n_cols0] then [n_rows1, n_cols1]; out [n_cols0 + n_cols1].
    Grid: one program per BLOCK_COLS columns of one matrix. Reads each partial once.
    """
    n_blocks0 = tl.cdiv(n_cols0, BLOCK_COLS)
    second = tl.program_id(0) >= n_blocks0
    block = tl.where(second, tl.program_id(0) - n_blocks0, tl.program_id(0))
    n_rows = tl.where(second, n_rows1, n_rows0)
    n_cols = tl.where(second, n_cols1, n_cols0)
    size0 = tl.cast(n_rows0, tl.int64) * n_cols0
    start = tl.where(second, size0, 0)
    cols = block * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), COMPUTE)
    for row in range(0, n_rows, BLOCK_ROWS):
        rows = (row + tl.arange(0, BLOCK_ROWS))[:, None]
        inside = (rows < n_rows) & (cols < n_cols)[None, :]
        offsets = start + rows.to(tl.int64) * n_cols + cols[None, :]
        acc += tl.load(partial_ptr + offsets, mask=inside, other=0.0)
    out_start = tl.where(second, n_cols0, 0)
    tl.store(out_ptr + out_start + cols, tl.sum(acc, axis=0), mask=cols < n_cols)


def cut(
    n_rows: int, row_size: int, n_partials: int, multiple: int, pieces: int = MAX_PIECES
) -> tuple[int, int]:
    """Rows per piece, a multiple of ``multiple``, and the number of pieces.

    Args:
        n_rows: Rows to share out, at least 1.
        row_size: Elements in a row.
        n_partials: Values that a piece writes.
        multiple: Rows that a program takes at a time.
        pieces: How many there may be.
    """
    most = max(1, min(pieces, MAX_PARTIALS // n_partials))
    rows = max(triton.cdiv(n_rows, most), triton.cdiv(MIN_PIECE_ELEMENTS, row_size))
    rows = triton.cdiv(rows, multiple) * multiple
    return rows, triton.cdiv(n_rows, rows)


def sum_pieces(partials, first, second, out_dtype, compute) -> torch.Tensor:
    """Column sums of the two matrices of shapes ``first`` and ``second`` in ``partials``."""
    if max(first[0], second[0]) == 1 and partials.dtype == out_dtype:
        return partials.view(-1)  # one piece: its sums are the gradients
    config = config_for("sum_pieces", compute)
    out = empty((first[1] + second[1],), partials, out_dtype)
    n_blocks = triton.cdiv(first[1], config.cols) + triton.cdiv(second[1], config.cols)
    launch(
        sum_pieces_kernel,
        (n_blocks,),
        partials,
        out,
        *first,
        *second,
        COMPUTE=compute,
        BLOCK_ROWS=config.rows,
        BLOCK_COLS=config.cols,
        num_warps=config.warps,
    )
    return out


def split(total, parameters, needs) -> list[torch.Tensor | None]:
    """Cut a flat gradient into one view per parameter, shaped like it.

    Args:
        total: All gradients one after the other; ``None`` where none is needed.
        parameters: The parameters in that order; a size in place of one that is missing.
        needs: Whether the gradient of each is needed: ``None`` in its place if not.
    """
    gradients, first = [], 0
    for parameter, need in zip(parameters, needs, strict=True):
        size = parameter if isinstance(parameter, int) else parameter.numel()
        part = total[first : first + size] if need else None
        gradients.append(part.view(parameter.shape) if need else None)
        first += size
    return gradients
