"""The verb of layers for least squares: see `models.py`."""

from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.tiles import append, load_tile, put_columns
from ..numbers.activations import activate
from .rows import padded, times_weight


@triton.constexpr_function
def layer_at(widths, biases, layer):
    """Where the parameters of a layer start, the layers before with or without biases."""
    return sum((widths[i] + biases[i]) * widths[i + 1] for i in range(layer))


@triton.jit
def layer_value(
    h, weight_ptr, N_IN: tl.constexpr, N_OUT: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr,
    SLOPE: tl.constexpr,
):  # fmt: skip
    """σ(W h + b) and σ' there, 0 beyond the layer's width; biases lie behind the weights."""
    o = tl.arange(0, padded(N_OUT))
    z = times_weight(h, weight_ptr, N_IN, N_OUT, True, tl.float64)
    if BIAS:
        z += tl.load(weight_ptr + N_IN * N_OUT + o, mask=o < N_OUT, other=0.0)[None, :]
    value, slope = activate(z, ACT, SLOPE)
    # an infinite h makes NaN of the padding's zeros
    return tl.where((o < N_OUT)[None, :], value, 0.0), slope


class Sizes(NamedTuple):
    """The model; its activations and slopes below 0 are one a layer."""

    widths: tuple
    biases: tuple
    n_layers: int


@triton.jit
def mlp_jacobian(
    theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride,
    SIZES: tl.constexpr, ACTS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """h_l = σ_l(W_l h_{l-1} + b_l), y = h_L; with δ = ∂y_m/∂z_l: ∂W_l = δ h_{l-1}^T, ∂b_l = δ."""
    WIDTHS: tl.constexpr = SIZES.widths
    BIASES: tl.constexpr = SIZES.biases
    N_LAYERS: tl.constexpr = SIZES.n_layers
    cols = tl.arange(0, padded(WIDTHS[0]))
    h = load_tile(x_ptr, rows, cols, stop, WIDTHS[0], WIDTHS[0], tl.float64)
    values = (h,)
    slopes = ()
    for layer in tl.static_range(N_LAYERS):
        h, slope = layer_value(
            h, theta_ptr + layer_at(WIDTHS, BIASES, layer), WIDTHS[layer], WIDTHS[layer + 1],
            BIASES[layer], ACTS[layer], NUMBERS[layer],
        )  # fmt: skip
        values = append(values, h)
        slopes = append(slopes, slope)
    chosen = (tl.arange(0, padded(WIDTHS[N_LAYERS])) == m)[None, :]
    if out_ptr is not None:
        g = tl.where(chosen, slopes[N_LAYERS - 1] * root[:, None], 0.0)
        for layer in tl.static_range(N_LAYERS - 1, -1, -1):
            put_layer(
                out_ptr, g, values[layer], places, stride, WIDTHS[layer], WIDTHS[layer + 1],
                layer_at(WIDTHS, BIASES, layer), BIASES[layer],
            )  # fmt: skip
            if layer > 0:
                weight_ptr = theta_ptr + layer_at(WIDTHS, BIASES, layer)
                g = times_weight(
                    g, weight_ptr, WIDTHS[layer], WIDTHS[layer + 1], False, tl.float64
                )  # fmt: skip
                known = tl.arange(0, padded(WIDTHS[layer])) < WIDTHS[layer]
                g = tl.where(known[None, :], g * slopes[layer - 1], 0.0)
    return tl.sum(tl.where(chosen, h, 0.0), axis=1)


@triton.jit
def put_layer(
    out_ptr, g, h, places, stride, N_IN: tl.constexpr, N_OUT: tl.constexpr,
    AT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Write the columns of a layer, g_i h_j and g_i."""
    i, j = tl.arange(0, padded(N_OUT)), tl.arange(0, padded(N_IN))
    for k in range(N_OUT):
        column = tl.sum(tl.where((i == k)[None, :], g, 0.0), axis=1)
        products = column[:, None] * h
        put_columns(out_ptr, AT + k * N_IN + j, j < N_IN, places, stride, products)
    if BIAS:
        put_columns(out_ptr, AT + N_IN * N_OUT + i, i < N_OUT, places, stride, g)
