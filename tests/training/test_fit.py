"""What `fit` promises besides the numbers of a plain loop."""

import copy
import inspect
import math
import subprocess
import sys

import pytest
import torch
from closeness import (
    assert_as_good_as_torch,
    assert_run_as_good_as_torch,
    assert_same_number,
    scale_of,
)
from fit_cases import nets, quiet_fit, waves, weights

import fastmlp


@pytest.fixture(params=["torch", "numba"])
def loop(request):
    """Each backend that trains on the CPU."""
    pytest.importorskip(request.param)
    with fastmlp.backend(request.param):
        yield request.param


SETTINGS = {
    "epochs": 7,
    "batch_size": 9,
    "optimizer": fastmlp.AdamW(lr=0.02),
    "scheduler": fastmlp.StepLR(2, 0.5),
}


DTYPES = (torch.float32, torch.float64)


def plain_sgd(model, epochs, *, dtype, schedule=None, clip_norm=None):
    """The weights after steps of PyTorch on all of `waves`, in a list."""
    model, (x, y) = model.to(dtype), (t.to(dtype) for t in waves())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scheduler = None if schedule is None else schedule(optimizer)
    with fastmlp.backend("torch"):
        for _ in range(epochs):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x), y).backward()
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return [weights([model])]


class TestModels:
    def test_one_module_is_trained_in_place(self, loop):
        model, (x, y) = nets(1)[0], waves()
        before = weights([model])
        result = quiet_fit(model, x, y, **SETTINGS)
        assert not torch.equal(weights([model]), before)
        assert result.best_model is model
        assert result.train_loss.shape == (1, 7)
        assert result.val_loss is None

    def test_the_modules_stay_ordinary(self, loop):
        model, (x, y) = nets(1)[0], waves()
        parameter = model.w
        quiet_fit(model, x, y, **SETTINGS)
        assert model.w is parameter
        assert parameter.grad is None
        model(x).sum().backward()
        assert parameter.grad is not None

    def test_kinds_may_be_mixed(self, loop):
        torch.manual_seed(0)
        models = [fastmlp.SineSum(3), fastmlp.ElementwiseMLP(4), fastmlp.SineSum(1)]
        x, y = waves()
        together = copy.deepcopy(models)
        quiet_fit(together, x, y, **SETTINGS, seed=[1, 2, 3])
        for i, model in enumerate(models):
            quiet_fit(model, x, y, **SETTINGS, seed=[i + 1])
        assert torch.equal(weights(models), weights(together))

    def test_the_other_models_do_not_matter(self, loop):
        x, y = waves()
        first, second = nets(4), nets(4)
        quiet_fit(first, x, y, **SETTINGS)
        quiet_fit([*second[:1], *nets(3, seed=9)], x, y, **SETTINGS)
        assert torch.equal(weights(first[:1]), weights(second[:1]))

    def test_frozen_parameters_stay(self, loop):
        torch.manual_seed(0)
        model = fastmlp.ElementwiseMLP(4)
        model.fc1.requires_grad_(False)
        before = weights([model])
        x, y = waves()
        quiet_fit(model, x, y, **SETTINGS)
        moved = weights([model]) != before
        assert not moved[:8].any()
        assert moved[8:].all()

    def test_a_model_of_frozen_parameters_alone_is_evaluated(self, loop):
        model, (x, y) = nets(1)[0].requires_grad_(False), waves()
        result = quiet_fit(model, x, y, epochs=2)
        assert result.train_loss[0, 0] == result.train_loss[0, 1]

    def test_inputs_of_any_shape(self, loop):
        x = torch.linspace(-2, 2, 48).reshape(8, 2, 3)
        model, flat = nets(1)[0], x.reshape(48)
        plain = [nets(1)[0], nets(1)[0].double()]
        quiet_fit(model, x, x.sin(), epochs=3, batch_size=2, shuffle=False)
        with fastmlp.backend("torch"):
            for net in plain:
                given = flat.to(net.w.dtype)
                quiet_fit(net, given, given.sin(), epochs=3, batch_size=12, shuffle=False)
        ours, *theirs = ([weights([net])] for net in (model, *plain))
        assert_run_as_good_as_torch(ours, *theirs, dtype=torch.float32)

    def test_more_rows_than_a_block(self, loop):
        torch.manual_seed(0)
        x = torch.rand(9000, 8)
        y = x.square().sum(1, keepdim=True)
        model = fastmlp.AdditiveMLP(8, 3).double()
        losses = []
        for _ in range(2):
            losses.append(torch.nn.functional.mse_loss(model(x.double()), y.double()).item())
            result = quiet_fit(model, x, y, epochs=1, optimizer=fastmlp.SGD(lr=1e-3))
            assert_same_number(result.train_loss.item(), losses[-1])
        assert losses[1] < losses[0]


