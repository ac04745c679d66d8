"""`fit` by sums over the segments: where it is chosen, and that it is the direct computation."""

import copy
import math

import pytest
import torch
from fit_cases import quiet_fit

pytest.importorskip("numba")

from fastmlp.kernels.cpu.training import full_batch, runs

import fastmlp

# differences of prefix sums lose thousands of ulps of the whole, and sixty steps add them up
TOLERANCE = 1e-10
MODELS = {
    "elementwise": lambda: fastmlp.ElementwiseMLP(10, dtype=torch.float64),
    "no_bias": lambda: fastmlp.ElementwiseMLP(4, bias=False, dtype=torch.float64),
    "leaky": lambda: fastmlp.ElementwiseMLP(6, activation="leaky_relu", dtype=torch.float64),
    "deep": lambda: fastmlp.ElementwiseMLP([10, 10, 10], dtype=torch.float64),
    "deep_leaky_no_bias": lambda: fastmlp.ElementwiseMLP(
        [6, 5], activation="leaky_relu", bias=False, dtype=torch.float64
    ),
    "mlp": lambda: fastmlp.MLP(1, [8, 8], 1, dtype=torch.float64),
}
OPTIMIZERS = {
    "adam": fastmlp.Adam(lr=3e-3, weight_decay=0.01),
    "nesterov": fastmlp.SGD(lr=1e-3, momentum=0.9, nesterov=True),
}


@pytest.fixture(autouse=True)
def _numba():
    with fastmlp.backend("numba"):
        yield


@pytest.fixture
def chosen(monkeypatch):
    """Data sets that were summed up."""
    made = []
    build = full_batch.FullBatch

    def spy(x, y):
        made.append(len(x))
        return build(x, y)

    monkeypatch.setattr(runs.full_batch, "FullBatch", spy)
    return made


def data(model, n=2000):
    x = torch.linspace(-5, 5, n, dtype=torch.float64)[torch.randperm(n)]
    x = x[:, None] if isinstance(model, fastmlp.MLP) else x
    return x, x.sin() + 0.3


def by_points(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr(full_batch, "applies", lambda *_: False)
        return quiet_fit(*arguments, **options)


def assert_same(ours, theirs, tolerance=TOLERANCE):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_same_run_as_by_points(monkeypatch, chosen, name, optimizer):
    model = MODELS[name]()
    plain = copy.deepcopy(model)
    x, y = data(model)
    options = {"epochs": 60, "optimizer": OPTIMIZERS[optimizer], "validation": (x[:50], y[:50])}
    ours = quiet_fit(model, x, y, **options)
    assert chosen == [2000]
    theirs = by_points(monkeypatch, plain, x, y, **options)
    assert chosen == [2000]
    for a, b in ((ours.train_loss, theirs.train_loss), (ours.val_loss, theirs.val_loss)):
        assert torch.allclose(a, b, rtol=TOLERANCE, atol=0)
    assert_same(model, plain)


def test_a_wrong_sum_is_found(monkeypatch, chosen):
    model = MODELS["deep"]()
    plain = copy.deepcopy(model)
    x, y = data(model)
    quiet_fit(model, x, y * (1 + 1e-8), epochs=5)
    by_points(monkeypatch, plain, x, y, epochs=5)
    with pytest.raises(AssertionError):
        assert_same(model, plain)


def test_numbers_of_any_shape(monkeypatch, chosen):
    model = fastmlp.ElementwiseMLP(5, dtype=torch.float64)
    plain = copy.deepcopy(model)
    x = torch.randn(300, 7, dtype=torch.float64)
    ours = quiet_fit(model, x, x.cos(), epochs=20)
    theirs = by_points(monkeypatch, plain, x, x.cos(), epochs=20)
    assert chosen == [300]
    assert torch.allclose(ours.train_loss, theirs.train_loss, rtol=TOLERANCE, atol=0)
    assert_same(model, plain)


def test_float32_is_as_near_to_float64_as_the_points(monkeypatch, chosen):
    exact = MODELS["elementwise"]()
    ours, theirs = copy.deepcopy(exact).float(), copy.deepcopy(exact).float()
    x, y = data(exact)
    by_points(monkeypatch, exact, x, y, epochs=30)
    quiet_fit(ours, x.float(), y.float(), epochs=30)
    by_points(monkeypatch, theirs, x.float(), y.float(), epochs=30)
    assert chosen == [2000]
    for a, b, c in zip(*(m.parameters() for m in (ours, theirs, exact)), strict=True):
        # the one rule, with eight ulps of float32
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 1e-6 * c.abs().max()


def test_points_on_breakpoints(monkeypatch):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64).round(decimals=2)
    model = fastmlp.ElementwiseMLP(4, dtype=torch.float64)
    with torch.no_grad():
        model.fc1.weight.copy_(torch.tensor([[1.0], [-1.0], [0.5], [-2.0]]))
        model.fc1.bias.zero_()
    plain = copy.deepcopy(model)
    sgd = fastmlp.SGD(lr=1.0)
    quiet_fit(model, x, x.cos() + 1, epochs=1, optimizer=sgd)
    by_points(monkeypatch, plain, x, x.cos() + 1, epochs=1, optimizer=sgd)
    assert_same(model, plain)


