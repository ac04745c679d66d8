"""Levenberg–Marquardt on lists of models: what it reaches, reasons to stop, bad input."""

import copy
import math

import pytest
import torch
from closeness import assert_same_losses, assert_same_number, assert_sse_of
from torch import nn

pytest.importorskip("numba")

import fastmlp
from fastmlp import LevenbergMarquardt
from fastmlp.training.levenberg_marquardt import train

XOR = (
    torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64),
    torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64),
)


def xor_net(last=True):
    layers = [nn.Linear(2, 5), nn.Sigmoid(), nn.Linear(5, 1), *([nn.Sigmoid()] if last else [])]
    return nn.Sequential(*layers).double()


def two_layers(generator):
    """Experiment 5: W₁·W₂·x against A·x, condition number about 1e5."""
    x = torch.randn(1000, 6, generator=generator, dtype=torch.float64)
    rows = torch.linspace(1, 1e-5, 10, dtype=torch.float64)[:, None]
    matrix = rows * torch.rand(10, 6, generator=generator, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 10, bias=False)).double()
    for weight in net.parameters():
        nn.init.normal_(weight, generator=generator)
    return net, x, x @ matrix.T


def sine_data(seed, width=8):
    # a seed that no start has: the same numbers would be drawn
    generator = torch.Generator().manual_seed(1000 + seed)
    w = 2 * torch.rand(width, generator=generator, dtype=torch.float64)
    x = torch.cat([torch.arange(-40, -10), torch.arange(10, 40)]).double() * 0.1
    return x, torch.sin(math.pi * x[:, None] * w).mean(1), w


@pytest.mark.parametrize("solver", ["cholesky", "qr", "auto"])
@pytest.mark.parametrize("seed", range(3))
def test_ill_conditioned_net_reaches_rounding(solver, seed):
    net, x, y = two_layers(torch.Generator().manual_seed(seed))
    outcome = train([net], x, y, LevenbergMarquardt(solver=solver), max_steps=30)
    assert outcome.final[0] <= 1e-28 * y.square().sum()  # fifty ulps, squared
    assert outcome.steps[0] < 30
    assert outcome.rank == [60]  # 96 parameters, W₁·M·M⁻¹·W₂ is free in 36 of them


@pytest.mark.parametrize("last", [False, True], ids=["linear_output", "sigmoid_output"])
def test_xor_from_nearly_every_start(last):
    with pytest.warns(UserWarning, match="21 parameters for 4 residuals"):
        outcome = train([xor_net(last)], *XOR, LevenbergMarquardt(restarts=200), max_steps=200)
    assert (outcome.final < 1e-10).sum() >= 196  # solved, not stuck: targets are 0 and 1


@pytest.mark.parametrize("seed", [0, 1])
def test_eight_sines_from_restarts(seed):
    x, y, w = sine_data(seed)
    net = fastmlp.SineSum(8, dtype=torch.float64)
    outcome = train([net], x, y, LevenbergMarquardt(restarts=300), max_steps=200)
    # thousands of ulps, where runs stop; a condition number of 1e4 makes them 1e-8 of frequencies
    assert outcome.final.min() / 60 <= 1e-24
    assert (net.w.detach().abs().sort().values - w.sort().values).abs().max() < 1e-8


def test_loss_never_rises_and_is_that_of_the_module():
    x, y, _ = sine_data(0)
    nets = [fastmlp.SineSum(8, dtype=torch.float64) for _ in range(3)]
    first = [(net(x) - y).square().sum().item() for net in nets]
    outcome = train(nets, x, y, LevenbergMarquardt(), max_steps=15)
    for i, net in enumerate(nets):
        losses = outcome.sse[i, : outcome.steps[i] + 1]
        assert (losses.diff() < 0).all()
        assert_same_number(losses[0], first[i])
        assert_sse_of(losses[-1], net(x), y)


