"""`fit` of an ensemble: the numbers of a list, data of its own for each model, folds, histories."""

import pytest
import torch
from closeness import assert_same_number
from ensemble_cases import LM, MODELS, ROWS, N, data_for, ensemble_of, same
from fit_cases import quiet_fit, waves

import fastmlp

pytest.importorskip("numba")


def curves(result):
    given = (result.train_loss, result.val_loss, result.grad_norm)
    return [None if c is None else c.nan_to_num(nan=-1.0) for c in given]


def assert_same_results(one, other):
    assert one.stopped == other.stopped
    assert torch.equal(one.status, other.status)
    assert torch.equal(one.epochs, other.epochs)
    for a, b in zip(curves(one), curves(other), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class TestFirstOrder:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"batch_size": 7, "clip_norm": [0.1, 1, 2, 3, 4, 5]},
            {"validation": True, "patience": 2, "optimizer": fastmlp.Adam(lr=0.1)},
            {"sample_weight": torch.linspace(0, 1, N * ROWS).view(N, ROWS)},
            {"folds": 3, "history": 4, "seed": [5, 4, 3, 2, 1, 0]},
            {"track": ("grad_norm",), "optimizer": fastmlp.SGD(lr=torch.linspace(0, 0.1, N))},
        ],
        ids=["plain", "batches", "patience", "weights", "folds", "tracked"],
    )
    def test_bits_of_a_list(self, name, options):
        x, y = data_for(name)
        if "validation" in options:
            options = options | {"validation": (x[::3], -y[::3])}
        ensemble = ensemble_of(name)
        modules = ensemble.to_modules()
        result = quiet_fit(ensemble, x, y, epochs=9, **options)
        listed = quiet_fit(modules, x, y, epochs=9, **options)
        assert_same_results(result, listed)
        assert torch.equal(result.final_loss, listed.final_loss)
        assert all(same(a, b) for a, b in zip(ensemble, modules, strict=True))
        assert isinstance(result.best_model, type(modules[0]))

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("batch_size", [None, 16])
    def test_own_data_gives_the_bits_of_each_alone(self, name, batch_size):
        x, y = data_for(name, N)
        ensemble, seeds = ensemble_of(name), list(range(10, 10 + N))
        modules = ensemble.to_modules()
        options = {"epochs": 8, "batch_size": batch_size}
        result = quiet_fit(ensemble, x, y, own=True, seed=seeds, **options)
        for i, module in enumerate(modules):
            one = quiet_fit(module, x[i], y[i], seed=[seeds[i]], **options)
            assert torch.equal(one.train_loss[0], result.train_loss[i])
            assert same(module, ensemble[i])

    def test_neighbours_do_not_matter(self):
        x, y = data_for("sines", N)
        whole, part = ensemble_of("sines"), ensemble_of("sines")[[4, 1]]
        quiet_fit(whole, x, y, own=True, epochs=5)
        quiet_fit(part, x[[4, 1]], y[[4, 1]], own=True, epochs=5)
        assert same(part, whole[[4, 1]])

    def test_the_torch_loop_agrees(self):
        x, y = data_for("mlp", N)
        options = {"own": True, "epochs": 6, "folds": 2, "batch_size": 11, "history": 2}
        ours, plain = ensemble_of("mlp").double(), ensemble_of("mlp").double()
        result = quiet_fit(ours, x, y, **options)
        with fastmlp.backend("torch"):
            wanted = quiet_fit(plain, x, y, **options)
        # float64 on both sides: what differs are the orders of sums
        assert_same_number(result.train_loss, wanted.train_loss)
        assert_same_number(result.val_loss, wanted.val_loss)

    def test_a_list_may_have_own_data(self):
        x, y = data_for("sines", N)
        ensemble = ensemble_of("sines")
        modules = ensemble.to_modules()
        quiet_fit(ensemble, x, y, own=True, epochs=5)
        quiet_fit(modules, x, y, own=True, epochs=5)
        assert all(same(a, b) for a, b in zip(ensemble, modules, strict=True))

    def test_many_models_are_trained_some_at_a_time(self, monkeypatch):
        from fastmlp.kernels.cpu import runs

        x, y = data_for("sines", N)
        whole, parts, seen = ensemble_of("sines"), ensemble_of("sines"), []
        quiet_fit(whole, x, y, own=True, epochs=5)
        monkeypatch.setattr(runs.Runs, "at_once", 4)
        quiet_fit(
            parts, x, y, own=True, epochs=5, on_progress=lambda r: seen.append(r.epochs.tolist())
        )
        assert same(whole, parts)
        # the first four are through before the others begin
        assert any(
            all(done == 5 for done in epochs[:4]) and epochs[4:] == [0, 0] for epochs in seen
        )
        assert seen[-1] == [5] * N


