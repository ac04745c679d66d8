"""Every loss that a result tells is that of the modules as they were handed over."""

import contextlib
import copy
import importlib
import math

import pytest
import torch
from closeness import ULPS_OF_SCALE, assert_same_number, scale_of
from fit_cases import nets, quiet_fit, waves
from torch import nn

import fastmlp
from fastmlp.training.result import FitResult, hold_last

BACKENDS = {"torch": None, "numba": "numba", "triton": "triton"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.fixture(params=BACKENDS)
def wing(request):
    if BACKENDS[request.param] is not None:
        pytest.importorskip(BACKENDS[request.param])
    with fastmlp.backend(request.param):
        yield request.param


def error(model, x, y, weight=None):
    """The mean squared error of a module as it is, by a call of it."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        squares = (model(x.to(dtype)).double() - y.double()).square()
    if weight is None:
        return squares.mean().item()
    return ((squares * weight).sum() / weight.sum()).item()


def assert_told(losses, models, x, y, weight=None):
    """Losses are the modules' own, to the rounding of their sums in float64."""
    wanted = [error(model, x, y, weight) for model in models]
    assert_same_number(losses, torch.tensor(wanted, dtype=torch.float64), name="losses")


def assert_told_by_a_kernel(losses, models, x, y):
    """Losses are those of outputs that are as good as PyTorch's.

    A root mean square differs by no more than the outputs do at most.
    """
    for told, model in zip(losses.tolist(), models, strict=True):
        plain = fastmlp.unfuse(copy.deepcopy(model))
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            torchs = plain(x.to(dtype)).double()
            exact = plain.double()(x.to(dtype).double())
        bound = 2 * (torchs - exact).abs().max()
        bound += ULPS_OF_SCALE * torch.finfo(dtype).eps * scale_of(exact)
        wanted = (exact - y.to(dtype).double()).square().mean().sqrt()
        assert abs(math.sqrt(told) - wanted) <= bound


class TestFirstOrder:
    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize("patience", [None, 1], ids=["to_the_end", "best_epoch"])
    def test_validation_loss(self, wing, dtype, patience):
        x, y = waves(12)
        models = [model.to(dtype) for model in nets(2)]
        epochs = 2 if wing == "triton" else 6  # the interpreter is slow
        result = quiet_fit(
            models, x, y, epochs=epochs, optimizer=fastmlp.Adam(lr=0.5), batch_size=5,
            validation=(x[3:7], y[3:7]), patience=patience,
        )  # fmt: skip
        assert_told_by_a_kernel(result.final_loss, models, x[3:7], y[3:7])
        if patience is None:
            assert_told_by_a_kernel(result.val_loss[:, -1], models, x[3:7], y[3:7])


def generic():
    net = nn.Sequential(nn.Linear(1, 3), nn.ELU(), nn.Linear(3, 1))
    net.register_forward_hook(lambda *_: None)  # a module with hooks is left to PyTorch
    return net


FAMILIES = {
    "sines": lambda: fastmlp.SineSum(3),
    "hinges": lambda: fastmlp.ElementwiseMLP(4),
    "tanh": lambda: fastmlp.ElementwiseMLP(12, activation="tanh"),
    "additive": lambda: fastmlp.AdditiveMLP(2, 3, activation="silu"),
    "mlp": lambda: fastmlp.MLP(2, [4], 2, activation="sigmoid"),
    "generic": generic,
}


class TestLevenbergMarquardt:
    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_final_loss(self, family, dtype):
        pytest.importorskip("numba")
        self.check(family, dtype, projected=False)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("family", ["mlp", "generic"])
    def test_final_loss_of_short_numbers(self, family, dtype):
        pytest.importorskip("numba")
        self.check(family, dtype, projected=False)

    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize("family", ["hinges", "tanh", "additive", "mlp"])
    def test_final_loss_with_variable_projection(self, family, dtype):
        pytest.importorskip("numba")
        self.check(family, dtype, projected=True)

    @pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])
    def test_final_loss_of_the_triton_wing(self, projected):
        pytest.importorskip("triton")
        with fastmlp.backend("triton"):
            self.check("additive", torch.float32, projected=projected)

    def check(self, family, dtype, *, projected):
        torch.manual_seed(1)
        models = [FAMILIES[family]() for _ in range(2)]
        wide = {"additive": 2, "mlp": 2, "generic": 1}.get(family)
        x = torch.linspace(-2, 2, 24)
        x = x if wide is None else x.reshape(-1, wide)
        with torch.no_grad():
            y = torch.cos(2 * models[0](x)) + 0.1 * x.reshape(len(x), -1)[:, :1].view(
                -1, *[1] * (models[0](x).dim() - 1)
            )
        models = [model.to(dtype) for model in models]
        x, y = x.to(dtype), y.to(dtype)
        weight = torch.linspace(0.5, 2, len(x), dtype=torch.float64)
        settings = fastmlp.LevenbergMarquardt(variable_projection=projected)
        result = quiet_fit(models, x, y, epochs=4, optimizer=settings)
        assert_told(result.final_loss, models, x, y)
        again = quiet_fit(
            models, x, y, epochs=2, optimizer=settings, validation=(x[2:5], y[2:5]),
            sample_weight=weight,
        )  # fmt: skip
        assert_told(again.final_loss, models, x[2:5], y[2:5])
        assert_told(again.val_loss[:, -1], models, x[2:5], y[2:5])
        first = [row[0].item() for row in again.train_loss]
        assert all(math.isfinite(loss) for loss in first)

    def test_projection_in_float32_tells_what_the_module_gives(self):
        """An exact read-out would have weights of 1e9, whose rounding is the whole output."""
        pytest.importorskip("numba")
        torch.manual_seed(0)
        models = [fastmlp.ElementwiseMLP(20, activation="tanh") for _ in range(3)]
        x = torch.linspace(-6, 6, 200)
        y = torch.sinc(x)
        settings = fastmlp.LevenbergMarquardt(variable_projection=True)
        result = quiet_fit(models, x, y, epochs=100, optimizer=settings)
        # a condition of the test, not its claim: the fits have come far
        assert result.train_loss[:, -1].max() < 1e-4
        assert_told(result.final_loss, models, x, y)
        assert min(result.epochs) > 10

    def test_last_column_is_the_module_once_the_run_is_over(self):
        pytest.importorskip("numba")
        models, x = [fastmlp.SineSum(1) for _ in range(3)], torch.linspace(-1, 1, 20)
        for model in models:
            nn.init.constant_(model.w, 0.3)
        result = quiet_fit(
            models, x, (math.pi * 0.35 * x).sin(), epochs=40,
            optimizer=fastmlp.LevenbergMarquardt(), validation=(x[:5], x[:5]),
        )  # fmt: skip
        assert max(result.epochs) < 39
        assert_told(result.train_loss[:, -1], models, x, (math.pi * 0.35 * x).sin())
        for i, steps in enumerate(result.epochs.tolist()):
            assert (result.train_loss[i, steps:] == result.train_loss[i, -1]).all()
            assert result.val_loss[i, : steps - 1].isnan().all()
            assert (result.val_loss[i, steps - 1 :] == result.val_loss[i, -1]).all()

    @pytest.mark.parametrize(("reason", "held"), [("xtol", True), ("max_time", False)])
    def test_what_was_not_reached_is_nan(self, reason, held):
        pytest.importorskip("numba")
        settings = {"xtol": {"xtol": 0.9, "ftol": 0.0}, "max_time": {"max_time": 1e-9}}[reason]
        x = torch.linspace(-1, 1, 20)
        result = quiet_fit(
            fastmlp.SineSum(2), x, x.exp(), epochs=30,
            optimizer=fastmlp.LevenbergMarquardt(**settings),
        )  # fmt: skip
        assert result.stopped == [reason]
        assert result.train_loss[0, -1].isfinite() == held
        assert result.final_loss.isfinite().all()


