"""The op `sine_sum` with Numba: y = s·Σ_i a_i·sin(scale·w_i·x + φ_i), s = 1 or 1/W.

Blocks of numbers stay in a level-1 cache while the loop over the sines passes; sine and cosine
share one reduction in backward. Forward reads and writes one number an element, backward reads x
and dy, and writes dx, once.
"""

import math

import numpy as np
import torch

from .jit import array_at, entry, vector_at
from .launch import address, common_dtype, cut, ready, run, run_summed
from .sine import COS, SIN, frequencies, reduced, turns_per_unit

TURNS_PER_RADIAN = 1 / (2 * math.pi)
BLOCK = 1024
"""Numbers in a block: x, dy, dx and y of one block are 16 KB."""


@entry
def _fwd(real):
    sin_turns = SIN[real]

    def sine_sum_fwd(x_at, w_at, a_at, phase_at, width, turns, factor, y_at, first, last):
        w, phase = vector_at(w_at, width, real), vector_at(phase_at, width, real)
        a = vector_at(a_at, width, real)
        if a_at == 0:
            a[:] = 1
        hi, lo = frequencies(w, turns, real)
        x, y = array_at(x_at, last, real), array_at(y_at, last, real)
        for start in range(first, last, BLOCK):
            xb, yb = x[start : min(start + BLOCK, last)], y[start : min(start + BLOCK, last)]
            yb[:] = 0
            for i in range(width):
                hi_i, lo_i, a_i = hi[i], lo[i], real(factor * a[i])
                phi = real(phase[i] * TURNS_PER_RADIAN)
                for e in range(xb.size):
                    yb[e] += a_i * sin_turns(reduced(hi_i, lo_i, phi, xb[e]))

    return sine_sum_fwd


@entry
def _bwd(real):
    sin_turns, cos_turns = SIN[real], COS[real]

    def sine_sum_bwd(
        dy_at, x_at, w_at, a_at, phase_at, width, turns, factor, dx_at, sums_at, first, last
    ):
        w, phase = vector_at(w_at, width, real), vector_at(phase_at, width, real)
        a = vector_at(a_at, width, real)
        if a_at == 0:
            a[:] = 1
        hi, lo = frequencies(w, turns, real)
        need_dx, need_dparams = dx_at != 0, sums_at != 0
        dy, x = array_at(dy_at, last, real), array_at(x_at, last, real)
        dx = array_at(dx_at, last, real)
        radians = 2 * math.pi * turns  # the scale
        sum_x_cos = np.zeros(width)
        sum_sin, sum_cos = np.zeros(width), np.zeros(width)
        zero = real(0)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            xb, gb = x[start:stop], dy[start:stop]
            if need_dx:
                dx[start:stop] = 0
            for i in range(width):
                hi_i, lo_i = hi[i], lo[i]
                phi = real(phase[i] * TURNS_PER_RADIAN)
                if need_dx:
                    out = dx[start:stop]
                    slope = real(factor * radians * a[i] * w[i])
                    for e in range(xb.size):
                        c = cos_turns(reduced(hi_i, lo_i, phi, xb[e]))
                        out[e] += gb[e] * (slope * c)
                if not need_dparams:
                    continue
                x_cos = only_cos = only_sin = zero
                if a_at == 0 and phase_at == 0:
                    for e in range(xb.size):
                        c = cos_turns(reduced(hi_i, lo_i, phi, xb[e]))
                        x_cos += gb[e] * (xb[e] * c)
                else:
                    for e in range(xb.size):
                        r = reduced(hi_i, lo_i, phi, xb[e])
                        g_cos = gb[e] * cos_turns(r)
                        x_cos += g_cos * xb[e]
                        only_cos += g_cos
                        only_sin += gb[e] * sin_turns(r)
                sum_x_cos[i] += x_cos
                sum_cos[i] += only_cos
                sum_sin[i] += only_sin
        if need_dparams:
            n_parts = 1 + (a_at != 0) + (phase_at != 0)
            sums = array_at(sums_at, n_parts * width, np.float64)
            for i in range(width):
                sums[i] = factor * radians * a[i] * sum_x_cos[i]
                if a_at != 0:
                    sums[width + i] = factor * sum_sin[i]
                if phase_at != 0:
                    sums[(n_parts - 1) * width + i] = factor * a[i] * sum_cos[i]

    return sine_sum_bwd


def _factor(width, mean):
    return 1.0 / width if mean else 1.0


def sine_sum_fwd(x, w, amplitude, phase, scale, mean):
    """y [*]: shape of x, promoted dtype of the arguments."""
    dtype, compute = common_dtype(x, w, amplitude, phase)
    x, *parameters = ready(compute, x, w, amplitude, phase)
    width = w.shape[0]
    y = torch.empty(x.shape, dtype=compute)
    run(
        _fwd[compute],
        x.numel(),
        *cut(x.numel(), width, BLOCK),
        x.data_ptr(),
        *map(address, parameters),
        width,
        turns_per_unit(scale),
        _factor(width, mean),
        y.data_ptr(),
    )
    return y if dtype is compute else y.to(dtype)


def sine_sum_bwd(dy, x, w, amplitude, phase, scale, mean, *, need_dx, need_dparams):
    """dx [*] or None, and [dw (W), damplitude (W) if given, dphase (W) if given] or None."""
    compute = torch.float64 if dy.dtype is torch.float64 else torch.float32
    dx_dtype = x.dtype
    dy, x, *parameters = ready(compute, dy, x, w, amplitude, phase)
    width = w.shape[0]
    dx = torch.empty(x.shape, dtype=compute) if need_dx else None
    n_parts = 1 + (amplitude is not None) + (phase is not None)
    dparams = run_summed(
        _bwd[compute],
        x.numel(),
        *cut(x.numel(), width, BLOCK),
        n_parts * width if need_dparams else 0,
        dy.dtype,
        dy.data_ptr(),
        x.data_ptr(),
        *map(address, parameters),
        width,
        turns_per_unit(scale),
        _factor(width, mean),
        address(dx),
    )
    return dx if dx is None or dx_dtype is compute else dx.to(dx_dtype), dparams
