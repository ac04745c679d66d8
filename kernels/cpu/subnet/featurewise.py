"""A subnet for each feature, the additive network Σ_j V[m, j]·f_j(x_j) + c[m] of `general.py`.

Work goes block by block of rows, in a block tile by tile: see `featurewise_loops.py`. Parameters
and their gradients are laid out over a tile's lanes, so that loops over them load vectors, however
few the features. ReLU without dropout goes over a tile with several units at a time, everything in
registers; the rest unit by unit. Reads x (and dy), writes y (dx), once.
"""

import numpy as np

from ..machine.jit import array_at, copy, entry, inner, vector_at, wide_vectors
from ..machine.launch import any_needed, store
from ..numbers.block_activations import CODES
from ..numbers.philox import MASKS_PER_BLOCK, UNIT_MASK, draw_factors, seed_at_address
from .canonical import all_finite
from .featurewise_loops import (
    DX_AT,
    F_AT,
    FACTORS_AT,
    G_AT,
    LANES,
    TILE_ROWS,
    VALUES,
    VALUES_AND_SUMS,
    add_columns,
    add_up,
    chosen_unit,
    draw_lanes,
    from_lanes,
    into_lanes,
    lane_width,
    lay_out,
    relu_units,
)
from .general_loops import TILE, multiply
from .readout import add_bias_gradient, add_readout_gradient, gradient_at_f, read_out

RELU = CODES["relu"]

RELU_UNITS_OF_WORK = 2
"""What a unit of ReLU without dropout costs here, in canonical units: see :data:`launch.PIECE`."""


