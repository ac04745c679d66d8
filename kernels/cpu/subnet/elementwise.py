"""Rows of single numbers through a shared ReLU subnet in canonical form: y = f(x)."""

import numpy as np

from ..machine.jit import array_at, copy, entry, vector_at
from ..machine.launch import (
    any_needed,
    store,
)
from ..numbers.blocks import BLOCK, LANES
from .canonical import (
    add_columns,
    add_hinge_sums,
    add_slopes,
    add_unit_gradients,
    all_finite,
    canonical_form,
    is_finite,
    plain_gradients,
    sort_units,
    values,
    whole_rows,
)


@entry
def forward(real):
    def elementwise_mlp_fwd(x_at, w_at, b_at, v_at, d_at, n_hidden, y_at, first, last):
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        x, y = array_at(x_at, last, real), array_at(y_at, last, real)
        t, c, s, c0, fits = canonical_form(w, b, v, d, real)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            values(x[start:stop], t, c, s, c0, fits, w, b, v, d, y[start:stop], real)

    return elementwise_mlp_fwd


@entry
def backward(real):
    def elementwise_mlp_bwd(
        dy_at,
        x_at,
        w_at,
        b_at,
        v_at,
        n_hidden,
        dx_at,
        sums_at,
        dw_at,
        db_at,
        dv_at,
        dd_at,
        first,
        last,
    ):
        gradients_at = (dw_at, db_at, dv_at, dd_at)
        sizes = (n_hidden, n_hidden, n_hidden, 1)
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v = vector_at(v_at, n_hidden, real)
        dy, x = array_at(dy_at, last, real), array_at(x_at, last, real)
        dx = array_at(dx_at, last, real)
        need_dx, need_dparams = dx_at != 0, any_needed(sums_at, gradients_at)
        order, _, n_rising, t = sort_units(w, b, real)
        fits = all_finite(w, real) and all_finite(b, real) and all_finite(v, real)
        n_sums = 3 * n_hidden + 1
        sums = np.zeros(n_sums, np.float64)
        hinge_a = np.zeros((n_hidden, LANES), real)
        hinge_b = np.zeros((n_hidden, LANES), real)
        total = np.zeros(LANES, real)
        slopes = np.empty(BLOCK, real)
        tile_x, tile_g = np.zeros(BLOCK, real), np.zeros(BLOCK, real)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            size = stop - start
            xb, gb = x[start:stop], dy[start:stop]
            regular = fits and all_finite(xb, real) and all_finite(gb, real)
            xs, gs = xb, gb
            if not regular or size < BLOCK:
                xs, gs = tile_x, tile_g
                copy(xb, xs[:size])
                copy(gb, gs[:size])
                gs[size:] = 0
                for e in range(size):
                    if not (fits and is_finite(xb[e]) and is_finite(gb[e])):
                        xs[e] = gs[e] = 0
            if need_dx:
                slopes[:] = 0
                add_slopes(xs, order, n_rising, t, w, v, slopes)
                out = dx[start:stop]
                for e in range(size):
                    out[e] = gs[e] * slopes[e]
            if need_dparams:
                add_hinge_sums(
                    xs, gs, whole_rows((size + LANES - 1) // LANES), n_rising, t, hinge_a, hinge_b
                )
                add_columns(gs, total)
            if not regular:
                for e in range(size):
                    if not (fits and is_finite(xb[e]) and is_finite(gb[e])):
                        dx_e = plain_gradients(xb[e], gb[e], w, b, v, sums, real)
                        if need_dx:
                            dx[start + e] = dx_e
        if need_dparams:
            if fits:
                ones = np.ones(LANES, real)
                add_unit_gradients(hinge_a, hinge_b, ones, order, w, b, v, sums)
            for l in range(LANES):
                sums[3 * n_hidden] += total[l]
            store(sums, sums_at, gradients_at, sizes, real)

    return elementwise_mlp_bwd
