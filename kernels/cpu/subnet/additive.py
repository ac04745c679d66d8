"""Rows of features through one ReLU subnet in canonical form and a read-out.

Forward reads each input once and writes one number a row and output. With one output, backward
sums dy_i·[active] and dy_i·x_ij·[active] per feature: those give the subnet's gradients *and* the
read-out's, dV_j = Σ_k v_k·(w_k·B_kj + b_k·A_kj) + d·Σ dy, without evaluating f again. With several
outputs the gradient at f is g_ij = Σ_m dy_im·V_mj, and dV_mj = Σ_i dy_im·f(x_ij).

The sums are taken over tiles of [32, 64] numbers. A row of 64 features is a row of a tile; shorter
rows are packed several to a tile's row, longer ones cut into chunks of 64, the rest padded with
g = 0.
"""

import numpy as np

from ..machine.jit import array_at, copy, entry, inner, narrow_vectors, vector_at
from ..machine.launch import (
    any_needed,
    store,
)
from ..numbers.blocks import BLOCK, LANES, TILE_ROWS
from .canonical import (
    add_hinge_sums,
    add_slopes,
    add_unit_gradients,
    all_finite,
    canonical_form,
    canonical_values,
    is_finite,
    mend_values,
    plain_gradients,
    plain_value,
    sort_units,
    values,
    whole_rows,
)
from .readout import add_readout_gradient, gradient_at_f, read_out


