"""Small models a model a lane: each has bits of its own, and every option."""

import copy

import pytest
import torch
from equivalence_cases import MODELS, OPTIMIZERS, assert_follows_the_torch_loop
from fit_cases import weights

pytest.importorskip("numba")

from fastmlp.kernels.cpu import runs
from fastmlp.kernels.cpu.lanes.models import is_small

import fastmlp
from fastmlp.training import first_order
from fastmlp.training.structures import structure_of

X = torch.linspace(-1, 1, 45)[:, None]
Y = torch.cat([X.sin(), X.cos()], 1)
WEIGHTED = {"batch_size": 44, "sample_weight": torch.linspace(0, 1, 45), "shuffle": False}


@pytest.fixture(autouse=True)
def in_lanes(monkeypatch):
    """Whatever the table of sizes says."""
    monkeypatch.setattr(runs, "is_small", lambda *arguments: True)


def net():
    return fastmlp.MLP(1, [4], 2, activation="tanh", dropout=0.2)


def sines():
    return fastmlp.SineSum(3, learn_phase=True)


def train(nets, seeds, **options):
    y = Y if isinstance(nets[0], fastmlp.MLP) else X.square()
    options = {
        "epochs": 6, "batch_size": 5, "optimizer": fastmlp.Adam(lr=0.01), "progress": False,
        "validation": (X[:3], y[:3]), **options,
    }  # fmt: skip
    return fastmlp.fit(nets, X, y, seed=seeds, **options)


# 22 rows are dealt into groups: alone a model has a lane for each, among many one for all; the last
# batch has one row, and groups without any
@pytest.mark.parametrize(
    "batch", [{"batch_size": 5}, {"batch_size": 22}, WEIGHTED], ids=["5", "22", "44"]
)
@pytest.mark.parametrize("build", [net, sines])
@pytest.mark.parametrize("n_others", [1, 31, 33, 1000])
def test_a_models_bits_do_not_depend_on_its_neighbours(build, n_others, batch):
    torch.manual_seed(0)
    model = build()
    alone = copy.deepcopy(model)
    lone = train([alone], [7], **batch)
    others = [build() for _ in range(n_others)]
    # in a lane of its own each time, among others that start anywhere
    place = n_others * 2 // 3
    nets = [*others[:place], model, *others[place:]]
    seeds = list(range(100, 101 + n_others))
    seeds[place] = 7
    result = train(nets, seeds, **batch)
    assert torch.equal(weights([model]), weights([alone]))
    for curve in ("train_loss", "val_loss"):
        assert torch.equal(getattr(result, curve)[place], getattr(lone, curve)[0])


def test_a_model_that_breaks_leaves_its_neighbours_alone():
    torch.manual_seed(0)
    nets = [sines() for _ in range(5)]
    others = copy.deepcopy([nets[0], nets[2], nets[3], nets[4]])
    with torch.no_grad():
        nets[1].w[0] = float("inf")
    before = weights([nets[1]])
    result = train(nets, [0, 1, 2, 3, 4])
    alone = train(others, [0, 2, 3, 4])
    assert result.stopped == ["epochs", "not finite", "epochs", "epochs", "epochs"]
    assert torch.equal(weights([nets[1]]), before)
    assert torch.equal(weights([nets[0], *nets[2:]]), weights(others))
    assert torch.equal(result.train_loss[[0, 2, 3, 4]], alone.train_loss)
    assert result.train_loss[1].isnan().all()


def test_models_stop_one_by_one():
    torch.manual_seed(0)
    nets = [sines() for _ in range(20)]
    rates = [0.5 if i % 3 else 1e-3 for i in range(20)]
    start = copy.deepcopy(nets)
    options = {"epochs": 40, "patience": 2}
    result = train(nets, list(range(20)), optimizer=fastmlp.SGD(lr=rates), **options)
    assert len({*result.stopped}) == 2
    for i in (0, 1, 19):
        lone = train([start[i]], [i], optimizer=fastmlp.SGD(lr=rates[i]), **options)
        assert lone.stopped == [result.stopped[i]]
        assert torch.equal(weights([start[i]]), weights([nets[i]]))
        assert torch.equal(
            lone.val_loss[0].nan_to_num(), result.val_loss[i, : lone.val_loss.shape[1]].nan_to_num()
        )


