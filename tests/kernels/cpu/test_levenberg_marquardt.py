"""The Jacobian kernels against torch.func, and the solver's linear algebra, all in float64."""

import copy

import numpy as np
import pytest
import torch
from closeness import assert_same_number, damped_condition, residual_terms, scale_of
from torch import nn

pytest.importorskip("numba")

from fastmlp.kernels.cpu.levenberg_marquardt import solver as kernels
from fastmlp.kernels.cpu.numbers.activations import ACTIVATIONS
from fastmlp.kernels.lm import DATA
from fastmlp.kernels.spec import CODES
from jacobian_cases import MODELS, linearised, mlp

import fastmlp
from fastmlp.training import compiled
from fastmlp.training.levenberg_marquardt import LevenbergMarquardt, flat, train
from fastmlp.training.structures import describe


class Piece:
    """Calls the kernel on rows of a model."""

    def __init__(self, model, x, y):
        description = describe(model)
        self.p, self.ld = description.n_parameters, kernels.padded.py_func(description.n_parameters)
        net, reals = compiled.kernel_words(description)
        self.net, self.reals = torch.tensor(net), torch.DoubleTensor(reals)
        self.x, self.y, self.theta = x, y, flat(model)
        self.data = np.zeros(1, DATA)
        self.data["x"], self.data["y"] = x.data_ptr(), y.data_ptr()
        self.data["x_is_double"] = x.dtype is torch.float64
        self.data["y_is_double"] = y.dtype is torch.float64

    def __call__(self, ask, first, last):
        """The matrix, the vector and the sum of squares of some rows."""
        part = torch.full((self.ld**2 + self.ld + 1,), float("nan"), dtype=torch.float64)
        kernels.lm_piece(
            ask, self.net.data_ptr(), len(self.net), self.reals.data_ptr(), len(self.reals), self.p,
            self.data.ctypes.data, self.theta.data_ptr(), part.data_ptr(), first, last, 0,
        )  # fmt: skip
        matrix = part[: self.ld**2].view(self.ld, self.ld)[: self.p, : self.p]
        return matrix, part[self.ld**2 :][: self.p], part[-1]


@pytest.fixture(params=MODELS)
def case(request, draw):
    """A model, rows of inputs, its outputs [rows, M] and the Jacobian [rows, M, P]."""
    return linearised(MODELS[request.param](), draw, 300)


def test_codes_of_activations_are_those_of_the_kernels():
    assert list(CODES) == list(ACTIVATIONS)


def test_every_row_is_that_of_torch_func(case):
    model, x, f, exact = case
    for m in range(f.shape[1]):
        y = f.clone()
        y[:, m] -= 1.0  # a residual of 1 for one output alone: Jᵀr is its row
        piece = Piece(model, x, y)
        for row in (0, 7, 150, 299):
            _, product, _ = piece(kernels.NORMAL, row, row + 1)
            assert_same_number(product, exact[row, m], terms=scale_of(exact))


def test_sums_over_rows(case, draw):
    model, x, f, exact = case
    y = f + draw(*f.shape)
    wanted, residual = exact.flatten(0, 1), (f - y).flatten()
    piece = Piece(model, x, y)
    matrix, product, sse = piece(kernels.NORMAL, 0, len(x))
    gram = wanted.T @ wanted
    terms = wanted.abs().T @ wanted.abs() + 1
    assert_same_number(matrix.tril(), gram.tril(), terms=terms)
    terms = wanted.abs().T @ residual.abs() + 1
    assert_same_number(product, wanted.T @ residual, terms=terms)
    for ours in (sse, piece(kernels.LOSS, 0, len(x))[2]):
        assert_same_number(ours, residual.square().sum(), terms=residual_terms(f, y))


def test_triangular_factor_is_that_of_the_rows(case, draw):
    model, x, f, exact = case
    y = f + draw(*f.shape)
    wanted, residual = exact.flatten(0, 1), (f - y).flatten()
    factor, rotated, _ = Piece(model, x, y)(kernels.QR, 0, len(x))
    assert torch.equal(factor, factor.triu())
    scale = wanted.norm()
    # a reflection a parameter, over 300 rows: some hundred ulps of the whole
    assert (factor.T @ factor - wanted.T @ wanted).norm() <= 1e-13 * scale**2
    assert (factor.T @ rotated - wanted.T @ residual).norm() <= 1e-13 * scale * residual.norm()


