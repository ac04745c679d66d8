"""`fit` of wide nets in large batches, which are multiplied on tensor cores."""

import pytest
import torch
from equivalence_cases import ON_DEVICE, TRITON_DEVICE, assert_follows_the_torch_loop, data_for
from torch import nn

import fastmlp

pytest.importorskip("triton")

from fastmlp.kernels.gpu.layers import choices, verbs

NETS = {
    "relu": lambda: fastmlp.MLP(3, [20, 17], 2),
    "tanh, no bias": lambda: fastmlp.MLP(3, [18], 2, activation="tanh", bias=False),
    "dropout everywhere": lambda: nn.Sequential(
        nn.Dropout(0.2), nn.Linear(3, 24), nn.SiLU(), nn.Dropout(0.3), nn.Linear(24, 2),
        nn.Dropout(0.1),
    ),
}  # fmt: skip


@pytest.fixture
def found(monkeypatch):
    """The verbs on tensor cores that are asked for, ``None`` where there is none."""
    found, verb_of = [], verbs.cores_verb_of
    monkeypatch.setattr(verbs, "cores_verb_of", lambda *a: found.append(verb_of(*a)) or found[-1])
    if not ON_DEVICE:
        monkeypatch.setattr(choices, "target_of", lambda x: 90)
    return found


# the last tile of a batch has 11 rows, the epoch's last batch 9
BATCHES = {"x_shape": (159, 3), "batch_size": 75, "epochs": 20 if ON_DEVICE else 1}


@pytest.mark.parametrize("name", NETS)
def test_large_batches_follow_the_torch_loop(name, found):
    assert_follows_the_torch_loop("triton", NETS[name], dtype=torch.float32, **BATCHES)
    assert [verb.function for verb in found] == [verbs.mlp_on_cores]


def test_rows_of_several_items_and_weights(found):
    options = {**BATCHES, "x_shape": (40, 5, 3), "batch_size": 30}
    assert_follows_the_torch_loop(
        "triton", NETS["relu"], dtype=torch.float32, sample_weight=torch.linspace(0.5, 2, 40),
        loss="huber", **options,
    )  # fmt: skip
    assert len(found) == 1


def fit(models, batch_size, dtype=torch.float32):
    x, y = data_for(NETS["relu"](), dtype, (70, 3))
    models = [model.to(TRITON_DEVICE, dtype) for model in models]
    with fastmlp.backend("triton"):
        fastmlp.fit(
            models, x.to(TRITON_DEVICE), y.to(TRITON_DEVICE), epochs=1, batch_size=batch_size,
            progress=False,
        )  # fmt: skip
    return models


def test_small_batches_narrow_nets_and_float64_do_without(found):
    fit([NETS["relu"]()], 63)
    assert found == []
    fit([fastmlp.MLP(3, [9], 2)], 64)
    fit([NETS["relu"]()], 64, torch.float64)
    assert found == [None, None]


def test_nets_that_are_not_on_the_chip_at_once_do_without():
    x = torch.empty(64, 64, device="meta")
    for widths, fits in (((64, 64, 16), True), ((64, 64, 64, 64), False)):
        sizes = len(widths) - 1, 1, 0, 0, *widths
        verb = verbs.cores_verb_of(sizes, (0.0,), x, choices.tl.float32)
        assert (verb is not None) == fits, widths


def test_products_follow_the_setting(found):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision, terms in (("ieee", 3), ("tf32", 1)):
            matmul.fp32_precision = precision
            fit([NETS["relu"]()], 70)
            assert found[-1].constants.trained.terms == terms
    finally:
        matmul.fp32_precision = before


def test_a_model_is_trained_alike_whatever_its_neighbours():
    torch.manual_seed(5)
    start = [NETS["relu"]() for _ in range(2)]
    states = [model.state_dict() for model in start]

    def fresh(*which):
        models = [NETS["relu"]() for _ in which]
        for model, i in zip(models, which, strict=True):
            model.load_state_dict(states[i])
        return models

    both = fit(fresh(0, 1), 70)
    (alone,) = fit(fresh(0), 70)
    for ours, theirs in zip(both[0].parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
