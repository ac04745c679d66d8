"""Activations of a whole block, chosen by a number at run time: a net's kernel is compiled once."""

from ... import spec
from ...spec import CODES
from ..machine.jit import inner
from .activations import ACTIVATIONS

spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)

RELU, LEAKY_RELU, IDENTITY = CODES["relu"], CODES["leaky_relu"], CODES["identity"]


@inner
def by_sign(code):
    """Whether σ'(z) is known from the sign of σ(z): no slopes are kept."""
    return code in (RELU, LEAKY_RELU, IDENTITY)


def _maps(activation):
    """σ in place on a whole block, and σ with σ' beside it."""
    value, pair = activation.value, activation.value_and_derivative

    @inner
    def map_value(z):
        for e in range(z.size):
            z[e] = value(z[e])

    @inner
    def map_pair(z, slope):
        for e in range(z.size):
            z[e], slope[e] = pair(z[e])

    return map_value, map_pair


def passes(real):
    """Functions of a whole block: σ in place, σ with σ' beside it, and the chain rule."""
    maps = {name: _maps(ACTIVATIONS[name][real]) for name in CODES}
    branches = (
        "relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "sin", "identity", "softplus",
    )  # fmt: skip
    spec.for_each(spec.ACTIVATIONS, branches)
    relu, leaky_relu = maps["relu"][0], maps["leaky_relu"][0]
    sigmoid, sigmoid_pair = maps["sigmoid"]
    tanh, tanh_pair = maps["tanh"]
    silu, silu_pair = maps["silu"]
    gelu, gelu_pair = maps["gelu"]
    sin, sin_pair = maps["sin"]
    softplus, softplus_pair = maps["softplus"]
    code_sigmoid, code_tanh, code_silu = (CODES[name] for name in ("sigmoid", "tanh", "silu"))
    code_gelu, code_sin, code_softplus = (CODES[name] for name in ("gelu", "sin", "softplus"))

    @inner
    def activate(code, z):
        if code == RELU:
            relu(z)
        elif code == LEAKY_RELU:
            leaky_relu(z)
        elif code == code_sigmoid:
            sigmoid(z)
        elif code == code_tanh:
            tanh(z)
        elif code == code_silu:
            silu(z)
        elif code == code_gelu:
            gelu(z)
        elif code == code_sin:
            sin(z)
        elif code == code_softplus:
            softplus(z)

    @inner
    def activate_and_keep(code, z, slope):
        if code == code_sigmoid:
            sigmoid_pair(z, slope)
        elif code == code_tanh:
            tanh_pair(z, slope)
        elif code == code_silu:
            silu_pair(z, slope)
        elif code == code_gelu:
            gelu_pair(z, slope)
        elif code == code_sin:
            sin_pair(z, slope)
        elif code == code_softplus:
            softplus_pair(z, slope)
        else:  # the sign of σ(z) tells σ'(z)
            activate(code, z)

    @inner
    def chain(code, h, slope, g):
        """g·σ'(z) in place, from h = σ(z) or the slopes that were kept."""
        zero, leak = real(0), real(0.01)
        if code == RELU:
            for e in range(g.size):
                # not a product: PyTorch drops an infinite g here too
                g[e] = zero if h[e] <= zero else g[e]
        elif code == LEAKY_RELU:
            for e in range(g.size):
                g[e] = g[e] if h[e] > zero else leak * g[e]
        elif code != IDENTITY:
            for e in range(g.size):
                g[e] *= slope[e]

    return activate, activate_and_keep, chain
