"""Scalar subnets that the canonical form does not cover, unit by unit and number by number:

    f_j(x) = m^o·(Σ_k v_jk·m_k·σ(w_jk·m^i·x + b_jk) + d_j)

with any activation σ, one subnet for all features (here) or one for each (`featurewise.py`), and
dropout factors m of `numbers/philox.py`. Both ops use it, `elementwise_mlp` as rows of one
feature without a read-out.

Work goes tile by tile, a tile being some whole rows of numbers in a level-1 cache. Backward
computes f again; neither hidden activations nor masks exist beyond a tile and unit. Reads x (and
dy), writes y (dx), once.
"""

import numpy as np
import torch

from ..machine.jit import array_at, copy, entry, inner, vector_at, wide_vectors
from ..machine.launch import any_needed, cut, prepare, prepare_as, result_at, run, run_summed, store
from ..numbers.block_activations import CODES
from ..numbers.philox import (
    AT_ONCE,
    MASKS_PER_WORD,
    UNIT_MASK,
    draw_kept,
    kept_bit,
    limits_of,
    multiply_kept,
    scale_of,
    seed_at_address,
)
from . import featurewise
from .general_loops import TILE, chosen_unit
from .readout import add_bias_gradient, add_readout_gradient, gradient_at_f, read_out

UNITS_OF_WORK = 8
"""What a unit costs here, in canonical units: see :data:`launch.PIECE`."""


def is_canonical(fc1_weight, seed, activation):
    """Whether this is one ReLU subnet for all, without dropout: what the canonical form covers."""
    return activation == "relu" and seed is None and fc1_weight.dim() == 2


