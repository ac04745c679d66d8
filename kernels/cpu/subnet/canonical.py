"""A scalar ReLU subnet f(x) = Σ_k v_k·relu(w_k·x + b_k) + d on a block of numbers.

Unit k has its breakpoint at t_k = −b_k/w_k; with c_k = v_k·|w_k| the sum becomes

    f(x) = Σ_k c_k·max(x, t_k) + S·x + C,   S = Σ_{w<0} v·w,   C = d + Σ_{w>0} v·b,

one max and one FMA a unit. Its derivatives need only A_k = Σ g·[active], B_k = Σ g·x·[active]:
dv = w·B + b·A, dw = v·B, db = v·A.

Units are sorted into those with w = 0, w > 0 and w < 0, so that no loop asks for a sign. A unit's
t_k is rounded towards its inactive side: for every representable x, [x > t_k] (w > 0) or
[x < t_k] (w < 0) then equals the sign of w·x + b in exact arithmetic, and is 0 at a tie.

The inner loops run over the block, which LLVM vectorises, with four units or eight rows at a time,
so that sums stay in registers.
"""

import math

import numpy as np

from ..machine.jit import fma, inner, inner_vectorized, narrow_vectors
from ..numbers.blocks import LANES, TILE_ROWS


@inner
def _last_inactive(w, b, real):
    """The representable t at which the unit is still inactive, nearest to −b/w."""
    t = real(-b / w)
    if fma(t, w, b) > 0:  # its sign is exact
        t = np.nextafter(t, real(-math.inf) if w > 0 else real(math.inf))
    return t


@inner
def sort_units(w, b, real):
    """Order of the units (w = 0, w > 0, w < 0), where each kind ends, and their breakpoints."""
    n = w.size
    order = np.empty(n, np.int64)
    t = np.empty(n, real)
    i = 0
    for k in range(n):
        if w[k] == 0:
            order[i] = k
            t[i] = real(-math.inf) if b[k] > 0 else real(math.inf)  # always or never active
            i += 1
    n_flat = i
    for k in range(n):
        if w[k] > 0:
            order[i] = k
            t[i] = _last_inactive(w[k], b[k], real)
            i += 1
    n_rising = i
    for k in range(n):
        if not (w[k] >= 0):  # NaN counts here; the caller leaves such a net to the plain form
            order[i] = k
            t[i] = _last_inactive(w[k], b[k], real)
            i += 1
    return order, n_flat, n_rising, t


@inner
def all_finite(a, real):
    """Whether an array holds neither NaN nor infinity."""
    zero = real(0)
    total = zero
    for e in range(a.size):
        total += a[e] * zero
    return total == zero


@inner
def is_finite(value):
    """Whether a number is neither NaN nor infinite."""
    return abs(value) < math.inf


@inner
def canonical_form(w, b, v, d, real):
    """t, c, S and C of the formula above, and whether this net can be computed that way."""
    order, n_flat, _, breakpoints = sort_units(w, b, real)
    n = w.size - n_flat
    t = breakpoints[n_flat:]
    c = np.empty(n, real)
    slope = 0.0
    constant = np.float64(d)
    fits = True
    smallest = np.finfo(real).tiny
    for i in range(w.size):
        k = order[i]
        wk, bk, vk = np.float64(w[k]), np.float64(b[k]), np.float64(v[k])
        if i < n_flat:
            constant += vk * max(bk, 0.0)
            continue
        c[i - n_flat] = real(vk * abs(wk))
        # a subnormal c has too few digits, an infinite t or c none
        if vk != 0 and not (smallest <= abs(c[i - n_flat]) < math.inf):
            fits = False
        if not abs(t[i - n_flat]) < math.inf:
            fits = False
        if wk > 0:
            constant += vk * bk
        else:
            slope += vk * wk
    s, c0 = real(slope), real(constant)
    fits = fits and abs(s) < math.inf and abs(c0) < math.inf
    return t, c, s, c0, fits


