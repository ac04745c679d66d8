"""A user's default device or dtype changes nothing about tensors that have one of their own."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import __main__ as report
from fastmlp import piecewise, reference, spectral
from fastmlp.training import LevenbergMarquardt

numba_only = pytest.mark.skipif(
    not fastmlp.backends.is_installed("numba"), reason="numba is not installed"
)


@contextlib.contextmanager
def _dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "within_meta": lambda: torch.device("meta"),
    "set_meta": lambda: _device("meta"),
    "float64": lambda: _dtype(torch.float64),
    "float16": lambda: _dtype(torch.float16),
}


@pytest.fixture(params=DEFAULTS)
def default(request):
    """Context manager that sets another default device or dtype."""
    return DEFAULTS[request.param]


def assert_same(function, default):
    """The function gives the same tensors, bit for bit, under another default."""
    wanted = function()
    with default():
        found = function()
    assert len(found) == len(wanted)
    for ours, plain in zip(found, wanted, strict=True):
        assert ours.device == plain.device
        assert ours.dtype == plain.dtype
        assert torch.equal(ours.nan_to_num(), plain.nan_to_num())


CALLS = {
    "elementwise": (lambda: fastmlp.ElementwiseMLP(6), (40, 5)),
    "elementwise_tanh": (lambda: fastmlp.ElementwiseMLP(6, activation="tanh"), (40, 5)),
    "elementwise_deep": (lambda: fastmlp.ElementwiseMLP([6, 4]), (40, 5)),
    "additive": (lambda: fastmlp.AdditiveMLP(5, 6), (40, 5)),
    "additive_dropout": (lambda: fastmlp.AdditiveMLP(5, 6, dropout=0.3), (40, 5)),
    "additive_stacked": (lambda: fastmlp.AdditiveMLP(5, 6, shared=False), (40, 5)),
    # by its segments, and in several pieces
    "additive_wide": (lambda: fastmlp.AdditiveMLP(64, 128), (900, 64)),
    "sines": (lambda: fastmlp.SineSum(6, learn_amplitude=True), (40, 5)),
    "mlp": (lambda: fastmlp.MLP(5, [6, 4], 2), (40, 5)),
    "mlp_half": (lambda: fastmlp.MLP(5, [6, 4], 2, dtype=torch.bfloat16), (40, 5)),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_call_and_its_gradients(case, default, draw):
    make, shape = CALLS[case]
    module, x = make(), draw(*shape)

    def call():
        torch.manual_seed(0)
        leaf = x.to(next(module.parameters()).dtype).requires_grad_()
        y = module(leaf)
        return y, *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])

    assert_same(call, default)


OPTIMIZERS = {
    "sgd": lambda: fastmlp.SGD(0.01, momentum=0.9),
    "adam": lambda: fastmlp.Adam(0.01),
    "adamw": lambda: fastmlp.AdamW(0.01),
}


@pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=numba_only)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fit(optimizer, backend, default, draw, tmp_path):
    modules = [fastmlp.AdditiveMLP(3, 4, dropout=0.2), fastmlp.AdditiveMLP(3, 4)]
    x, y = draw(12, 3).float(), draw(12, 1).float()

    def train():
        models = copy.deepcopy(modules)
        options = {"epochs": 3, "batch_size": 5, "validation": (x, y), "patience": 2}
        settings = OPTIMIZERS[optimizer]()
        with fastmlp.backend(backend):
            result = fastmlp.fit(models, x, y, optimizer=settings, progress=False, **options)
        result.save(tmp_path / "run.pt")
        loaded = fastmlp.FitResult.load(tmp_path / "run.pt", models=copy.deepcopy(modules))
        trained = [p for model in (*models, *loaded.models) for p in model.parameters()]
        return result.train_loss, result.val_loss, result.final_loss, loaded.final_loss, *trained

    assert_same(train, default)


LEAST_SQUARES = {
    "sums": (lambda: fastmlp.ElementwiseMLP(3), {}),
    "restarts": (lambda: fastmlp.ElementwiseMLP(3), {"restarts": 3}),
    "projected": (
        lambda: fastmlp.ElementwiseMLP(3, activation="tanh"), {"variable_projection": True},
    ),
    "rows": (lambda: fastmlp.SineSum(4), {"restarts": 2}),
    "any_module": (lambda: nn.Sequential(nn.Linear(1, 3), nn.Softsign(), nn.Linear(3, 1)), {}),
}  # fmt: skip


@numba_only
@pytest.mark.parametrize("case", LEAST_SQUARES)
def test_least_squares(case, default, draw):
    make, options = LEAST_SQUARES[case]
    module, x = make(), draw(60, 1).float()

    def train():
        model = copy.deepcopy(module)
        result = fastmlp.fit(
            model, x, x.sin(), epochs=4, optimizer=LevenbergMarquardt(**options), progress=False
        )
        return result.train_loss, result.epochs, result.final_loss, *model.parameters()

    assert_same(train, default)


def pytorchs_adam_steps(default):
    """Whether it does under a default: PyTorch 2.9 counts its steps on the default device."""
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with default():
        try:
            torch.optim.Adam([p]).step()
        except RuntimeError:
            return False
    return True


@numba_only
def test_steps_of_optimizers(default, draw):
    module, x = fastmlp.MLP(2, 3, 1, activation="tanh"), draw(20, 2).float()
    y = x.sum(1, keepdim=True)

    def steps():
        model = copy.deepcopy(module)
        optimizer = fastmlp.optim.LevenbergMarquardt(model)
        for _ in range(3):
            optimizer.step(x, y)
        if not has_adam:
            return list(model.parameters())
        adam = fastmlp.optim.Adam(model.parameters(), 0.01)
        for _ in range(3):
            adam.zero_grad()
            (model(x) - y).square().mean().backward()
            adam.step()
        return list(model.parameters())

    # whose first step ours is
    has_adam = pytorchs_adam_steps(default)
    assert_same(steps, default)


def test_tables_of_segments(default, draw):
    net, x = fastmlp.ElementwiseMLP(7), draw(30)

    def tables():
        table = piecewise.from_module(net)
        merged, again = table.merged(), piecewise.PiecewiseLinear.from_json(table.to_json())
        module = table.to_module()
        floor = torch.from_numpy(np.array(piecewise.error_floor(torch.sin, 0, 3, 4)))
        frozen = piecewise.freeze(net)
        frozen_at = frozen(x.float()), torch.func.jacrev(frozen)(x[:1].float())
        return (
            table(x), merged(x), again.slopes, module(x[:, None]), *module.parameters(), floor,
            *frozen_at, *piecewise.dead_units(net, -1, 1), table.intercepts, table.bends(),
        )  # fmt: skip

    assert_same(tables, default)


def test_frequencies_of_a_signal(default):
    x = torch.linspace(-4, 4, 60, dtype=torch.float64)
    y = (torch.sin(torch.pi * 0.7 * x) + torch.sin(torch.pi * 1.9 * x)) / 2
    assert_same(lambda: [spectral.frequencies(x, y, 2).w], default)


def test_swaps_keep_parameters_where_they_are(default, draw):
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    net, x = reference.AdditiveMLP(5, 6), draw(4, 5).float()

    def swap():
        fused, dense = fastmlp.fuse(copy.deepcopy(net)), fastmlp.convert.from_sequential(plain)
        assert isinstance(fused, fastmlp.AdditiveMLP)
        unfused = fastmlp.unfuse(copy.deepcopy(fused))
        both = *fused.parameters(), *unfused.parameters(), *dense.parameters()
        return fused(x), unfused(x), dense(x), fastmlp.convert.to_sequential(dense)(x), *both

    assert_same(swap, default)


def test_reports(default, draw):
    net, x = fastmlp.AdditiveMLP(5, 6, dropout=0.2), draw(20, 5).float()

    def numbers():
        exact = fastmlp.dropout_report(net, x, x.sum(1, keepdim=True))
        sampled = fastmlp.dropout_report(nn.Sequential(net), x, x.sum(1, keepdim=True), samples=4)
        found = [exact.train_mse, exact.variance_share, sampled.train_mse]
        for op in ("elementwise_mlp", "additive_mlp", "sine_sum", "mlp", "piecewise_linear"):
            found += [e for errors in report.self_test(op, "torch", "cpu") for e in errors]
        return [torch.from_numpy(np.array(found))]

    assert_same(numbers, default)


def test_pictures(default, draw):
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    net = fastmlp.AdditiveMLP(2, 3)
    x = draw(20, 2).float()

    def draw_all():
        lines = []
        for plot in (
            lambda: fastmlp.plotting.plot_segments(
                piecewise.from_module(fastmlp.convert.from_sequential(phi)), -2, 2
            ),
            lambda: fastmlp.plotting.plot_spectrum(sines, [0.5, 1.0], [1.0, -1.0]),
            lambda: fastmlp.plotting.plot_spectrum(sines, [0.5, 1.0]),
        ):
            lines += [line.get_xydata() for line in plot().lines]
        for axes in fastmlp.plotting.plot_shape_functions(net, x).ravel():
            lines += [line.get_xydata() for line in axes.lines]
        pyplot.close("all")
        return [torch.from_numpy(line.astype("float64")) for line in lines]

    phi = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    sines = fastmlp.SineSum(3)
    assert_same(draw_all, default)
