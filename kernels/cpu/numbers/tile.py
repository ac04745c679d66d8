"""A tile of rows in float64, column by column: activations and their slopes by their codes."""

import numpy as np

from ... import spec
from ...spec import CODES
from ..machine.jit import inner
from .activations import ACTIVATIONS
from .block_activations import IDENTITY, LEAKY_RELU, RELU

TILE = 128
"""Rows of a tile: the Jacobian of 108 parameters is 110 KB, in a level-2 cache."""

# what `activate` has branches for
spec.for_each(
    spec.ACTIVATIONS,
    ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "sin", "softplus"),
)

_SIGMOID, _TANH, _SILU, _GELU = (CODES[name] for name in ("sigmoid", "tanh", "silu", "gelu"))
_SIN, _SOFTPLUS = CODES["sin"], CODES["softplus"]

_sigmoid, _tanh, _silu, _gelu, _sin, _softplus = (
    ACTIVATIONS[name][np.float64].value_and_derivative
    for name in ("sigmoid", "tanh", "silu", "gelu", "sin", "softplus")
)


@inner
def activate(code, slope, z, s):
    """z, s = σ(z), σ'(z) on a row of a tile, in place; ReLU's derivative at 0 is 0."""
    if code == IDENTITY:
        for e in range(z.size):
            s[e] = 1.0
    elif code in (RELU, LEAKY_RELU):
        below = slope if code == LEAKY_RELU else 0.0
        for e in range(z.size):
            s[e] = 1.0 if z[e] > 0 else below
            z[e] = below * z[e] if z[e] <= 0 else z[e]
    elif code == _SIGMOID:
        for e in range(z.size):
            z[e], s[e] = _sigmoid(z[e])
    elif code == _TANH:
        for e in range(z.size):
            z[e], s[e] = _tanh(z[e])
    elif code == _SILU:
        for e in range(z.size):
            z[e], s[e] = _silu(z[e])
    elif code == _GELU:
        for e in range(z.size):
            z[e], s[e] = _gelu(z[e])
    elif code == _SIN:
        for e in range(z.size):
            z[e], s[e] = _sin(z[e])
    elif code == _SOFTPLUS:
        for e in range(z.size):
            z[e], s[e] = _softplus(z[e])
    else:  # no activation: whatever is made of it is seen not to be finite
        z[:] = np.nan
        s[:] = np.nan
