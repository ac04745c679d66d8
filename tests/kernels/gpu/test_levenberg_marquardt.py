"""The least-squares kernels against torch.func: rows of the Jacobian and what is summed of them."""

import pytest
import torch
from closeness import assert_same_number

pytest.importorskip("triton")

from fastmlp.kernels import spec
from fastmlp.kernels.gpu import models
from fastmlp.kernels.gpu.levenberg_marquardt import sums
from fastmlp.kernels.gpu.levenberg_marquardt.sums import Sums
from fastmlp.kernels.gpu.numbers.activations import ACTIVATIONS
from jacobian_cases import MODELS, linearised, mlp

import fastmlp
from fastmlp.training import compiled, structures
from fastmlp.training.levenberg_marquardt import flat

ROWS = 21


def problem_of(model, x, y, device, weight=None):
    """The problem of a model, θ [1, P], and a flag that asks for it."""
    description = structures.describe(model)
    data = compiled.prepare(description, x, y, weight, device)
    problem = Sums(*compiled.kernel_words(description), description.n_parameters, *data)
    return problem, flat(model)[None].to(device), torch.ones(1, dtype=torch.int8, device=device)


def augmented(exact, residual, weight=None):
    """[J, r] of every output of every row, times the roots of the weights: [rows, M, P + 1]."""
    rows = torch.cat([exact, residual.unsqueeze(2)], 2)
    return rows if weight is None else rows * weight.sqrt()[:, None, None]


def rows_of(problem, theta, n_out):
    """What the kernel has for [J, r], rows in their order, and what it left behind the last."""
    parts = [t[0].view(problem.p + 1, n_out, -1).clone() for t in problem.tiles(theta)]
    rows = torch.cat(parts, 2).permute(2, 1, 0).cpu()
    return rows[: problem.n_rows], rows[problem.n_rows :]


def assert_sums_are_of(rows, gram, sse):
    rows = rows.flatten(0, 1)
    wanted, terms = (rows.T @ rows).tril(), (rows.abs().T @ rows.abs() + 1).tril()
    assert_same_number(gram.tril(), wanted, terms=terms)
    assert_same_number(sse, wanted[-1, -1], terms=terms[-1, -1])


def test_codes_of_models_and_activations_are_those_of_descriptions():
    assert tuple(spec.MODELS) == (spec.MLP, spec.ADDITIVE, spec.SINE)
    assert tuple(ACTIVATIONS) == spec.ACTIVATIONS


@pytest.mark.parametrize("name", MODELS)
def test_rows_and_sums_are_those_of_torch_func(name, draw, device):
    model, x, f, exact = linearised(MODELS[name](), draw, ROWS)
    y, weight = f + draw(*f.shape), draw(ROWS).abs()
    problem, theta, asked = problem_of(model, x, y, device, weight)
    wanted = augmented(exact, f - y, weight)
    rows, rest = rows_of(problem, theta, f.shape[1])
    assert_same_number(rows, wanted)
    assert (rest == 0).all()
    assert_sums_are_of(wanted, problem.grams(theta, asked)[0], problem.losses(theta, asked)[0])


@pytest.mark.parametrize("name", ["sine_sum", "mixed_biases"])
def test_pieces_slabs_and_tiles_are_added_up(name, draw, device, monkeypatch):
    # two pieces of two slabs, and one with a part of a slab
    model = MODELS[name]()
    tile = models.jacobian_of(*compiled.kernel_words(structures.describe(model))).rows
    monkeypatch.setattr(sums, "SLAB_NUMBERS", 1)
    monkeypatch.setattr(sums, "cut", lambda *_: (2 * tile, 3))
    model, x, f, exact = linearised(model, draw, 4 * tile + 17)
    problem, theta, asked = problem_of(model, x, f + 1.0, device)
    wanted = augmented(exact, torch.full_like(f, -1.0))
    grams = problem.grams(theta, asked)
    assert_sums_are_of(wanted, grams[0], problem.losses(theta, asked)[0])
    monkeypatch.setattr(sums, "TILE_BYTES", 1)
    rows, _ = rows_of(problem, theta, f.shape[1])
    assert_same_number(rows, wanted)
    # so are many columns
    monkeypatch.setattr(sums, "MAX_GRAM_COLUMNS", 1)
    problem, _, _ = problem_of(model, x, f + 1.0, device)
    assert_same_number(problem.grams(theta, asked).tril(), grams.tril())


def test_more_columns_and_features_than_a_block(draw, device):
    nets = mlp(33, 1), fastmlp.AdditiveMLP(20, 8, dtype=torch.float64)
    for net in nets:
        model, x, f, exact = linearised(net, draw, ROWS)
        problem, theta, asked = problem_of(model, x, f + 1.0, device)
        wanted = augmented(exact, torch.full_like(f, -1.0))
        assert_sums_are_of(wanted, problem.grams(theta, asked)[0], problem.losses(theta, asked)[0])


def test_many_models_and_only_those_that_are_asked(draw, device):
    model = mlp(2, 3, 1)
    x, y = draw(ROWS, 2), draw(ROWS, 1)
    problem, _, _ = problem_of(model, x, y, device)
    theta = draw(3, problem.p).to(device)
    asked = torch.tensor([1, 0, 1], dtype=torch.int8, device=device)
    grams, losses = problem.grams(theta, asked), problem.losses(theta, asked)
    for i in (0, 2):
        alone = theta[i : i + 1], asked[:1]
        assert torch.equal(problem.grams(*alone)[0].tril(), grams[i].tril())
        assert torch.equal(problem.losses(*alone)[0], losses[i])
    # memory of ours is full of NaN in the tests
    assert grams[1].isnan().all()
    assert losses[1].isnan()


def test_short_input_is_read_as_it_is(draw, device):
    model = MODELS["additive"]()
    x, y = draw(40, 11).float(), draw(40, 1).float()
    short, theta, asked = problem_of(model, x, y, device)
    wide, _, _ = problem_of(model, x.double(), y.double(), device)
    assert torch.equal(short.grams(theta, asked).tril(), wide.grams(theta, asked).tril())


def test_layers_that_are_too_wide_are_refused():
    net = (spec.MLP, 1, 129, 1, 1, 7)
    with pytest.raises(ValueError, match="its widest layer has 129 numbers, at most 128"):
        models.jacobian_of(net, (0.01,))
