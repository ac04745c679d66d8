"""Rows of a sum of sines: y = s·Σ_i a_i·sin(scale·w_i·x + φ_i), s = 1 or 1/W.

Blocks of numbers stay in a level-1 cache while the loop over the sines passes; sine and cosine
share one reduction in backward.
"""

import math

import numpy as np

from ..machine.jit import array_at, entry, vector_at, wide_vectors
from ..machine.launch import any_needed, store
from ..numbers.sine import (
    COS,
    REDUCED_SMALL,
    SIN,
    SMALL,
    frequencies,
    largest,
    reduced,
)

TURNS_PER_RADIAN = 1 / (2 * math.pi)

BLOCK = 1024
"""Numbers in a block: x, dy, x·dy, dx and y of one block are 20 KB."""


@entry
def forward(real):
    sin_turns, reduced_small, limit = SIN[real], REDUCED_SMALL[real], SMALL[real]

    def sine_sum_fwd(x_at, w_at, a_at, phase_at, width, turns, factor, y_at, first, last):
        wide_vectors()
        w, phase = vector_at(w_at, width, real), vector_at(phase_at, width, real)
        a = np.ones(width, real) if a_at == 0 else array_at(a_at, width, real)
        hi, lo = frequencies(w, turns, real)
        plain = phase_at == 0 and largest(lo) == 0
        x, y = array_at(x_at, last, real), array_at(y_at, last, real)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            xb, yb = x[start:stop], y[start:stop]
            yb[:] = 0
            small = plain and np.float64(largest(hi)) * largest(xb) < limit
            for i in range(width):
                hi_i, a_i = hi[i], real(factor * a[i])
                if small:
                    for e in range(xb.size):
                        yb[e] += a_i * sin_turns(reduced_small(hi_i, xb[e]))
                else:
                    lo_i, phi = lo[i], real(phase[i] * TURNS_PER_RADIAN)
                    for e in range(xb.size):
                        yb[e] += a_i * sin_turns(reduced(hi_i, lo_i, phi, xb[e]))

    return sine_sum_fwd


@entry
def backward(real):
    sin_turns, cos_turns = SIN[real], COS[real]
    reduced_small, limit = REDUCED_SMALL[real], SMALL[real]

    def sine_sum_bwd(
        dy_at,
        x_at,
        w_at,
        a_at,
        phase_at,
        width,
        turns,
        factor,
        dx_at,
        sums_at,
        dw_at,
        da_at,
        dphase_at,
        first,
        last,
    ):
        gradients_at = (dw_at, da_at, dphase_at)
        n_amplitudes, n_phases = width if a_at != 0 else 0, width if phase_at != 0 else 0
        sizes = (width, n_amplitudes, n_phases)
        wide_vectors()
        w, phase = vector_at(w_at, width, real), vector_at(phase_at, width, real)
        a = np.ones(width, real) if a_at == 0 else array_at(a_at, width, real)
        hi, lo = frequencies(w, turns, real)
        need_dx, need_dparams = dx_at != 0, any_needed(sums_at, gradients_at)
        only_w = a_at == 0 and phase_at == 0
        plain = phase_at == 0 and largest(lo) == 0
        dy, x = array_at(dy_at, last, real), array_at(x_at, last, real)
        dx = array_at(dx_at, last, real)
        cosines, dyx = np.empty(BLOCK, real), np.empty(BLOCK, real)
        radians = turns / TURNS_PER_RADIAN  # the scale
        sum_x_cos, sum_cos, sum_sin = np.zeros(width), np.zeros(width), np.zeros(width)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            xb, gb = x[start:stop], dy[start:stop]
            small = plain and np.float64(largest(hi)) * largest(xb) < limit
            if need_dx:
                dx[start:stop] = 0
            for e in range(xb.size):
                dyx[e] = gb[e] * xb[e]
            for i in range(width):
                hi_i, lo_i, phi = hi[i], lo[i], real(phase[i] * TURNS_PER_RADIAN)
                x_cos = only_cos = only_sin = real(0)
                if small and only_w and not need_dx:
                    for e in range(xb.size):
                        x_cos += dyx[e] * cos_turns(reduced_small(hi_i, xb[e]))
                elif small and only_w:
                    out = dx[start:stop]
                    slope = real(factor * radians * a[i] * w[i])
                    for e in range(xb.size):
                        c = cos_turns(reduced_small(hi_i, xb[e]))
                        x_cos += dyx[e] * c
                        out[e] += gb[e] * (slope * c)
                else:
                    for e in range(xb.size):
                        r = reduced(hi_i, lo_i, phi, xb[e])
                        cosines[e] = cos_turns(r)
                        x_cos += dyx[e] * cosines[e]
                        only_cos += gb[e] * cosines[e]
                        only_sin += gb[e] * sin_turns(r)
                    if need_dx:
                        out = dx[start:stop]
                        slope = real(factor * radians * a[i] * w[i])
                        for e in range(xb.size):
                            out[e] += gb[e] * (slope * cosines[e])
                sum_x_cos[i] += x_cos
                sum_cos[i] += only_cos
                sum_sin[i] += only_sin
        if need_dparams:
            sums = np.empty(width + n_amplitudes + n_phases, np.float64)
            at_phase = width + n_amplitudes
            for i in range(width):
                sums[i] = factor * radians * a[i] * sum_x_cos[i]
                if a_at != 0:
                    sums[width + i] = factor * sum_sin[i]
                if phase_at != 0:
                    sums[at_phase + i] = factor * a[i] * sum_cos[i]
            store(sums, sums_at, gradients_at, sizes, real)

    return sine_sum_bwd