def test_fit_that_is_nearly_exact_is_left_to_the_points(monkeypatch, chosen):
    truth = MODELS["deep"]()
    x, _ = data(truth)
    y = truth(x).detach()
    with torch.no_grad():
        truth.get_parameter(next(iter(dict(truth.named_parameters())))).mul_(1 + 1e-9)
    plain = copy.deepcopy(truth)
    options = {"epochs": 3, "optimizer": fastmlp.SGD(lr=1e-3)}
    ours = quiet_fit(truth, x, y, **options)
    theirs = by_points(monkeypatch, plain, x, y, **options)
    assert chosen == [2000]
    # float64 rounds, and nothing else is left: below what the sums can tell
    assert 0 < theirs.train_loss[0, 0] < 1e-14
    assert torch.equal(ours.train_loss, theirs.train_loss)
    for a, b in zip(truth.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_same_bits_however_the_run_is_cut(chosen):
    first = MODELS["deep"]()
    x, y = data(first)
    models = [copy.deepcopy(first) for _ in range(3)]
    threads = torch.get_num_threads()
    quiet_fit(models[0], x, y, epochs=40)
    try:
        torch.set_num_threads(1)
        quiet_fit([models[1], MODELS["elementwise"]()], x, y, epochs=40)
    finally:
        torch.set_num_threads(threads)
    part = quiet_fit(models[2], x, y, epochs=15)
    quiet_fit(models[2], x, y, epochs=40, resume=part)
    assert chosen == [2000] * 4
    for other in models[1:]:
        for a, b in zip(models[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_weights_that_are_not_finite_stop_the_run(chosen):
    model = MODELS["deep"]()
    x, y = data(model)
    with torch.no_grad():
        next(model.parameters())[3] = math.nan
    assert quiet_fit(model, x, y, epochs=3).stopped == ["not finite"]
    assert chosen == [2000]


class TestChoice:
    """Points are taken wherever sums are not what was asked for, or not cheaper."""

    def points(self, chosen, model, n=2000, **options):
        x, y = data(model, n)
        quiet_fit(model, x, y, **{"epochs": 1, **options})
        assert chosen == []

    def test_batches(self, chosen):
        self.points(chosen, MODELS["elementwise"](), batch_size=1999)

    def test_another_loss(self, chosen):
        self.points(chosen, MODELS["elementwise"](), loss="huber")

    def test_weights(self, chosen):
        self.points(chosen, MODELS["elementwise"](), sample_weight=torch.ones(2000))

    def test_few_points(self, chosen):
        assert full_batch.applies(930, (1, 10, 10, 10, 1))
        self.points(chosen, MODELS["deep"](), n=929)

    def test_curved_activations(self, chosen):
        self.points(chosen, fastmlp.ElementwiseMLP(5, activation="tanh"))
        self.points(chosen, fastmlp.ElementwiseMLP([5, 5], activation="gelu"))

    def test_dropout(self, chosen):
        self.points(chosen, fastmlp.ElementwiseMLP(5, activation="leaky_relu", dropout=0.1))

    def test_kinked_output(self, chosen):
        self.points(chosen, fastmlp.MLP(1, [5], 1, output_activation="relu"))

    def test_several_inputs(self, chosen):
        net = fastmlp.AdditiveMLP(3, 4)
        quiet_fit(net, torch.randn(2000, 3), torch.randn(2000, 1), epochs=1)
        net = fastmlp.MLP(2, [4], 1)
        quiet_fit(net, torch.randn(2000, 2), torch.randn(2000, 1), epochs=1)
        assert chosen == []

    def test_data_that_are_not_finite(self, chosen):
        model = MODELS["elementwise"]()
        x, y = data(model)
        y[3] = math.nan
        assert quiet_fit(model, x, y, epochs=1).stopped == ["not finite"]
        assert chosen == []
