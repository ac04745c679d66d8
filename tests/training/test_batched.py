"""Levenberg–Marquardt on the Triton kernels: the steps and the ends of the Numba wing."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from closeness import assert_same_number, damped_condition
from jacobian_cases import MODELS, mlp
from torch import nn

pytest.importorskip("triton")
pytest.importorskip("numba")

from fastmlp.kernels import lm
from fastmlp.kernels.gpu.levenberg_marquardt import sums as kernels

import fastmlp
from fastmlp import LevenbergMarquardt
from fastmlp.training import batched, compiled, generic, levenberg_marquardt
from fastmlp.training.levenberg_marquardt import train
from fastmlp.training.structures import describe

XOR = (
    torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64),
    torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64),
)
FEW_ROWS = "ignore:.* parameters for .* residuals:UserWarning"


def on_triton(nets, x, y, settings, device, **arguments):
    """Train copies of the models on the Triton wing; returns the outcome."""
    nets = [copy.deepcopy(net).to(device) for net in nets]
    with fastmlp.backend("triton"):
        outcome = train(nets, x.to(device), y.to(device), settings, **arguments)
    if settings.restarts == 0:
        for net, theta in zip(nets, outcome.parameters, strict=True):
            dtype = next(net.parameters()).dtype
            loaded = theta.to(dtype).double()
            assert torch.equal(levenberg_marquardt.flat(net).nan_to_num(), loaded.nan_to_num())
    return outcome


def assert_alike(ours, theirs, condition=1.0):
    """The same runs, up to rounding; ``condition`` is that of what is solved without damping."""
    # rounding does not decide these: no run is at its end, no rank is at the edge
    for name in ("steps", "stopped", "solver", "rank", "jacobians", "best"):
        assert getattr(ours, name) == getattr(theirs, name), name
    condition *= damped_condition(ours.parameters.shape[1], max(ours.steps))
    for name in ("sse", "gradient_norm", "parameters"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert_same_number(a, b, condition=condition, ulps=4, name=name)


def both(nets, x, y, settings, device, **arguments):
    ours = on_triton(nets, x, y, settings, device, **arguments)
    with fastmlp.backend("numba"):
        theirs = train([copy.deepcopy(net) for net in nets], x, y, settings, **arguments)
    return ours, theirs


def two_sines():
    """Two starts of SineSum(2), one next to the solution and one far away; 20 points."""
    x = torch.linspace(-3, 3, 20, dtype=torch.float64)
    w = torch.tensor([0.7, 1.6], dtype=torch.float64)
    nets = [fastmlp.SineSum(2, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        nets[0].w.copy_(w + 0.03)
        nets[1].w.copy_(2.5 * w)
    return nets, x, torch.sin(math.pi * x[:, None] * w).mean(1)


@pytest.mark.filterwarnings(FEW_ROWS)
def test_xor(device):
    nets = [mlp(2, 5, 1, activation=nn.Sigmoid, last=nn.Sigmoid) for _ in range(2)]
    assert_alike(*both(nets, *XOR, LevenbergMarquardt(), device, max_steps=5))


@pytest.mark.parametrize("solver", ["cholesky", "qr", "auto"])
def test_sines_to_the_end(solver, device):
    nets, x, y = two_sines()
    settings = LevenbergMarquardt(solver=solver)
    ours, theirs = both(nets, x, y, settings, device, max_steps=15)
    # the squares of an ulp at each of the points
    assert ours.final[0] < 1e-28
    assert ours.stopped[0] in ("zero", "ftol", "xtol", "no_descent")
    # how rounding ends a run is anybody's
    for name in ("steps", "stopped", "solver", "jacobians"):
        getattr(ours, name)[0] = getattr(theirs, name)[0]
    for outcome in (ours, theirs):
        outcome.sse[0, 4:] = outcome.gradient_norm[0, 4:] = 0.0
    assert_alike(ours, theirs)


@pytest.mark.parametrize("solver", ["cholesky", "qr"])
@pytest.mark.parametrize("projected", [False, True], ids=["all", "projected"])
def test_weighted_sums_of_squares(draw, solver, projected, device):
    x = draw(40, 3).float()
    net = fastmlp.AdditiveMLP(3, 4)
    settings = LevenbergMarquardt(solver=solver, variable_projection=projected)
    arguments = {"max_steps": 3, "sample_weight": draw(40).abs()}
    y = x.square().sum(1, keepdim=True)
    condition = 1.0
    if projected:
        hidden = net.fc1(x.unsqueeze(-1)).relu()
        readout = torch.cat([net.fc2(hidden).squeeze(-1), torch.ones(40, 1)], 1)
        condition = float(torch.linalg.cond(readout.double())) ** 2
    assert_alike(*both([net], x, y, settings, device, **arguments), condition=condition)


def test_several_outputs_and_tiles_without_full_rank(draw, device, monkeypatch):
    monkeypatch.setattr(kernels, "TILE_BYTES", 1)  # 16 rows
    x = draw(30, 3)
    net = mlp(3, 2, 4, activation=nn.Identity, bias=False)
    settings = LevenbergMarquardt(solver="qr")
    assert_alike(*both([net], x, x @ draw(3, 4), settings, device, max_steps=4))


def test_same_bits_in_every_run_and_in_several_batches(device, monkeypatch):
    nets, x, y = two_sines()
    settings = LevenbergMarquardt(solver="qr")
    outcomes = [on_triton(nets, x, y, settings, device, max_steps=3) for _ in range(2)]
    assert torch.equal(outcomes[0].parameters, outcomes[1].parameters)
    assert torch.equal(outcomes[0].sse, outcomes[1].sse)
    monkeypatch.setattr(batched, "NUMBERS_AT_A_TIME", 1)
    monkeypatch.setattr(batched, "ROUNDS", 1)
    reports = []
    alone = on_triton(
        nets, x, y, settings, device, max_steps=3, progress=lambda *counts: reports.append(counts)
    )
    assert_alike(alone, outcomes[0])
    assert reports[-1] == (2, 2)
    monkeypatch.setattr(batched, "MAX_KEPT_FACTORS", 1)
    assert on_triton(nets, x, y, settings, device, max_steps=1).rank == [None, None]


class TestReasons:
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]

    def of(self, device, y, *, max_steps=10, weight=None, **settings):
        net = nn.Sequential(nn.Linear(1, 1)).double()
        with torch.no_grad():
            net[0].weight.fill_(0.5 if weight is None else weight)
            net[0].bias.fill_(0.25)
        settings = LevenbergMarquardt(**settings)
        return on_triton([net], self.x, y, settings, device, max_steps=max_steps)

    def test_zero(self, device):
        outcome = self.of(device, 0.5 * self.x + 0.25)
        assert (outcome.stopped, outcome.steps) == (["zero"], [0])

    def test_max_steps_and_max_time(self, device):
        assert self.of(device, self.x.sin(), max_steps=1).stopped == ["max_steps"]
        outcome = self.of(device, self.x.sin(), max_time=1e-9)
        assert (outcome.stopped, outcome.rank) == (["max_time"], [None])

    @pytest.mark.parametrize("name", ["ftol", "xtol", "gtol"])
    def test_tolerances(self, device, name):
        settings = {"ftol": 0.0, "xtol": 0.0, name: 1e-6, "damping": 1e-8}
        assert self.of(device, self.x.exp(), **settings).stopped == [name]

    def test_no_descent(self, device):
        # nothing is below the least sum of squares
        settings = {"ftol": 0.0, "xtol": 0.0, "damping": 1e-8, "max_attempts": 3}
        assert self.of(device, self.x.exp(), **settings).stopped == ["no_descent"]

    def test_parameters_that_are_not_finite(self, device):
        outcome = self.of(device, self.x, weight=math.nan)
        assert (outcome.stopped, outcome.steps) == (["not_finite"], [0])


class Stubborn:
    """A problem of one parameter in which no trial lowers the loss."""

    p = 1

    def losses(self, theta, asked):
        return torch.ones(1, dtype=torch.float64)

    def grams(self, theta, asked):
        return torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)

    def tiles(self, theta):
        yield torch.tensor([[[1.0, 0.0], [0.5, 0.75**0.5]]], dtype=torch.float64)


def test_qr_begins_with_the_damping_of_the_last_step():
    starts = torch.zeros(1, 1, dtype=torch.float64)
    solver = batched._Solver(Stubborn(), starts, LevenbergMarquardt(max_attempts=3), 5, 0)
    for damping in (2.0, 8.0, 1.0):
        assert int(solver.state.solver) == batched._CHOLESKY
        solver._round(solver.state, batched._CHOLESKY)
        assert float(solver.state.damping) == damping
    assert int(solver.state.solver) == batched._QR
    assert solver.advance(None) == 1
    assert solver.advance(None) == 0
    assert float(solver.state.damping) == 64.0
    assert int(solver.state.reason) == lm.NO_DESCENT
    assert int(solver.state.jacobians) == 2


def test_interrupted_runs_are_told_as_such(device, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    nets, x, y = two_sines()
    monkeypatch.setattr(batched, "ROUNDS", 1)
    settings = LevenbergMarquardt()
    reports = iter([interrupt])
    outcome = on_triton(
        nets, x, y, settings, device, max_steps=9, progress=lambda *_: next(reports, int)()
    )
    assert outcome.stopped == ["interrupted"] * 2
    assert max(outcome.steps) <= 1


def test_fit_of_restarts(device):
    _, x, y = two_sines()
    net = fastmlp.SineSum(2, dtype=torch.float64).to(device)
    with fastmlp.backend("triton"):
        result = fastmlp.fit(
            net, x.to(device), y.to(device), epochs=2, progress=False,
            optimizer=LevenbergMarquardt(restarts=3),
        )  # fmt: skip
    (run,) = result.runs
    assert run.sse.shape == (3, 3)
    assert run.best == [int(run.final.argmin())]
    assert torch.equal(net.w.detach().cpu(), run.parameters[run.best[0]])


def test_who_trains_what():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    shared, own = SimpleNamespace(are_shared=True), SimpleNamespace(are_shared=False)
    work_of = levenberg_marquardt.work_of
    with fastmlp.backend("numba"):
        assert work_of(describe(mlp(2, 3, 1)), cpu, shared) is compiled
    assert work_of(None, cuda, shared) is generic
    for model in MODELS.values():
        assert work_of(describe(model()), cuda, shared) is batched
        assert work_of(describe(model()), cuda, own) is compiled
    # a layer wider than the kernels take
    assert work_of(describe(mlp(129, 1)), cuda, shared) is compiled
