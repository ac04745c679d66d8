"""What `fit` refuses, the order of rows, and what a result can do."""

import math
import os

import pytest
import torch
from fit_cases import nets, quiet_fit, waves, weights

import fastmlp
from fastmlp.training import batch_order


class TestOrder:
    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 60, 1000, 4097])
    def test_it_is_a_permutation(self, n):
        for epoch in range(5):
            assert batch_order(n, epoch=epoch).sort().values.tolist() == list(range(n))

    def test_models_epochs_and_seeds_have_their_own(self):
        one = batch_order(100, epoch=0)
        for other in ({"epoch": 1}, {"epoch": 0, "model": 1}, {"epoch": 0, "seed": 1}):
            assert not torch.equal(one, batch_order(100, **other))

    @pytest.mark.parametrize("n", [3, 4, 5])
    def test_all_permutations_are_as_likely(self, n):
        each = 10
        draws = each * math.factorial(n)
        counts = {}
        for epoch in range(draws):
            order = tuple(batch_order(n, epoch=epoch).tolist())
            counts[order] = counts.get(order, 0) + 1
        assert len(counts) == math.factorial(n)
        chi2 = sum((c - each) ** 2 / each for c in counts.values())
        freedom = len(counts) - 1
        assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)

    def test_every_row_is_everywhere_as_likely(self):
        n, draws = 20, 1000
        counts = torch.zeros(n, n)
        for epoch in range(draws):
            counts[torch.arange(n), batch_order(n, epoch=epoch, seed=3)] += 1
        expected = draws / n
        chi2 = ((counts - expected).square() / expected).sum().item()
        freedom = (n - 1) ** 2
        assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"n_rows": 0, "epoch": 0}, ValueError, "n_rows"),
            ({"n_rows": 3.0, "epoch": 0}, TypeError, "n_rows"),
            ({"n_rows": 3, "epoch": -1}, ValueError, "epoch"),
            ({"n_rows": 3, "epoch": 0, "seed": True}, TypeError, "seed"),
        ],
    )
    def test_bad_arguments(self, options, error, text):
        with pytest.raises(error, match=text):
            batch_order(**options)


class TestBadInput:
    X, Y = waves()

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"y": Y[:-1]}, ValueError, "as many rows, got 40 and 39"),
            ({"y": Y[:, None]}, ValueError, r"y must have the shape of models\[0\]\(x\)"),
            ({"x": X.long()}, TypeError, "x must be a floating-point tensor"),
            ({"x": 3}, TypeError, "x must be a Tensor"),
            ({"x": X[:0], "y": Y[:0]}, ValueError, "at least one row"),
            ({"models": []}, ValueError, "at least one module"),
            ({"models": 3}, TypeError, "models must be a Module or a list"),
            ({"models": [torch.nn.Linear(1, 1)]}, ValueError, r"models\[0\] is a Linear"),
            ({"models": [3]}, TypeError, r"models\[0\] must be a Module"),
            ({"optimizer": fastmlp.Adam(lr=[0.1])}, ValueError, "lr must hold 2 values"),
            ({"optimizer": "adam"}, TypeError, "optimizer must be settings"),
            ({"optimizer": fastmlp.SGD(nesterov=True)}, ValueError, "nesterov needs momentum"),
            ({"scheduler": "cosine"}, TypeError, "scheduler must be"),
            ({"loss": "mae"}, ValueError, "loss must be one of mse, l1, huber"),
            ({"epochs": 0}, ValueError, "epochs must be at least 1"),
            ({"epochs": 1.0}, TypeError, "epochs must be an int"),
            ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
            ({"shuffle": 1}, TypeError, "shuffle must be a bool"),
            ({"patience": 2}, ValueError, "patience needs validation"),
            ({"validation": X}, TypeError, "validation must be a pair"),
            ({"validation": (X, Y[:3])}, ValueError, "validation x and validation y"),
            ({"sample_weight": torch.ones(3)}, ValueError, "sample_weight must have shape"),
            ({"sample_weight": -torch.ones(40)}, ValueError, "not negative"),
            ({"sample_weight": torch.zeros(2, 40)}, ValueError, "above 0 for at least one row"),
            ({"clip_norm": -1.0}, ValueError, "clip_norm must be at least 0"),
            ({"clip_norm": [1.0]}, ValueError, "clip_norm must hold 2 values"),
            ({"seed": [1]}, ValueError, "seed must hold 2 values"),
            ({"seed": -1}, ValueError, "seed must be in"),
            ({"seed": 1.5}, TypeError, "seed must be an int"),
            ({"resume": 3}, TypeError, "resume must be a FitResult"),
        ],
    )
    def test_a_clear_error_and_untouched_models(self, change, error, text):
        arguments = {"models": nets(2), "x": self.X, "y": self.Y, "epochs": 2, **change}
        models = arguments["models"]
        before = weights(models) if isinstance(models, list) and models and models[0] != 3 else 0
        with pytest.raises(error, match=text):
            fastmlp.fit(**arguments, progress=False)
        if torch.is_tensor(before):
            assert torch.equal(weights(models), before)

    def test_a_model_twice_in_the_list(self):
        model = nets(1)[0]
        with pytest.raises(ValueError, match=r"models\[1\] and models\[0\] share the parameter w"):
            quiet_fit([model, model], self.X, self.Y, epochs=1)

    def test_a_forward_of_its_own(self):
        class Other(fastmlp.SineSum):
            def forward(self, x):
                return -x

        with pytest.raises(ValueError, match="a forward of its own"):
            quiet_fit(Other(2), self.X, self.Y, epochs=1)

    def test_hooks(self):
        model = nets(1)[0]
        model.register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match="has hooks"):
            quiet_fit(model, self.X, self.Y, epochs=1)

    def test_dtypes(self):
        with pytest.raises(TypeError, match="must be float32 or float64"):
            quiet_fit(nets(1)[0].half(), self.X, self.Y, epochs=1)
        with pytest.raises(ValueError, match="must share one dtype"):
            quiet_fit([nets(1)[0], nets(1)[0].double()], self.X, self.Y, epochs=1)

    @pytest.mark.parametrize(
        ("make", "error", "text"),
        [
            (lambda: fastmlp.Adam(lr=math.nan), ValueError, "lr must be finite"),
            (lambda: fastmlp.Adam(lr=[0.1, math.inf]), ValueError, "lr must be finite"),
            (lambda: fastmlp.Adam(lr=-1.0), ValueError, "lr must be at least 0"),
            (lambda: fastmlp.Adam(lr="big"), TypeError, "lr must be a number"),
            (lambda: fastmlp.Adam(lr=[]), ValueError, "one value per model"),
            (lambda: fastmlp.Adam(betas=0.9), ValueError, "betas must be a pair"),
            (lambda: fastmlp.Adam(betas=(0.9, 1.0)), ValueError, "betas must be in"),
            (lambda: fastmlp.SGD(nesterov=1), TypeError, "nesterov must be a bool"),
            (lambda: fastmlp.StepLR(0), ValueError, "step_size must be at least 1"),
            (lambda: fastmlp.StepLR(2, math.nan), ValueError, "gamma must be finite"),
            (lambda: fastmlp.CosineAnnealingLR(2.5), TypeError, "T_max must be an int"),
        ],
    )
    def test_settings(self, make, error, text):
        with pytest.raises(error, match=text):
            make()

    def test_resuming_something_else(self):
        result = quiet_fit(nets(2), self.X, self.Y, epochs=2)
        with pytest.raises(ValueError, match="the same batch_size"):
            quiet_fit(nets(2), self.X, self.Y, epochs=3, batch_size=5, resume=result)
        with pytest.raises(ValueError, match="the same structures"):
            quiet_fit(nets(3), self.X, self.Y, epochs=3, resume=result)
        with pytest.raises(ValueError, match="epochs counts those of resume"):
            quiet_fit(nets(2), self.X, self.Y, epochs=1, resume=result)