class TestSettings:
    def test_one_value_per_model(self, loop):
        x, y = waves()
        rates, betas = [0.1, 0.01, 0.001], [(0.9, 0.99), (0.5, 0.9), (0.0, 0.999)]
        together = nets(3)
        optimizer = fastmlp.Adam(lr=rates, betas=betas)
        quiet_fit(together, x, y, epochs=4, optimizer=optimizer, clip_norm=[1.0, 0.1, 0.01])
        for i, model in enumerate(nets(3)):
            optimizer = fastmlp.Adam(lr=rates[i], betas=betas[i])
            clip = [1.0, 0.1, 0.01][i]
            quiet_fit(model, x, y, epochs=4, optimizer=optimizer, clip_norm=clip)
            assert torch.equal(weights([model]), weights([together[i]]))

    @pytest.mark.parametrize("name", ["StepLR", "CosineAnnealingLR"])
    def test_schedules_are_those_of_torch(self, loop, name):
        arguments = {"StepLR": (3, 0.7), "CosineAnnealingLR": (8, 1e-3)}[name]
        x, y = waves()
        model = nets(1)[0].double()
        ours = getattr(fastmlp, name)(*arguments)
        quiet_fit(model, x, y, epochs=10, optimizer=fastmlp.SGD(lr=0.3), scheduler=ours)

        def schedule(optimizer):
            return getattr(torch.optim.lr_scheduler, name)(optimizer, *arguments)

        plain = (plain_sgd(nets(1)[0], 10, schedule=schedule, dtype=d) for d in DTYPES)
        assert_run_as_good_as_torch([weights([model])], *plain, dtype=torch.float64)

    def test_clipping_is_that_of_torch(self, loop):
        x, y = waves()
        model = nets(3)[2].double()
        quiet_fit(model, x, y, epochs=5, optimizer=fastmlp.SGD(lr=0.3), clip_norm=0.05)
        plain = (plain_sgd(nets(3)[2], 5, clip_norm=0.05, dtype=d) for d in DTYPES)
        assert_run_as_good_as_torch([weights([model])], *plain, dtype=torch.float64)

    def test_weights_of_rows_choose_folds(self, loop):
        x, y = (t.double() for t in waves(30))
        folds = torch.zeros(3, 30)
        for i in range(3):
            folds[i, i::3] = 1.0
        models = [nets(1)[0].double() for _ in range(3)]
        result = quiet_fit(models, x, y, epochs=6, sample_weight=folds)
        for i in range(3):
            alone = nets(1)[0].double()
            other = quiet_fit(alone, x[i::3], y[i::3], epochs=6)
            assert_same_number(weights([models[i]]), weights([alone]))
            assert_same_number(result.train_loss[i], other.train_loss[0])

    def test_a_batch_without_weight_makes_no_step(self, loop):
        x, y = waves(30)
        weight = torch.zeros(30)
        weight[:10] = 2.0
        model, alone = nets(1)[0], nets(1)[0]
        options = {"epochs": 3, "batch_size": 10, "shuffle": False}
        result = quiet_fit(model, x, y, sample_weight=weight, **options)
        other = quiet_fit(alone, x[:10], y[:10], **options)
        assert result.steps == other.steps == 3
        # a weight of 2 scales the sums and their divisor without rounding
        assert torch.equal(weights([model]), weights([alone]))

    def test_validation_and_patience(self, loop):
        x, y = waves()
        models = nets(3)
        # a rate so large that the loss soon gets worse
        result = quiet_fit(
            models, x, y, epochs=60, optimizer=fastmlp.Adam(lr=[0.3, 1e-4, 0.5]),
            validation=(x[:7], y[:7]), patience=3,
        )  # fmt: skip
        assert result.stopped[0] == "patience"
        assert result.stopped[1] == "epochs"
        seen = int(result.epochs[0])
        losses = result.val_loss[0, :seen]
        assert losses.argmin() == seen - 1 - 3
        assert (result.val_loss[0, seen:] == losses[-1]).all()
        assert (result.train_loss[0, seen:] == result.train_loss[0, seen - 1]).all()
        assert result.final_loss[0] == losses.min()
        # the model has the weights of that epoch; (|f| + |y|)² are the terms of its error
        net, truth = models[0], y[:7]
        with fastmlp.backend("torch"), torch.no_grad():
            now = torch.nn.functional.mse_loss(net(x[:7]), truth)
            outputs = net.double()(x[:7].double())
        exact = torch.nn.functional.mse_loss(outputs, truth.double())
        terms = (outputs.abs() + scale_of(truth)).square().mean()
        assert_as_good_as_torch(losses.min().float(), now, exact, terms=terms)


