"""Rows of ∂y/∂θ of every model that Levenberg–Marquardt knows, a tile of rows at a time, float64.

The models are those of `kernels/cpu/levenberg_marquardt/models.py`, in the same words and with
the same flat θ. One verb a model::

    verb(theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride, SIZES, ACTS, NUMBERS)

returns output m, f_m(x; θ), of some rows, x being 0 from row ``stop`` on, and unless ``out_ptr`` is
None writes their Jacobian times ``root``, the square roots of the rows' weights: ∂f_m/∂θ_p of a row
goes to ``out_ptr[p·stride + place]``. So the columns of a matrix lie one after the other, whatever
the groups are that a model makes them in.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import spec
from ...lm import MAX_WIDTH
from ...spec import ADDITIVE, MLP, SINE
from ..machine.launch import block_of
from ..machine.tiles import load_tile
from ..mlp import offset_of, padded, times_weight
from ..numbers.activations import (
    ACTIVATIONS,
    cos_turns,
    leaky_relu,
    preactivation,
    reduce_turns_any,
    sin_turns,
)
from ..subnet.canonical import append, load_scalar


@triton.jit
def activate(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """σ(z) and σ'(z); ``SLOPE`` is that of leaky ReLU below 0."""
    if leaky_relu == ACT:
        slope = tl.where(z > 0.0, tl.full(z.shape, 1.0, z.dtype), tl.full(z.shape, SLOPE, z.dtype))
        return slope * z, slope
    else:
        return ACT(z)


@triton.jit
def put(out_ptr, column, places, stride, values):
    """Write one column of the Jacobian, values [rows]."""
    tl.store(out_ptr + tl.cast(column, tl.int64) * stride + places, values)


@triton.jit
def put_columns(out_ptr, columns, known, places, stride, values):
    """Write those of some columns that are ``known``, values [rows, columns]."""
    at = columns.to(tl.int64)[None, :] * stride + places[:, None]
    tl.store(out_ptr + at, values, mask=known[None, :])


@triton.constexpr_function
def layer_at(widths, biases, layer):
    """Where the parameters of a layer start, the layers before with or without biases."""
    return sum((widths[i] + biases[i]) * widths[i + 1] for i in range(layer))


@triton.constexpr_function
def shift_of(widths, biases, layer):
    """By how much :func:`mlp.offset_of`, for which all layers are alike, is behind."""
    return layer_at(widths, biases, layer) - offset_of(widths, layer, biases[layer])


