"""Loads of parts of row-major matrices, of the gradient into a subnet, and the read-out."""

import triton
import triton.language as tl


@triton.jit
def grid_place(n_third, FOLDED: tl.constexpr):
    """Place and number of programs in the grid's second dimension, then in its third.

    FOLDED: the second is both, for the third is that of models; ``n_third`` is what it would be.
    """
    if FOLDED:
        i, n = tl.program_id(1), tl.num_programs(1)
        return i // n_third, n // n_third, i % n_third, n_third
    else:
        return tl.program_id(1), tl.num_programs(1), tl.program_id(2), tl.num_programs(2)


@triton.jit
def load_tile(ptr, rows, cols, last_row, n_cols, row_stride, COMPUTE: tl.constexpr):
    """Rows x cols of a row-major matrix, 0 outside."""
    inside = (rows < last_row)[:, None] & (cols < n_cols)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + cols[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def load_row(ptr, row, cols, n_cols, COMPUTE: tl.constexpr):
    """Part of a row of a matrix without gaps, 0 outside: [cols]."""
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


@triton.jit
def zero_products(
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Accumulator of V_mj f(x_ij): rows x features x outputs, the last axis only where needed."""
    if BLOCK_OUT == 1:
        return tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    else:
        return tl.zeros((BLOCK_ROWS, BLOCK_IN, BLOCK_OUT), COMPUTE)


@triton.jit
def products(
    f, fc3_weight_ptr, cols, outs, n_in, n_out, BLOCK_OUT: tl.constexpr, COMPUTE: tl.constexpr
):
    """V_mj f(x_ij) in the shape of zero_products; V is 0 outside."""
    if BLOCK_OUT == 1:
        v_ptrs = fc3_weight_ptr + outs.to(tl.int64) * n_in + cols
        return f * tl.load(v_ptrs, mask=cols < n_in, other=0.0).to(COMPUTE)[None, :]
    else:
        inside = (cols < n_in)[:, None] & (outs < n_out)[None, :]
        v_ptrs = fc3_weight_ptr + outs.to(tl.int64)[None, :] * n_in + cols[:, None]
        v = tl.load(v_ptrs, mask=inside, other=0.0).to(COMPUTE)
        return f[:, :, None] * v[None, :, :]


@triton.jit
def sum_features(acc, BLOCK_OUT: tl.constexpr):
    """Σ_j as a tile of rows x outputs."""
    if BLOCK_OUT == 1:
        return tl.sum(acc, axis=1)[:, None]
    else:
        return tl.sum(acc, axis=1)


@triton.jit
def put(out_ptr, column, places, stride, values):
    """Write one column of the Jacobian, values [rows]."""
    tl.store(out_ptr + tl.cast(column, tl.int64) * stride + places, values)


@triton.jit
def put_columns(out_ptr, columns, known, places, stride, values):
    """Write those of some columns that are ``known``, values [rows, columns]."""
    at = columns.to(tl.int64)[None, :] * stride + places[:, None]
    tl.store(out_ptr + at, values, mask=known[None, :])


@triton.jit
def append(items, item):
    """A tuple with one item more."""
    # Triton has no starred expressions
    return items + (item,)  # noqa: RUF005


@triton.jit
def tile_size(left, most):
    """min(left, most) in 32 bits, so that masks cost one compare; keeps what divides both."""
    return tl.where(left < most, left, most).to(tl.int32)


@triton.jit
def zero_tiles(like, UNITS: tl.constexpr):
    """One tile of zeros per unit."""
    tiles = ()
    for _ in tl.static_range(UNITS):
        tiles = append(tiles, tl.zeros_like(like))
    return tiles


@triton.jit
def load_scalar(ptr, k, inside, COMPUTE: tl.constexpr):
    """One parameter; 0 where it is absent or ``inside`` is false."""
    if ptr is None:
        return tl.zeros((), COMPUTE)
    else:
        return tl.cast(tl.load(ptr + k, mask=inside, other=0.0), COMPUTE)
