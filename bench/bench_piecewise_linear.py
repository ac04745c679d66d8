"""piecewise_linear against plain PyTorch: the table of a wide univariate net, for inference."""

import torch
from common import BACKWARD, Case, Suite, closeness
from torch import nn

import fastmlp
from fastmlp import piecewise, reference

# no parameters: there is nothing to train
MODES = ("inference", "forward_backward")
CASES = (
    Case(
        "5.76 M elements, 256 segments", (5_760_000,), MODES, {"hidden_features": 255}, x_grad=True
    ),
    Case("1000 elements, 256 segments", (1000,), MODES, {"hidden_features": 255}, x_grad=True),
)
TABLE = ("breakpoints", "anchors", "values", "slopes")


def _frozen(case):
    torch.manual_seed(0)
    with torch.device("cpu"):  # a table is made in float64, there and then
        return piecewise.freeze(fastmlp.ElementwiseMLP(**case.settings))


class Plain(nn.Module):
    """The same table in plain PyTorch."""

    def __init__(self, case):
        super().__init__()
        frozen = _frozen(case)
        for name in TABLE:
            self.register_buffer(name, getattr(frozen, name))

    def forward(self, x):
        return reference.piecewise_linear(x, *(getattr(self, name) for name in TABLE))


def bytes_moved(case, mode):
    """x is read and y written; backward reads x and dy and writes dx."""
    n = case.shape[0]
    return 4 * n * (5 if mode in BACKWARD else 2)


def terms(dy, x, table):
    return closeness.piecewise_linear_terms(dy, x, *(getattr(table, name) for name in TABLE))


SUITE = Suite(
    op="piecewise_linear",
    cases=CASES,
    reference=Plain,
    fused=_frozen,
    draw=lambda case: 3 * torch.randn(case.shape),
    bytes_moved=bytes_moved,
    terms=terms,
)