class TestRuns:
    def test_the_number_of_threads_does_not_matter(self, loop):
        x, y = waves()
        outcomes, threads = [], torch.get_num_threads()
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                models = nets(6)
                quiet_fit(models, x, y, **SETTINGS)
                outcomes.append(weights(models))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(outcomes[0], outcomes[1])
        assert torch.equal(outcomes[0], outcomes[2])

    def test_where_launches_are_cut_does_not_matter(self, loop, monkeypatch):
        from fastmlp.training import first_order

        x, y = waves()
        outcomes = []
        for seconds, steps in ((1e-9, 1), (1e9, 1000), (1e-9, 7)):
            monkeypatch.setattr(first_order, "LAUNCH_SECONDS", seconds)
            monkeypatch.setattr(first_order, "FIRST_STEPS", steps)
            models = nets(2)
            result = quiet_fit(models, x, y, **SETTINGS, validation=(x, y))
            outcomes.append((weights(models), result.train_loss, result.val_loss))
        for other in outcomes[1:]:
            for ours, theirs in zip(outcomes[0], other, strict=True):
                assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("optimizer", [fastmlp.SGD(0.05, momentum=0.9), fastmlp.Adam(0.05)])
    def test_resuming_gives_the_very_same_numbers(self, loop, optimizer, tmp_path):
        x, y = waves()
        options = {**SETTINGS, "optimizer": optimizer, "validation": (x, y), "patience": 50}
        whole = nets(3)
        expected = quiet_fit(whole, x, y, **options)
        first = quiet_fit(nets(3), x, y, **{**options, "epochs": 3})
        first.save(tmp_path / "run.pt")
        models = nets(3, seed=5)
        loaded = fastmlp.FitResult.load(tmp_path / "run.pt")
        result = quiet_fit(models, x, y, **options, resume=loaded)
        assert torch.equal(weights(models), weights(whole))
        assert torch.equal(result.train_loss, expected.train_loss)
        assert torch.equal(result.val_loss, expected.val_loss)
        assert result.steps == expected.steps

    def test_an_interrupted_run_can_be_taken_up(self, loop, monkeypatch):
        from fastmlp.training import first_order

        x, y = waves()
        whole, models = nets(3), nets(3)
        expected = quiet_fit(whole, x, y, **SETTINGS)
        monkeypatch.setattr(first_order, "FIRST_STEPS", 8)
        monkeypatch.setattr(first_order, "LAUNCH_SECONDS", 1e-9)
        rounds = iter(range(2))

        class Interrupting:
            def __init__(self, *arguments, **options):
                self.n = 0

            def __enter__(self):
                return self

            def __exit__(self, *error):
                return None

            def set_postfix_str(self, text, refresh):
                assert "best" in text or "epoch 0" in text or "epoch 1" in text

            def update(self, n):
                self.n += n
                if next(rounds, None) is None:
                    raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("tqdm.tqdm", Interrupting)
            result = quiet_fit(models, x, y, **SETTINGS, progress=True)
        assert result.stopped == ["interrupted"] * 3
        assert 0 < result.steps < expected.steps
        result = quiet_fit(models, x, y, **SETTINGS, resume=result)
        assert result.stopped == ["epochs"] * 3
        assert torch.equal(weights(models), weights(whole))
        assert torch.equal(result.train_loss, expected.train_loss)

    def test_a_model_that_blows_up_stops_alone(self, loop):
        x, y = waves()
        torch.manual_seed(0)
        models = [fastmlp.ElementwiseMLP(4) for _ in range(3)]
        alone = copy.deepcopy(models)
        rates = [0.01, 1e30, 0.02]
        result = quiet_fit(models, x, y, epochs=20, optimizer=fastmlp.SGD(lr=rates))
        assert result.stopped == ["epochs", "not finite", "epochs"]
        assert result.final_loss[1] == math.inf
        assert result.best != 1
        assert not result.train_loss[1, 19].isfinite()
        for i in (0, 2):
            quiet_fit(alone[i], x, y, epochs=20, optimizer=fastmlp.SGD(lr=rates[i]))
            assert torch.equal(weights([alone[i]]), weights([models[i]]))

    def test_weights_that_no_loss_has_seen_are_marked(self, loop):
        x, y = waves()
        model = nets(1)[0]
        optimizer = fastmlp.SGD(lr=3e38, weight_decay=3e38)
        assert quiet_fit(model, x, y, epochs=1, optimizer=optimizer).stopped == ["not finite"]

    def test_progress_shows_epoch_and_losses(self, loop, capsys):
        x, y = waves()
        quiet_fit(nets(2), x, y, **SETTINGS, progress=True)
        text = capsys.readouterr().err
        assert "epoch 7/7, best" in text
        assert "median" in text


