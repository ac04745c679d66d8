"""Forward kernel of the general subnets; its launcher is in general.py."""

import triton
import triton.language as tl

from ..machine.tiles import load_tile, products, sum_features, zero_products
from ..numbers.philox import load_key
from .general_units import subnet_value


@triton.jit
def general_fwd_kernel(
    x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, fc3_weight_ptr,
    fc3_bias_ptr, seed_ptr, y_ptr, n_rows, n_in, n_out, x_row_stride,
    ACT: tl.constexpr, N_HIDDEN: tl.constexpr, FEATUREWISE: tl.constexpr, DROPOUT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """y_im = Σ_j V_mj f_j(x_ij) + c_m; V is 1 where absent, for one feature.

    Shapes: x [n_rows, n_in]; V [n_out, n_in]; y [n_rows, n_out]. Grid: blocks of rows x blocks of
    outputs. Reads 1 value per element and block of outputs, writes n_out values per row.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    outs = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    key = load_key(seed_ptr)
    acc = zero_products(BLOCK_ROWS, BLOCK_IN, BLOCK_OUT, COMPUTE)
    for j in range(0, n_in, BLOCK_IN):
        cols = j + tl.arange(0, BLOCK_IN)
        x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
        f = subnet_value(
            x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, rows, cols, n_in, key,
            N_HIDDEN, ACT, FEATUREWISE, DROPOUT, COMPUTE,
        )  # fmt: skip
        # beyond the last feature f may be infinite
        f = tl.where((cols < n_in)[None, :], f, 0.0)
        if fc3_weight_ptr is None:
            acc += f
        else:
            acc += products(f, fc3_weight_ptr, cols, outs, n_in, n_out, BLOCK_OUT, COMPUTE)
    y = sum_features(acc, BLOCK_OUT)
    if fc3_bias_ptr is not None:
        y += tl.load(fc3_bias_ptr + outs, mask=outs < n_out, other=0.0).to(COMPUTE)[None, :]
    inside = (rows < n_rows)[:, None] & (outs < n_out)[None, :]
    tl.store(y_ptr + rows[:, None] * n_out + outs[None, :], y, mask=inside)
