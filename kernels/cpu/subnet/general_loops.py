"""The loops of `general.py`, over the numbers of one tile and unit, in forms that LLVM vectorises.

A shared subnet has one loop a unit, :func:`chosen_unit`; those of one for each feature are in
`featurewise_loops.py`.
"""

import numpy as np

from ..machine.jit import inner, inner_in_order
from ..numbers.activations import ACTIVATIONS
from ..numbers.block_activations import CODES
from ..numbers.philox import factor_of

TILE = 1024
"""Numbers in a tile: half a dozen arrays of them fit into a level-1 cache."""


@inner_in_order
def gradient(above, slope, cuts, real):
    """above·slope; not to be reassociated with what it multiplies, which may be infinite."""
    if cuts and slope == 0:
        return real(0)
    return above * slope


@inner
def _no_unit(chosen, scratch, n, w, b, v, kept, bit, scale):
    pass


@inner
def _no_gradients(chosen, scratch, n, w, b, v, kept, bit, scale):
    return 0.0, 0.0, 0.0


def chosen_unit(real):
    """What a unit of a shared subnet adds to a tile, forward and backward, by activation code.

    All arrays lie in one ``scratch``, TILE numbers apart: x, f, g = ∂/∂f, dx. At constant distances
    LLVM vectorises the loop over them without asking where they lie. ``bit`` is 0 without dropout.
    """

    def link(name, code, others):
        function = ACTIVATIONS[name][real]
        value, pair = function.value, function.value_and_derivative
        other_unit, other_gradients = others
        f_at, g_at, dx_at = (np.uintp(i * TILE) for i in (1, 2, 3))

        # PyTorch's ReLU has no gradient where it is inactive, whatever comes from above, NaN too
        cuts = name == "relu"

        @inner
        def add_unit(chosen, scratch, n, w, b, v, kept, bit, scale):
            if chosen != code:
                other_unit(chosen, scratch, n, w, b, v, kept, bit, scale)
            elif bit != 0:
                for i in range(n):
                    e = np.uintp(i)
                    m = factor_of(kept[e], bit, scale, real)
                    scratch[e + f_at] += v * (m * value(w * scratch[e] + b))
            else:
                for i in range(n):
                    e = np.uintp(i)
                    scratch[e + f_at] += v * value(w * scratch[e] + b)

        @inner
        def add_unit_gradients(chosen, scratch, n, w, b, v, kept, bit, scale):
            dw = db = dv = real(0)
            if chosen != code:
                return other_gradients(chosen, scratch, n, w, b, v, kept, bit, scale)
            if bit != 0:
                for i in range(n):
                    e = np.uintp(i)
                    x, g, m = scratch[e], scratch[e + g_at], factor_of(kept[e], bit, scale, real)
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

    functions = _no_unit, _no_gradients
    for name, code in CODES.items():
        functions = link(name, code, functions)
    return functions


@inner
def multiply(a, factors, n):
    for e in range(n):
        a[e] *= factors[e]