class TestRagged:
    def data(self, name):
        x, y = data_for(name, N)
        counts = torch.tensor([40, 7, 1, 33, 12, 40])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        mask = torch.arange(ROWS) < counts[:, None]
        return x, y, mask, offsets

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("optimizer", [fastmlp.Adam(lr=0.01), LM()], ids=["adam", "lm"])
    @pytest.mark.filterwarnings("ignore:.*parameters for .* residuals")
    def test_each_is_trained_on_its_rows(self, name, optimizer):
        x, y, mask, offsets = self.data(name)
        ensemble = ensemble_of(name)
        modules = ensemble.to_modules()
        options = {"optimizer": optimizer, "epochs": 6}
        quiet_fit(ensemble, x[mask], y[mask], own=True, offsets=offsets, **options)
        for i, module in enumerate(modules):
            quiet_fit(module, x[i][mask[i]], y[i][mask[i]], **options)
            assert same(module, ensemble[i])

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize(
        ("optimizer", "epochs"), [(fastmlp.Adam(lr=0.01), 20), (LM(), 3)], ids=["adam", "lm"]
    )
    @pytest.mark.filterwarnings("ignore:.*parameters for .* residuals")
    def test_as_padded_with_rows_of_no_weight(self, name, optimizer, epochs):
        x, y, mask, offsets = self.data(name)
        ragged, padded = (ensemble_of(name).double() for _ in range(2))
        options = {"own": True, "epochs": epochs, "optimizer": optimizer}
        one = quiet_fit(ragged, x[mask], y[mask], offsets=offsets, **options)
        other = quiet_fit(padded, x, y, sample_weight=mask.double(), **options)
        # float64, some steps: sums of the same terms in another order
        assert_same_number(one.train_loss, other.train_loss)
        if not isinstance(optimizer, LM):  # of few rows another set of parameters may be as good
            for p, q in zip(ragged.parameters(), padded.parameters(), strict=True):
                assert_same_number(p, q)

    def test_batches_validation_and_weights_are_ragged_too(self):
        x, y, mask, offsets = self.data("sines")
        weight = torch.linspace(0.5, 1, int(offsets[-1]))
        ensemble = ensemble_of("sines")
        modules = ensemble.to_modules()
        result = quiet_fit(
            ensemble, x[mask], y[mask], own=True, offsets=offsets, batch_size=8, epochs=5,
            sample_weight=weight, validation=(x[mask], y[mask], offsets), seed=[3] * N,
        )  # fmt: skip
        assert result.epochs.tolist() == [5] * N
        for i, module in enumerate(modules):
            one, part = (x[i][mask[i]], y[i][mask[i]]), slice(offsets[i], offsets[i + 1])
            alone = quiet_fit(
                module, *one, batch_size=8, epochs=5, sample_weight=weight[part], validation=one,
                seed=[3],
            )  # fmt: skip
            assert torch.equal(alone.val_loss[0], result.val_loss[i])
            assert same(module, ensemble[i])


class TestFolds:
    @pytest.mark.parametrize("own", [False, True])
    def test_model_i_holds_out_every_kth_row(self, own):
        x, y = data_for("sines", N)
        shared = (x, y) if own else (x[0], y[0])
        ensemble = ensemble_of("sines").double()
        modules = ensemble.to_modules()
        weight = torch.linspace(1, 2, ROWS).double()
        result = quiet_fit(ensemble, *shared, own=own, folds=3, epochs=5, sample_weight=weight)
        for i, module in enumerate(modules):
            held = torch.arange(ROWS) % 3 == i % 3
            xi, yi = (x[i], y[i]) if own else (x[0], y[0])
            one = quiet_fit(
                module, xi, yi, epochs=5, sample_weight=weight * ~held, validation=(xi, yi)
            )
            # float64: the same sums in another order
            assert_same_number(result.train_loss[i], one.train_loss[0])
            with torch.no_grad():
                error = (module(xi.double()) - yi).square()
            wanted = (error * weight)[held].sum() / weight[held].sum()
            assert_same_number(result.val_loss[i, -1], wanted)


