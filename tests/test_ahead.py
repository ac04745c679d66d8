"""fastmlp.warm_up: every shape is run, here and in processes of its own, and nothing changes."""

import pytest
import torch

import fastmlp
from fastmlp import ahead

calls: list = []


class Watched(torch.nn.Module):
    """Notes every call, and updates a buffer as a normalization does."""

    def __init__(self):
        super().__init__()
        self.inner = fastmlp.ElementwiseMLP(4, dropout=0.1)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x):
        self.n += 1
        calls.append((tuple(x.shape), torch.is_grad_enabled(), x.requires_grad))
        return self.inner(x)


def test_every_shape_runs_each_way_and_nothing_changes(monkeypatch):
    monkeypatch.setattr(ahead, "MAX_WORKERS", 1)
    module, shapes = Watched(), [(3,), (2, 5), ()]
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    calls.clear()
    fastmlp.warm_up(module, shapes, progress=False)
    wanted = [(s, g, dx) for s in shapes for g, dx in ((False, False), (True, False), (True, True))]
    assert calls == wanted
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in module.parameters())


def test_processes_share_the_shapes(capfd):
    fastmlp.warm_up(torch.nn.Linear(3, 2), [(1, 3), (4, 3)])
    assert "4/4" in capfd.readouterr().err


def test_a_module_that_cannot_be_sent_is_run_here():
    module = torch.nn.Linear(3, 2)
    module.function = lambda: None
    assert not ahead._can_be_sent(module)
    fastmlp.warm_up(module, [(1, 3), (4, 3)], progress=False)


def test_bad_arguments_are_named(monkeypatch):
    monkeypatch.setattr(ahead, "MAX_WORKERS", 1)
    module = fastmlp.AdditiveMLP(5, 6)
    with pytest.raises(TypeError, match="module must be"):
        fastmlp.warm_up(torch.relu, [(3,)])
    for shapes in ([3], ["35"], [(3.0, 5)]):
        with pytest.raises(TypeError, match="sequences of ints"):
            fastmlp.warm_up(module, shapes)
    with pytest.raises(ValueError, match="negative"):
        fastmlp.warm_up(module, [(-1, 5)])
    with pytest.raises(ValueError, match="x must have shape"):
        fastmlp.warm_up(module, [(3, 4)], progress=False)
