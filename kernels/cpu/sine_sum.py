"""The op `sine_sum` with Numba: y = s·Σ_i a_i·sin(scale·w_i·x + φ_i), s = 1 or 1/W.

Forward reads and writes one number an element, backward reads x and dy, and writes dx, once.
"""

import torch

from .machine.launch import cut, prepare, prepare_as, result_at, run, run_summed
from .numbers.sine import (
    turns_per_unit,
)
from .sines.rows import BLOCK, backward, forward

UNITS_PER_SINE = 4
"""What a sine costs, in ReLU units: see :data:`launch.PIECE`."""


def _factor(width, mean):
    return 1.0 / width if mean else 1.0


def sine_sum_fwd(x, w, amplitude, phase, scale, mean):
    """y [*]: shape of x, promoted dtype of the arguments."""
    dtype, compute, tensors, addresses = prepare(x, w, amplitude, phase)
    n, width = x.numel(), w.shape[0]
    y = torch.empty_like(tensors[0], dtype=dtype)
    run(
        forward[compute],
        n,
        *cut(n, UNITS_PER_SINE * width, BLOCK),
        *addresses,
        width,
        turns_per_unit(scale),
        _factor(width, mean),
        result_at(y, compute),
    )
    return y


def sine_sum_bwd(dy, x, w, amplitude, phase, scale, mean, *, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    compute, tensors, addresses = prepare_as(dy.dtype, dy, x, w, amplitude, phase)
    n, width = x.numel(), w.shape[0]
    need_dx, *needs = needs
    dx = torch.empty_like(tensors[1], dtype=x.dtype) if need_dx else None
    _, _, *parameters = tensors
    gradients = run_summed(
        backward[compute],
        n,
        *cut(n, UNITS_PER_SINE * width, BLOCK),
        [0 if p is None else p for p in parameters],
        needs,
        dy.dtype,
        *addresses,
        width,
        turns_per_unit(scale),
        _factor(width, mean),
        result_at(dx, compute),
    )
    return [dx, *gradients]