class TestHistory:
    @pytest.mark.parametrize(("history", "kept"), [("last", [10]), (4, [3, 7, 10]), (99, [10])])
    @pytest.mark.parametrize("optimizer", [fastmlp.Adam(lr=0.05), LM()], ids=["adam", "lm"])
    def test_columns(self, history, kept, optimizer):
        x, y = data_for("sines")
        options = {"epochs": 11, "validation": (x, y), "optimizer": optimizer}
        options["track"] = ("grad_norm",)
        every = quiet_fit(ensemble_of("sines"), x, y, **options)
        some = quiet_fit(ensemble_of("sines"), x, y, history=history, **options)
        for whole, part in zip(curves(every), curves(some), strict=True):
            assert torch.equal(whole[:, kept], part)
        assert torch.equal(every.final_loss, some.final_loss)

    def test_a_model_that_stops_keeps_its_last_loss(self):
        x, y = data_for("sines")
        options = {"epochs": 90, "validation": (x, 0 * y), "patience": 2, "history": 7}
        options["optimizer"] = fastmlp.Adam(lr=0.3)
        result = quiet_fit(ensemble_of("sines"), x, y, **options)
        assert set(result.stopped) == {"patience"}
        assert not result.val_loss.isnan().any()
        assert torch.equal(result.val_loss[:, -1], result.val_loss[:, -2])

    @pytest.mark.parametrize("history", ["all", "last", 3])
    def test_a_run_taken_up_again_has_the_same_bits(self, history, tmp_path):
        x, y = data_for("sines", N)
        options = {"own": True, "batch_size": 9, "folds": 2, "history": history}
        whole, parts = ensemble_of("sines"), ensemble_of("sines")
        wanted = quiet_fit(whole, x, y, epochs=10, **options)
        quiet_fit(parts, x, y, epochs=4, **options).save(tmp_path / "run")
        loaded = fastmlp.FitResult.load(tmp_path / "run", parts)
        assert loaded.models is parts
        again = quiet_fit(parts, x, y, epochs=10, resume=loaded, **options)
        assert same(whole, parts)
        assert torch.equal(again.train_loss[:, -1], wanted.train_loss[:, -1])
        with pytest.raises(ValueError, match="resume must come from a run with the same history"):
            quiet_fit(parts, x, y, epochs=12, resume=loaded, **options | {"history": 5})


class TestResults:
    def test_best_is_a_number_and_gives_the_best(self):
        x, y = waves()
        result = quiet_fit(ensemble_of("sines"), x, y, epochs=5)
        losses = result.final_loss
        assert result.best == int(losses.argmin())
        assert result.best(3).tolist() == losses.argsort()[:3].tolist()
        with pytest.raises(ValueError, match="k must be between 1 and 6, got 7"):
            result.best(7)
        assert result.status.dtype is torch.int8
        assert result.status.shape == (N,)
        assert "6 epochs" in repr(result)

    def test_interrupted_runs_are_at_whole_steps(self):
        x, y = data_for("sines", N)
        ensemble = ensemble_of("sines")

        def interrupt(result):
            if int(result.epochs.max()) > 20:
                raise KeyboardInterrupt

        result = quiet_fit(ensemble, x, y, own=True, epochs=10**6, on_progress=interrupt)
        assert set(result.stopped) == {"interrupted"}
        seen = result.epochs.tolist()
        for i, module in enumerate(ensemble_of("sines")):
            one = quiet_fit(module, x[i], y[i], epochs=seen[i])
            assert torch.equal(one.train_loss[0], result.train_loss[i, : seen[i]])
            assert same(module, ensemble[i])

    def test_what_is_told_on_the_way(self):
        seen = []
        result = quiet_fit(
            ensemble_of("sines"), *waves(), epochs=50, on_progress=lambda r: seen.append(r.steps)
        )
        assert seen == sorted(seen)
        assert seen[-1] == result.steps == 50 * N
        with pytest.raises(TypeError, match="on_progress must be a function, got int 3"):
            quiet_fit(ensemble_of("sines"), *waves(), epochs=5, on_progress=3)


