"""Variable projection: steps, gradient and minima against the formulas, written out in PyTorch."""

import copy
import math

import pytest
import torch
from closeness import assert_same_number, assert_sse_of
from torch import nn
from torch.func import functional_call, jacrev

pytest.importorskip("numba")

import fastmlp
from fastmlp.training import compiled
from fastmlp.training.levenberg_marquardt import LevenbergMarquardt, flat, load, train
from fastmlp.training.structures import describe, n_readout

TOLERANCE = 1e-10
"""ε times the condition number of normal equations, below 1e5 here, and some roundings."""


def tanh_net(n_out=1):
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, n_out)).double()


MODELS = {
    "elementwise": lambda: fastmlp.ElementwiseMLP(4, activation="tanh", dtype=torch.float64),
    "hinges": lambda: hinges(),
    "no_bias": lambda: fastmlp.ElementwiseMLP(4, bias=False, activation="sin", dtype=torch.float64),
    "additive": lambda: fastmlp.AdditiveMLP(3, 4, 2, activation="silu", dtype=torch.float64),
    "mlp": lambda: fastmlp.MLP(2, [5, 3], 2, activation="sigmoid", dtype=torch.float64),
    "sequential": lambda: tanh_net(2),
}


def hinges():
    """Knots among the samples, so that the read-out is determined."""
    net = fastmlp.ElementwiseMLP(4, dtype=torch.float64)
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor([[1.0], [-1.5], [0.7], [-1.0]]))
        net.fc1.bias.copy_(torch.tensor([1.1, 0.2, -0.6, -0.9]))
    return net


class Projected:
    """The residual of a model with its read-out solved, as a function of its other parameters."""

    def __init__(self, model, x, y):
        self.model, self.x, self.y = model, x, y
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for p in model.parameters()]
        self.sizes = [p.numel() for p in model.parameters()]
        self.n = n_readout(describe(model))

    def outputs(self, theta):
        parts = zip(self.names, theta.split(self.sizes), self.shapes, strict=True)
        named = {name: part.view(shape) for name, part, shape in parts}
        return functional_call(self.model, named, (self.x,)).reshape(-1)

    def design(self, alpha):
        """Φ(α): the outputs are linear in β."""
        zero = alpha.new_zeros(self.n)
        return jacrev(lambda beta: self.outputs(torch.cat([alpha, beta])))(zero)

    def readout(self, alpha):
        phi = self.design(alpha)
        return torch.linalg.solve(phi.T @ phi, phi.T @ self.y.reshape(-1))

    def residual(self, alpha):
        return self.design(alpha) @ self.readout(alpha) - self.y.reshape(-1)

    def ridge(self, alpha, beta, damping, scale):
        """β + argmin_δ ‖Φ·(β + δ) − y‖² + λ·‖D·δ‖²."""
        phi = self.design(alpha)
        gram = phi.T @ phi + damping * torch.diag(scale.square())
        return beta - torch.linalg.solve(gram, phi.T @ (phi @ beta - self.y.reshape(-1)))

    def kaufman(self, alpha):
        """(I − ΦΦ⁺)·∂(Φβ)/∂α, with β kept where it is."""
        beta, q = self.readout(alpha), torch.linalg.qr(self.design(alpha)).Q
        rows = jacrev(lambda a: self.outputs(torch.cat([a, beta])))(alpha)
        return rows - q @ (q.T @ rows), rows


@pytest.fixture(params=MODELS)
def problem(request, draw):
    model = MODELS[request.param]()
    n_in = describe(model).n_in
    x = 2 * draw(150, n_in) if n_in > 1 else 2 * draw(150)
    y = model(x).detach() + 0.3 * draw(*model(x).shape)
    return Projected(model, x, y)


def start(problem):
    return flat(problem.model)[: -problem.n]


def test_kaufmans_jacobian_is_golub_and_pereyras_but_for_a_term_in_the_span(problem):
    alpha = start(problem)
    whole = jacrev(problem.residual)(alpha)
    q = torch.linalg.qr(problem.design(alpha)).Q
    ours, _ = problem.kaufman(alpha)
    assert torch.allclose(whole - q @ (q.T @ whole), ours, rtol=0, atol=TOLERANCE)
    residual = problem.residual(alpha)
    assert torch.allclose(whole.T @ residual, ours.T @ residual, rtol=0, atol=TOLERANCE)


