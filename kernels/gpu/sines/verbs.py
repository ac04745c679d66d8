"""The verb of sums of sines for whole training runs: see `training/loop.py` for its contract."""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import spec
from ..machine.verbs import Verb, items_of
from ..numbers.losses import loss_and_gradient
from ..numbers.order import find
from ..numbers.sine import cos_turns, reduce_turns_any, sin_turns

SINE_ELEMENTS = 16
"""Elements a thread."""


@triton.jit
def sine_sum(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i) of every number of a row."""
    WIDTH: tl.constexpr = SIZES.width
    HAS_A: tl.constexpr = SIZES.amplitude
    HAS_PHASE: tl.constexpr = SIZES.phase
    PER_ROW: tl.constexpr = SIZES.per_row
    BLOCK: tl.constexpr = SIZES.block
    ITEMS: tl.constexpr = SIZES.items
    TURNS: tl.constexpr = CONSTANTS.turns
    FACTOR: tl.constexpr = CONSTANTS.factor
    units = tl.arange(0, BLOCK)
    known = units < WIDTH
    w = tl.load(theta_ptr + units, mask=known, other=0.0)
    frequency = w * tl.full((), TURNS, COMPUTE)
    a = known.to(COMPUTE)
    if HAS_A:
        a = tl.load(theta_ptr + WIDTH + units, mask=known, other=0.0)
    phase = None
    PHASE_AT: tl.constexpr = WIDTH * (1 + HAS_A)
    if HAS_PHASE:
        phase = tl.load(theta_ptr + PHASE_AT + units, mask=known, other=0.0)
        phase = (phase * tl.full((), 0.15915494309189535, COMPUTE))[None, :]
    dw = tl.zeros((BLOCK,), COMPUTE)
    da = tl.zeros((BLOCK,), COMPUTE)
    dphase = tl.zeros((BLOCK,), COMPUTE)
    total = tl.zeros((), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        y = tl.load(y_ptr + at, mask=inside, other=0.0)
        r = reduce_turns_any(frequency[None, :], tl.broadcast_to(x[:, None], (ITEMS, BLOCK)), phase)
        sines = sin_turns(r)
        y_hat = tl.sum(sines * a[None, :], axis=1) * tl.full((), FACTOR, COMPUTE)
        loss, g = loss_and_gradient(y_hat, y, weight, inside, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            g *= tl.full((), FACTOR, COMPUTE)
            cosines = cos_turns(r)
            dw += tl.sum((g * x)[:, None] * cosines, axis=0)
            if HAS_A:
                da += tl.sum(g[:, None] * sines, axis=0)
            if HAS_PHASE:
                dphase += tl.sum(g[:, None] * cosines, axis=0)
    if grad_ptr is not None:
        dw *= a * tl.full((), TURNS * 6.283185307179586, COMPUTE)
        tl.store(grad_ptr + units, dw, mask=known)
        if HAS_A:
            tl.store(grad_ptr + WIDTH + units, da, mask=known)
        if HAS_PHASE:
            tl.store(grad_ptr + PHASE_AT + units, dphase * a, mask=known)
    return total


class Sizes(NamedTuple):
    """The model, numbers in a row of x, and a tile: sines, and numbers of x."""

    width: int
    amplitude: int
    phase: int
    per_row: int
    block: int
    items: int


class Constants(NamedTuple):
    """Turns a unit of w·x, and what the sum is multiplied by."""

    turns: float
    factor: float


def verb_of(sizes, constants, n_in, batch_rows, compute):
    block = triton.next_power_of_2(spec.SineSizes(*sizes).width)
    items, warps = items_of(block, n_in * batch_rows, compute, SINE_ELEMENTS)
    return Verb(sine_sum, Sizes(*sizes, n_in, block, items), Constants(*constants), warps)
