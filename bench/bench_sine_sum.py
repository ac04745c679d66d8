"""SineSum against plain PyTorch: parameter gradients on many points, and SineNet's own size."""

import math

import torch
from common import BACKWARD, MODES, Case, Suite, closeness

import fastmlp

CASES = (
    Case("100000 points, W = 64", (100_000,), modes=MODES[2:3], settings={"width": 64}, quick=True),
    Case("60 points, W = 8", (60,), settings={"width": 8}),
    Case("60 points, W = 1024", (60,), settings={"width": 1024}),
)


def _build(cls, case):
    torch.manual_seed(0)
    return cls(**case.settings)


def bytes_moved(case, mode):
    """Forward reads x and writes y; backward reads x and dy."""
    return 4 * math.prod(case.shape) * (4 if mode in BACKWARD else 2)


def terms(dy, x, net):
    return closeness.sine_sum_terms(
        dy, x, net.w, net.amplitude, net.phase, net.scale, net.reduction
    )


SUITE = Suite(
    op="sine_sum",
    cases=CASES,
    reference=lambda case: _build(fastmlp.reference.SineSum, case),
    fused=lambda case: _build(fastmlp.SineSum, case),
    draw=lambda case: torch.empty(case.shape).uniform_(-10, 10),
    bytes_moved=bytes_moved,
    terms=terms,
)
