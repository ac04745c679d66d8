"""The verb of sums of sines for least squares: see `models.py`."""

from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.tiles import put_columns
from ..numbers.sine import cos_turns, reduce_turns_any, sin_turns


class Sizes(NamedTuple):
    """The model, and sines at a time."""

    width: int
    amplitude: int
    phase: int
    block: int


class Numbers(NamedTuple):
    """Turns a unit of w·x, and what the sum is multiplied by."""

    turns: float
    factor: float


@triton.jit
def sine_jacobian(
    theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride,
    SIZES: tl.constexpr, ACTS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i)."""
    WIDTH: tl.constexpr = SIZES.width
    HAS_A: tl.constexpr = SIZES.amplitude
    HAS_PHASE: tl.constexpr = SIZES.phase
    BLOCK: tl.constexpr = SIZES.block
    PHASE_AT: tl.constexpr = WIDTH * (1 + HAS_A)
    turns = tl.full((), NUMBERS.turns, tl.float64)
    factor = tl.full((), NUMBERS.factor, tl.float64)
    scale = tl.full((), NUMBERS.turns * 6.283185307179586, tl.float64)
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