def test_gradient_norm_is_that_of_autograd():
    net, x, y = two_layers(torch.Generator().manual_seed(0))
    (net(x) - y).square().sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    for solver in ("cholesky", "qr"):
        trained = copy.deepcopy(net)
        outcome = train([trained], x, y, LevenbergMarquardt(solver=solver), max_steps=1)
        # an ulp for each of the rows that are summed
        assert_same_number(outcome.gradient_norm[0, 0], wanted, ulps=1000)


def test_same_bits_for_any_number_of_threads_models_and_slices(monkeypatch):
    from fastmlp.training import compiled

    # pieces of 128 rows, and rows that are dealt to threads
    monkeypatch.setattr(compiled, "WORK_OF_A_PIECE", 1.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 7, generator=generator)
    y = x.square().sum(1, keepdim=True)
    starts = [fastmlp.AdditiveMLP(7, 5) for _ in range(3)]
    outcomes = []
    for threads, shared, slice_of, count in ((1, 1e7, 1e9, 3), (2, 0, 1e9, 3), (2, 1e9, 1, 1)):
        monkeypatch.setattr(compiled, "WORK_TO_SHARE", shared)
        monkeypatch.setattr(compiled, "WORK_OF_A_SLICE", slice_of)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            nets = copy.deepcopy(starts[:count])
            outcomes.append(train(nets, x, y, LevenbergMarquardt(), max_steps=40))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(outcomes[0].parameters, outcomes[1].parameters)
    assert outcomes[0].stopped == outcomes[1].stopped
    assert outcomes[0].rank == outcomes[1].rank
    assert torch.equal(outcomes[0].parameters[:1], outcomes[2].parameters)


def test_restarts_are_reproducible_and_leave_the_generator_alone():
    x, y, _ = sine_data(0, width=2)
    settings = LevenbergMarquardt(restarts=5)
    nets = [fastmlp.SineSum(2) for _ in range(3)]
    state = torch.get_rng_state()
    outcomes = [
        train([net], x, y, settings, max_steps=20, seed=seed)
        for net, seed in zip(nets, (3, 3, 4), strict=True)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outcomes[0].parameters, outcomes[1].parameters)
    assert not torch.equal(outcomes[0].parameters, outcomes[2].parameters)
    assert outcomes[0].final[outcomes[0].best[0]] == outcomes[0].final.min()


def test_best_restart_is_loaded_in_the_models_dtype():
    x, y, _ = sine_data(0, width=2)
    net = fastmlp.SineSum(2)
    outcome = train([net], x, y, LevenbergMarquardt(restarts=5), max_steps=20)
    assert net.w.dtype is torch.float32
    assert torch.equal(net.w.detach(), outcome.parameters[outcome.best[0]].float())


def test_weights_count_as_repeated_rows(draw):
    x, y = draw(50, 3), draw(50, 1)
    times = torch.arange(50) % 3
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()]
    nets.append(copy.deepcopy(nets[0]))
    weight, settings = times.double(), LevenbergMarquardt()
    weighted = train(nets[:1], x, y, settings, max_steps=5, sample_weight=weight)
    x, y = (t.repeat_interleave(times, 0) for t in (x, y))
    repeated = train(nets[1:], x, y, settings, max_steps=5)
    assert_same_losses(weighted.sse, repeated.sse, 21, 5)