@pytest.mark.parametrize("build", [net, sines])
def test_launches_may_be_cut_anywhere(build, monkeypatch):
    torch.manual_seed(0)
    nets = [build() for _ in range(3)]
    again = copy.deepcopy(nets)
    train(nets, [1, 2, 3])
    monkeypatch.setattr(first_order, "LAUNCH_SECONDS", 1e-9)
    train(again, [1, 2, 3])
    assert torch.equal(weights(nets), weights(again))


def test_models_at_different_steps_share_no_vector():
    torch.manual_seed(0)
    nets = [sines() for _ in range(2)]
    whole = copy.deepcopy(nets)
    train(whole, [1, 2])
    first = train(nets, [1, 2], epochs=3)
    # as after an interrupt that one of them was quicker than
    state = first._states["step"]
    assert state.tolist() == [27, 27]
    train([nets[0], nets[1]], [1, 2], resume=first)
    assert torch.equal(weights(nets), weights(whole))


@pytest.mark.parametrize(
    "options",
    [
        {"sample_weight": torch.linspace(0, 2, 24).clamp(min=0.3) - 0.3},
        {"clip_norm": 0.05, "optimizer": OPTIMIZERS["sgd_momentum"][0]},
        {"patience": 3, "optimizer": fastmlp.SGD(lr=0.3)},
        {"scheduler": fastmlp.StepLR(7, 0.5), "optimizer": OPTIMIZERS["adamw"][0]},
        {"track": ("grad_norm",), "loss": "sse", "optimizer": fastmlp.SGD(lr=1e-3)},
        {"batch_size": 1, "shuffle": False, "epochs": 10},
        {"batch_size": 24, "loss": "bce_with_logits"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["mlp", "sine_sum_all", "additive_mlp_per_feature"])
def test_every_option(name, dtype, options):
    options = {"epochs": 40, **options}
    assert_follows_the_torch_loop("numba", MODELS[name], dtype=dtype, **options)


def test_what_is_small():
    def small(module, n_in, n_rows, batch_rows):
        return is_small(structure_of(module, "it"), n_in, n_rows, batch_rows)

    assert small(fastmlp.MLP(2, [5], 1, activation="sigmoid"), 2, 4, 4)
    assert small(fastmlp.SineSum(8), 1, 60, 60)
    assert small(fastmlp.MLP(1, [10], 1), 1, 60, 60)
    assert not small(fastmlp.SineSum(1024), 1, 60, 1)
    assert not small(fastmlp.MLP(1, [10], 1), 1, 100_000, 32)
    assert not small(fastmlp.MLP(1, [10], 1), 1, 50_000, 50_000)
    assert not small(fastmlp.AdditiveMLP(64, 14), 64, 9000, 100)


def test_frozen_parameters_stay():
    torch.manual_seed(0)
    nets = [fastmlp.MLP(1, [4], 2) for _ in range(3)]
    for model in nets:
        model.layers[0].weight.requires_grad_(False) if hasattr(model, "layers") else next(
            model.parameters()
        ).requires_grad_(False)
    before = [next(model.parameters()).clone() for model in nets]
    trained = [list(model.parameters())[1].clone() for model in nets]
    train(nets, [1, 2, 3])
    for model, frozen, free in zip(nets, before, trained, strict=True):
        assert torch.equal(next(model.parameters()), frozen)
        assert not torch.equal(list(model.parameters())[1], free)


@pytest.mark.parametrize("lanes", [True, False])
def test_one_order_for_all(lanes, monkeypatch):
    monkeypatch.setattr(runs, "is_small", lambda *arguments: lanes)
    torch.manual_seed(0)
    start = sines()
    nets, plain = [copy.deepcopy(start) for _ in range(40)], copy.deepcopy(start)
    few = [copy.deepcopy(start) for _ in range(2)]
    # lonely models have lanes for groups of rows, many one each
    train(nets, 3, shuffle="shared", batch_size=20)
    train(few, 3, shuffle="shared", batch_size=20)
    # alone, a model is the first of its list: that order
    train([plain], 3, batch_size=20)
    for model in [*nets, *few]:
        assert torch.equal(weights([model]), weights([plain]))


def test_one_order_for_all_needs_one_key():
    with pytest.raises(ValueError, match=r"seed must be one number with shuffle='shared'"):
        train([sines()], [3], shuffle="shared")
    with pytest.raises(
        ValueError, match=r"shuffle must be True or False with models\[0\], whose d"
    ):
        train([net()], 3, shuffle="shared")
    with pytest.raises(ValueError, match="shuffle must be one of shared, got 'each'"):
        train([sines()], 3, shuffle="each")
