"""Outputs and rows of ∂y/∂θ of sums of sines: see `models.py`."""

import math

import numpy as np

from ...spec import SineWords
from ..machine.jit import inner, inner_vectorized, named, record, wide_vectors
from ..numbers.sine import COS, SIN, frequencies, reduced
from ..numbers.tile import TILE
from .verbs import NUMBERS

WORDS = record(SineWords)

_TURNS_PER_RADIAN = 1 / (2 * math.pi)

_sin_turns, _cos_turns = SIN[np.float64], COS[np.float64]


@inner_vectorized
def sine_forward(net, reals, theta, x, n, work, f):
    """Work: sine and cosine of every unit, [W, TILE] each."""
    wide_vectors()
    model, numbers = named(net, WORDS), named(reals, NUMBERS)
    width, has_amplitude, has_phase = model.width, model.amplitude, model.phase
    turns, factor = numbers.turns, numbers.factor
    hi, lo = frequencies(theta[:width], turns, np.float64)
    out, column = f[:n], x[:n]
    for e in range(n):
        out[e] = 0.0
    for i in range(width):
        phi = theta[width * (1 + has_amplitude) + i] * _TURNS_PER_RADIAN if has_phase else 0.0
        a = factor * (theta[width + i] if has_amplitude else 1.0)
        hi_i, lo_i = hi[i], lo[i]
        sines, cosines = work[i * TILE :][:n], work[(width + i) * TILE :][:n]
        for e in range(n):
            r = reduced(hi_i, lo_i, phi, column[e])
            sines[e] = _sin_turns(r)
            cosines[e] = _cos_turns(r)
            out[e] += a * sines[e]


@inner
def sine_jacobian(net, reals, theta, x, n, work, jacobian):
    model, numbers = named(net, WORDS), named(reals, NUMBERS)
    width, has_amplitude, has_phase = model.width, model.amplitude, model.phase
    scale, factor = numbers.turns / _TURNS_PER_RADIAN, numbers.factor
    column = x[:n]
    for i in range(width):
        a = factor * (theta[width + i] if has_amplitude else 1.0)
        sines, cosines = work[i * TILE :][:n], work[(width + i) * TILE :][:n]
        out = jacobian[i * TILE :][:n]
        for e in range(n):
            out[e] = a * scale * column[e] * cosines[e]
        if has_amplitude:
            out = jacobian[(width + i) * TILE :][:n]
            for e in range(n):
                out[e] = factor * sines[e]
        if has_phase:
            out = jacobian[(width * (1 + has_amplitude) + i) * TILE :][:n]
            for e in range(n):
                out[e] = a * cosines[e]