def rows_in_block(n_in):
    """Whole rows that fill a tile, or the tiles of all chunks of features."""
    return TILE_ROWS * max(1, LANES // n_in)


block_of = inner(rows_in_block)


@inner
def _over_lanes(d, real):
    """One number a feature as one a lane, chunk after chunk."""
    lanes = np.zeros((d.size + LANES - 1) // LANES * LANES, real)
    for j in range(0, d.size, LANES):
        for l in range(lane_width(d.size, j)):
            lanes[j + l] = d[j + l % d.size]
    return lanes


@inner
def _draw_factors_of_unit(seed, place, stride, n, width, k, p, words, factors, real):
    """The factors of hidden unit k; ``words`` is as the unit before left it."""
    mask = UNIT_MASK + k
    if mask % MASKS_PER_BLOCK == 0:
        draw_lanes(seed, place, stride, n, width, mask // MASKS_PER_BLOCK, words)
    draw_factors(words, mask, p, n * LANES, factors, real)


@inner
def _lane_chunk(n_in, j, size):
    """The lanes from feature ``j`` on in a block of ``size`` numbers.

    Lanes of a lane row, numbers from one lane row to the next, lane rows, lanes of the last.
    """
    width = lane_width(n_in, j)
    stride = max(width, n_in)
    rows = (size - j + stride - 1) // stride
    return width, stride, rows, min(width, size - j - (rows - 1) * stride)


@entry
def forward(real):
    add_unit, _ = chosen_unit(real)
    add_relu_units, _ = relu_units(real)

    def featurewise_fwd(
        x_at,
        w_at,
        b_at,
        v_at,
        d_at,
        readout_at,
        c_at,
        seed_at,
        activation,
        p_input,
        p_hidden,
        p_output,
        n_hidden,
        n_in,
        n_out,
        y_at,
        first,
        last,
    ):
        wide_vectors()
        n = n_in * n_hidden
        w, b, v = vector_at(w_at, n, real), vector_at(b_at, n, real), vector_at(v_at, n, real)
        n_chunks = (n_in + LANES - 1) // LANES
        units = np.zeros(n_chunks * n_hidden * VALUES * LANES, real)
        lay_out(w, b, v, n_in, VALUES, units, real)
        d_lanes = _over_lanes(vector_at(d_at, n_in, real), real)
        c = vector_at(c_at, n_out, real)
        readout = array_at(readout_at, n_out * n_in, real)
        seed = seed_at_address(seed_at)
        x, y = array_at(x_at, last * n_in, real), array_at(y_at, last * n_out, real)
        block_rows = block_of(n_in)
        scratch, f = np.zeros(3 * TILE, real), np.empty(block_rows * n_in, real)
        xt, ft = scratch[:TILE], scratch[F_AT : F_AT + np.uintp(TILE)]
        factors = scratch[FACTORS_AT:]
        words, output_factors = np.zeros((4, TILE), np.uint32), np.empty(TILE, real)
        for start in range(first, last, block_rows):
            n_rows = min(block_rows, last - start)
            size = n_rows * n_in
            for j in range(0, n_in, LANES):
                width, stride, rows, last_width = _lane_chunk(n_in, j, size)
                place = start * n_in + j
                into_lanes(x[start * n_in : start * n_in + size], j, stride, width, xt)
                if seed_at != 0:
                    draw_lanes(seed, place, stride, rows, width, 0, words)
                if p_input > 0:
                    draw_factors(words, 0, p_input, TILE, factors, real)
                    multiply(xt, factors, TILE)
                if p_output > 0:
                    draw_factors(words, 1, p_output, TILE, output_factors, real)
                into_lanes(d_lanes, j, 0, width, ft)
                at = j * n_hidden * VALUES
                if activation == RELU and p_hidden == 0:
                    add_relu_units(scratch, units, at, n_hidden, rows)
                else:
                    for k in range(n_hidden):
                        if p_hidden > 0:
                            _draw_factors_of_unit(
                                seed, place, stride, rows, width, k, p_hidden, words, factors, real
                            )
                        unit = at + k * VALUES * LANES
                        add_unit(
                            activation, scratch, units, unit, rows, width, last_width, p_hidden > 0
                        )
                if p_output > 0:
                    multiply(ft, output_factors, TILE)
                from_lanes(ft, j, stride, width, size, f)
            read_out(f, readout, c, n_rows, n_in, n_out, y, start, real)

    return featurewise_fwd


@entry
def backward(real):
    _, add_unit_gradients = chosen_unit(real)
    _, add_relu_units = relu_units(real)

    def featurewise_bwd(
        dy_at,
        x_at,
        w_at,
        b_at,
        v_at,
        d_at,
        readout_at,
        seed_at,
        activation,
        p_input,
        p_hidden,
        p_output,
        n_hidden,
        n_in,
        n_out,
        dx_at,
        sums_at,
        dw_at,
        db_at,
        dv_at,
        dd_at,
        dreadout_at,
        dc_at,
        first,
        last,
    ):
        wide_vectors()
        gradients_at = (dw_at, db_at, dv_at, dd_at, dreadout_at, dc_at)
        n = n_in * n_hidden
        sizes = (n, n, n, n_in, n_out * n_in, n_out)
        w, b, v = vector_at(w_at, n, real), vector_at(b_at, n, real), vector_at(v_at, n, real)
        n_chunks = (n_in + LANES - 1) // LANES
        units = np.zeros(n_chunks * n_hidden * VALUES_AND_SUMS * LANES, real)
        regular_net = lay_out(w, b, v, n_in, VALUES_AND_SUMS, units, real)
        d_lanes = _over_lanes(vector_at(d_at, n_in, real), real)
        dd_lanes = np.zeros_like(d_lanes)
        readout, dreadout = array_at(readout_at, n_out * n_in, real), np.zeros(n_out * n_in, real)
        dc = np.zeros(n_out, np.float64)
        seed = seed_at_address(seed_at)
        dy, x = array_at(dy_at, last * n_out, real), array_at(x_at, last * n_in, real)
        dx = array_at(dx_at, last * n_in, real)
        block_rows = block_of(n_in)
        scratch = np.zeros(5 * TILE, real)
        xt, ft = scratch[:TILE], scratch[F_AT : F_AT + np.uintp(TILE)]
        gt, dxt = scratch[G_AT : G_AT + np.uintp(TILE)], scratch[DX_AT:]
        factors = scratch[FACTORS_AT : FACTORS_AT + np.uintp(TILE)]
        g, f = np.empty(block_rows * n_in, real), np.empty(block_rows * n_in, real)
        words = np.zeros((4, TILE), np.uint32)
        input_factors, output_factors = np.empty(TILE, real), np.empty(TILE, real)
        for start in range(first, last, block_rows):
            n_rows = min(block_rows, last - start)
            size = n_rows * n_in
            dys = dy[start * n_out : (start + n_rows) * n_out]
            gradient_at_f(dys, readout, n_rows, n_in, n_out, g)
            for j in range(0, n_in, LANES):
                width, stride, rows, last_width = _lane_chunk(n_in, j, size)
                place = start * n_in + j
                into_lanes(x[start * n_in : start * n_in + size], j, stride, width, xt)
                into_lanes(g[:size], j, stride, width, gt)
                if seed_at != 0:
                    draw_lanes(seed, place, stride, rows, width, 0, words)
                if p_input > 0:
                    draw_factors(words, 0, p_input, TILE, input_factors, real)
                    multiply(xt, input_factors, TILE)
                if p_output > 0:
                    draw_factors(words, 1, p_output, TILE, output_factors, real)
                    multiply(gt, output_factors, TILE)
                add_columns(gt, dd_lanes[j : j + LANES])
                into_lanes(d_lanes, j, 0, width, ft)
                dxt[:] = 0
                at = j * n_hidden * VALUES_AND_SUMS
                regular = activation == RELU and p_hidden == 0 and regular_net
                if regular and all_finite(xt, real) and all_finite(gt, real):
                    add_relu_units(scratch, units, at, n_hidden, rows)
                    for e in range(TILE):
                        slope = dxt[e]
                        ft[e] += slope * xt[e]
                        dxt[e] = slope * gt[e]
                else:
                    for k in range(n_hidden):
                        if p_hidden > 0:
                            _draw_factors_of_unit(
                                seed, place, stride, rows, width, k, p_hidden, words, factors, real
                            )
                        unit = at + k * VALUES_AND_SUMS * LANES
                        add_unit_gradients(
                            activation, scratch, units, unit, rows, width, last_width, p_hidden > 0
                        )
                if dx_at != 0:
                    if p_input > 0:
                        multiply(dxt, input_factors, TILE)
                    end = start * n_in + size
                    from_lanes(dxt, j, stride, width, size, dx[start * n_in : end])
                if p_output > 0:
                    multiply(ft, output_factors, TILE)
                from_lanes(ft, j, stride, width, size, f)
            add_readout_gradient(dys, f, n_rows, n_in, n_out, dreadout)
            add_bias_gradient(dys, n_rows, n_out, dc)
        if not any_needed(sums_at, gradients_at):
            return
        sums = np.zeros(3 * n + n_in + n_out * n_in + n_out, np.float64)
        for j in range(0, n_in, LANES):
            width, at = lane_width(n_in, j), j * n_hidden * VALUES_AND_SUMS
            add_up(units, at, n_in, j, width, n_hidden, sums)
            for l in range(width):
                sums[3 * n + j + l % n_in] += dd_lanes[j + l]
        at_dreadout = 3 * n + n_in
        copy(dreadout, sums[at_dreadout : at_dreadout + n_out * n_in])
        copy(dc, sums[at_dreadout + n_out * n_in :])
        store(sums, sums_at, gradients_at, sizes, real)

    return featurewise_bwd