class TestLevenbergMarquardt:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize(
        "options", [{}, {"folds": 2}, {"track": ("grad_norm",), "history": 4}], ids=str
    )
    def test_bits_of_a_list(self, name, options):
        x, y = data_for(name)
        ensemble = ensemble_of(name)
        modules = ensemble.to_modules()
        result = quiet_fit(ensemble, x, y, epochs=12, optimizer=LM(), **options)
        listed = quiet_fit(modules, x, y, epochs=12, optimizer=LM(), **options)
        assert all(same(a, b) for a, b in zip(ensemble, modules, strict=True))
        assert result.stopped == listed.stopped
        assert torch.equal(result.status, listed.status)
        assert torch.equal(result.epochs, listed.epochs)
        for a, b in zip(curves(result), curves(listed), strict=True):
            # the list's sums of squares of whole modules are taken in another order
            assert (a is None) == (b is None)
            if a is not None:
                assert_same_number(a, b)

    @pytest.mark.parametrize("name", MODELS)
    def test_own_data_some_models_at_a_time(self, name, monkeypatch):
        from fastmlp.training import least_squares_ensemble

        x, y = data_for(name, N)
        ensemble, seen = ensemble_of(name), []
        modules = ensemble.to_modules()
        monkeypatch.setattr(least_squares_ensemble, "RUNS_AT_ONCE", 4)
        options = {"epochs": 12, "optimizer": LM()}
        quiet_fit(ensemble, x, y, own=True, on_progress=lambda r: seen.append(r.status), **options)
        for i, module in enumerate(modules):
            quiet_fit(module, x[i], y[i], **options)
            assert same(module, ensemble[i])
        assert len(seen) == 2

    def test_neighbours_do_not_matter(self):
        x, y = data_for("hinges", N)
        whole, part = ensemble_of("hinges").double(), ensemble_of("hinges").double()[[4, 1]]
        options = {"own": True, "epochs": 12, "optimizer": LM()}
        quiet_fit(whole, x, y, **options)
        quiet_fit(part, x[[4, 1]], y[[4, 1]], **options)
        assert same(part, whole[[4, 1]])

    def test_an_interrupt_leaves_whole_runs(self, monkeypatch):
        from fastmlp.training import least_squares_ensemble

        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setattr(least_squares_ensemble, "RUNS_AT_ONCE", 3)
        x, y = data_for("sines", N)
        ensemble, before = ensemble_of("sines"), ensemble_of("sines")
        options = {"epochs": 12, "optimizer": LM()}
        result = quiet_fit(ensemble, x, y, own=True, on_progress=interrupt, **options)
        assert result.stopped[3:] == ["interrupted"] * 3
        assert "interrupted" not in result.stopped[:3]
        assert same(ensemble[3:], before[3:])
        assert result.epochs[3:].tolist() == [0] * 3
        for i in range(3):
            module = before[i]
            one = quiet_fit(module, x[i], y[i], **options)
            assert same(module, ensemble[i])
            assert result.epochs[i] == one.epochs[0]

    def test_restarts_find_better_ones(self):
        x, y = data_for("sines", N)
        one = quiet_fit(ensemble_of("sines"), x, y, own=True, epochs=20, optimizer=LM())
        options = {"own": True, "epochs": 20, "optimizer": LM(restarts=10)}
        more = quiet_fit(ensemble_of("sines"), x, y, **options)
        again = quiet_fit(ensemble_of("sines"), x, y, **options)
        assert more.final_loss.sum() < one.final_loss.sum()
        assert torch.equal(more.final_loss, again.final_loss)

    def test_out_of_time(self):
        x, y = data_for("sines", N)
        ensemble = ensemble_of("sines")
        result = quiet_fit(ensemble, x, y, own=True, epochs=5, optimizer=LM(max_time=1e-9))
        assert set(result.stopped) == {"max_time"}
        assert same(ensemble, ensemble_of("sines"))