def of_ranks():
    """What each rank of a group trains: a list of several structures, an ensemble with own data."""
    torch.manual_seed(0)
    models = [fastmlp.SineSum(2 + i % 4) for i in range(7)]
    x = torch.linspace(-3, 3, 40)
    options = {"epochs": 3, "batch_size": 9, "patience": 9, "progress": False}
    ensemble = fastmlp.Ensemble(fastmlp.MLP(1, [3], 1), 5, seed=1)
    places = torch.rand(5, 12, 1)
    own = {"own": True, "epochs": 2, "batch_size": 5, "progress": False}
    with fastmlp.backend("torch"):
        results = [
            fastmlp.fit(models, x, x.sin(), validation=(x, x.sin()), **options),
            fastmlp.fit(ensemble, places, places**2, **own),
        ]
    trained = [*models, ensemble]
    told = [[r.train_loss, r.status, r.epochs, torch.tensor(r.steps)] for r in results]
    told[0].append(results[0].val_loss)
    if fastmlp.backends.is_installed("numba"):
        curves = [fastmlp.Ensemble(fastmlp.SineSum(2), 5, seed=i) for i in range(2)]
        for restarts, nets in enumerate(curves):
            lm = fastmlp.LevenbergMarquardt(restarts=3 * restarts)
            options = {"epochs": 9, "optimizer": lm, "track": ("grad_norm",), "progress": False}
            r = fastmlp.fit(nets, places[..., 0], places[..., 0].sin(), own=True, **options)
            told.append([r.train_loss, r.status, r.epochs, r.final_loss, r.grad_norm])
        trained += curves
    return [[p.detach() for m in trained for p in m.parameters()], told]


RANKS = f"""
import sys, torch, fastmlp
import torch.distributed as dist
from fastmlp.training import compiled, first_order
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]),
                        world_size=2)
run, own = first_order.run, []
def watch(problem, report):
    own.append(problem.here.tolist())
    run(problem, report)
first_order.run = watch
run_all = compiled.run_all
def watch_runs(description, starts, *others):
    own.append([*range(len(starts))])
    return run_all(description, starts, *others)
compiled.run_all = watch_runs
{inspect.getsource(of_ranks)}
torch.save([*of_ranks(), own], sys.argv[3])
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_share_the_models(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(tmp_path / "meet"), str(r), str(tmp_path / f"{r}")]
        )
        for r in range(2)
    ]
    assert [p.wait(timeout=300) for p in processes] == [0, 0]
    weights, told = of_ranks()
    ranks = [torch.load(tmp_path / f"{rank}", weights_only=True) for rank in range(2)]
    shares = [*zip(*(own for _, _, own in ranks), strict=True)]
    for n, parts in zip((7, 5), shares[:2], strict=True):
        assert sorted([*parts[0], *parts[1]]) == list(range(n))
        assert min(map(len, parts)) == n // 2
    # the runs of least squares: five of one start each, five of three
    assert [[*map(len, parts)] for parts in shares[2:]] in ([], [[3, 2], [9, 6]])
    for theirs, of_runs, _ in ranks:
        torch.testing.assert_close(theirs, weights, rtol=0, atol=0)
        torch.testing.assert_close(of_runs, told, rtol=0, atol=0, equal_nan=True)
