"""Small models a model a lane on the GPU: every option, and bits of their own.

In the interpreter a lane's item costs milliseconds: models, rows and epochs are few.
"""

import copy

import pytest
import torch
from equivalence_cases import TRITON_DEVICE, assert_follows_the_torch_loop
from fit_cases import weights

pytest.importorskip("triton")

import triton.language as tl
from fastmlp.kernels.gpu import runs
from fastmlp.kernels.gpu.lanes import models as table
from fastmlp.kernels.gpu.lanes import runs as lanes

import fastmlp
from fastmlp.training import first_order
from fastmlp.training.structures import structure_of


@pytest.fixture(autouse=True)
def in_lanes(monkeypatch):
    """Where the table says so: the suite's other tests are kept from it in the interpreter."""
    taken = []

    def watched(job, models):
        taken.append(lanes.are_small(job, models))
        return taken[-1]

    monkeypatch.setattr(runs, "are_small", watched)
    yield
    assert all(small.all() for small in taken)


# each option once, and each model
CASES = {
    "sines, weights, clip, patience": (
        lambda: fastmlp.SineSum(2, learn_amplitude=True, learn_phase=True),
        {
            "x_shape": (7, 1), "batch_size": 4, "shuffle": False, "epochs": 2, "patience": 1,
            "sample_weight": torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0, 0.0, 0.0]), "clip_norm": 0.1,
            "optimizer": fastmlp.AdamW(lr=0.01, betas=(0.8, 0.95)), "loss": "huber",
        },
    ),
    "tanh, two outputs, momentum, norms": (
        lambda: fastmlp.MLP(2, [2], 2, activation="tanh"),
        {
            "x_shape": (6, 2), "batch_size": 5, "shuffle": False, "epochs": 2,
            "track": ("grad_norm",), "loss": "sse",
            "optimizer": fastmlp.SGD(lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
        },
    ),
    "relu, no bias, logits, rates": (
        lambda: fastmlp.MLP(1, [2, 2], 1, bias=False),
        {
            "x_shape": (4, 1), "epochs": 2, "loss": "bce_with_logits",
            "scheduler": fastmlp.StepLR(1, 0.5),
            "optimizer": fastmlp.Adam(lr=0.01, weight_decay=0.1),
        },
    ),
    "numbers one by one, l1, plain": (
        lambda: fastmlp.ElementwiseMLP(2, activation="sin"),
        {"x_shape": (3, 2), "epochs": 2, "loss": "l1", "optimizer": fastmlp.SGD(lr=0.05)},
    ),
    "order of its own": (
        lambda: fastmlp.SineSum(1), {"x_shape": (33, 1), "batch_size": 20, "epochs": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_option_follows_the_torch_loop(name):
    build, options = CASES[name]
    assert_follows_the_torch_loop("triton", build, dtype=torch.float32, **options)


def test_float64_follows_the_torch_loop():
    options = {"x_shape": (4, 1), "batch_size": 4, "epochs": 2}
    assert_follows_the_torch_loop("triton", lambda: fastmlp.SineSum(2), **options)


def train(nets, seeds, n_rows=4, **options):
    x = torch.linspace(-1, 1, n_rows, device=TRITON_DEVICE)
    options = {"epochs": 2, "batch_size": 3, "shuffle": False, "progress": False, **options}
    with fastmlp.backend("triton"):
        return fastmlp.fit([net.to(TRITON_DEVICE) for net in nets], x, x, seed=seeds, **options)


def test_a_models_bits_do_not_depend_on_its_neighbours_or_launches(monkeypatch):
    nets = [fastmlp.SineSum(1) for _ in range(34)]
    alone = copy.deepcopy(nets[33])
    many = train(nets, list(range(34)))
    monkeypatch.setattr(first_order, "LAUNCH_SECONDS", 1e-9)
    lone = train([alone], [33])
    assert torch.equal(weights([alone]), weights([nets[33]]))
    assert torch.equal(lone.train_loss[0], many.train_loss[33])


def test_each_model_has_an_order_of_its_own_or_all_have_one():
    start = fastmlp.SineSum(1)
    pair, shared = ([copy.deepcopy(start) for _ in range(2)] for _ in range(2))
    alone = copy.deepcopy(start)
    # 62 of the 64 that an order mixes: few lanes have others wait
    options = {"n_rows": 62, "batch_size": 50, "epochs": 1}
    train(pair, [5, 6], shuffle=True, **options)
    train([alone], [6], shuffle=True, **options)
    train(shared, 5, shuffle="shared", **options)
    assert torch.equal(weights([alone]), weights(pair[1:]))
    assert not torch.equal(weights([alone]), weights(pair[:1]))
    for model in shared:
        assert torch.equal(weights([model]), weights(pair[:1]))


def test_a_model_that_breaks_leaves_its_neighbours_alone():
    nets = [fastmlp.SineSum(1) for _ in range(3)]
    others = copy.deepcopy([nets[0], nets[2]])
    with torch.no_grad():
        nets[1].w[0] = float("inf")
    result, alone = train(nets, [0, 1, 2]), train(others, [0, 2])
    assert result.stopped == ["epochs", "not finite", "epochs"]
    assert nets[1].w.item() == float("inf")
    assert torch.equal(weights([nets[0], nets[2]]), weights(others))
    assert torch.equal(result.train_loss[[0, 2]], alone.train_loss)
    assert result.train_loss[1].isnan().all()


def test_models_stop_one_by_one_and_keep_their_best():
    start = fastmlp.SineSum(1)
    nets = [copy.deepcopy(start) for _ in range(2)]
    x = torch.linspace(-1, 1, 3, device=TRITON_DEVICE)
    options = {
        "optimizer": fastmlp.SGD(lr=[1e-3, 40.0]), "epochs": 4, "patience": 1, "batch_size": None,
        "validation": (x, x),
    }  # fmt: skip
    result = train(nets, 0, **options)
    assert result.stopped == ["epochs", "patience"]
    with fastmlp.backend("torch"):
        again = [copy.deepcopy(start) for _ in range(2)]
        rows = torch.linspace(-1, 1, 4)
        known = fastmlp.fit(
            again, rows, rows, shuffle=False, progress=False,
            **{**options, "validation": (x.cpu(), x.cpu())},
        )  # fmt: skip
    assert known.stopped == result.stopped
    assert (known._states["step"] == result._states["step"]).all()
    assert torch.allclose(weights(nets).cpu(), weights(again), atol=1e-6)


def test_models_have_rows_of_their_own():
    start = [fastmlp.SineSum(1) for _ in range(3)]
    x = torch.linspace(-1, 1, 8, device=TRITON_DEVICE)
    # two of one block, and one of another
    offsets, nets = torch.tensor([0, 3, 6, 8]), copy.deepcopy(start)
    options = {"epochs": 2, "progress": False, "optimizer": fastmlp.Adam(lr=0.01)}
    nets = [net.to(TRITON_DEVICE) for net in nets]
    with fastmlp.backend("triton"):
        fastmlp.fit(nets, x, x.square(), own=True, offsets=offsets, **options)
    with fastmlp.backend("torch"):
        for model, first, stop in zip(start, offsets[:-1], offsets[1:], strict=True):
            rows = x[first:stop].cpu()
            fastmlp.fit(model, rows, rows.square(), **options)
    assert torch.allclose(weights(nets).cpu(), weights(start), atol=1e-6)


def test_what_is_small():
    def small(module, n_in, batch_rows, *, steps=1, n_val_rows=0, compute=tl.float32):
        verb = table.verb_of(structure_of(module, "it"), n_in, compute)
        return verb is not None and table.is_small(verb, batch_rows, steps, n_val_rows)

    xor, sines = fastmlp.MLP(2, [5], 1, activation="sigmoid"), fastmlp.SineSum(8)
    assert small(xor, 2, 4)
    assert small(sines, 1, 60)
    assert small(sines, 1, 60, compute=tl.float64)
    assert small(fastmlp.MLP(1, [10], 1), 1, 60)
    assert small(fastmlp.ElementwiseMLP(10), 1, 60)
    assert small(sines, 1, 10, steps=100, n_val_rows=1000)
    assert not small(sines, 1, 1000)
    assert not small(sines, 1, 10, steps=10, n_val_rows=1000)
    assert not small(xor, 2, 4, compute=tl.float64)
    assert not small(fastmlp.SineSum(64), 1, 1)
    assert not small(fastmlp.MLP(1, [11], 1), 1, 1)
    assert not small(fastmlp.MLP(1, [10], 1, dropout=0.1), 1, 60)
    assert not small(fastmlp.AdditiveMLP(3, 4), 3, 10)
