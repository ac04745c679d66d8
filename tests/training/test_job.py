"""What kernels of whole runs are given: a record of their own floor, of plain things."""

import numpy as np
import pytest
import torch

import fastmlp
from fastmlp.training import first_order

PLAIN = torch.Tensor, np.ndarray, np.generic, str, int, float, bool, type(None)

X = torch.linspace(-1, 1, 12).unsqueeze(1)

MODELS = {
    "list": lambda: [fastmlp.ElementwiseMLP(3), fastmlp.SineSum(2), fastmlp.MLP(1, [2], 1)],
    "ensemble": lambda: fastmlp.Ensemble(fastmlp.MLP(1, [2], 1), 3),
}


class Seen(Exception):
    """Carries what came, before anything is compiled."""


class Runs:
    """Stands for a wing's."""

    at_once = None

    def __init__(self, job, models):
        raise Seen(job)


def leaves(value):
    """All that a record is made of."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        yield value
        return
    elif hasattr(value, "_fields"):
        assert type(value).__module__ == "fastmlp.kernels.runs"
    for part in value:
        yield from leaves(part)


@pytest.mark.parametrize("models", MODELS)
def test_kernels_are_given_no_object_of_the_package(models, monkeypatch):
    monkeypatch.setattr(first_order, "_RUNS", dict.fromkeys(first_order._RUNS, __name__))
    monkeypatch.setattr(first_order.backends, "choose", lambda device: "numba")
    options = {"validation": (X, X), "sample_weight": torch.ones(12), "track": ["grad_norm"]}
    with pytest.raises(Seen) as seen:
        fastmlp.fit(MODELS[models](), X, X, epochs=2, patience=1, progress=False, **options)
    (job,) = seen.value.args
    found = [*leaves(job)]
    assert len(found) > 25
    assert {type(leaf) for leaf in found if not isinstance(leaf, PLAIN)} == set()
