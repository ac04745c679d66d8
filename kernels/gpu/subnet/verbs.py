"""The verb of subnets for whole training runs: see `training/loop.py` for its contract."""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import spec
from ..machine.keys import key_of
from ..machine.verbs import Verb, items_of
from ..numbers.activations import (
    ACTIVATIONS,
    preactivation,
    times_slope,
)
from ..numbers.losses import loss_and_gradient
from ..numbers.order import find
from ..numbers.philox import dropout_constants, philox
from .general_units import drop, first_words

SUBNET_ELEMENTS = 8
"""Elements a thread, each with three sums."""

NO_DROPOUT = tl.constexpr(dropout_constants(0.0, 0.0, 0.0))


@triton.jit
def hidden_masks(key, place, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr):
    """Factors [items, features, BLOCK] by the first masks of some places: 2 + k is unit k's."""
    blocks = tl.arange(0, BLOCK // 8)[None, None, :]
    w0, w1, w2, w3 = philox(key, place[:, :, None], blocks)
    # the last dimension joined is the fastest: which half, then the low bit of which word
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    halves = tl.reshape(halves, (place.shape[0], place.shape[1], BLOCK))
    return tl.where(halves >= DROPOUT[2], tl.full((), DROPOUT[3], COMPUTE), 0.0)


@triton.jit
def sum_items(terms, FEATUREWISE: tl.constexpr):
    """Sums over items of [items, features, units], and over features unless each has its own."""
    total = tl.sum(terms, axis=0)
    if FEATUREWISE:
        return total
    else:
        return tl.sum(total, axis=0)[None, :]


@triton.jit
def subnet(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y_m = Σ_j V_mj f_j(x_j) + c_m, or without a read-out y = f(x) of every number.

    f(x) = m_out (Σ_k v_k m_k σ(w_k m_in x + b_k) + d), one for all features or one for each, the
    masks m of the element's place in the batch.
    """
    H: tl.constexpr = SIZES.n_hidden
    BIAS: tl.constexpr = SIZES.bias
    F: tl.constexpr = SIZES.n_in
    M: tl.constexpr = SIZES.n_out
    FEATUREWISE: tl.constexpr = SIZES.featurewise
    READOUT: tl.constexpr = SIZES.readout
    PER_ROW: tl.constexpr = SIZES.per_row
    BLOCK: tl.constexpr = SIZES.block
    BLOCK_F: tl.constexpr = SIZES.block_in
    BLOCK_M: tl.constexpr = SIZES.block_out
    ITEMS: tl.constexpr = SIZES.items
    ACT: tl.constexpr = CONSTANTS.activation
    # without a gradient the model is evaluated
    DROPOUT: tl.constexpr = NO_DROPOUT if grad_ptr is None else CONSTANTS.dropout
    NETS: tl.constexpr = F if FEATUREWISE else 1
    BLOCK_NETS: tl.constexpr = BLOCK_F if FEATUREWISE else 1
    B_AT: tl.constexpr = SIZES.b_at
    V_AT: tl.constexpr = SIZES.v_at
    D_AT: tl.constexpr = SIZES.d_at
    READOUT_AT: tl.constexpr = SIZES.readout_at
    C_AT: tl.constexpr = SIZES.c_at
    # the first two masks are the input's and the output's: a unit is where its mask is
    SHIFT: tl.constexpr = 2 if DROPOUT[2] >= 0 else 0
    units = tl.arange(0, BLOCK) - SHIFT
    nets, features, outs = tl.arange(0, BLOCK_NETS), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_M)
    at_units = nets[:, None] * H + units[None, :]
    known = (nets < NETS)[:, None] & ((units >= 0) & (units < H))[None, :]
    at_readout = outs[None, :] * F + features[:, None]
    linked = (features < F)[:, None] & (outs < M)[None, :]
    w = tl.load(theta_ptr + at_units, mask=known, other=0.0)[None, :, :]
    v = tl.load(theta_ptr + V_AT + at_units, mask=known, other=0.0)[None, :, :]
    b = tl.zeros((1, BLOCK_NETS, BLOCK), COMPUTE)
    d = tl.zeros((1, BLOCK_NETS), COMPUTE)
    c = tl.zeros((1, BLOCK_M), COMPUTE)
    readout = tl.zeros((1, BLOCK_F, BLOCK_M), COMPUTE)
    if BIAS:
        b = tl.load(theta_ptr + B_AT + at_units, mask=known, other=0.0)[None, :, :]
        d = tl.load(theta_ptr + D_AT + nets, mask=nets < NETS, other=0.0)[None, :]
    if READOUT:
        readout = tl.load(theta_ptr + READOUT_AT + at_readout, mask=linked, other=0.0)[None, :, :]
        if BIAS:
            c = tl.load(theta_ptr + C_AT + outs, mask=outs < M, other=0.0)[None, :]
    dw = tl.zeros((ITEMS, BLOCK_F, BLOCK), COMPUTE)
    db = tl.zeros((ITEMS, BLOCK_F, BLOCK), COMPUTE)
    dv = tl.zeros((ITEMS, BLOCK_F, BLOCK), COMPUTE)
    dd = tl.zeros((ITEMS, BLOCK_F), COMPUTE)
    dreadout = tl.zeros((ITEMS, BLOCK_F, BLOCK_M), COMPUTE)
    dc = tl.zeros((ITEMS, BLOCK_M), COMPUTE)
    total = tl.zeros((), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        here = inside[:, None] & (features < F)[None, :]
        x = tl.load(x_ptr + at[:, None] * F + features[None, :], mask=here, other=0.0)
        place, words = first_words(x, mask_key, items, features, F, DROPOUT)
        x = drop(x, words, 0, 0, DROPOUT)
        xs = tl.broadcast_to(x[:, :, None], (ITEMS, BLOCK_F, BLOCK))
        value, slope = ACT(preactivation(xs, w, b))
        masks = tl.full((1, 1, 1), 1.0, COMPUTE)
        if DROPOUT[2] >= 0:
            masks = hidden_masks(mask_key, place, BLOCK, DROPOUT, COMPUTE)
            value *= masks
        f = drop(tl.sum(value * v, axis=2) + d, words, 1, 2, DROPOUT)
        y_hat = f
        if READOUT:
            y_hat = tl.sum(f[:, :, None] * readout, axis=1) + c
        wanted = inside[:, None] & (outs < M)[None, :]
        y = tl.load(y_ptr + at[:, None] * M + outs[None, :], mask=wanted, other=0.0)
        loss, g = loss_and_gradient(y_hat, y, weight[:, None], wanted, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            df = g
            if READOUT:
                dreadout += f[:, :, None] * g[:, None, :]
                dc += g
                df = tl.sum(readout * g[:, None, :], axis=2)
            df = drop(df, words, 1, 2, DROPOUT)
            dd += df
            dfs = tl.broadcast_to(df[:, :, None], (ITEMS, BLOCK_F, BLOCK))
            dv += dfs * value
            dz = times_slope(dfs * masks, slope, ACT)
            dw += dz * xs
            db += dz
    if grad_ptr is not None:
        v = tl.load(theta_ptr + V_AT + at_units, mask=known, other=0.0)
        tl.store(grad_ptr + at_units, sum_items(dw, FEATUREWISE) * v, mask=known)
        tl.store(grad_ptr + V_AT + at_units, sum_items(dv, FEATUREWISE), mask=known)
        if BIAS:
            tl.store(grad_ptr + B_AT + at_units, sum_items(db, FEATUREWISE) * v, mask=known)
            dd = tl.sum(sum_items(dd[:, :, None], FEATUREWISE), axis=1)
            tl.store(grad_ptr + D_AT + nets, dd, mask=nets < NETS)
        if READOUT:
            tl.store(grad_ptr + READOUT_AT + at_readout, tl.sum(dreadout, axis=0), mask=linked)
            if BIAS:
                tl.store(grad_ptr + C_AT + outs, tl.sum(dc, axis=0), mask=outs < M)
    return total


class Sizes(NamedTuple):
    """The model, where its parameters begin; items in a row of x, and a tile: units, features,
    outputs, and items."""

    n_hidden: int
    bias: int
    n_in: int
    n_out: int
    featurewise: int
    readout: int
    b_at: int
    v_at: int
    d_at: int
    readout_at: int
    c_at: int
    per_row: int
    block: int
    block_in: int
    block_out: int
    items: int


class Constants(NamedTuple):
    """The function of the activation, and thresholds and factors of dropout."""

    activation: object
    dropout: tuple

    cache_key = property(key_of)


def _verb_of(model, dropout, n_in, batch_rows, compute):
    widths = model.n_hidden, model.n_in, model.n_out
    units, features, outs = (triton.next_power_of_2(n) for n in widths)
    _, p_hidden, _ = dropout
    if p_hidden > 0:
        units = max(8, triton.next_power_of_2(model.n_hidden + 2))
    per_row = n_in // model.n_in
    items, warps = items_of(
        features * max(units, outs), per_row * batch_rows, compute, SUBNET_ELEMENTS
    )
    n_hidden, bias, n_in, n_out, activation, featurewise, readout = model
    places = spec.subnet_places(n_in if featurewise else 1, n_hidden, bias, n_out * n_in)
    model = n_hidden, bias, n_in, n_out, featurewise, readout
    sizes = Sizes(*model, *places, per_row, units, features, outs, items)
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    return Verb(subnet, sizes, Constants(functions[activation], dropout_constants(*dropout)), warps)


def elementwise_verb(sizes, constants, *batch):
    return _verb_of(spec.SubnetSizes(*sizes), (0.0, 0.0, 0.0), *batch)


def additive_verb(sizes, constants, *batch):
    return _verb_of(spec.SubnetSizes(*sizes, readout=1), (0.0, 0.0, 0.0), *batch)


def general_verb(sizes, dropout, *batch):
    return _verb_of(spec.SubnetSizes(*sizes), dropout, *batch)