class TestHistory:
    @staticmethod
    def stopped_by_patience(**options):
        x, y = waves()
        return quiet_fit(
            nets(3), x, y, **{"epochs": 40, "patience": 2, "validation": (x, y)} | options,
            optimizer=fastmlp.SGD(lr=[0.05, 50.0, 0.0]), batch_size=7,
        )  # fmt: skip

    def test_last_losses_are_held_after_patience(self, wing):
        if wing == "triton":
            pytest.skip("the interpreter takes minutes for these epochs")
        result = self.stopped_by_patience()
        assert "patience" in result.stopped
        for i, epochs in enumerate(result.epochs.tolist()):
            for losses in (result.train_loss, result.val_loss):
                assert losses[i].isfinite().all()
                assert (losses[i, epochs - 1 :] == losses[i, epochs - 1]).all()
        assert int(result.epochs[2]) == 3
        assert result.train_loss[:, -1].isfinite().all()

    @pytest.mark.parametrize("backend", ["torch", "numba"])
    def test_a_loss_that_is_not_finite_is_held(self, backend):
        pytest.importorskip(backend)
        x, y = waves()
        net = fastmlp.ElementwiseMLP(4)
        with fastmlp.backend(backend):
            result = quiet_fit(net, x, y, epochs=30, optimizer=fastmlp.SGD(lr=1e20))
        assert result.stopped == ["not finite"]
        epochs = int(result.epochs)
        assert epochs < 29
        assert not result.train_loss[0, epochs:].isfinite().any()
        assert result.final_loss.tolist() == [math.inf]

    def test_epochs_that_an_interrupt_left_out_are_nan(self, monkeypatch):
        from fastmlp.training import first_order

        monkeypatch.setattr(first_order, "FIRST_STEPS", 3)
        monkeypatch.setattr(first_order, "LAUNCH_SECONDS", 1e-9)
        calls = iter([None, None, KeyboardInterrupt])

        @contextlib.contextmanager
        def reporter(*_):
            def report():
                if next(calls) is not None:
                    raise KeyboardInterrupt

            yield report

        # the name fastmlp.training.fit is the function's
        module = importlib.import_module("fastmlp.training.fit")
        monkeypatch.setattr(module, "reporter", reporter)
        x, y = waves()
        with fastmlp.backend("torch"):
            result = quiet_fit(nets(2), x, y, epochs=500)
        assert result.stopped == ["interrupted"] * 2
        done = int(result.epochs[0])
        assert 0 < done < 500
        assert result.train_loss[:, :done].isfinite().all()
        assert result.train_loss[:, done:].isnan().all()
        assert result.final_loss.isfinite().all()

    def test_resuming_keeps_what_is_held(self):
        with fastmlp.backend("torch"):
            whole, first = self.stopped_by_patience(), self.stopped_by_patience(epochs=10)
            assert "patience" in first.stopped
            x, y = waves()
            resumed = quiet_fit(
                first.models, x, y, epochs=40, patience=2, validation=(x, y), resume=first,
                optimizer=fastmlp.SGD(lr=[0.05, 50.0, 0.0]), batch_size=7,
            )  # fmt: skip
        assert torch.equal(resumed.train_loss, whole.train_loss)
        assert torch.equal(resumed.val_loss, whole.val_loss)
        assert torch.equal(resumed.final_loss, whole.final_loss)

    def test_a_file_with_nan_after_a_stop_is_read_with_held_losses(self, tmp_path):
        with fastmlp.backend("torch"):
            result = self.stopped_by_patience()
        result.save(tmp_path / "run.pt")
        content = torch.load(tmp_path / "run.pt", weights_only=True)
        for name in ("train_loss", "val_loss"):
            for row, epochs in zip(content["tensors"][name], result.epochs, strict=True):
                row[epochs:] = math.nan
        torch.save(content, tmp_path / "old.pt")
        for path in ("run.pt", "old.pt"):
            loaded = FitResult.load(tmp_path / path)
            assert torch.equal(loaded.train_loss, result.train_loss)
            assert torch.equal(loaded.val_loss, result.val_loss)
            assert torch.equal(loaded.final_loss, result.final_loss)

    def test_nothing_is_held_before_the_first_epoch(self):
        losses = torch.full((2, 3), math.nan)
        hold_last(losses, [0, 3], [True, True])
        assert losses.isnan().all()