@triton.jit
def layer_value(
    h, theta_ptr, WIDTHS: tl.constexpr, BIASES: tl.constexpr, LAYER: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """σ(W h + b) and σ' there, 0 beyond the layer's width."""
    N_OUT: tl.constexpr = WIDTHS[LAYER + 1]
    BIAS: tl.constexpr = BIASES[LAYER]
    o = tl.arange(0, padded(N_OUT))
    shifted_ptr = theta_ptr + shift_of(WIDTHS, BIASES, LAYER)
    z = times_weight(h, shifted_ptr, WIDTHS, LAYER, BIAS, True, tl.float64)
    if BIAS:
        bias_ptr = theta_ptr + layer_at(WIDTHS, BIASES, LAYER) + WIDTHS[LAYER] * N_OUT
        z += tl.load(bias_ptr + o, mask=o < N_OUT, other=0.0)[None, :]
    value, slope = activate(z, ACT, SLOPE)
    # an infinite h makes NaN of the padding's zeros
    return tl.where((o < N_OUT)[None, :], value, 0.0), slope


@triton.jit
def mlp(
    theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride,
    SIZES: tl.constexpr, ACTS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """h_l = σ_l(W_l h_{l-1} + b_l), y = h_L; with δ = ∂y_m/∂z_l: ∂W_l = δ h_{l-1}^T, ∂b_l = δ."""
    WIDTHS: tl.constexpr = SIZES[0]
    BIASES: tl.constexpr = SIZES[1]
    N_LAYERS: tl.constexpr = SIZES[2]
    cols = tl.arange(0, padded(WIDTHS[0]))
    h = load_tile(x_ptr, rows, cols, stop, WIDTHS[0], WIDTHS[0], tl.float64)
    values = (h,)
    slopes = ()
    for layer in tl.static_range(N_LAYERS):
        h, slope = layer_value(
            h, theta_ptr, WIDTHS, BIASES, layer, ACTS[layer], NUMBERS[layer]
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
                layer_ptr = theta_ptr + shift_of(WIDTHS, BIASES, layer)
                g = times_weight(g, layer_ptr, WIDTHS, layer, BIASES[layer], False, tl.float64)
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


@triton.jit
def additive(
    theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride,
    SIZES: tl.constexpr, ACTS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """y_m = Σ_j V_mj f(x_j) + c_m with f(x) = Σ_k v_k σ(w_k x + b_k) + d.

    With A = Σ_j V_mj σ'(z_kj), B = Σ_j V_mj x_j σ'(z_kj): ∂w = v·B, ∂b = v·A, ∂v = Σ_j V_mj σ(z).
    """
    F: tl.constexpr = SIZES[0]
    H: tl.constexpr = SIZES[1]
    M: tl.constexpr = SIZES[2]
    BIAS: tl.constexpr = SIZES[3]
    BLOCK_F: tl.constexpr = SIZES[4]
    B_AT: tl.constexpr = H
    V_AT: tl.constexpr = H * (1 + BIAS)
    D_AT: tl.constexpr = V_AT + H
    READOUT_AT: tl.constexpr = D_AT + BIAS
    C_AT: tl.constexpr = READOUT_AT + M * F
    b_ptr = theta_ptr + B_AT if BIAS else None
    d = load_scalar(theta_ptr + D_AT if BIAS else None, 0, True, tl.float64)
    c = load_scalar(theta_ptr + C_AT if BIAS else None, m, True, tl.float64)
    readout_ptr = theta_ptr + READOUT_AT + m * F
    features = tl.arange(0, BLOCK_F)
    terms = tl.zeros((rows.shape[0], BLOCK_F), tl.float64)
    weights = tl.zeros((BLOCK_F,), tl.float64)
    for first in range(0, F, BLOCK_F):
        cols = first + features
        x = load_tile(x_ptr, rows, cols, stop, F, F, tl.float64)
        f = tl.zeros_like(x) + d
        for k in range(H):
            b = load_scalar(b_ptr, k, True, tl.float64)
            value, _ = activate(
                preactivation(x, tl.load(theta_ptr + k), b), ACTS[0], NUMBERS[0]
            )  # fmt: skip
            f += tl.load(theta_ptr + V_AT + k) * value
        # beyond the last feature f may be infinite
        f = tl.where((cols < F)[None, :], f, 0.0)
        weight = tl.load(readout_ptr + cols, mask=cols < F, other=0.0)
        terms += weight[None, :] * f
        weights += weight
        if out_ptr is not None:
            for i in range(M):
                own = tl.where(i == m, f * root[:, None], 0.0)
                at = READOUT_AT + i * F + cols
                put_columns(out_ptr, at, cols < F, places, stride, own)
    if out_ptr is not None:
        for k in range(H):
            w, v = tl.load(theta_ptr + k), tl.load(theta_ptr + V_AT + k)
            b = load_scalar(b_ptr, k, True, tl.float64)
            a_sum = tl.zeros((rows.shape[0], BLOCK_F), tl.float64)
            b_sum = tl.zeros((rows.shape[0], BLOCK_F), tl.float64)
            v_sum = tl.zeros((rows.shape[0], BLOCK_F), tl.float64)
            for first in range(0, F, BLOCK_F):
                cols = first + features
                x = load_tile(x_ptr, rows, cols, stop, F, F, tl.float64)
                weight = tl.load(readout_ptr + cols, mask=cols < F, other=0.0)[None, :]
                value, slope = activate(preactivation(x, w, b), ACTS[0], NUMBERS[0])
                a_sum += weight * slope
                b_sum += weight * slope * x
                v_sum += weight * value
            put(out_ptr, k, places, stride, v * root * tl.sum(b_sum, axis=1))
            if BIAS:
                put(out_ptr, B_AT + k, places, stride, v * root * tl.sum(a_sum, axis=1))
            put(out_ptr, V_AT + k, places, stride, root * tl.sum(v_sum, axis=1))
        if BIAS:
            put(out_ptr, D_AT, places, stride, root * tl.sum(weights))
            for i in range(M):
                put(out_ptr, C_AT + i, places, stride, tl.where(i == m, root, 0.0))
    return tl.sum(terms, axis=1) + c


@triton.jit
def sine(
    theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride,
    SIZES: tl.constexpr, ACTS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i)."""
    WIDTH: tl.constexpr = SIZES[0]
    HAS_A: tl.constexpr = SIZES[1]
    HAS_PHASE: tl.constexpr = SIZES[2]
    BLOCK: tl.constexpr = SIZES[3]
    PHASE_AT: tl.constexpr = WIDTH * (1 + HAS_A)
    turns = tl.full((), NUMBERS[0], tl.float64)
    factor = tl.full((), NUMBERS[1], tl.float64)
    scale = tl.full((), NUMBERS[0] * 6.283185307179586, tl.float64)
    x = tl.load(x_ptr + rows, mask=rows < stop, other=0.0).to(tl.float64)[:, None]
    y = tl.zeros((rows.shape[0], BLOCK), tl.float64)
    xs = tl.broadcast_to(x, y.shape)
    for first in range(0, WIDTH, BLOCK):
        units = first + tl.arange(0, BLOCK)
        known = units < WIDTH
        frequency = tl.load(theta_ptr + units, mask=known, other=0.0) * turns
        a = known.to(tl.float64) * factor
        if HAS_A:
            a = tl.load(theta_ptr + WIDTH + units, mask=known, other=0.0) * factor
        phase = None
        if HAS_PHASE:
            phase = tl.load(theta_ptr + PHASE_AT + units, mask=known, other=0.0)
            phase = (phase * tl.full((), 0.15915494309189535, tl.float64))[None, :]
        r = reduce_turns_any(frequency[None, :], xs, phase)
        sines = sin_turns(r)
        y += a[None, :] * sines
        if out_ptr is not None:
            slopes = a[None, :] * cos_turns(r) * root[:, None]
            put_columns(out_ptr, units, known, places, stride, slopes * (scale * x))
            if HAS_A:
                of_a = factor * sines * root[:, None]
                put_columns(out_ptr, WIDTH + units, known, places, stride, of_a)
            if HAS_PHASE:
                put_columns(out_ptr, PHASE_AT + units, known, places, stride, slopes)
    return tl.sum(y, axis=1)


class Verb(NamedTuple):
    """How to evaluate one structure.

    Args:
        function: The verb.
        constants: Its SIZES, ACTS and NUMBERS.
        n_out: Outputs M.
        rows: Most rows of a tile, a power of two of at least 16.
        warps: Warps that evaluate a tile.
        columns: Columns of J that are multiplied at a time, at most, by eight warps.
    """

    function: object
    constants: tuple
    n_out: int
    rows: int
    warps: int
    columns: int


def verb_of(net, reals):
    """The :class:`Verb` of a description; sines count in turns, as on the CPU.

    Sizes are those with which nothing is spilled, by the counts of bench/static_cost.py.

    Raises:
        ValueError: A layer wider than the kernels take, or no model.
    """
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    if net[0] == MLP:
        n_layers = net[1]
        widths, biases = net[2 : 3 + n_layers], net[3 + n_layers : 3 + 2 * n_layers]
        if max(widths) > MAX_WIDTH:
            raise ValueError(f"its widest layer has {max(widths)} numbers, at most {MAX_WIDTH}")
        acts = tuple(functions[code] for code in net[3 + 2 * n_layers :])
        widest = padded(max(widths))
        constants = (tuple(widths), tuple(biases), n_layers), acts, tuple(reals)
        return Verb(mlp, constants, widths[-1], 16, max(1, widest // 32), 16)
    if net[0] == ADDITIVE:
        _, n_in, n_hidden, n_out, bias, code = net
        block = block_of(n_in, 16)
        constants = (n_in, n_hidden, n_out, bias, block), (functions[code],), tuple(reals)
        return Verb(additive, constants, n_out, 64, 4, 32)
    if net[0] != SINE:
        raise ValueError(f"{net[0]} is no model")
    _, _, width, _, has_amplitude, has_phase = net
    block = block_of(width, 64)
    constants = (width, has_amplitude, has_phase, block), (), tuple(reals)
    return Verb(sine, constants, 1, min(128, 1024 // block), 4, 32)