@inner
def canonical_values(x, t, c, s, c0, f):
    """f = S·x + C + Σ_k c_k·max(x, t_k) on a block; not finite where x is not, or on overflow."""
    if t.size >= 4:
        t0, t1, t2, t3 = t[0], t[1], t[2], t[3]
        a0, a1, a2, a3 = c[0], c[1], c[2], c[3]
        for e in range(x.size):
            xe = x[e]
            # NaN gets through in s·x: the comparisons drop it
            f[e] = (s * xe + c0) + (
                (a0 * (xe if xe > t0 else t0) + a1 * (xe if xe > t1 else t1))
                + (a2 * (xe if xe > t2 else t2) + a3 * (xe if xe > t3 else t3))
            )
    else:
        for e in range(x.size):
            f[e] = s * x[e] + c0
    k = 4 if t.size >= 4 else 0
    while k + 4 <= t.size:
        t0, t1, t2, t3 = t[k], t[k + 1], t[k + 2], t[k + 3]
        a0, a1, a2, a3 = c[k], c[k + 1], c[k + 2], c[k + 3]
        for e in range(x.size):
            xe = x[e]
            f[e] += (a0 * (xe if xe > t0 else t0) + a1 * (xe if xe > t1 else t1)) + (
                a2 * (xe if xe > t2 else t2) + a3 * (xe if xe > t3 else t3)
            )
        k += 4
    if k + 2 <= t.size:
        t0, t1, a0, a1 = t[k], t[k + 1], c[k], c[k + 1]
        for e in range(x.size):
            xe = x[e]
            f[e] += a0 * (xe if xe > t0 else t0) + a1 * (xe if xe > t1 else t1)
        k += 2
    if k < t.size:
        t0, a0 = t[k], c[k]
        for e in range(x.size):
            xe = x[e]
            f[e] += a0 * (xe if xe > t0 else t0)


@inner
def plain_value(x, w, b, v, d, real):
    """f(x) of one number as the reference computes it, NaN and infinity included."""
    f = d
    zero = real(0)
    for k in range(w.size):
        z = fma(w[k], x, b[k])
        f += v[k] * (zero if z <= zero else z)
    return f


@inner
def mend_values(x, fits, w, b, v, d, f, real):
    """Replace what the canonical form could not give: term by term, number by number."""
    for e in range(x.size):
        if not (fits and is_finite(f[e])):
            f[e] = plain_value(x[e], w, b, v, d, real)


@inner
def values(x, t, c, s, c0, fits, w, b, v, d, f, real):
    """f = f(x) on a block."""
    if fits:
        canonical_values(x, t, c, s, c0, f)
    if not (fits and all_finite(f, real)):
        mend_values(x, fits, w, b, v, d, f, real)


@inner_vectorized
def add_slopes(x, order, n_rising, t, w, v, s):
    """s += f'(x) = Σ_k v_k·w_k·[active] on a block."""
    narrow_vectors()
    zero = s[0] * 0
    k = 0
    while k + 4 <= n_rising:
        t0, t1, t2, t3 = t[k], t[k + 1], t[k + 2], t[k + 3]
        p0, p1 = w[order[k]] * v[order[k]], w[order[k + 1]] * v[order[k + 1]]
        p2, p3 = w[order[k + 2]] * v[order[k + 2]], w[order[k + 3]] * v[order[k + 3]]
        for e in range(x.size):
            xe = x[e]
            s[e] += ((p0 if xe > t0 else zero) + (p1 if xe > t1 else zero)) + (
                (p2 if xe > t2 else zero) + (p3 if xe > t3 else zero)
            )
        k += 4
    while k < n_rising:
        t0, p0 = t[k], w[order[k]] * v[order[k]]
        for e in range(x.size):
            s[e] += p0 if x[e] > t0 else zero
        k += 1
    while k + 4 <= t.size:
        t0, t1, t2, t3 = t[k], t[k + 1], t[k + 2], t[k + 3]
        p0, p1 = w[order[k]] * v[order[k]], w[order[k + 1]] * v[order[k + 1]]
        p2, p3 = w[order[k + 2]] * v[order[k + 2]], w[order[k + 3]] * v[order[k + 3]]
        for e in range(x.size):
            xe = x[e]
            s[e] += ((p0 if xe < t0 else zero) + (p1 if xe < t1 else zero)) + (
                (p2 if xe < t2 else zero) + (p3 if xe < t3 else zero)
            )
        k += 4
    while k < t.size:
        t0, p0 = t[k], w[order[k]] * v[order[k]]
        for e in range(x.size):
            s[e] += p0 if x[e] < t0 else zero
        k += 1


