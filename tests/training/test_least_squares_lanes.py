"""Levenberg–Marquardt a model a lane: each has bits of its own, and the run of the other path."""

import numpy as np
import pytest
import torch
from closeness import assert_same_losses, assert_same_number
from torch import nn

pytest.importorskip("numba")

from fastmlp.kernels.cpu.lanes import models as lanes
from fastmlp.kernels.runs import Rows

import fastmlp
from fastmlp import LevenbergMarquardt
from fastmlp.training import compiled
from fastmlp.training.levenberg_marquardt import flat
from fastmlp.training.structures import describe

MODELS = {
    "sines": lambda: fastmlp.SineSum(2, learn_amplitude=True, learn_phase=True),
    "hinges": lambda: fastmlp.ElementwiseMLP(3),
    "tanh": lambda: fastmlp.MLP(1, [4], 1, activation="tanh"),
    "two_outputs": lambda: fastmlp.MLP(2, [3], 2, activation="silu", output_activation="sigmoid"),
    "subnet": lambda: fastmlp.AdditiveMLP(3, 3),
    "no_bias": lambda: nn.Sequential(nn.Linear(1, 3, bias=False), nn.Tanh(), nn.Linear(3, 1)),
    "leaky": lambda: nn.Sequential(nn.Linear(1, 4), nn.LeakyReLU(), nn.Linear(4, 1)),
    "deep": lambda: fastmlp.MLP(1, [3, 3], 1, activation="sigmoid"),
}
STEPS = 25


def problem(name, n, *, own=True, weighted=False, ragged=True, dtype=torch.float32):
    """Description, first parameters and rows of some models; noise keeps the residuals large."""
    torch.manual_seed(0)
    models = [MODELS[name]() for _ in range(n)]
    description = describe(models[0])
    starts = torch.stack([flat(model) for model in models])
    count = np.full(n, 40)
    if ragged:
        count -= np.arange(n) % 5
    if not own:
        count = count[:1]
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    x = 2 * torch.randn(count.sum(), description.n_in)
    y = (2 * x).sin().sum(1, keepdim=True) + 0.3 * torch.randn(len(x), description.n_out)
    weight = torch.rand(len(x)) if weighted else None
    if description.elementwise:
        x, y = x[:, 0], y[:, 0]
    return description, starts, Rows(x.to(dtype), y.to(dtype), weight, first, count, first)


def solve(description, starts, rows, settings=None, max_steps=STEPS):
    settings = settings or LevenbergMarquardt()
    runs = compiled.run_all(description, starts, rows, len(starts), settings, max_steps, None, None)
    # NaN where nothing has been: no number compares with it
    tensors = runs.state, runs.counters, runs.history, torch.stack([*runs.factors.values()])
    return [t.nan_to_num(nan=7.5) for t in tensors], runs


