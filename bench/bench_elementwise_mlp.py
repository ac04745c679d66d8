"""ElementwiseMLP, a learned activation with input gradient, against plain PyTorch."""

import math

import torch
from common import BACKWARD, MODES, Case, Suite, closeness

import fastmlp

CASES = (
    Case("5.76 M elements, H = 14", (5_760_000,), modes=MODES[2:3], x_grad=True, quick=True),
    Case("[256, 512], H = 14", (256, 512), x_grad=True),
    Case("1000 elements, H = 14", (1000,), x_grad=True),
)


def _build(cls, case):
    torch.manual_seed(0)
    return cls(14, **case.settings)


def bytes_moved(case, mode):
    """Forward reads x and writes y; backward reads x and dy and writes dx."""
    return 4 * math.prod(case.shape) * (5 if mode in BACKWARD else 2)


def terms(dy, x, net):
    fc1, fc2 = net.fc1, net.fc2
    return closeness.elementwise_mlp_terms(dy, x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)


SUITE = Suite(
    op="elementwise_mlp",
    cases=CASES,
    reference=lambda case: _build(fastmlp.reference.ElementwiseMLP, case),
    fused=lambda case: _build(fastmlp.ElementwiseMLP, case),
    draw=lambda case: torch.empty(case.shape).uniform_(-5, 8),
    bytes_moved=bytes_moved,
    terms=terms,
)