@entry
def forward(real):
    def additive_mlp_fwd(
        x_at, w_at, b_at, v_at, d_at, readout_at, c_at, n_hidden, n_in, n_out, y_at, first, last
    ):
        narrow_vectors()
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        readout, c = array_at(readout_at, n_out * n_in, real), vector_at(c_at, n_out, real)
        x, y = array_at(x_at, last * n_in, real), array_at(y_at, last * n_out, real)
        t, slopes, s, c0, fits = canonical_form(w, b, v, d, real)
        block_rows = max(4, BLOCK // n_in // 4 * 4)
        f = np.empty(min(block_rows, last - first) * n_in, real)
        for start in range(first, last, block_rows):
            n_rows = min(block_rows, last - start)
            xb, fb = x[start * n_in : (start + n_rows) * n_in], f[: n_rows * n_in]
            if fits:
                canonical_values(xb, t, slopes, s, c0, fb)
            # what is not finite in f is not finite in y
            special = read_out(fb, readout, c, n_rows, n_in, n_out, y, start, real)
            if not (fits and special == 0):
                mend_values(xb, fits, w, b, v, d, fb, real)
                read_out(fb, readout, c, n_rows, n_in, n_out, y, start, real)

    return additive_mlp_fwd


@inner
def _spread(dy, n_rows, n_in, g):
    """g[i, j] = dy[i] on a block of rows."""
    for i in range(n_rows):
        dy_i = dy[i]
        row = np.uintp(i * n_in)
        for j in range(n_in):
            g[row + np.uintp(j)] = dy_i


@inner
def _pack(source, n_rows, n_in, rows_per_lane_row, chunk, tile):
    """Lay a block of rows out as a tile: see the module's first lines. The rest stays as it is."""
    first = chunk * LANES
    width = min(LANES, n_in - first)
    if rows_per_lane_row > 1:
        for i in range(n_rows):
            to = (i // rows_per_lane_row) * LANES + (i % rows_per_lane_row) * n_in
            copy(source[i * n_in : (i + 1) * n_in], tile[to : to + n_in])
    else:
        for i in range(n_rows):
            at = i * n_in + first
            copy(source[at : at + width], tile[i * LANES : i * LANES + width])


@inner
def _tame(x, dy, fits, n_rows, n_in, n_out, tame_x, tame_dy, real):
    """Copy a block of rows: 0 for an x that is not finite, 0 for all dy of a row where one is not.

    ``fits`` is false where the parameters are not finite: then all is 0.
    """
    for e in range(n_rows * n_in):
        tame_x[e] = x[e] if is_finite(x[e]) else real(0)
    for i in range(n_rows):
        keep = fits and all_finite(dy[i * n_out : (i + 1) * n_out], real)
        for m in range(n_out):
            tame_dy[i * n_out + m] = dy[i * n_out + m] if keep else real(0)


@inner
def _add_irregular(x, dy, fits, w, b, v, d, readout, n_rows, n_in, n_out, dx, sums, real):
    """Add, term by term, what :func:`_tame` has taken out of a block of rows; write its dx.

    ``dx`` is empty where nobody needs it.
    """
    at_dd, at_dv = 3 * w.size, 3 * w.size + 1
    for i in range(n_rows):
        row_is_finite = fits and all_finite(dy[i * n_out : (i + 1) * n_out], real)
        for j in range(n_in):
            x_ij = x[i * n_in + j]
            if row_is_finite and is_finite(x_ij):
                continue
            f_ij = plain_value(x_ij, w, b, v, d, real)
            g_ij = real(0)
            for m in range(n_out):
                g_ij += dy[i * n_out + m] * readout[m * n_in + j]
                sums[at_dv + m * n_in + j] += dy[i * n_out + m] * f_ij
            dx_ij = plain_gradients(x_ij, g_ij, w, b, v, sums, real)
            if dx.size > 0:
                dx[i * n_in + j] = dx_ij
            if n_out == 1 and row_is_finite:
                # the sum of dy has this row for every feature
                sums[at_dv + j] -= dy[i] * d
                sums[at_dd] -= g_ij


@inner
def _add_regular(
    hinge_a, hinge_b, rows_per_lane_row, order, w, b, v, d, readout, n_in, n_out, dv_fast, sum_dy,
    sums, real,
):  # fmt: skip
    """Add the gradients that follow from the sums of the units' active sides."""
    at_dd, at_dv = 3 * w.size, 3 * w.size + 1
    weight = np.zeros(LANES, real)  # a lane without a feature has sums of 0
    for chunk in range(len(hinge_a)):
        j0 = chunk * LANES
        width = min(LANES, n_in - j0)
        a_sums, b_sums = hinge_a[chunk], hinge_b[chunk]
        for l0 in range(0, rows_per_lane_row * width, width):
            for j in range(width):
                weight[l0 + j] = readout[j0 + j] if n_out == 1 else real(1)
            for i in range(w.size if n_out == 1 else 0):
                k = order[i]
                vw, vb = np.float64(v[k]) * w[k], np.float64(v[k]) * b[k]
                dv = sums[at_dv + j0 : at_dv + j0 + width]
                for j in range(width):
                    dv[j] += vw * b_sums[i, l0 + j] + vb * a_sums[i, l0 + j]
        add_unit_gradients(a_sums, b_sums, weight, order, w, b, v, sums)
    for j in range(n_out * n_in):
        sums[at_dv + j] += dv_fast[j]
        if n_out == 1:
            sums[at_dv + j] += np.float64(d) * sum_dy
            sums[at_dd] += np.float64(readout[j]) * sum_dy


@entry
def backward(real):
    def additive_mlp_bwd(
        dy_at,
        x_at,
        w_at,
        b_at,
        v_at,
        d_at,
        readout_at,
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
        narrow_vectors()
        gradients_at = (dw_at, db_at, dv_at, dd_at, dreadout_at, dc_at)
        sizes = (n_hidden, n_hidden, n_hidden, 1, n_out * n_in, n_out)
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        readout = array_at(readout_at, n_out * n_in, real)
        dy, x = array_at(dy_at, last * n_out, real), array_at(x_at, last * n_in, real)
        dx = array_at(dx_at, last * n_in, real)
        need_dx, need_dparams = dx_at != 0, any_needed(sums_at, gradients_at)
        order, _, n_rising, t = sort_units(w, b, real)
        used = n_hidden if n_out > 1 else 0  # f itself is evaluated for several outputs only
        ts, cs, s, c0, canonical = canonical_form(w[:used], b[:used], v[:used], d, real)
        fits = all_finite(w, real) and all_finite(b, real) and all_finite(v, real)
        fits = fits and is_finite(d) and all_finite(readout, real)

        rows_per_lane_row = max(1, LANES // n_in)
        block_rows = rows_per_lane_row * TILE_ROWS
        n_chunks = (n_in + LANES - 1) // LANES
        direct = LANES % n_in == 0  # a full block of rows lies in memory as a tile does
        block = block_rows * n_in
        # one allocation: at a hundred rows each costs as much as the arithmetic of ten
        scratch = np.empty(4 * block + 2 * BLOCK + block_rows * n_out, real)
        g, f = scratch[:block], scratch[block : 2 * block]
        slopes, tame_x = scratch[2 * block : 3 * block], scratch[3 * block : 4 * block]
        tiles = scratch[4 * block : 4 * block + 2 * BLOCK]
        tile_x, tile_g = tiles[:BLOCK], tiles[BLOCK:]
        tame_dy = scratch[4 * block + 2 * BLOCK :]
        tile_x[:] = 0
        hinges = np.zeros((2, n_chunks, n_hidden, LANES), real)
        hinge_a, hinge_b = hinges[0], hinges[1]
        dv_fast = np.zeros(n_out * n_in, real)
        at_dd, at_dv = 3 * n_hidden, 3 * n_hidden + 1
        at_dc = at_dv + n_out * n_in
        sums = np.zeros(at_dc + n_out, np.float64)
        sum_dy = 0.0

        for start in range(first, last, block_rows):
            stop = min(start + block_rows, last)
            n_rows = stop - start
            size = n_rows * n_in
            xb, dyb = x[start * n_in : stop * n_in], dy[start * n_out : stop * n_out]
            xs, dys = xb, dyb
            gb, fb, sb = g[:size], f[:size], slopes[:size]
            regular = fits and all_finite(xb, real) and all_finite(dyb, real)
            if not regular:
                # what is not finite is taken out, and done term by term below
                xs, dys = tame_x[:size], tame_dy[: n_rows * n_out]
                _tame(xb, dyb, fits, n_rows, n_in, n_out, xs, dys, real)
            if need_dx or n_out > 1:
                gradient_at_f(dys, readout, n_rows, n_in, n_out, gb)
            if need_dx:
                sb[:] = 0
                add_slopes(xs, order, n_rising, t, w, v, sb)
                out = dx[start * n_in : stop * n_in]
                for e in range(size):
                    out[e] = gb[e] * sb[e]
            if need_dparams:
                if n_out == 1:
                    _spread(dys, n_rows, n_in, gb)
                    for i in range(n_rows):
                        sum_dy += dys[i]
                else:
                    values(xs, ts, cs, s, c0, canonical, w, b, v, d, fb, real)
                if not regular:
                    for e in range(size):
                        if not is_finite(xb[e]):
                            gb[e] = fb[e] = 0
                if n_out > 1:
                    add_readout_gradient(dys, fb, n_rows, n_in, n_out, dv_fast)
                    for e in range(size):
                        sums[at_dd] += gb[e]
                for i in range(n_rows):
                    for m in range(n_out):
                        sums[at_dc + m] += dyb[i * n_out + m]
            if not regular:
                dxb = dx[start * n_in : stop * n_in] if need_dx else dx[:0]
                at = xb, dyb, fits, w, b, v, d, readout
                _add_irregular(*at, n_rows, n_in, n_out, dxb, sums, real)
            if not need_dparams:
                continue
            if direct and n_rows == block_rows:
                add_hinge_sums(xs, gb, TILE_ROWS, n_rising, t, hinge_a[0], hinge_b[0])
                continue
            tile_rows = whole_rows((n_rows + rows_per_lane_row - 1) // rows_per_lane_row)
            for chunk in range(n_chunks):
                a, bb = hinge_a[chunk], hinge_b[chunk]
                tile_g[:] = 0
                _pack(xs, n_rows, n_in, rows_per_lane_row, chunk, tile_x)
                _pack(gb, n_rows, n_in, rows_per_lane_row, chunk, tile_g)
                add_hinge_sums(tile_x, tile_g, tile_rows, n_rising, t, a, bb)

        if not need_dparams:
            return
        if fits:
            _add_regular(
                hinge_a, hinge_b, rows_per_lane_row, order, w, b, v, d, readout, n_in, n_out,
                dv_fast, sum_dy, sums, real,
            )  # fmt: skip
        store(sums, sums_at, gradients_at, sizes, real)

    return additive_mlp_bwd
