"""The verb of a subnet and a read-out for least squares: see `models.py`."""

from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.keys import key_of
from ..machine.tiles import load_scalar, load_tile, put, put_columns
from ..numbers.activations import (
    activate,
    preactivation,
)


class Sizes(NamedTuple):
    """The model, where its parameters begin, and features at a time."""

    n_in: int
    n_hidden: int
    n_out: int
    bias: int
    b_at: int
    v_at: int
    d_at: int
    readout_at: int
    c_at: int
    block: int


class Acts(NamedTuple):
    """The function of the activation."""

    activation: object

    cache_key = property(key_of)


class Numbers(NamedTuple):
    """The slope of leaky ReLU below 0."""

    slope: float


@triton.jit
def additive_jacobian(
    theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride,
    SIZES: tl.constexpr, ACTS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """y_m = Σ_j V_mj f(x_j) + c_m with f(x) = Σ_k v_k σ(w_k x + b_k) + d.

    With A = Σ_j V_mj σ'(z_kj), B = Σ_j V_mj x_j σ'(z_kj): ∂w = v·B, ∂b = v·A, ∂v = Σ_j V_mj σ(z).
    """
    F: tl.constexpr = SIZES.n_in
    H: tl.constexpr = SIZES.n_hidden
    M: tl.constexpr = SIZES.n_out
    BIAS: tl.constexpr = SIZES.bias
    BLOCK_F: tl.constexpr = SIZES.block
    B_AT: tl.constexpr = SIZES.b_at
    V_AT: tl.constexpr = SIZES.v_at
    D_AT: tl.constexpr = SIZES.d_at
    READOUT_AT: tl.constexpr = SIZES.readout_at
    C_AT: tl.constexpr = SIZES.c_at
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
                preactivation(x, tl.load(theta_ptr + k), b), ACTS.activation, NUMBERS.slope
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
                value, slope = activate(preactivation(x, w, b), ACTS.activation, NUMBERS.slope)
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