def entered(monkeypatch):
    """Counts the models that have come to a lane, of all calls from here on."""
    calls = []
    bind = lanes.LaneSolver.bind

    def counting(self, **addresses):
        solve = bind(self, **addresses)

        def count(budget, first, last):
            calls.append(last - first)
            solve(budget, first, last)

        return count

    monkeypatch.setattr(lanes.LaneSolver, "bind", counting)
    return calls


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("n_others", [1, 31, 33, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_a_models_bits_do_not_depend_on_its_neighbours(name, n_others, weighted, monkeypatch):
    calls = entered(monkeypatch)
    description, starts, rows = problem(name, n_others + 1, weighted=weighted)
    together, _ = solve(description, starts, rows)
    assert sum(calls) == n_others + 1
    # first, last, and one that comes to a lane when another has left it
    for i in {0, n_others, n_others * 2 // 3}:
        models = np.array([i])
        alone, _ = solve(description, starts[models], rows.among(models))
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[i])


@pytest.mark.parametrize("solver", ["cholesky", "auto"])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_runs_are_those_of_a_model_at_a_time(name, own, solver, monkeypatch):
    description, starts, rows = problem(name, 20, own=own, weighted=own, dtype=torch.float64)
    settings = LevenbergMarquardt(solver=solver)
    _, ours = solve(description, starts, rows, settings, 4)
    monkeypatch.setattr(lanes, "lane_rows", lambda *words: 0)
    _, theirs = solve(description, starts, rows, settings, 4)
    # four steps: later ones of runs that are lost in a flat valley have a will of their own
    assert ours.outcome().stopped == theirs.outcome().stopped
    assert ours.outcome().steps == theirs.outcome().steps
    assert ours.outcome().jacobians == theirs.outcome().jacobians
    assert ours.outcome().rank == theirs.outcome().rank
    assert_same_number(ours.history[:, 0, 1], theirs.history[:, 0, 1])
    assert_same_losses(ours.history[:, :, 0], theirs.history[:, :, 0], starts.shape[1], 4)


def test_fits_end_where_those_of_scipy_do():
    optimize = pytest.importorskip("scipy.optimize")
    torch.manual_seed(0)
    true = torch.tensor([0.7, 1.6], dtype=torch.float64)
    x = torch.linspace(-3, 3, 60, dtype=torch.float64)
    y = (x[:, None] * true).sin().sum(1) + 0.1 * torch.randn(60, dtype=torch.float64)
    nets = fastmlp.Ensemble(fastmlp.SineSum(2, scale=1.0, reduction="sum").double(), 50, seed=0)
    starts = nets.w.detach().clone().numpy()
    lm = LevenbergMarquardt()
    result = fastmlp.fit(nets, x, y, epochs=100, optimizer=lm, progress=False)
    reached = 0
    for start, loss in zip(starts, result.final_loss, strict=True):
        theirs = optimize.least_squares(
            lambda w: np.sin(x.numpy()[:, None] * w).sum(1) - y.numpy(), start, method="lm",
            xtol=1e-15, ftol=1e-15, gtol=1e-15,
        )  # fmt: skip
        reached += abs(loss.item() * 60 - 2 * theirs.cost) <= 1e-12 * 2 * theirs.cost
    # of some starts the two come to different minima: the first steps are not the same
    best = result.final_loss.min().item()
    assert reached >= 40, reached
    assert best * 60 < 1.0


@pytest.mark.parametrize("name", ["sines", "tanh"])
def test_calls_may_be_cut_anywhere(name, monkeypatch):
    problem_of_many = problem(name, 30)
    whole, _ = solve(*problem_of_many)
    monkeypatch.setattr(compiled, "WORK_OF_A_SLICE", 1)  # one Jacobian a call
    cut, _ = solve(*problem_of_many)
    for a, b in zip(whole, cut, strict=True):
        assert torch.equal(a, b)


def test_a_model_that_breaks_leaves_its_neighbours_alone():
    description, starts, rows = problem("sines", 9)
    expected, _ = solve(description, starts, rows)
    starts[4, 0] = torch.inf
    broken, runs = solve(description, starts, rows)
    assert runs.outcome().stopped[4] == "not_finite"
    others = [i for i in range(9) if i != 4]
    for a, b in zip(expected, broken, strict=True):
        assert torch.equal(a[others], b[others])


@pytest.mark.parametrize("name", ["tanh", "hinges"])
def test_models_of_many_rows_go_the_other_way_alone(name):
    """And those beside them do as they would."""
    description, starts, rows = problem(name, 10, ragged=False)
    many = lanes.lane_rows(*compiled.kernel_words(description)) + 1
    x, y = torch.randn(2, many, *rows.x.shape[1:])
    mixed = rows._replace(
        x=torch.cat([rows.x, x]), y=torch.cat([rows.y, y]),
        first=np.append(rows.first[:9], len(rows.x)), count=np.append(rows.count[:9], many),
        first_weight=np.zeros(10, np.int64),
    )  # fmt: skip
    expected, _ = solve(description, starts, rows)
    result, runs = solve(description, starts, mixed)
    for a, b in zip(expected, result, strict=True):
        assert torch.equal(a[:9], b[:9])
    alone, _ = solve(description, starts[9:], mixed.among(np.array([9])))
    for a, b in zip(alone, result, strict=True):
        assert torch.equal(a[0], b[9])
    assert runs.outcome().steps[9] > 0


@pytest.mark.parametrize("options", [{"solver": "qr"}, {"accept": "always", "step": 0.5}], ids=str)
def test_what_lanes_do_not_offer_goes_the_other_way(options, monkeypatch):
    calls = entered(monkeypatch)
    description, starts, rows = problem("tanh", 3)
    solve(description, starts, rows, LevenbergMarquardt(**options))
    solve(description, starts, rows, LevenbergMarquardt(variable_projection=True))
    assert not calls
    solve(description, starts, rows)
    assert calls


def test_which_models_are_in_lanes():
    def rows_of(model):
        description = describe(model)
        return lanes.lane_rows(*compiled.kernel_words(description))

    assert rows_of(fastmlp.SineSum(4)) == 1024
    assert rows_of(fastmlp.SineSum(64)) == 64
    assert rows_of(fastmlp.SineSum(65)) == 0
    assert rows_of(fastmlp.MLP(1, [8], 1)) == 4096 // 25
    assert rows_of(fastmlp.MLP(2, [3], 2)) == 4096 // 34
    own = nn.Sequential(nn.Linear(1, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
    assert rows_of(own) == 0
    assert rows_of(MODELS["leaky"]()) == 4096 // 13
