"""AdditiveMLP against plain PyTorch: the main job, its batches, wider and narrower ones."""

import torch
from common import BACKWARD, MODES, Case, Suite, closeness

import fastmlp

SUBNET = {"in_features": 64, "hidden_features": 14}
CASES = (
    Case("[90000, 64], H = 14", (90_000, 64), settings=SUBNET, quick=True),
    Case("[100, 64], H = 14", (100, 64), settings=SUBNET, modes=MODES[2:], quick=True),
    Case("[1, 64], H = 14", (1, 64), settings=SUBNET),
    Case("[1000, 64], H = 14", (1000, 64), settings=SUBNET),
    Case("[10000, 64], H = 128", (10_000, 64), settings={**SUBNET, "hidden_features": 128}),
)


def _build(cls, case):
    torch.manual_seed(0)
    return cls(**case.settings)


def bytes_moved(case, mode):
    """x once a direction; y is written, dy is read."""
    n_rows, n_in = case.shape
    once = 4 * n_rows * (n_in + 1)
    return 2 * once if mode in BACKWARD else once


def terms(dy, x, net):
    fc1, fc2, fc3 = net.fc1, net.fc2, net.fc3
    return closeness.additive_mlp_terms(
        dy, x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, fc3.weight, fc3.bias
    )


SUITE = Suite(
    op="additive_mlp",
    cases=CASES,
    reference=lambda case: _build(fastmlp.reference.AdditiveMLP, case),
    fused=lambda case: _build(fastmlp.AdditiveMLP, case),
    draw=lambda case: torch.empty(case.shape).uniform_(-5, 8),
    bytes_moved=bytes_moved,
    terms=terms,
)