VANISHING = 1e-20
"""Of the damping: the projection is then that of Golub and Pereyra."""


def test_gradient_is_that_of_the_projected_problem(problem):
    wanted = torch.func.grad(lambda a: problem.residual(a).square().sum())(start(problem))
    exact = problem.residual(start(problem)).square().sum().item()
    settings = LevenbergMarquardt(variable_projection=True, damping=VANISHING)
    outcome = train([problem.model], problem.x, problem.y, settings, max_steps=1)
    assert outcome.gradient_norm[0, 0].item() == pytest.approx(wanted.norm().item(), rel=TOLERANCE)
    assert_same_number(outcome.sse[0, 0], exact)


@pytest.mark.parametrize("solver", ["cholesky", "qr"])
def test_step_is_the_damped_one_of_kaufmans_jacobian_with_a_damped_projection(problem, solver):
    alpha, damping = start(problem), 3.0
    phi = problem.design(alpha)
    beta = problem.ridge(alpha, flat(problem.model)[-problem.n :], damping, phi.norm(dim=0))
    rows = jacrev(lambda a: problem.outputs(torch.cat([a, beta])))(alpha)
    residual = phi @ beta - problem.y.reshape(-1)
    of_beta = damping * torch.diag(phi.square().sum(0))
    away = rows - phi @ torch.linalg.solve(phi.T @ phi + of_beta, phi.T @ rows)  # (I − ΦΦ⁺)·rows
    norms = rows.norm(dim=0)
    scale = norms.clamp_min(0.1 * norms.max())
    step = torch.linalg.solve(
        rows.T @ away + damping * torch.diag(scale.square()), -away.T @ residual
    )
    moved = alpha + step
    taken = torch.linalg.solve(phi.T @ phi + of_beta, -phi.T @ (residual + rows @ step))
    moved_beta = problem.ridge(moved, beta + taken, damping, phi.norm(dim=0))
    wanted = torch.cat([moved, moved_beta])
    settings = LevenbergMarquardt(variable_projection=True, solver=solver, damping=damping)
    outcome = train([problem.model], problem.x, problem.y, settings, max_steps=1)
    assert outcome.steps == [1]
    # a damping of 3 leaves condition numbers of a few
    assert_same_number(outcome.parameters[0], wanted)
    for sse, theta in zip(outcome.sse[0], ((alpha, beta), (moved, moved_beta)), strict=True):
        exact = (problem.outputs(torch.cat(theta)) - problem.y.reshape(-1)).square().sum().item()
        assert_same_number(sse, exact)


def test_damped_projection_without_damping_is_the_projection(problem):
    alpha = start(problem)
    scale = problem.design(alpha).norm(dim=0)
    ridge = problem.ridge(alpha, torch.ones(problem.n, dtype=torch.float64), VANISHING, scale)
    condition = torch.linalg.cond(problem.design(alpha)).square()
    assert_same_number(ridge, problem.readout(alpha), condition=condition)


def test_without_damping_the_first_readout_does_not_matter(problem):
    settings = LevenbergMarquardt(variable_projection=True, solver="qr", damping=VANISHING)
    outcomes = []
    for shift in (0.0, 1.0):
        model = copy.deepcopy(problem.model)
        theta = flat(model)
        theta[-problem.n :] += shift
        load(model, theta)
        outcomes.append(train([model], problem.x, problem.y, settings, max_steps=1))
    for name in ("sse", "gradient_norm"):
        ours, theirs = (getattr(outcome, name)[0, 0] for outcome in outcomes)
        # two read-outs, each right to ε times the condition number of normal equations
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=0)


def test_trial_is_no_worse_than_that_of_the_plain_step(problem):
    nets = [copy.deepcopy(problem.model) for _ in range(2)]
    theta = flat(nets[0])
    theta[-problem.n :] = problem.readout(start(problem))  # where both begin alike
    outcomes = []
    for net, projected in zip(nets, (False, True), strict=True):
        load(net, theta)
        settings = LevenbergMarquardt(variable_projection=projected, scale_floor=0.0)
        outcomes.append(train([net], problem.x, problem.y, settings, max_steps=1))
    plain, ours = (outcome.sse[0, 1] for outcome in outcomes)
    # thousands of ulps, where both trials come to the same
    assert ours <= plain * (1 + 1e-12)


