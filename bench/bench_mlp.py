"""MLP, a whole dense network, against plain PyTorch: a toy net of experiment 2 and wider ones."""

import itertools

import torch
from common import BACKWARD, MODES, Case, Suite, closeness

import fastmlp

CASES = (
    Case("[1280, 1], 1-10-10-10-1", (1280, 1), settings={"widths": (1, 10, 10, 10, 1)}, quick=True),
    Case("[65536, 64], 64-64-64-16", (65_536, 64), settings={"widths": (64, 64, 64, 16)}),
    Case(
        "[20000, 2], 2-32-32-1, tanh",
        (20_000, 2),
        modes=MODES[2:3],
        settings={"widths": (2, 32, 32, 1), "activation": "tanh"},
    ),
    Case("[256, 128], 128-128-128", (256, 128), settings={"widths": (128, 128, 128)}),
    Case("[4096, 128], 128-128-128", (4096, 128), settings={"widths": (128, 128, 128)}),
    Case("[1024, 32], 32-128-1", (1024, 32), settings={"widths": (32, 128, 1)}),
    Case("[4096, 64], 64-64-64-16", (4096, 64), settings={"widths": (64, 64, 64, 16)}),
)


def _build(cls, case):
    torch.manual_seed(0)
    settings = dict(case.settings)
    n_in, *hidden, n_out = settings.pop("widths")
    return cls(n_in, hidden, n_out, **settings)


def bytes_moved(case, mode):
    """Forward reads x and writes y; backward reads x and dy."""
    n_rows, widths = case.shape[0], case.settings["widths"]
    once = 4 * n_rows * (widths[0] + widths[-1])
    return 2 * once if mode in BACKWARD else once


def flops(case, mode):
    """Two for a multiply-add of each product; dW and dx cost as much as forward each, dx of the
    first layer left out."""
    n_rows, widths = case.shape[0], case.settings["widths"]
    sizes = [a * b for a, b in itertools.pairwise(widths)]
    products = 3 * sum(sizes) - sizes[0] if mode in BACKWARD else sum(sizes)
    return 2 * n_rows * products


def terms(dy, x, net):
    layers = list(net.children())
    sizes = closeness.mlp_terms(
        dy,
        x,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        net.activation,
        net.output_activation or "identity",
    )
    named = {"y": sizes["y"], "x": sizes["x"]}
    for name, weight, bias in zip(net._modules, sizes["weights"], sizes["biases"], strict=True):
        named.update({f"{name}.weight": weight, f"{name}.bias": bias})
    return named


SUITE = Suite(
    op="mlp",
    cases=CASES,
    reference=lambda case: _build(fastmlp.reference.MLP, case),
    fused=lambda case: _build(fastmlp.MLP, case),
    draw=lambda case: torch.empty(case.shape).uniform_(-1, 1),
    bytes_moved=bytes_moved,
    terms=terms,
    flops=flops,
)
