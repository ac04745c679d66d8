"""Loads of parts of row-major matrices, and of the gradient that flows into a subnet."""

import triton
import triton.language as tl


@triton.jit
def load_tile(ptr, rows, cols, last_row, n_cols, row_stride, COMPUTE: tl.constexpr):
    """Rows x cols of a row-major matrix, 0 outside."""
    inside = (rows < last_row)[:, None] & (cols < n_cols)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + cols[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def load_row(ptr, row, cols, n_cols, COMPUTE: tl.constexpr):
    """Part of a row of a dense matrix, 0 outside: [cols]."""
    ptrs = ptr + tl.cast(row, tl.int64) * n_cols + cols
    return tl.load(ptrs, mask=cols < n_cols, other=0.0).to(COMPUTE)


@triton.jit
def load_column(ptr, rows, last_row, row_stride, COMPUTE: tl.constexpr):
    """First column of a matrix, 0 outside: [rows, 1]."""
    ptrs = ptr + rows.to(tl.int64) * row_stride
    return tl.load(ptrs, mask=rows < last_row, other=0.0).to(COMPUTE)[:, None]


@triton.jit
def load_upstream(
    dy_ptr, fc3_weight_ptr, rows, cols, last_row, n_in, n_out, dy_row_stride, COMPUTE: tl.constexpr
):
    """dL/df(x_ij) = Σ_m dy_im V_mj as a tile, 0 outside."""
    g = tl.zeros((rows.shape[0], cols.shape[0]), COMPUTE)
    dy_ptrs = dy_ptr + rows.to(tl.int64) * dy_row_stride
    for m in range(n_out):
        dy = tl.load(dy_ptrs + m, mask=rows < last_row, other=0.0).to(COMPUTE)
        v = load_row(fc3_weight_ptr, m, cols, n_in, COMPUTE)
        g += dy[:, None] * v[None, :]
    return tl.where((rows < last_row)[:, None] & (cols < n_in)[None, :], g, 0.0)


@triton.jit
def load_pair(
    x_ptr, dy_ptr, fc3_weight_ptr, rows, cols, last_row, n_in, n_out, x_row_stride, dy_row_stride,
    ONE_OUT: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A tile of x, and its weights in sums: dy [rows, 1] for one output, else Σ_m dy_m V_mj."""
    x = load_tile(x_ptr, rows, cols, last_row, n_in, x_row_stride, COMPUTE)
    if ONE_OUT:
        g = load_column(dy_ptr, rows, last_row, dy_row_stride, COMPUTE)
    else:
        g = load_upstream(
            dy_ptr, fc3_weight_ptr, rows, cols, last_row, n_in, n_out, dy_row_stride, COMPUTE
        )
    return x, g


@triton.jit
def sum_column(ptr, n_rows, row_stride, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Sum over the first column of a matrix."""
    acc = tl.zeros((BLOCK,), COMPUTE)
    for i in range(0, n_rows, BLOCK):
        rows = i + tl.arange(0, BLOCK)
        ptrs = ptr + rows.to(tl.int64) * row_stride
        acc += tl.load(ptrs, mask=rows < n_rows, other=0.0).to(COMPUTE)
    return tl.sum(acc)
