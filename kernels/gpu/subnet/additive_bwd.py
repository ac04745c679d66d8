"""Backward kernels of AdditiveMLP; their launchers are in additive_mlp.py."""

import triton
import triton.language as tl

from ..machine.tiles import (
    grid_place,
    load_column,
    load_pair,
    load_row,
    load_scalar,
    load_tile,
    load_upstream,
    sum_column,
    tile_size,
    zero_tiles,
)
from ..numbers.activations import is_tiny, order_of_size
from .canonical import (
    add_active,
    plain_slope,
    plain_value,
    steep_units,
    store_unit_gradients,
    unit_terms,
)


@triton.jit
def additive_mlp_bwd_x_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc3_weight_ptr, dx_ptr,
    n_rows, n_in, n_out, dy_row_stride, x_row_stride,
    N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """dx_ij = f'(x_ij) Σ_m dy_im V_mj.

    Shapes: x, dx [n_rows, n_in]; dy [n_rows, n_out]. Grid: blocks of rows x blocks of features.
    Reads 1, writes 1 value per element, reads n_out values per row and block of features.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
    g = load_upstream(
        dy_ptr, fc3_weight_ptr, rows, cols, n_rows, n_in, n_out, dy_row_stride, COMPUTE
    )
    slope = plain_slope(x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, N_HIDDEN, COMPUTE)
    inside = (rows < n_rows)[:, None] & (cols < n_in)[None, :]
    tl.store(dx_ptr + rows[:, None] * n_in + cols[None, :], g * slope, mask=inside)


@triton.jit
def store_plain_gradients(
    out_ptr, dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc3_weight_ptr,
    k, cols, length, n_in, n_out, dy_row_stride, x_row_stride,
    N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Write dw1, db1, dw2 of unit ``k`` over one piece as PyTorch has them for any x and dy."""
    w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
    b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
    w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
    dw1 = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    db1 = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    dw2 = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    for i in range(0, length, BLOCK_ROWS):
        rows = i + tl.arange(0, BLOCK_ROWS)
        inside = (rows < length)[:, None] & (cols < n_in)[None, :]
        x = load_tile(x_ptr, rows, cols, length, n_in, x_row_stride, COMPUTE)
        g = load_upstream(
            dy_ptr, fc3_weight_ptr, rows, cols, length, n_in, n_out, dy_row_stride, COMPUTE
        )
        dw1_term, db1_term, dw2_term = unit_terms(x, g, w1, b1, w2)
        dw1 += tl.where(inside, dw1_term, 0.0)
        db1 += tl.where(inside, db1_term, 0.0)
        dw2 += tl.where(inside, dw2_term, 0.0)
    tl.store(out_ptr + k, tl.sum(dw1))
    tl.store(out_ptr + N_HIDDEN + k, tl.sum(db1))
    tl.store(out_ptr + 2 * N_HIDDEN + k, tl.sum(dw2))


