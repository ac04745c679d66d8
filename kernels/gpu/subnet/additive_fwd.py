"""Rows of features through one ReLU subnet and a read-out: y_im = Σ_j V_mj f(x_ij) + c_m."""

import triton
import triton.language as tl

from ..machine.tiles import load_tile, products, sum_features, tile_size, zero_products
from .canonical import canonical_units, canonical_value, plain_value


@triton.jit
def additive_mlp_fwd_kernel(
    x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, fc3_weight_ptr,
    fc3_bias_ptr, y_ptr, n_rows, n_in, n_out, x_row_stride,
    N_HIDDEN: tl.constexpr, CANONICAL: tl.constexpr, EVEN_IN: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """y = f(x) V^T + c, canonical form; rows that come out infinite or NaN again in the plain form.

    Shapes: x [n_rows, n_in]; V [n_out, n_in]; y [n_rows, n_out]. Grid: programs that walk over
    tiles of BLOCK_ROWS rows x blocks of BLOCK_OUT outputs. Reads 1 value per element and block of
    outputs, writes n_out values per row.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    step = tl.num_programs(0).to(tl.int64) * BLOCK_ROWS
    outs = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row_block = tl.arange(0, BLOCK_ROWS)
    col_block = tl.arange(0, BLOCK_IN)
    c = tl.zeros((BLOCK_OUT,), COMPUTE)
    if fc3_bias_ptr is not None:
        c = tl.load(fc3_bias_ptr + outs, mask=outs < n_out, other=0.0).to(COMPUTE)
    plain = True
    if CANONICAL:
        breakpoints, coefficients, slope, offset, fit = canonical_units(
            fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, N_HIDDEN, COMPUTE
        )
        # 0 as long as all values are finite, else NaN
        poison = tl.zeros((BLOCK_ROWS, BLOCK_OUT), COMPUTE)
        for i in range(start, n_rows, step):
            rows = i + row_block
            # beyond the last row the last row again: cheaper than a mask on every load
            x_rows = tl.minimum(row_block, tile_size(n_rows - i, BLOCK_ROWS) - 1)
            x_ptrs = x_ptr + i * x_row_stride + x_rows.to(tl.int64)[:, None] * x_row_stride
            acc = zero_products(BLOCK_ROWS, BLOCK_IN, BLOCK_OUT, COMPUTE)
            for j in range(0, n_in, BLOCK_IN):
                cols = j + col_block
                if EVEN_IN:
                    x = tl.load(x_ptrs + cols[None, :]).to(COMPUTE)
                else:
                    inside = (row_block < BLOCK_ROWS)[:, None] & (cols < n_in)[None, :]
                    x = tl.load(x_ptrs + cols[None, :], mask=inside, other=0.0).to(COMPUTE)
                f = canonical_value(x, breakpoints, coefficients, slope, offset, N_HIDDEN)
                acc += products(f, fc3_weight_ptr, cols, outs, n_in, n_out, BLOCK_OUT, COMPUTE)
            y = sum_features(acc, BLOCK_OUT) + c[None, :]
            inside = (rows < n_rows)[:, None] & (outs < n_out)[None, :]
            tl.store(y_ptr + rows[:, None] * n_out + outs[None, :], y, mask=inside)
            poison += y * 0.0
        plain = (fit == 0) | (tl.sum(poison) != 0.0)
        # the second loop reads what the first has written
        tl.debug_barrier()
    if plain:
        for i in range(start, n_rows, step):
            rows = i + row_block
            again = (rows < n_rows)[:, None] & (outs < n_out)[None, :]
            y_ptrs = y_ptr + rows[:, None] * n_out + outs[None, :]
            if CANONICAL:
                old = tl.load(y_ptrs, mask=again, other=0.0).to(COMPUTE)
                # value by value, so that no row depends on its neighbours
                again = again & ((fit == 0) | ((tl.abs(old) < float("inf")) == 0))
            acc = zero_products(BLOCK_ROWS, BLOCK_IN, BLOCK_OUT, COMPUTE)
            for j in range(0, n_in, BLOCK_IN):
                cols = j + col_block
                x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
                f = plain_value(
                    x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, 0, N_HIDDEN,
                    COMPUTE,
                )  # fmt: skip
                # beyond the last feature f(0) may be infinite
                f = tl.where((cols < n_in)[None, :], f, 0.0)
                acc += products(f, fc3_weight_ptr, cols, outs, n_in, n_out, BLOCK_OUT, COMPUTE)
            tl.store(y_ptrs, sum_features(acc, BLOCK_OUT) + c[None, :], mask=again)