class TestResult:
    def run(self, **options):
        x, y = waves()
        models = nets(3)
        return models, quiet_fit(models, x, y, epochs=3, **options)

    def test_it_ranks_the_models(self):
        models, result = self.run()
        assert result.best == result.train_loss[:, -1].argmin()
        assert result.best_model is models[result.best]
        assert "3 epochs" in repr(result)

    def test_loading_gives_models_their_weights(self, tmp_path):
        models, result = self.run()
        result.save(tmp_path / "run.pt")
        others = nets(3, seed=8)
        loaded = fastmlp.FitResult.load(tmp_path / "run.pt", models=others)
        assert torch.equal(weights(others), weights(models))
        assert loaded.best_model is others[result.best]
        assert torch.equal(loaded.train_loss, result.train_loss)
        assert loaded.stopped == result.stopped
        with pytest.raises(ValueError, match="structures of the saved run"):
            fastmlp.FitResult.load(tmp_path / "run.pt", models=others[:2])
        with pytest.raises(ValueError, match="without modules"):
            fastmlp.FitResult.load(tmp_path / "run.pt").best_model  # noqa: B018

    def test_damaged_and_foreign_files_are_refused(self, tmp_path):
        _, result = self.run()
        path = tmp_path / "run.pt"
        result.save(path)
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"hello"):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="no saved FitResult, or damaged"):
                fastmlp.FitResult.load(path)
        torch.save({"format": "something else"}, path)
        with pytest.raises(ValueError, match=r"not written by FitResult\.save"):
            fastmlp.FitResult.load(path)
        with pytest.raises(OSError, match="nowhere"):
            fastmlp.FitResult.load(tmp_path / "nowhere.pt")

    def test_a_file_cannot_run_code(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "evil"),)

        torch.save({"format": "fastmlp.FitResult", "x": Evil()}, tmp_path / "run.pt")
        with pytest.raises(ValueError, match="no saved FitResult"):
            fastmlp.FitResult.load(tmp_path / "run.pt")
        assert not (tmp_path / "evil").exists()

    def test_plot(self):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("Agg")
        x, y = waves()
        _, result = self.run(validation=(x, y))
        ax = result.plot()
        assert ax.get_xlabel() == "epoch"
        assert result.plot(ax=ax) is ax
