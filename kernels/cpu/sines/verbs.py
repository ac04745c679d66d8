"""The verbs of sums of sines for whole training runs: see `models.py`.

Where a block has many numbers they are those of the op, whose loops run over numbers. Where it has
a few, the loops here run over the sines.
"""

from typing import NamedTuple

import numpy as np

from ...spec import SineSizes
from ..machine.jit import DTYPES, add, address, fma, inner, named, record, rint, wide_vectors
from ..numbers.blocks import BLOCK_NUMBERS, FEW
from ..numbers.sine import COS, SIN
from . import rows

KEPT = 4096
"""Numbers that forward leaves for backward, about: with the weights, half a level-1 cache."""

NARROW = 16
"""Sines of a model, below which loops over many numbers are the faster ones."""


class Numbers(NamedTuple):
    """Turns a unit of w·x, and what the sum is multiplied by."""

    turns: float
    factor: float


SIZES, NUMBERS = record(SineSizes), record(Numbers, np.float64)


@inner
def _over_units(width, n):
    return n < FEW or width >= NARROW


@inner
def _sine_parts(theta, sizes):
    """w, amplitude, phase; one that is absent is empty."""
    model = named(sizes, SIZES)
    width = model.width
    stop = width * (1 + model.amplitude)
    return theta[:width], theta[width:stop], theta[stop:]


def sine_forward(real):
    sin_turns, cos_turns, op = SIN[real], COS[real], rows.forward[DTYPES[real]]

    @inner
    def sine_sum_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        wide_vectors()
        width, numbers = named(sizes, SIZES).width, named(constants, NUMBERS)
        turns, factor = numbers.turns, numbers.factor
        w, amplitude, phase = _sine_parts(theta, sizes)
        n = x.size
        if not _over_units(width, n):
            addresses = address(x), address(w), address(amplitude), address(phase)
            op(*addresses, width, turns, factor, address(y), 0, n)
            return
        half = real(0.5)
        for r in range(n):
            xr = x[r]
            cosines = kept[r * width : (r + 1) * width]
            total = real(0)
            if turns == 0.5 and amplitude.size == 0 and phase.size == 0:
                # half a turn a unit: the frequency is exact
                for i in range(width):
                    hi = half * w[i]
                    u = fma(hi, xr, -rint(hi * xr))
                    u -= rint(u)
                    cosines[i] = cos_turns(u)
                    total += sin_turns(u)
            else:
                sines = kept[(n + r) * width : (n + r + 1) * width]
                for i in range(width):
                    kappa = np.float64(w[i]) * turns
                    hi = real(kappa)
                    lo = real(kappa - np.float64(hi))
                    sines[i] = fma(lo, xr, fma(hi, xr, -rint(hi * xr)))
                if phase.size > 0:
                    for i in range(width):
                        sines[i] += phase[i] * real(rows.TURNS_PER_RADIAN)
                for i in range(width):
                    u = sines[i] - rint(sines[i])
                    cosines[i] = cos_turns(u)
                    sines[i] = sin_turns(u)
                if amplitude.size > 0:
                    for i in range(width):
                        total += amplitude[i] * sines[i]
                else:
                    for i in range(width):
                        total += sines[i]
            y[r] = total * real(factor)

    return sine_sum_forward


def sine_backward(real):
    op = rows.backward[DTYPES[real]]

    @inner
    def sine_sum_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        wide_vectors()
        width, numbers = named(sizes, SIZES).width, named(constants, NUMBERS)
        turns, factor = numbers.turns, numbers.factor
        w, amplitude, phase = _sine_parts(theta, sizes)
        n = x.size
        if not _over_units(width, n):
            sums = np.empty(grad.size, np.float64)
            addresses = address(x), address(w), address(amplitude), address(phase)
            op(address(dy), *addresses, width, turns, factor, 0, address(sums), 0, 0, 0, 0, n)
            add(sums, grad, real)
            return
        dw, damplitude, dphase = _sine_parts(grad, sizes)
        radians = turns / rows.TURNS_PER_RADIAN
        for r in range(n):
            g = dy[r] * real(factor)
            gx = dy[r] * x[r] * real(factor * radians)
            cosines = kept[r * width : (r + 1) * width]
            sines = kept[(n + r) * width : (n + r + 1) * width]
            if amplitude.size > 0:
                for i in range(width):
                    dw[i] += gx * (amplitude[i] * cosines[i])
                    damplitude[i] += g * sines[i]
                if phase.size > 0:
                    for i in range(width):
                        dphase[i] += g * (amplitude[i] * cosines[i])
                continue
            for i in range(width):
                dw[i] += gx * cosines[i]
            if phase.size > 0:
                for i in range(width):
                    dphase[i] += g * cosines[i]

    return sine_sum_backward


def sine_block_rows(sizes, n_in):
    width = SineSizes(*sizes).width
    rows = KEPT // (width * n_in) if width >= NARROW else BLOCK_NUMBERS // n_in
    return max(1, rows)


def sine_n_kept(sizes, n_in):
    width = SineSizes(*sizes).width
    rows = sine_block_rows(sizes, n_in) if width >= NARROW else 1
    return 2 * width * max(FEW, rows * n_in)