@triton.jit
def sum_plain_readout(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr,
    first, last, cols, length, n_in, dy_row_stride, x_row_stride,
    COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Σ_i dy_i f(x_ij) over one piece, f of units ``first`` to ``last``, for one output."""
    acc = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    for i in range(0, length, BLOCK_ROWS):
        rows = i + tl.arange(0, BLOCK_ROWS)
        inside = (rows < length)[:, None] & (cols < n_in)[None, :]
        x = load_tile(x_ptr, rows, cols, length, n_in, x_row_stride, COMPUTE)
        dy = load_column(dy_ptr, rows, length, dy_row_stride, COMPUTE)
        f = plain_value(
            x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, first, last, COMPUTE
        )
        acc += tl.where(inside, dy * f, 0.0)
    return tl.sum(acc, axis=0)


@triton.jit
def additive_mlp_bwd_params_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, fc3_weight_ptr,
    unit_partial_ptr, readout_partial_ptr, n_rows, n_in, n_out, dy_row_stride, x_row_stride,
    piece_rows,
    UNITS: tl.constexpr, N_HIDDEN: tl.constexpr, ONE_OUT: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, SUM_BLOCK: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """Sums a_kj = Σ_i g_ij [active], b_kj = Σ_i g_ij x_ij [active] of a piece of rows.

    With one output g = dy and V is applied to the sums, which then also give dV_j = Σ_k w2_k (w1_k
    b_kj + b1_k a_kj) + b2 Σ dy. With more, g_ij = Σ_m dy_im V_mj and dV has a kernel of its own.
    Shapes: x [n_rows, n_in]; dy [n_rows, n_out]; unit_partial [pieces x blocks of features,
    3 N_HIDDEN + 1]; readout_partial [pieces x groups of units, n_in + 1], for one output. Grid:
    pieces x groups of UNITS units x blocks of features, the last two as one if FOLDED. Reads 1
    value per element and group.
    """
    piece = tl.program_id(0).to(tl.int64)
    group, n_groups, block, n_blocks = grid_place(tl.cdiv(n_in, BLOCK_IN), FOLDED)
    # in 64 bits, so that the address of each unit is a constant away
    first = group.to(tl.int64) * UNITS
    start = piece * piece_rows
    length = tile_size(n_rows - start, piece_rows)
    x_ptr += start * x_row_stride
    dy_ptr += start * dy_row_stride
    cols = block * BLOCK_IN + tl.arange(0, BLOCK_IN)
    row_block = tl.arange(0, BLOCK_ROWS)
    unit_row = piece * n_blocks + block
    unit_ptr = unit_partial_ptr + unit_row * (3 * N_HIDDEN + 1)
    weights, biases, finite = steep_units(
        fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, first, UNITS, N_HIDDEN, COMPUTE
    )
    total_x = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    smallest = order_of_size(total_x)
    sums = zero_tiles(total_x, UNITS)
    sums_x = zero_tiles(total_x, UNITS)
    x0, g0 = load_pair(
        x_ptr, dy_ptr, fc3_weight_ptr, row_block, cols, length, n_in, n_out,
        x_row_stride, dy_row_stride, ONE_OUT, COMPUTE,
    )  # fmt: skip
    x1, g1 = load_pair(
        x_ptr, dy_ptr, fc3_weight_ptr, BLOCK_ROWS + row_block, cols, length, n_in, n_out,
        x_row_stride, dy_row_stride, ONE_OUT, COMPUTE,
    )  # fmt: skip
    for i in range(2 * BLOCK_ROWS, length + 2 * BLOCK_ROWS, 2 * BLOCK_ROWS):
        # two tiles are on their way while two are summed: registers leave room for only two
        # programs on a multiprocessor, which must hide the latency of memory
        next_x0, next_g0 = load_pair(
            x_ptr, dy_ptr, fc3_weight_ptr, i + row_block, cols, length, n_in, n_out,
            x_row_stride, dy_row_stride, ONE_OUT, COMPUTE,
        )  # fmt: skip
        next_x1, next_g1 = load_pair(
            x_ptr, dy_ptr, fc3_weight_ptr, i + BLOCK_ROWS + row_block, cols, length, n_in, n_out,
            x_row_stride, dy_row_stride, ONE_OUT, COMPUTE,
        )  # fmt: skip
        total_x += g0 * x0
        smallest = tl.minimum(smallest, order_of_size(x0))
        sums, sums_x = add_active(x0, g0, weights, biases, sums, sums_x, UNITS)
        total_x += g1 * x1
        smallest = tl.minimum(smallest, order_of_size(x1))
        sums, sums_x = add_active(x1, g1, weights, biases, sums, sums_x, UNITS)
        x0 = next_x0
        g0 = next_g0
        x1 = next_x1
        g1 = next_g1
    if first == 0:
        db2 = tl.zeros((), COMPUTE)
        for m in range(n_out):
            v = load_row(fc3_weight_ptr, m, cols, n_in, COMPUTE)
            db2 += sum_column(dy_ptr + m, length, dy_row_stride, SUM_BLOCK, COMPUTE) * tl.sum(v)
        tl.store(unit_ptr + 3 * N_HIDDEN, db2)
    if ONE_OUT:
        readout = load_row(fc3_weight_ptr, 0, cols, n_in, COMPUTE)[None, :]
    else:
        readout = tl.full((1, BLOCK_IN), 1.0, COMPUTE)
    # an infinite or NaN x or dy shows in g x
    regular = finite & (tl.abs(tl.sum(total_x)) < float("inf"))
    regular = regular & (is_tiny(tl.min(tl.min(smallest, axis=1), axis=0), COMPUTE) == 0)
    if regular:
        f_sums = store_unit_gradients(
            unit_ptr, sums, sums_x, readout, first, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr,
            UNITS, N_HIDDEN, COMPUTE,
        )  # fmt: skip
    else:
        f_sums = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
        for k in range(first, tl.minimum(first + UNITS, N_HIDDEN)):
            store_plain_gradients(
                unit_ptr, dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr,
                fc3_weight_ptr, k, cols, length, n_in, n_out, dy_row_stride, x_row_stride,
                N_HIDDEN, COMPUTE, BLOCK_ROWS, BLOCK_IN,
            )  # fmt: skip
    if ONE_OUT:
        # of all groups the first counts what does not depend on the unit
        b2 = load_scalar(fc2_bias_ptr, 0, first == 0, COMPUTE)
        total = sum_column(dy_ptr, length, dy_row_stride, SUM_BLOCK, COMPUTE)
        dv = tl.sum(f_sums, axis=0)
        if regular:
            dv += b2 * total
        else:
            dv += sum_plain_readout(
                dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr,
                first, tl.minimum(first + UNITS, N_HIDDEN), cols, length, n_in,
                dy_row_stride, x_row_stride, COMPUTE, BLOCK_ROWS, BLOCK_IN,
            )  # fmt: skip
        readout_row = piece * n_groups + group
        readout_ptr = readout_partial_ptr + readout_row * (n_in + 1)
        tl.store(readout_ptr + cols, dv, mask=cols < n_in)
        if block == 0:
            tl.store(readout_ptr + n_in, tl.where(first == 0, total, 0.0))
