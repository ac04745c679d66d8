"""Fully connected layers, a model a lane: the verb of `loop.py`.

The parameters are a tuple of tensors of lanes, in the order of `spec.py`; so are the numbers
between layers.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.keys import key_of
from ..numbers.activations import times_slope
from ..numbers.losses import loss_and_slope
from .rows import load_item


@triton.constexpr_function
def offset_of(widths, layer, bias):
    """Where the parameters of a layer start."""
    return sum((widths[i] + bias) * widths[i + 1] for i in range(layer))


@triton.jit
def layer_forward(
    theta, h, WIDTHS: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr
):
    """σ(W h + b) and σ' there."""
    AT: tl.constexpr = offset_of(WIDTHS, LAYER, BIAS)
    WIDE: tl.constexpr = WIDTHS[LAYER]
    WIDTH: tl.constexpr = WIDTHS[LAYER + 1]
    values = ()
    slopes = ()
    for o in tl.static_range(WIDTH):
        z = theta[AT + o * WIDE] * h[0]
        if BIAS:
            z = z + theta[AT + WIDTH * WIDE + o]
        for i in tl.static_range(1, WIDE):
            z = z + theta[AT + o * WIDE + i] * h[i]
        value, slope = ACT(z)
        values = values + (value,)  # noqa: RUF005
        slopes = slopes + (slope,)  # noqa: RUF005
    return values, slopes


@triton.jit
def layer_gradient(grad, g, h, WIDTHS: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr):
    """The part of ``grad`` that is a layer's, with g hᵀ and g added."""
    AT: tl.constexpr = offset_of(WIDTHS, LAYER, BIAS)
    WIDE: tl.constexpr = WIDTHS[LAYER]
    WIDTH: tl.constexpr = WIDTHS[LAYER + 1]
    own = ()
    for o in tl.static_range(WIDTH):
        for i in tl.static_range(WIDE):
            own = own + (grad[AT + o * WIDE + i] + g[o] * h[i],)  # noqa: RUF005
    if BIAS:
        for o in tl.static_range(WIDTH):
            own = own + (grad[AT + WIDTH * WIDE + o] + g[o],)  # noqa: RUF005
    return own


@triton.jit
def layer_below(
    theta, g, slopes, WIDTHS: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    """Wᵀ g, times the slopes of the layer below."""
    AT: tl.constexpr = offset_of(WIDTHS, LAYER, BIAS)
    WIDE: tl.constexpr = WIDTHS[LAYER]
    WIDTH: tl.constexpr = WIDTHS[LAYER + 1]
    below = ()
    for i in tl.static_range(WIDE):
        total = theta[AT + i] * g[0]
        for o in tl.static_range(1, WIDTH):
            total = total + theta[AT + o * WIDE + i] * g[o]
        below = below + (times_slope(total, slopes[i], ACT),)  # noqa: RUF005
    return below


@triton.jit
def layers(
    theta, grad, x_ptr, y_ptr, at, inside, weight, GRAD: tl.constexpr, SIZES: tl.constexpr,
    CONSTANTS: tl.constexpr, LOSS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """h_l = σ_l(W_l h_{l-1} + b_l) of an item."""
    WIDTHS: tl.constexpr = SIZES.widths
    N_LAYERS: tl.constexpr = SIZES.n_layers
    BIAS: tl.constexpr = SIZES.bias
    HIDDEN: tl.constexpr = CONSTANTS.hidden
    OUTPUT: tl.constexpr = CONSTANTS.output
    N_OUT: tl.constexpr = WIDTHS[N_LAYERS]
    h = load_item(x_ptr, at, inside, WIDTHS[0])
    values = (h,)
    slopes = ()
    for layer in tl.static_range(N_LAYERS - 1):
        h, slope = layer_forward(theta, h, WIDTHS, layer, BIAS, HIDDEN)
        values = values + (h,)  # noqa: RUF005
        slopes = slopes + (slope,)  # noqa: RUF005
    h, last_slopes = layer_forward(theta, h, WIDTHS, N_LAYERS - 1, BIAS, OUTPUT)
    targets = load_item(y_ptr, at, inside, N_OUT)
    total = tl.zeros_like(theta[0]).to(tl.float64)
    g = ()
    for o in tl.static_range(N_OUT):
        loss, slope = loss_and_slope(h[o], targets[o], LOSS)
        total += tl.where(inside, weight * loss, 0.0).to(tl.float64)
        dy = tl.where(inside, weight * slope, 0.0)
        g = g + (times_slope(dy, last_slopes[o], OUTPUT),)  # noqa: RUF005
    if GRAD:
        done = ()
        for layer in tl.static_range(N_LAYERS - 1, -1, -1):
            done = layer_gradient(grad, g, values[layer], WIDTHS, layer, BIAS) + done
            if layer > 0:
                g = layer_below(theta, g, slopes[layer - 1], WIDTHS, layer, BIAS, HIDDEN)
        grad = done
    return total, grad


class LayerSizes(NamedTuple):
    """The model, and items in a row of x."""

    widths: tuple
    n_layers: int
    bias: int
    per_row: int


class LayerConstants(NamedTuple):
    """Functions of the activations."""

    hidden: object
    output: object

    cache_key = property(key_of)