def test_short_input_is_read_as_it_is(draw):
    model = MODELS["additive"]()
    x, y = draw(40, 11).float(), draw(40, 1).float()
    short = Piece(model, x, y)(kernels.NORMAL, 0, 40)
    wide = Piece(model, x.double(), y.double())(kernels.NORMAL, 0, 40)
    assert all(torch.equal(a, b) for a, b in zip(short, wide, strict=True))


def test_qr_does_not_square_the_condition_number(draw):
    # one step of almost no damping solves a linear problem; the condition number is 1e10
    x = draw(200, 6) @ torch.diag(torch.logspace(0, -10, 6, dtype=torch.float64))
    wanted = torch.ones(6, 1, dtype=torch.float64)
    basis = torch.linalg.qr(draw(6, 6)).Q
    errors = {}
    for solver in ("cholesky", "qr"):
        settings = LevenbergMarquardt(
            solver=solver, damping=1e-24, scale_floor=1e-15, ftol=0.0, xtol=0.0
        )
        net = nn.Sequential(nn.Linear(6, 1, bias=False)).double()
        train([net], x @ basis, x @ wanted, settings, max_steps=1)
        errors[solver] = float((basis @ net[0].weight.detach().T - wanted).norm())
    # ε times the condition number is 2e-6, times its square 2e4
    assert errors["qr"] < 1e-4 < 1e-2 < errors["cholesky"]


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("solver", ["cholesky", "qr"])
@pytest.mark.parametrize(("width", "steps"), [(6, 3), (70, 1)])
def test_segments_give_what_rows_give(
    monkeypatch, draw, weighted, activation, solver, width, steps
):
    x = 3 * draw(2000, 1)
    y = x.sin() + 0.1 * draw(2000, 1)
    weight = draw(2000).abs() if weighted else None
    start = mlp(1, width, 1, activation=activation)  # of 70 more segments than fit one tile
    outcomes = []
    for rows_to_sum_up in (0, 10**9):
        monkeypatch.setattr(compiled, "ROWS_TO_SUM_UP", rows_to_sum_up)
        net = copy.deepcopy(start)
        settings = LevenbergMarquardt(solver=solver)
        outcomes.append(train([net], x, y, settings, max_steps=3, sample_weight=weight))
    segments, rows = outcomes
    # JᵀJ and the gradient agree to rounding; so do the first steps, while J has full rank
    condition = damped_condition(3 * width + 1, steps)
    for a, b in ((segments.sse, rows.sse), (segments.gradient_norm, rows.gradient_norm)):
        assert_same_number(a[:, :steps], b[:, :steps], condition=condition)


def test_segments_with_degenerate_units(monkeypatch, draw):
    x = torch.cat([draw(500), torch.zeros(20, dtype=torch.float64)])
    net = fastmlp.ElementwiseMLP(6, dtype=torch.float64)
    with torch.no_grad():
        # always on, never on, flat, two breakpoints at a sample, one far outside
        net.fc1.weight.copy_(torch.tensor([[0.0], [0.0], [1.0], [1.0], [-1.0], [1e-3]]))
        net.fc1.bias.copy_(torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 5.0]))
    outcomes = []
    for rows_to_sum_up in (0, 10**9):
        monkeypatch.setattr(compiled, "ROWS_TO_SUM_UP", rows_to_sum_up)
        trained = fastmlp.ElementwiseMLP(6, dtype=torch.float64)
        trained.load_state_dict(net.state_dict())
        settings = LevenbergMarquardt()
        outcomes.append(train([trained], x, x.square(), settings, max_steps=1))
    segments, rows = outcomes
    assert_same_number(segments.sse, rows.sse, condition=damped_condition(19, 1))
    assert_same_number(segments.gradient_norm[:, 0], rows.gradient_norm[:, 0])
