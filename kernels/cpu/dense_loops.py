"""The loops of `dense.py`, over the numbers of one tile and unit, in forms that LLVM vectorises.

Shared subnets have one loop a unit, :func:`chosen_unit`. The functions ``…_lanes`` are for stacked
subnets, with a parameter a lane, and few arrays each.
"""

import numpy as np

from .activations import ACTIVATIONS
from .block_activations import CODES
from .jit import array_at, inner, inner_in_order

TILE = 1024
"""Numbers in a tile: half a dozen arrays of them fit into a level-1 cache."""


@inner_in_order
def _gradient(above, slope, cuts, real):
    """above·slope; not to be reassociated with what it multiplies, which may be infinite."""
    if cuts and slope == 0:
        return real(0)
    return above * slope


def chosen_unit(real):
    """What a unit of a shared subnet adds to a tile, forward and backward, by activation code.

    All arrays lie in one ``scratch``, TILE numbers apart: x, f, dropout factors, g = ∂/∂f, dx. At
    constant distances LLVM vectorises the loop over all of them without asking where they lie.
    """

    def link(name, code, others):
        function = ACTIVATIONS[name][real]
        value, pair = function.value, function.value_and_derivative
        other_unit, other_gradients = others
        f_at, m_at, g_at, dx_at = (np.uintp(i * TILE) for i in (1, 2, 3, 4))

        # PyTorch's ReLU has no gradient where it is inactive, whatever comes from above, NaN too
        cuts = name == "relu"

        @inner
        def add_unit(chosen, scratch, n, w, b, v, drop):
            if chosen != code:
                other_unit(chosen, scratch, n, w, b, v, drop)
            elif drop:
                for i in range(n):
                    e = np.uintp(i)
                    scratch[e + f_at] += v * (scratch[e + m_at] * value(w * scratch[e] + b))
            else:
                for i in range(n):
                    e = np.uintp(i)
                    scratch[e + f_at] += v * value(w * scratch[e] + b)

        @inner
        def add_unit_gradients(chosen, scratch, n, w, b, v, drop):
            dw = db = dv = real(0)
            if chosen != code:
                return other_gradients(chosen, scratch, n, w, b, v, drop)
            if drop:
                for i in range(n):
                    e = np.uintp(i)
                    x, g, m = scratch[e], scratch[e + g_at], scratch[e + m_at]
                    h, slope = pair(w * x + b)
                    h *= m
                    dz = _gradient(g * v * m, slope, cuts, real)
                    scratch[e + f_at] += v * h
                    dv += g * h
                    db += dz
                    dw += dz * x
                    scratch[e + dx_at] += dz * w
            else:
                for i in range(n):
                    e = np.uintp(i)
                    x, g = scratch[e], scratch[e + g_at]
                    h, slope = pair(w * x + b)
                    dz = _gradient(g * v, slope, cuts, real)
                    scratch[e + f_at] += v * h
                    dv += g * h
                    db += dz
                    dw += dz * x
                    scratch[e + dx_at] += dz * w
            return np.float64(dw), np.float64(db), np.float64(dv)

        return add_unit, add_unit_gradients

    @inner
    def nothing(chosen, scratch, n, w, b, v, drop):
        pass

    @inner
    def no_gradients(chosen, scratch, n, w, b, v, drop):
        return 0.0, 0.0, 0.0

    functions = nothing, no_gradients
    for name, code in CODES.items():
        functions = link(name, code, functions)
    return functions


@inner
def over_lanes(at, n_units, lanes, n_in, real):
    """Stacked parameters [features, units] at an address as [units, lanes]; 0 where it is 0."""
    out = np.zeros((n_units, lanes), real)
    if at != 0:
        source = array_at(at, n_units * n_in, real)
        for k in range(n_units):
            for j in range(n_in):
                for l in range(j, lanes, n_in):
                    out[k, l] = source[j * n_units + k]
    return out


@inner
def add_from_lanes(gradient, n_in, sums):
    """The reverse: add [units, lanes] to sums [features, units]."""
    n_units, lanes = gradient.shape
    for k in range(n_units):
        for j in range(n_in):
            for l in range(j, lanes, n_in):
                sums[j * n_units + k] += np.float64(gradient[k, l])


@inner
def multiply(a, factors, n):
    for e in range(n):
        a[e] *= factors[e]


@inner
def affine_of_lanes(x, w, b, z):
    """z[r, l] = w[l]·x[r, l] + b[l] on a flat tile whose last row may be short."""
    for first in range(0, x.size, w.size):
        for l in range(min(w.size, x.size - first)):
            i = np.uintp(l)  # a signed index would gather
            e = np.uintp(first) + i
            z[e] = w[i] * x[e] + b[i]


@inner
def add_scaled_lanes(h, v, f):
    """f[r, l] += v[l]·h[r, l]."""
    for first in range(0, h.size, v.size):
        for l in range(min(v.size, h.size - first)):
            i = np.uintp(l)
            e = np.uintp(first) + i
            f[e] += v[i] * h[e]


@inner
def add_columns(a, total):
    """total[l] += Σ_r a[r, l]."""
    for first in range(0, a.size, total.size):
        for l in range(min(total.size, a.size - first)):
            i = np.uintp(l)
            total[i] += a[np.uintp(first) + i]


@inner
def add_product_columns(a, b, total):
    """total[l] += Σ_r a[r, l]·b[r, l]."""
    for first in range(0, a.size, total.size):
        for l in range(min(total.size, a.size - first)):
            i = np.uintp(l)
            e = np.uintp(first) + i
            total[i] += a[e] * b[e]


@inner
def scale_lanes(g, v, out):
    """out[r, l] = v[l]·g[r, l]."""
    for first in range(0, g.size, v.size):
        for l in range(min(v.size, g.size - first)):
            i = np.uintp(l)
            e = np.uintp(first) + i
            out[e] = v[i] * g[e]