class Wave(nn.Module):
    """A module that the kernels do not know."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.9, 0.4]))
        self.fixed = nn.Parameter(torch.tensor(3.0), requires_grad=False)

    def forward(self, x):
        return self.fixed * (self.w[0] * x).sin() + self.w[1]


@pytest.mark.parametrize("solver", ["cholesky", "qr", "auto"])
def test_any_module(solver):
    x = torch.linspace(-2, 2, 40)
    net = Wave()
    outcome = train([net], x, 3 * x.sin() + 1, LevenbergMarquardt(solver=solver), max_steps=30)
    # the targets are rounded to float32
    assert net.w.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert net.fixed.item() == 3.0
    assert outcome.rank == [2]


def test_generic_path_takes_the_steps_of_the_kernels():
    net = xor_net()
    plain = copy.deepcopy(net)
    plain.register_forward_hook(lambda *_: None)  # a module with hooks is left to PyTorch
    outcomes = [
        train([m], XOR[0].repeat(9, 1), XOR[1].repeat(9, 1), LevenbergMarquardt(), max_steps=8)
        for m in (net, plain)
    ]
    assert_same_losses(outcomes[0].sse, outcomes[1].sse, 21, 8)


class TestReasons:
    def test_zero(self):
        net = nn.Sequential(nn.Linear(1, 1)).double()
        x = torch.ones(3, 1, dtype=torch.float64)
        outcome = train([net], x, net(x).detach(), LevenbergMarquardt(), max_steps=5)
        assert outcome.stopped == ["zero"]
        assert outcome.steps == [0]

    def test_gtol_at_a_minimum(self, draw):
        x, y = draw(30, 2), draw(30, 1)
        net = nn.Sequential(nn.Linear(2, 1)).double()
        outcome = train([net], x, y, LevenbergMarquardt(gtol=1e-8), max_steps=100)
        assert outcome.stopped == ["gtol"]
        exact = torch.linalg.lstsq(torch.cat([x, torch.ones(30, 1)], 1), y).solution
        # ten times gtol, where the run ends
        assert torch.allclose(net[0].weight[0], exact[:2, 0], rtol=0, atol=1e-7)

    @pytest.mark.parametrize(("name", "other"), [("ftol", "xtol"), ("xtol", "ftol")])
    def test_tolerances(self, draw, name, other):
        x, y = draw(30, 2), draw(30, 1)
        net = nn.Sequential(nn.Linear(2, 1)).double()
        settings = LevenbergMarquardt(**{name: 1e-6, other: 0.0})
        assert train([net], x, y, settings, max_steps=100).stopped == [name]

    def test_max_steps_and_max_time(self):
        x, y, _ = sine_data(0)
        nets = [fastmlp.SineSum(8) for _ in range(2)]
        assert train(nets, x, y, LevenbergMarquardt(), max_steps=2).stopped == ["max_steps"] * 2
        outcome = train(nets, x, y, LevenbergMarquardt(max_time=1e-9), max_steps=2)
        assert outcome.stopped == ["max_time"] * 2
        assert outcome.rank == [None] * 2

    def test_parameters_that_are_not_finite(self):
        x, y, _ = sine_data(0)
        nets = [fastmlp.SineSum(8) for _ in range(2)]
        with torch.no_grad():
            nets[0].w[3] = math.nan
        outcome = train(nets, x, y, LevenbergMarquardt(), max_steps=2)
        assert outcome.stopped == ["not_finite", "max_steps"]
        assert outcome.sse[1].isfinite().all()


@pytest.mark.parametrize("solver", ["cholesky", "qr", "auto"])
def test_dead_units_are_survived_and_reported(draw, solver):
    x = draw(200, 1)
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        net[0].weight[2:] = 0.1
        net[0].bias[2:] = -100.0
    before = net[0].weight[2:].clone()
    outcome = train([net], x, x.abs(), LevenbergMarquardt(solver=solver), max_steps=50)
    assert torch.equal(net[0].weight[2:], before)
    assert outcome.rank[0] < 13
    assert outcome.final[0] < outcome.sse[0, 0]


def test_more_parameters_than_rows_gives_the_step_of_least_norm(draw):
    x, y = draw(3, 8), draw(3, 1)
    net = nn.Sequential(nn.Linear(8, 1, bias=False)).double()
    nn.init.zeros_(net[0].weight)
    settings = LevenbergMarquardt(damping=1e-14, scale_floor=1.0, solver="qr")
    with pytest.warns(UserWarning, match="least norm"):
        outcome = train([net], x, y, settings, max_steps=3)
    # of three steps each leaves a share of the damping, 1e-14, over the square of a singular value
    assert torch.allclose(net[0].weight[0], torch.linalg.pinv(x) @ y[:, 0], rtol=1e-6, atol=0)
    assert outcome.rank == [3]


ONE_PLACE = torch.full((20, 1), 0.7, dtype=torch.float64)
FEW_ROWS = {
    "xor": XOR,
    "three_places": (torch.tensor([[0.1], [0.5], [0.9]]).double().repeat(20, 1),) * 2,
    "one_place": (ONE_PLACE, ONE_PLACE),
}


@pytest.mark.filterwarnings("ignore:.* parameters for .* residuals:UserWarning")
@pytest.mark.parametrize("data", FEW_ROWS)
@pytest.mark.parametrize("solver", ["qr", "auto"])
def test_more_parameters_than_different_rows_reach_rounding(data, solver):
    """What is left of rows that say nothing new is rounding, and what is left of that denormal."""
    x, y = FEW_ROWS[data]
    torch.manual_seed(0)
    activation = "relu" if data == "xor" else "tanh"
    nets = [fastmlp.MLP(x.shape[1], [10], 1, activation=activation).double() for _ in range(10)]
    outcome = train(nets, x, y, LevenbergMarquardt(solver=solver), max_steps=200)
    assert "not_finite" not in outcome.stopped
    # ReLU starts may be dead; the others end at squares of a few dozen ulps
    assert (outcome.final < 1e-28).sum() >= (8 if data == "xor" else 10)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-155, 1.0, 1e155, 1e200, 1e300])
def test_reflections_do_not_leave_the_range_of_numbers(draw, size):
    from fastmlp.kernels.cpu.numbers import linalg

    matrix, target = draw(3, 30), draw(30)
    wanted = torch.linalg.lstsq(matrix.T, target.unsqueeze(1)).solution[:, 0]
    columns, rows = (size * matrix).contiguous(), target.clone()
    solution, error = torch.zeros(3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    linalg.linalg_least_squares(
        columns.data_ptr(), rows.data_ptr(), 1, 30, 3, solution.data_ptr(), error.data_ptr()
    )
    assert_same_number(solution * size, wanted, condition=torch.linalg.cond(matrix.T))


class TestBadInput:
    x, y, _ = sine_data(0, width=2)

    def refuse(self, match, *, models=None, x=None, y=None, error=ValueError, **arguments):
        models = [fastmlp.SineSum(2)] if models is None else models
        x, y = self.x if x is None else x, self.y if y is None else y
        arguments = {"max_steps": 3, **arguments}
        with pytest.raises(error, match=match):
            train(models, x, y, LevenbergMarquardt(), **arguments)

    def test_data(self):
        broken = self.x.clone()
        broken[3] = math.nan
        self.refuse("x must be finite", x=broken)
        self.refuse("y must be finite", y=broken)
        self.refuse("y must have shape", y=self.y[:-1])
        self.refuse("x must be of a floating-point dtype", x=self.x.long(), error=TypeError)
        self.refuse("at least one row", x=self.x[:0], y=self.y[:0])
        self.refuse("must have 2 columns", models=[xor_net()])
        self.refuse("sample_weight must not be negative", sample_weight=self.x)
        self.refuse("must have 60 numbers", sample_weight=self.x[:5].abs())

    def test_models(self):
        self.refuse("at least one module", models=[])
        self.refuse("no parameters", models=[nn.Sequential(nn.Identity())])
        self.refuse("same structure", models=[fastmlp.SineSum(2), fastmlp.SineSum(3)])
        self.refuse("at most 8192 parameters", models=[nn.Sequential(nn.Linear(100, 100))])
        self.refuse("max_steps must be", max_steps=0)

    def test_active_dropout(self):
        net = nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.5), nn.Linear(2, 1))
        self.refuse("active dropout", models=[net], x=self.x[:, None], y=self.y[:, None])
        ours = fastmlp.ElementwiseMLP(3, dropout=0.1)
        self.refuse("active dropout", models=[ours])
        train([net.eval()], self.x[:, None], self.y[:, None], LevenbergMarquardt(), max_steps=1)

    def test_settings(self):
        for field, value in (
            ("solver", "svd"),
            ("max_attempts", 0),
            ("ftol", -1.0),
            ("damping", 0.0),
            ("scale_floor", 2.0),
            ("xtol", math.nan),
            ("max_time", math.inf),
        ):
            with pytest.raises(ValueError, match=field):
                LevenbergMarquardt(**{field: value})
        with pytest.raises(TypeError, match="restarts"):
            LevenbergMarquardt(restarts=1.5)


class TestFit:
    x, y, w = sine_data(0)

    def fit(self, models, x=None, y=None, **arguments):
        arguments = {"epochs": 200, "optimizer": LevenbergMarquardt(), **arguments}
        x, y = self.x if x is None else x, self.y if y is None else y
        return fastmlp.fit(models, x, y, progress=False, **arguments)

    def test_result_of_restarts(self):
        net = fastmlp.SineSum(8, dtype=torch.float64)
        settings = LevenbergMarquardt(restarts=300)
        result = self.fit(net, optimizer=settings, validation=(self.x / 5, self.y / 5))
        assert isinstance(result, fastmlp.FitResult)
        assert result.best_model is net
        assert result.train_loss.shape == result.val_loss.shape == (1, 200)
        assert result.runs[0].final.min() / 60 <= 1e-24  # as from restarts without fit
        assert result.stopped == ["xtol"]
        assert result.steps == int(result.epochs[0])
        assert (net.w.detach().sort().values - self.w.sort().values).abs().max() < 1e-8

    def test_models_of_several_structures(self):
        nets = [fastmlp.SineSum(8), fastmlp.SineSum(3), fastmlp.ElementwiseMLP(5)]
        # parameters in float32, x and all that is computed in float64
        before = [(net(self.x) - self.y).square().mean().detach() for net in nets]
        result = self.fit(nets, epochs=7)
        assert result.train_loss.shape == (3, 7)
        assert_same_number(result.train_loss[:, 0], torch.stack(before))
        assert (result.final_loss < result.train_loss[:, 0]).all()
        assert result.best == int(result.final_loss.argmin())
        assert result.plot() is not None

    def test_weights_give_the_weighted_mean(self, draw):
        weight = draw(60).abs()
        net = fastmlp.SineSum(4, dtype=torch.float64)
        wanted = ((net(self.x) - self.y).square() * weight).sum().item() / weight.sum().item()
        result = self.fit(net, epochs=1, sample_weight=weight)
        assert_same_number(result.train_loss[0, 0], wanted)

    def test_what_makes_no_sense_is_refused(self):
        net = fastmlp.SineSum(2)
        for name, value in (
            ("batch_size", 10),
            ("loss", "l1"),
            ("patience", 3),
            ("scheduler", fastmlp.StepLR(3)),
            ("clip_norm", 1.0),
        ):
            with pytest.raises(ValueError, match=f"{name} must be .* with LevenbergMarquardt"):
                self.fit(net, **{name: value})
        with pytest.raises(ValueError, match="is not saved"):
            self.fit(net, epochs=1).save("nowhere")

    def test_interrupt_leaves_what_there_is(self, monkeypatch):
        from fastmlp.training import compiled

        monkeypatch.setattr(compiled, "WORK_OF_A_SLICE", 1)  # one step a slice

        def interrupt(done, total, calls=[]):  # noqa: B006
            calls.append(done)
            if len(calls) == 4:
                raise KeyboardInterrupt

        torch.manual_seed(100)
        nets = [fastmlp.SineSum(8, dtype=torch.float64) for _ in range(3)]
        outcome = train(
            nets, self.x, self.y, LevenbergMarquardt(), max_steps=50, progress=interrupt
        )
        assert outcome.stopped == ["interrupted"] * 3
        for i, net in enumerate(nets):
            assert 0 < outcome.steps[i] < 5
            assert_sse_of(outcome.final[i], net(self.x), self.y)
