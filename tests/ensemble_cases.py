"""Small ensembles and data for the tests of `fit`."""

import torch

import fastmlp
from fastmlp import Ensemble

N, ROWS = 6, 40
MODELS = {
    "sines": lambda: fastmlp.SineSum(3),
    "hinges": lambda: fastmlp.ElementwiseMLP(4),
    "mlp": lambda: fastmlp.MLP(1, [4], 1, activation="tanh"),
}
LM = fastmlp.LevenbergMarquardt


def ensemble_of(name, n=N):
    return Ensemble(MODELS[name](), n, seed=1)


def data_for(name, *lead):
    """x and y of a shape, or those of all models."""
    generator = torch.Generator().manual_seed(2)
    x = 4 * torch.rand(*lead, ROWS, generator=generator) - 2
    x = x.unsqueeze(-1) if name == "mlp" else x
    return x, (2 * x).sin()


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