def rows_in(n, n_in):
    """Whole rows of a tile of about n numbers."""
    return max(1, n // n_in)


whole_rows = inner(rows_in)


INPUT_BIT, OUTPUT_BIT = np.uint32(1), np.uint32(1 << 16)
"""Those of masks 0 and 1 in the words of the first masks."""


@inner
def _draw_first(seed, place, n, p_input, p_hidden, p_output, n_hidden, kept):
    """The first masks of the numbers at ``place`` + e, e < n: of input, output, then units."""
    n_masks = UNIT_MASK + (n_hidden if p_hidden > 0 else 0)
    first, rest = limits_of(p_input, p_output), limits_of(p_hidden, p_hidden)
    draw_kept(seed, place, 0, n_masks, first, rest, n, kept)


@inner
def _draw_unit(seed, place, k, p_hidden, n_hidden, n, kept):
    """Unit k's bit of the masks of the numbers at ``place`` + e, drawn anew with every 32nd."""
    mask = UNIT_MASK + k
    if mask % MASKS_PER_WORD == 0:
        limits = limits_of(p_hidden, p_hidden)
        group = mask // MASKS_PER_WORD
        draw_kept(seed, place, group, UNIT_MASK + n_hidden, limits, limits, n, kept)
    return kept_bit(mask)


@entry
def forward(real):
    add_unit, _ = chosen_unit(real)

    def general_fwd(
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
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        readout, c = array_at(readout_at, n_out * n_in, real), vector_at(c_at, n_out, real)
        seed = seed_at_address(seed_at)
        x, y = array_at(x_at, last * n_in, real), array_at(y_at, last * n_out, real)
        tile = n_in * whole_rows(TILE, n_in)
        first_kept, kept = np.empty(tile + AT_ONCE, np.uint32), np.empty(TILE, np.uint32)
        scratch = np.empty(2 * TILE, real)
        xt, ft = np.empty(tile, real), np.empty(tile, real)
        scales = scale_of(p_input, real), scale_of(p_hidden, real), scale_of(p_output, real)
        for start in range(first * n_in, last * n_in, tile):
            n = min(tile, last * n_in - start)
            xs, f = xt[:n], ft[:n]
            copy(x[start : start + n], xs)
            if seed_at != 0:
                _draw_first(seed, start, n, p_input, p_hidden, p_output, n_hidden, first_kept)
            if p_input > 0:
                multiply_kept(xs, first_kept, INPUT_BIT, scales[0], n, real)
            for at in range(0, n, TILE):
                m = min(TILE, n - at)
                copy(xs[at : at + m], scratch[:m])
                scratch[TILE : TILE + m] = d
                for k in range(n_hidden):
                    bit, bits = np.uint32(0), first_kept[at : at + m]
                    if p_hidden > 0:
                        bit = _draw_unit(seed, start + at, k, p_hidden, n_hidden, m, kept)
                        if UNIT_MASK + k >= MASKS_PER_WORD:
                            bits = kept
                    add_unit(activation, scratch, m, w[k], b[k], v[k], bits, bit, scales[1])
                copy(scratch[TILE : TILE + m], f[at : at + m])
            if p_output > 0:
                multiply_kept(f, first_kept, OUTPUT_BIT, scales[2], n, real)
            if readout_at == 0:
                copy(f, y[start : start + n])
            else:
                read_out(f, readout, c, n // n_in, n_in, n_out, y, start // n_in, real)

    return general_fwd


@entry
def backward(real):
    _, add_unit_gradients = chosen_unit(real)

    def general_bwd(
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
        gradients_at = (dw_at, db_at, dv_at, dd_at, dreadout_at, dc_at)
        n_read, n_c = (n_out * n_in, n_out) if readout_at != 0 else (0, 0)
        sizes = (n_hidden, n_hidden, n_hidden, 1, n_read, n_c)
        wide_vectors()
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        sums = np.zeros(3 * n_hidden + 1 + n_read + n_c, np.float64)
        at_db, at_dv, at_dd = n_hidden, 2 * n_hidden, 3 * n_hidden
        at_dreadout = at_dd + 1
        readout = array_at(readout_at, n_out * n_in, real)
        dreadout, dc = np.zeros(n_read, real), np.zeros(n_c, np.float64)
        seed = seed_at_address(seed_at)
        dy, x = array_at(dy_at, last * n_out, real), array_at(x_at, last * n_in, real)
        dx = array_at(dx_at, last * n_in, real)
        tile = n_in * whole_rows(TILE, n_in)
        first_kept, kept = np.empty(tile + AT_ONCE, np.uint32), np.empty(TILE, np.uint32)
        scratch = np.empty(4 * TILE, real)
        xt, ft, gt = np.empty(tile, real), np.empty(tile, real), np.empty(tile, real)
        dxt = np.empty(tile, real)
        scales = scale_of(p_input, real), scale_of(p_hidden, real), scale_of(p_output, real)
        for start in range(first * n_in, last * n_in, tile):
            n = min(tile, last * n_in - start)
            xs, f, g, dxs = xt[:n], ft[:n], gt[:n], dxt[:n]
            row, n_rows = start // n_in, n // n_in
            copy(x[start : start + n], xs)
            if seed_at != 0:
                _draw_first(seed, start, n, p_input, p_hidden, p_output, n_hidden, first_kept)
            if p_input > 0:
                multiply_kept(xs, first_kept, INPUT_BIT, scales[0], n, real)
            dys = dy[row * n_out : (row + n_rows) * n_out]
            if readout_at == 0:
                copy(dys, g)
            else:
                gradient_at_f(dys, readout, n_rows, n_in, n_out, g)
            if p_output > 0:
                multiply_kept(g, first_kept, OUTPUT_BIT, scales[2], n, real)
            for at in range(0, n, TILE):
                m = min(TILE, n - at)
                copy(xs[at : at + m], scratch[:m])
                scratch[TILE : TILE + m] = d
                copy(g[at : at + m], scratch[2 * TILE : 2 * TILE + m])
                scratch[3 * TILE :] = 0
                for e in range(m):
                    sums[at_dd] += g[at + e]
                for k in range(n_hidden):
                    bit, bits = np.uint32(0), first_kept[at : at + m]
                    if p_hidden > 0:
                        bit = _draw_unit(seed, start + at, k, p_hidden, n_hidden, m, kept)
                        if UNIT_MASK + k >= MASKS_PER_WORD:
                            bits = kept
                    dwk, dbk, dvk = add_unit_gradients(
                        activation, scratch, m, w[k], b[k], v[k], bits, bit, scales[1]
                    )
                    sums[k] += dwk
                    sums[at_db + k] += dbk
                    sums[at_dv + k] += dvk
                copy(scratch[TILE : TILE + m], f[at : at + m])
                copy(scratch[3 * TILE : 3 * TILE + m], dxs[at : at + m])
            if dx_at != 0:
                if p_input > 0:
                    multiply_kept(dxs, first_kept, INPUT_BIT, scales[0], n, real)
                copy(dxs, dx[start : start + n])
            if readout_at != 0:
                if p_output > 0:
                    multiply_kept(f, first_kept, OUTPUT_BIT, scales[2], n, real)
                add_readout_gradient(dys, f, n_rows, n_in, n_out, dreadout)
                add_bias_gradient(dys, n_rows, n_out, dc)
        if not any_needed(sums_at, gradients_at):
            return
        for j in range(n_read):
            sums[at_dreadout + j] = dreadout[j]
        copy(dc, sums[at_dreadout + n_read :])
        store(sums, sums_at, gradients_at, sizes, real)

    return general_bwd


def _sizes(x, fc1_weight, fc3_weight):
    """Rows, units, features and outputs: for an elementwise subnet each number is a row."""
    n_hidden = fc1_weight.shape[-2]
    if fc3_weight is None:
        return x.numel(), n_hidden, 1, 1
    return x.shape[0], n_hidden, x.shape[1], fc3_weight.shape[0]


def _options(seed, activation, dropout):
    """The kernels' arguments that say which subnet it is."""
    seed_at = 0 if seed is None else seed.data_ptr()
    return seed_at, CODES[activation], *(dropout or (0.0, 0.0, 0.0))


def _cut(fc1_weight, n_rows, n_in, n_hidden, activation, dropout):
    """Rows per piece and number of pieces."""
    if fc1_weight.dim() == 2:
        return cut(n_rows, UNITS_OF_WORK * n_in * n_hidden, rows_in(TILE, n_in))
    quick = activation == "relu" and not any(dropout)
    units = featurewise.RELU_UNITS_OF_WORK if quick else UNITS_OF_WORK
    return cut(n_rows, units * n_in * n_hidden, featurewise.rows_in_block(n_in))


def general_fwd(x, fc1_weight, *arguments):
    """y [N, M] from x [N, F]; without a read-out y of the shape of x."""
    *parameters, seed, activation = arguments[:7]
    fc3_weight, dropout = parameters[3], arguments[7:]
    dtype, compute, _held, addresses = prepare(x, fc1_weight, *parameters)
    n_rows, n_hidden, n_in, n_out = _sizes(x, fc1_weight, fc3_weight)
    if fc3_weight is None:
        y = x.new_empty(x.shape, dtype=dtype)
    else:
        y = x.new_empty(n_rows, n_out, dtype=dtype)
    kernels = forward if fc1_weight.dim() == 2 else featurewise.forward
    run(
        kernels[compute],
        n_rows,
        *_cut(fc1_weight, n_rows, n_in, n_hidden, activation, dropout),
        *addresses,
        *_options(seed, activation, dropout),
        n_hidden,
        n_in,
        n_out,
        result_at(y, compute),
    )
    return y


def general_bwd(dy, x, fc1_weight, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, seed, activation = arguments[:7]
    fc3_weight, dropout = parameters[3], arguments[7:]
    compute, tensors, addresses = prepare_as(dy.dtype, dy, x, fc1_weight, *parameters)
    n_rows, n_hidden, n_in, n_out = _sizes(x, fc1_weight, fc3_weight)
    n_nets = 1 if fc1_weight.dim() == 2 else n_in
    sizes = (n_nets * n_hidden,) * 3 + (n_nets, n_out * n_in, n_out)
    if fc3_weight is None:
        sizes = (*sizes[:4], 0, 0)
    need_dx, *needs = needs
    dx = torch.empty_like(tensors[1], dtype=x.dtype) if need_dx else None
    kernels = backward if fc1_weight.dim() == 2 else featurewise.backward
    gradients = run_summed(
        kernels[compute],
        n_rows,
        *_cut(fc1_weight, n_rows, n_in, n_hidden, activation, dropout),
        [size if p is None else p for size, p in zip(sizes, tensors[2:], strict=True)],
        needs,
        dy.dtype,
        *addresses[:-1],
        *_options(seed, activation, dropout),
        n_hidden,
        n_in,
        n_out,
        result_at(dx, compute),
    )
    return [dx, *gradients]
