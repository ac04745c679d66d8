"""The definition of what is right, held against formulas written out and against nn.Sequential."""

import math

import pytest
import torch
from closeness import assert_same_number
from torch import nn

from fastmlp import reference


class PlainNetwork(nn.Module):
    """The reference network, as anyone would write it."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(1, 14)
        self.fc2 = nn.Linear(14, 1)
        self.fc3 = nn.Linear(64, 1)

    def forward(self, x):
        hidden = torch.relu(self.fc1(x.unsqueeze(-1)))
        return self.fc3(self.fc2(hidden).squeeze(-1))


def test_additive_mlp_is_the_plain_network(draw):
    plain = PlainNetwork().double()
    module = reference.AdditiveMLP(64, 14).double()
    module.load_state_dict(plain.state_dict())
    x = draw(10, 64)
    assert_same_number(module(x), plain(x))


def test_elementwise_mlp_is_a_sequence_of_layers(draw):
    module = reference.ElementwiseMLP(5).double()
    plain = nn.Sequential(module.fc1, nn.ReLU(), module.fc2)
    x = draw(2, 3)
    assert_same_number(module(x), plain(x.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("reduction", reference.REDUCTIONS)
def test_sine_sum_is_its_formula(reduction, draw):
    x, w, amplitude, phase = draw(2, 3), draw(4), draw(4), draw(4)
    y = reference.sine_sum(x, w, amplitude, phase, 1.5, reduction)
    exact = [
        [
            sum(
                a * math.sin(1.5 * f * value + p)
                for f, a, p in zip(w.tolist(), amplitude.tolist(), phase.tolist(), strict=True)
            )
            / (4 if reduction == "mean" else 1)
            for value in row
        ]
        for row in x.tolist()
    ]
    assert_same_number(y, torch.tensor(exact, dtype=torch.float64))


def test_dtypes_are_promoted(draw):
    x, w = draw(3).half(), draw(4).float()
    assert reference.sine_sum(x, w).dtype == torch.float32
    assert reference.sine_sum(x, w, amplitude=draw(4)).dtype == torch.float64
