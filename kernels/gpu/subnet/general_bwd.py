"""Backward kernels of the general subnets; their launchers are in general.py."""

import triton
import triton.language as tl

from ..machine.tiles import (
    append,
    grid_place,
    load_column,
    load_row,
    load_tile,
    load_upstream,
    sum_column,
    tile_size,
    zero_tiles,
)
from ..numbers.activations import preactivation, relu_pair, times_slope
from ..numbers.philox import load_key, philox
from .canonical import plain_value
from .general_units import (
    drop,
    first_words,
    load_unit,
    subnet_value,
    sum_units,
)


@triton.jit
def upstream(
    dy_ptr, fc3_weight_ptr, rows, cols, last_row, n_in, n_out, dy_row_stride,
    WEIGHTED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A tile of Σ_m dy_im V_mj, or of dy_i if not WEIGHTED; 0 outside."""
    if WEIGHTED:
        return load_upstream(
            dy_ptr, fc3_weight_ptr, rows, cols, last_row, n_in, n_out, dy_row_stride, COMPUTE
        )
    else:
        dy = load_column(dy_ptr, rows, last_row, dy_row_stride, COMPUTE)
        return tl.where((cols < n_in)[None, :], dy, 0.0)


@triton.jit
def general_bwd_x_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc3_weight_ptr, seed_ptr, dx_ptr,
    n_rows, n_in, n_out, dy_row_stride, x_row_stride,
    ACT: tl.constexpr, N_HIDDEN: tl.constexpr, FEATUREWISE: tl.constexpr, DROPOUT: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """dx_ij = f_j'(x_ij) Σ_m dy_im V_mj.

    Shapes: x, dx [n_rows, n_in]; dy [n_rows, n_out]. Grid: blocks of rows x blocks of features.
    Reads 1, writes 1 value per element, reads n_out values per row and block of features.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
    g = upstream(
        dy_ptr, fc3_weight_ptr, rows, cols, n_rows, n_in, n_out, dy_row_stride,
        fc3_weight_ptr is not None, COMPUTE,
    )  # fmt: skip
    key = load_key(seed_ptr)
    place, words = first_words(x, key, rows, cols, n_in, DROPOUT)
    slope = sum_units(
        drop(x, words, 0, 0, DROPOUT), fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, cols, n_in,
        key, place, words, N_HIDDEN, ACT, True, FEATUREWISE, DROPOUT, COMPUTE,
    )  # fmt: skip
    dx = drop(drop(g, words, 1, 2, DROPOUT) * slope, words, 0, 0, DROPOUT)
    inside = (rows < n_rows)[:, None] & (cols < n_in)[None, :]
    tl.store(dx_ptr + rows[:, None] * n_in + cols[None, :], dx, mask=inside)


@triton.jit
def unit_words(
    key, place, words, group, FIRST_MASK: tl.constexpr, UNITS: tl.constexpr, DROPOUT: tl.constexpr
):
    """Words of the masks of a group of units, of which the first is mask FIRST_MASK of them."""
    if DROPOUT[2] < 0:
        return words
    elif FIRST_MASK == 0:
        # one of several groups: the units of one counter
        return philox(key, place, group)
    elif FIRST_MASK + UNITS > 8:
        return words + philox(key, place, 1)
    else:
        return words


@triton.jit
def add_unit_sums(
    x, g, inside, weights, biases, words, slopes, slopes_x, values,
    FIRST_MASK: tl.constexpr, UNITS: tl.constexpr, ACT: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Add g m σ'(z), g m σ'(z) x and g m σ(z) of each unit to its sums."""
    next_slopes = ()
    next_slopes_x = ()
    next_values = ()
    for i in tl.static_range(UNITS):
        # outside, where g is 0, a parameter that is infinite must not show
        z = tl.where(inside, preactivation(x, weights[i], biases[i]), 0.0)
        value, slope = ACT(z)
        g_unit = drop(g, words, FIRST_MASK + i, 1, DROPOUT)
        dz = times_slope(g_unit, slope, ACT)
        next_slopes = append(next_slopes, slopes[i] + dz)
        next_slopes_x = append(next_slopes_x, slopes_x[i] + dz * x)
        next_values = append(next_values, values[i] + g_unit * value)
    return next_slopes, next_slopes_x, next_values


@triton.jit
def store_sum(out_ptr, terms, k, cols, n_in, valid, N: tl.constexpr, FEATUREWISE: tl.constexpr):
    """Write the sum of a tile at ``k``, or for each feature the sum over rows at [cols, k]."""
    if FEATUREWISE:
        ptrs = out_ptr + cols.to(tl.int64) * N + k
        tl.store(ptrs, tl.sum(terms, axis=0), mask=(cols < n_in) & valid)
    else:
        tl.store(out_ptr + k, tl.sum(terms), mask=valid)


@triton.jit
def general_bwd_params_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, fc3_weight_ptr,
    seed_ptr, unit_partial_ptr, readout_partial_ptr,
    n_rows, n_in, n_out, dy_row_stride, x_row_stride, piece_rows,
    ACT: tl.constexpr, N_HIDDEN: tl.constexpr, UNITS: tl.constexpr, FIRST_MASK: tl.constexpr,
    FEATUREWISE: tl.constexpr, ONE_OUT: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, SUM_BLOCK: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """Σ_i g σ'(z), Σ_i g σ'(z) x, Σ_i g σ(z) of a piece of rows, for each unit and feature.

    From them dw1, db1, dw2, db2. With one output g = dy and V is applied to the sums, which then
    also give dV_j = Σ_k w2_k Σ_i dy_i σ(z_ijk) + b2 Σ_i dy_i; all with the masks. With more,
    g_ij = Σ_m dy_im V_mj and dV has a kernel of its own.
    Shapes: x [n_rows, n_in]; dy [n_rows, n_out]; unit_partial [pieces x blocks of features,
    3 N_HIDDEN + 1], or [pieces, n_in (3 N_HIDDEN + 1)] if FEATUREWISE; readout_partial [pieces x
    groups of units, n_in + 1], for one output. Grid: pieces x groups of UNITS units x blocks of
    features, the last two as one if FOLDED. Reads 1 value per element and group.
    """
    piece = tl.program_id(0).to(tl.int64)
    group, n_groups, block, n_blocks = grid_place(tl.cdiv(n_in, BLOCK_IN), FOLDED)
    # masks 0 and 1 are no units'
    first = group * UNITS + FIRST_MASK
    if DROPOUT[2] >= 0:
        first -= 2
    start = piece * piece_rows
    length = tile_size(n_rows - start, piece_rows)
    x_ptr += start * x_row_stride
    dy_ptr += start * dy_row_stride
    cols = block * BLOCK_IN + tl.arange(0, BLOCK_IN)
    key = load_key(seed_ptr)
    weights = ()
    biases = ()
    for i in tl.static_range(UNITS):
        k = first + i
        valid = (k >= 0) & (k < N_HIDDEN)
        weight = load_unit(fc1_weight_ptr, k, cols, n_in, valid, FEATUREWISE, COMPUTE)
        bias = load_unit(fc1_bias_ptr, k, cols, n_in, valid, FEATUREWISE, COMPUTE)
        weights = append(weights, weight)
        biases = append(biases, bias)
    total = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    slopes = zero_tiles(total, UNITS)
    slopes_x = zero_tiles(total, UNITS)
    values = zero_tiles(total, UNITS)
    for i in range(0, length, BLOCK_ROWS):
        rows = i + tl.arange(0, BLOCK_ROWS)
        inside = (rows < length)[:, None] & (cols < n_in)[None, :]
        x = load_tile(x_ptr, rows, cols, length, n_in, x_row_stride, COMPUTE)
        g = upstream(
            dy_ptr, fc3_weight_ptr, rows, cols, length, n_in, n_out, dy_row_stride,
            not ONE_OUT, COMPUTE,
        )  # fmt: skip
        place, words = first_words(x, key, start + rows, cols, n_in, DROPOUT)
        x = drop(x, words, 0, 0, DROPOUT)
        g = drop(g, words, 1, 2, DROPOUT)
        total += g
        words = unit_words(key, place, words, group, FIRST_MASK, UNITS, DROPOUT)
        slopes, slopes_x, values = add_unit_sums(
            x, g, inside, weights, biases, words, slopes, slopes_x, values,
            FIRST_MASK, UNITS, ACT, DROPOUT,
        )  # fmt: skip
    if ONE_OUT and fc3_weight_ptr is not None:
        readout = load_row(fc3_weight_ptr, 0, cols, n_in, COMPUTE)[None, :]
    else:
        readout = tl.full((1, BLOCK_IN), 1.0, COMPUTE)
    n_nets = 1
    if FEATUREWISE:
        n_nets = n_in
        unit_ptr = unit_partial_ptr + piece * n_in * (3 * N_HIDDEN + 1)
    else:
        unit_row = piece * n_blocks + block
        unit_ptr = unit_partial_ptr + unit_row * (3 * N_HIDDEN + 1)
    size = tl.cast(n_nets, tl.int64) * N_HIDDEN
    f_sums = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    for i in tl.static_range(UNITS):
        k = first + i
        valid = (k >= 0) & (k < N_HIDDEN)
        w2 = load_unit(fc2_weight_ptr, k, cols, n_in, valid, FEATUREWISE, COMPUTE)
        # an infinite x shows in a unit that does not exist
        f_sums += tl.where(valid, w2 * values[i], 0.0)
        dw1 = w2 * (slopes_x[i] * readout)
        db1 = w2 * (slopes[i] * readout)
        if relu_pair == ACT:
            # dead: 0 whatever w2 and V are
            dw1 = tl.where(slopes_x[i] == 0.0, 0.0, dw1)
            db1 = tl.where(slopes[i] == 0.0, 0.0, db1)
        dw2 = values[i] * readout
        store_sum(unit_ptr, dw1, k, cols, n_in, valid, N_HIDDEN, FEATUREWISE)
        store_sum(unit_ptr + size, db1, k, cols, n_in, valid, N_HIDDEN, FEATUREWISE)
        store_sum(unit_ptr + 2 * size, dw2, k, cols, n_in, valid, N_HIDDEN, FEATUREWISE)
    if group == 0:
        store_sum(unit_ptr + 3 * size, total * readout, 0, cols, n_in, True, 1, FEATUREWISE)
        # of all groups the first counts what does not depend on the unit
        f_sums += total * load_unit(fc2_bias_ptr, 0, cols, n_in, True, FEATUREWISE, COMPUTE)
    if ONE_OUT and fc3_weight_ptr is not None:
        readout_ptr = readout_partial_ptr + (piece * n_groups + group) * (n_in + 1)
        tl.store(readout_ptr + cols, tl.sum(f_sums, axis=0), mask=cols < n_in)
        if block == 0:
            dc = sum_column(dy_ptr, length, dy_row_stride, SUM_BLOCK, COMPUTE)
            tl.store(readout_ptr + n_in, tl.where(group == 0, dc, 0.0))


@triton.jit
def general_bwd_readout_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, seed_ptr,
    readout_partial_ptr, n_rows, n_in, n_out, dy_row_stride, x_row_stride, piece_rows,
    ACT: tl.constexpr, N_HIDDEN: tl.constexpr, FEATUREWISE: tl.constexpr, DROPOUT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
    FOLDED: tl.constexpr,
):  # fmt: skip
    """dV_mj = Σ_i dy_im f_j(x_ij) and dc_m = Σ_i dy_im of a piece of rows, for several outputs.

    Without ``ACT`` f is the one ReLU subnet of the canonical form's ops, without dropout.
    Shapes: x [n_rows, n_in]; dy [n_rows, n_out]; readout_partial [pieces, n_out n_in + n_out].
    Grid: pieces x blocks of features x blocks of outputs, the last two as one if FOLDED. Reads 1
    value per element and block of outputs.
    """
    piece = tl.program_id(0).to(tl.int64)
    start = piece * piece_rows
    stop = tl.minimum(start + piece_rows, n_rows)
    block, _, block_out, _ = grid_place(tl.cdiv(n_out, BLOCK_OUT), FOLDED)
    cols = block * BLOCK_IN + tl.arange(0, BLOCK_IN)
    outs = block_out * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    key = load_key(seed_ptr)
    dv = tl.zeros((BLOCK_ROWS, BLOCK_IN, BLOCK_OUT), COMPUTE)
    dc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), COMPUTE)
    for i in range(start, stop, BLOCK_ROWS):
        rows = i + tl.arange(0, BLOCK_ROWS)
        x = load_tile(x_ptr, rows, cols, stop, n_in, x_row_stride, COMPUTE)
        dy = load_tile(dy_ptr, rows, outs, stop, n_out, dy_row_stride, COMPUTE)
        if ACT is None:
            f = plain_value(
                x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, 0, N_HIDDEN,
                COMPUTE,
            )  # fmt: skip
        else:
            f = subnet_value(
                x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, rows, cols, n_in,
                key, N_HIDDEN, ACT, FEATUREWISE, DROPOUT, COMPUTE,
            )  # fmt: skip
        # beyond the last row f may be infinite
        f = tl.where((rows < stop)[:, None], f, 0.0)
        dv += f[:, :, None] * dy[:, None, :]
        dc += dy
    row_ptr = readout_partial_ptr + piece * (n_out * n_in + n_out)
    inside = (cols < n_in)[:, None] & (outs < n_out)[None, :]
    tl.store(row_ptr + outs[None, :] * n_in + cols[:, None], tl.sum(dv, axis=0), mask=inside)
    if block == 0:
        tl.store(row_ptr + n_out * n_in + outs, tl.sum(dc, axis=0), mask=outs < n_out)
