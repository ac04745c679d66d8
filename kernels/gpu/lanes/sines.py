"""Sums of sines, a model a lane: the verb of `loop.py`."""

from typing import NamedTuple

import triton
import triton.language as tl

from ..numbers.losses import loss_and_slope
from ..numbers.sine import cos_turns, reduce_turns_any, sin_turns


@triton.jit
def sines(
    theta, grad, x_ptr, y_ptr, at, inside, weight, GRAD: tl.constexpr, SIZES: tl.constexpr,
    CONSTANTS: tl.constexpr, LOSS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i) of a number."""
    WIDTH: tl.constexpr = SIZES.width
    HAS_A: tl.constexpr = SIZES.amplitude
    HAS_PHASE: tl.constexpr = SIZES.phase
    PHASE_AT: tl.constexpr = WIDTH * (1 + HAS_A)
    turns = tl.full((), CONSTANTS.turns, COMPUTE)
    factor = tl.full((), CONSTANTS.factor, COMPUTE)
    x = tl.zeros_like(theta[0]) + tl.load(x_ptr + at, mask=inside, other=0.0)
    y = tl.load(y_ptr + at, mask=inside, other=0.0)
    y_hat = tl.zeros_like(x)
    reduced = ()
    waves = ()
    for i in tl.static_range(WIDTH):
        phase = None
        if HAS_PHASE:
            phase = theta[PHASE_AT + i] * tl.full((), 0.15915494309189535, COMPUTE)
        r = reduce_turns_any(theta[i] * turns, x, phase)
        sine = sin_turns(r)
        if HAS_A:
            y_hat += theta[WIDTH + i] * sine
        else:
            y_hat += sine
        reduced = reduced + (r,)  # noqa: RUF005
        waves = waves + (sine,)  # noqa: RUF005
    loss, slope = loss_and_slope(y_hat * factor, y, LOSS)
    total = tl.where(inside, weight * loss, 0.0).to(tl.float64)
    if GRAD:
        g = tl.where(inside, weight * slope, 0.0) * factor
        gx = g * x * tl.full((), CONSTANTS.turns * 6.283185307179586, COMPUTE)
        dw = ()
        da = ()
        dphase = ()
        for i in tl.static_range(WIDTH):
            cosine = cos_turns(reduced[i])
            if HAS_A:
                da = da + (grad[WIDTH + i] + g * waves[i],)  # noqa: RUF005
                cosine *= theta[WIDTH + i]
            dw = dw + (grad[i] + gx * cosine,)  # noqa: RUF005
            if HAS_PHASE:
                dphase = dphase + (grad[PHASE_AT + i] + g * cosine,)  # noqa: RUF005
        grad = dw + da + dphase
    return total, grad


class SineSizes(NamedTuple):
    """The model, and numbers in a row of x."""

    width: int
    amplitude: int
    phase: int
    per_row: int


class SineConstants(NamedTuple):
    """Turns a unit of w·x, and what the sum is multiplied by."""

    turns: float
    factor: float