def test_loss_is_that_of_the_module_and_never_rises(problem):
    settings = LevenbergMarquardt(variable_projection=True)
    outcome = train([problem.model], problem.x, problem.y, settings, max_steps=20)
    losses = outcome.sse[0, : outcome.steps[0] + 1]
    assert (losses.diff() < 0).all()
    assert_sse_of(losses[-1], problem.model(problem.x), problem.y)


X = torch.linspace(-1, 1, 200, dtype=torch.float64)
CURVES = {"bell": 1 / (1 + 25 * X.square()), "kink": X.abs(), "wave": (math.pi * X).sin()}


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("n_hidden", [10, 20])
def test_smooth_units_in_number_fit_no_worse_than_without(activation, n_hidden):
    """Their outputs are nearly dependent: a read-out that is solved for exactly is beyond 1e8."""
    torch.manual_seed(7)
    net = [fastmlp.ElementwiseMLP(n_hidden, activation=activation, dtype=torch.float64)]
    for y in CURVES.values():
        finals = []
        for projected in (False, True):
            nets = copy.deepcopy(net)
            settings = LevenbergMarquardt(variable_projection=projected)
            outcome = train(nets, X, y, settings, max_steps=150)
            assert flat(nets[0]).abs().max() < 1e3
            finals.append(outcome.final[0].item())
        assert finals[1] <= 1.05 * finals[0]


def test_hinges_fit_better_than_without():
    """What most ReLU nets of random starts reach of exp.

    MSE 1.6e-4 without and 4.6e-5 with it, as where the read-out is solved for exactly.
    """
    torch.manual_seed(0)
    nets = [fastmlp.ElementwiseMLP(14, dtype=torch.float64) for _ in range(40)]
    x = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    finals = []
    for projected in (False, True):
        settings = LevenbergMarquardt(variable_projection=projected)
        outcome = train(copy.deepcopy(nets), x, x.exp(), settings, max_steps=300)
        finals.append(outcome.final)
    plain, ours = finals
    # 0.21 to 0.44 for 20 nets of another seed, 0.28 for these
    assert ours.median() < 0.4 * plain.median()


def both_ways(make, x, y, max_steps=300):
    return [
        train(
            [make()],
            x,
            y,
            LevenbergMarquardt(restarts=40, variable_projection=projected),
            max_steps=max_steps,
        )
        for projected in (False, True)
    ]


def test_minimum_of_a_noisy_fit_is_as_good(draw):
    x = torch.linspace(-3, 3, 200, dtype=torch.float64)
    y = torch.sin(2 * x) + 0.05 * draw(200)
    plain, ours = both_ways(MODELS["elementwise"], x, y)
    # both stop a little above one minimum, by `ftol`
    assert ours.final.min() <= plain.final.min() * (1 + 1e-6)


def test_zero_residual_is_reached_to_rounding_in_fewer_steps(draw):
    x, truth = draw(300, 2), tanh_net()
    with torch.no_grad():
        truth[0].weight.copy_(torch.tensor([[0.4, 0.9], [-1.2, 0.3], [0.8, -1.0], [1.3, 0.5]]))
    y = truth(x).detach()
    plain, ours = both_ways(tanh_net, x, y)
    # relative residuals of 1e-14, some fifty ulps
    assert ours.final.min() <= 1e-28 * y.square().sum()
    steps = []
    for outcome in (plain, ours):
        # between any other minimum and rounding: steps are counted, not errors
        reached = outcome.sse <= 1e-20 * y.square().sum()
        found = reached.any(1)
        assert found.any()
        steps.append(reached[found].int().argmax(1).double().median())
    assert steps[1] < steps[0]


