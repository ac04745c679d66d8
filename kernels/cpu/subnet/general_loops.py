"""The loops of `general.py`, over the numbers of one tile and unit, in forms that LLVM vectorises.

A shared subnet has one loop a unit, :func:`chosen_unit`; those of one for each feature are in
`featurewise_loops.py`.
"""

import numpy as np

from ..machine.jit import inner, inner_in_order
from ..numbers.activations import ACTIVATIONS
from ..numbers.block_activations import CODES

TILE = 1024
"""Numbers in a tile: half a dozen arrays of them fit into a level-1 cache."""


@inner_in_order
def gradient(above, slope, cuts, real):
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
                    dz = gradient(g * v * m, slope, cuts, real)
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
                    dz = gradient(g * v, slope, cuts, real)
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
def multiply(a, factors, n):
    for e in range(n):
        a[e] *= factors[e]