@inner
def _add_if_above(x, t, g, a, b):
    active = x > t
    return (a + g if active else a), (b + g * x if active else b)


@inner
def _add_if_below(x, t, g, a, b):
    active = x < t
    return (a + g if active else a), (b + g * x if active else b)


@inner
def whole_rows(n_rows):
    """The rows that :func:`add_hinge_sums` has to look at: a multiple of 8."""
    return (n_rows + 7) // 8 * 8


@inner
def add_hinge_sums(x, g, n_rows, n_rising, t, a, b):
    """a[k, l] += Σ_r g[r, l]·[active], b[k, l] += Σ_r g[r, l]·x[r, l]·[active] over one tile.

    Shapes: x, g [n_rows, LANES] flat, n_rows a multiple of 8; a, b [units, LANES], units sorted.
    Three instructions a number and unit: compare, masked add, masked FMA.
    """
    # unsigned offsets: Numba reads a signed index as one that may count from the end, and then
    # gathers instead of loading (14 x slower)
    lanes = np.uintp(LANES)
    for k in range(t.size):
        tk = t[k]
        if k < n_rising:
            for row in range(0, n_rows, 8):
                for l in range(LANES):
                    al, bl = a[k, l], b[k, l]
                    i = np.uintp(row * LANES + l)
                    for _ in range(8):
                        al, bl = _add_if_above(x[i], tk, g[i], al, bl)
                        i += lanes
                    a[k, l], b[k, l] = al, bl
        else:
            for row in range(0, n_rows, 8):
                for l in range(LANES):
                    al, bl = a[k, l], b[k, l]
                    i = np.uintp(row * LANES + l)
                    for _ in range(8):
                        al, bl = _add_if_below(x[i], tk, g[i], al, bl)
                        i += lanes
                    a[k, l], b[k, l] = al, bl


@inner
def add_columns(g, total):
    """total[l] += Σ_r g[r, l] over one tile."""
    lanes = np.uintp(LANES)
    for row in range(0, TILE_ROWS, 8):
        for l in range(LANES):
            i = np.uintp(row * LANES + l)
            partial = g[i]
            for _ in range(7):
                i += lanes
                partial += g[i]
            total[l] += partial


@inner
def add_unit_gradients(a, b, weight, order, w, bias, v, sums):
    """From the sums of a tile's lanes: add dw, db, dv [units each] to sums.

    ``weight`` [LANES] multiplies the sums of each lane.
    """
    n = w.size
    for i in range(n):
        k = order[i]
        sum_a = sum_b = 0.0
        for l in range(weight.size):
            sum_a += np.float64(weight[l]) * a[i, l]
            sum_b += np.float64(weight[l]) * b[i, l]
        sums[k] += v[k] * sum_b
        sums[n + k] += v[k] * sum_a
        sums[2 * n + k] += w[k] * sum_b + bias[k] * sum_a


@inner
def plain_gradients(x, g, w, b, v, sums, real):
    """The gradients of one number as the reference computes them, NaN and infinity included.

    Adds dw, db, dv [units each] and dd to sums, float64. Returns dx = Σ_k g·[active]·v·w.
    """
    n = w.size
    zero = real(0)
    dx = zero
    for k in range(n):
        z = fma(w[k], x, b[k])
        dead = z <= zero
        dz = zero if dead else g * v[k]
        sums[k] += dz * x
        sums[n + k] += dz
        sums[2 * n + k] += g * (zero if dead else z)
        dx += dz * w[k]
    sums[3 * n] += g
    return dx