@pytest.mark.parametrize("solver", ["qr", "auto"])
def test_readouts_without_full_rank_are_survived(draw, solver):
    x = draw(300)
    net = fastmlp.ElementwiseMLP(6, dtype=torch.float64)
    with torch.no_grad():
        net.fc1.weight.copy_(torch.tensor([[1.0], [1.0], [1.0], [-1.0], [0.0], [0.5]]))
        # two alike, one dead, one constant
        net.fc1.bias.copy_(torch.tensor([0.3, 0.3, -100.0, 0.0, 1.0, 0.1]))
    settings = LevenbergMarquardt(variable_projection=True, solver=solver)
    outcome = train([net], x, x.sin(), settings, max_steps=50)
    assert outcome.parameters.isfinite().all()
    assert outcome.final[0] < 0.5 * outcome.sse[0, 0]
    assert outcome.rank[0] < 19


def test_more_readout_than_rows(draw):
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x, y = draw(5, 1), draw(5, 1)
    settings = LevenbergMarquardt(variable_projection=True, damping=1e-8)
    with pytest.warns(UserWarning, match="least norm"):
        outcome = train([net], x, y, settings, max_steps=5)
    # five rows are met, to what the damping left of them in five steps
    assert outcome.final[0] < 1e-12
    assert outcome.parameters.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_segments_give_what_rows_give(monkeypatch, draw, weighted):
    x = 3 * draw(2000)
    y = x.sin() + 0.1 * draw(2000)
    weight = draw(2000).abs() if weighted else None
    first = fastmlp.ElementwiseMLP(70, dtype=torch.float64)  # more segments than fit one tile
    outcomes = []
    for rows_to_sum_up in (0, 10**9):
        monkeypatch.setattr(compiled, "ROWS_TO_SUM_UP", rows_to_sum_up)
        settings = LevenbergMarquardt(solver="qr", variable_projection=True)
        net = copy.deepcopy(first)
        outcomes.append(train([net], x, y, settings, max_steps=1, sample_weight=weight))
    segments, rows = outcomes
    # differences of prefix sums lose thousands of ulps of the whole; the gradient sees them through
    # a read-out of 71 columns, many of them nearly dependent
    assert torch.allclose(segments.sse[:, 0], rows.sse[:, 0], rtol=1e-8, atol=0)
    assert torch.allclose(segments.gradient_norm[:, 0], rows.gradient_norm[:, 0], rtol=1e-6, atol=0)


def test_same_bits_for_any_number_of_threads_models_and_slices(monkeypatch, draw):
    monkeypatch.setattr(compiled, "WORK_OF_A_PIECE", 1.0)  # pieces of 128 rows
    x = draw(1000, 7).float()
    y = x.square().sum(1, keepdim=True)
    starts = [fastmlp.AdditiveMLP(7, 5) for _ in range(3)]
    outcomes = []
    for threads, shared, slice_of, count in ((1, 1e9, 1e9, 3), (2, 0, 1e9, 3), (2, 1e9, 1, 1)):
        monkeypatch.setattr(compiled, "WORK_TO_SHARE", shared)
        monkeypatch.setattr(compiled, "WORK_OF_A_SLICE", slice_of)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            nets = copy.deepcopy(starts[:count])
            settings = LevenbergMarquardt(variable_projection=True)
            outcomes.append(train(nets, x, y, settings, max_steps=20))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(outcomes[0].parameters, outcomes[1].parameters)
    assert outcomes[0].stopped == outcomes[1].stopped
    assert torch.equal(outcomes[0].parameters[:1], outcomes[2].parameters)


def frozen():
    net = tanh_net()
    net[0].bias.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastmlp.SineSum(3, learn_amplitude=True),
        lambda: nn.Sequential(nn.Linear(1, 2), nn.Sigmoid()),
        lambda: fastmlp.MLP(1, [3], 1, output_activation="tanh"),
        lambda: fastmlp.AdditiveMLP(2, 3, shared=False),
        lambda: nn.Bilinear(1, 1, 1),
        frozen,
    ],
)
def test_models_without_a_linear_readout_are_refused(make):
    x = torch.ones(5, 1)
    settings = LevenbergMarquardt(variable_projection=True)
    with pytest.raises(ValueError, match="variable_projection must be False for a model"):
        train([make()], x, x, settings, max_steps=1)


def test_setting_is_a_bool():
    with pytest.raises(TypeError, match="variable_projection must be a bool, got int 1"):
        LevenbergMarquardt(variable_projection=1)
