"""Hinge starts: knots where the target bends, the best read-out; best of 20 at the floor."""

import math

import pytest
import torch
from torch import nn

pytest.importorskip("numba")

import fastmlp
from fastmlp.training import compiled, hinge_starts
from fastmlp.training.levenberg_marquardt import LevenbergMarquardt, flat, load, train
from fastmlp.training.structures import describe

TARGETS = {
    "exp": (torch.exp, torch.exp),
    "sin": (torch.sin, torch.sin),
    "1/x": (lambda x: 1 / x, lambda x: 2 / x**3),
}


def grid(n=10_000):
    return torch.linspace(-5, 5, n, dtype=torch.float64)


def leaky_net(width):
    layers = nn.Linear(1, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
    return nn.Sequential(*layers).double()


def sums_of(x, y, weight=None):
    net = fastmlp.ElementwiseMLP(2)
    return compiled.prefix_sums(*compiled.prepare(describe(net), x, y, weight))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TARGETS)
def test_best_of_20_is_within_half_of_the_error_floor(name, seed):
    f, second = TARGETS[name]
    x = grid()
    net = fastmlp.ElementwiseMLP(10, dtype=torch.float64)
    train([net], x, f(x), LevenbergMarquardt(restarts=20), max_steps=1000, seed=seed)
    # over the samples: the integral of 1/x does not converge towards 0
    integral = float(second(x).abs().pow(0.4).mean()) * 10
    floor = integral**2.5 / 11**2 / math.sqrt(720 * 10)
    assert (net(x) - f(x)).square().mean().sqrt() <= 1.5 * floor


def test_best_of_20_finds_a_step():
    x = grid()
    net = fastmlp.ElementwiseMLP(10, dtype=torch.float64)
    train([net], x, (x > 0).double(), LevenbergMarquardt(restarts=20), max_steps=1000)
    # the samples beside the step are 1e-3 apart: slopes of 1e3, from knots that cancel at 5 / 1e-3,
    # so each of those ulps is 1e6 of the step's; a knot off its sample would leave 1e-3 or more
    assert (net(x) - (x > 0).double()).abs().max() < 1e-9


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_readout_is_that_of_least_squares_on_all_rows(draw, slope, weighted):
    x, y = 3 * draw(400), 5 + draw(400)
    weight = draw(400).abs() if weighted else None
    knots = torch.sort(2 * draw(3, 4)).values
    signs, weights, sse = hinge_starts._readouts(knots, slope, *sums_of(x, y, weight))
    assert (signs.diff() >= 0).all()
    root = torch.ones(400, 1, dtype=torch.float64) if weight is None else weight.sqrt()[:, None]
    for t, sign, ours, error in zip(knots, signs, weights, sse, strict=True):
        z = sign * (x[:, None] - t)
        design = torch.cat([torch.where(z > 0, z, slope * z), torch.ones(400, 1)], 1)
        exact = torch.linalg.lstsq(root * design, root * y[:, None]).solution
        # normal equations of differences of prefix sums: ε times the square of the condition number
        assert torch.allclose(ours, exact[:, 0], rtol=1e-9, atol=1e-9)
        left = (root * (design @ exact - y[:, None])).square().sum().item()
        # what the weights' error adds is its square, so the sums' own rounding is left
        assert error.item() == pytest.approx(left, rel=1e-10)


def test_no_unit_is_on_where_the_data_are_flat():
    x = grid(1000)
    knots = torch.tensor([[-4.0, -1, 0, 1, 4]], dtype=torch.float64)
    for y, left in ((x.exp(), 0), ((-x).exp(), 5), ((x - 2.5).square(), 4), (x.square(), 2)):
        signs, _, _ = hinge_starts._readouts(knots, 0.0, *sums_of(x, y))
        assert (signs < 0).sum() in ((left,) if left != 2 else (2, 3))


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_start_is_the_best_of_its_candidates_and_its_knots_are_samples(draw, slope):
    x = 3 * draw(500)
    sums = sums_of(x, x.sin())
    net = leaky_net(6) if slope else fastmlp.ElementwiseMLP(6, dtype=torch.float64)
    inputs = x[:, None] if slope else x
    for row in hinge_starts.draw(6, slope, *sums, 5, generator()):
        load(net, row)
        first = flat(net)[:6]
        knots = -flat(net)[6:12] / first
        # a bias is rounded, and so is its quotient here
        distance = (knots[:, None] - x).abs().min(1).values
        assert (distance <= 2 * torch.finfo(x.dtype).eps * knots.abs()).all()
        design = first * (x[:, None] - knots)
        design = torch.where(design > 0, design, slope * design)
        design = torch.cat([design, torch.ones(500, 1)], 1)
        best = design @ torch.linalg.lstsq(design, x.sin()[:, None]).solution
        # again the square of the condition number, of up to six neighbouring hinges
        assert torch.allclose(net(inputs).reshape(-1), best[:, 0], rtol=0, atol=1e-9)


def share_of_knots_below(x, sums, at, n_units=20):
    cuts, wanted = hinge_starts._knot_density(n_units, sums)
    knots = hinge_starts._knots(n_units, x, cuts, wanted, 400, generator())
    return (knots < at).double().mean().item()


def test_knots_have_the_density_of_the_best_spline(monkeypatch):
    monkeypatch.setattr(hinge_starts.torch, "rand", no_mixing)
    x = grid(4000)
    x_sorted, sums, _ = sums_of(x, x.exp())
    for at in (1.0, 3.0, 4.0):
        exact = (math.exp(0.4 * at) - math.exp(-2)) / (math.exp(2) - math.exp(-2))
        # of 8000 random knots; four standard errors are 0.022, the rest is the grid's
        assert share_of_knots_below(x_sorted, sums, at) == pytest.approx(exact, abs=0.03)


_rand = torch.rand


def no_mixing(shape, **options):
    """Random numbers that leave out the part of the samples' own density."""
    return _rand(shape, **options) * (0.0 if shape[-1] == 1 else 1.0)


def test_noise_spreads_the_knots_as_the_samples(draw):
    x, y = 5 * draw(4000), draw(4000)
    for at in (-3.0, 0.0, 4.0):
        share = share_of_knots_below(*sums_of(x, y)[:2], at)
        # four standard errors of 8000 random knots are 0.022; noise bends the density a little
        assert share == pytest.approx((x < at).double().mean().item(), abs=0.05)


def test_jump_gets_knots_on_both_sides():
    x = grid(1000)
    _, sums, _ = sums_of(x, (x > 1.234).double())
    cuts, wanted = hinge_starts._knot_density(10, sums)
    jump = int((x <= 1.234).sum())
    near = wanted[(cuts[:-1] >= jump - 2) & (cuts[1:] <= jump + 2)].sum()
    assert near > 0.5


def test_rows_weights_count(draw):
    x = grid(1000)
    y = torch.where(x < 0, (20 * x).sin(), x.sin())
    heavy, light = (
        share_of_knots_below(*sums_of(x, y, weight)[:2], 0.0)
        for weight in (None, torch.where(x < 0, 1e-12, 1.0).double())
    )
    assert heavy > 0.6
    assert light < 0.4


@pytest.mark.parametrize("n", [1, 2, 3, 30])
@pytest.mark.parametrize("what", ["random", "constant", "one_x"])
def test_few_and_degenerate_samples_give_finite_starts(draw, n, what):
    x, y = draw(n), draw(n)
    if what == "constant":
        y = torch.full_like(y, 3.0)
    if what == "one_x":
        x = torch.full_like(x, 2.0)
    rows = hinge_starts.draw(10, 0.0, *sums_of(x, y), 3, generator())
    assert rows.shape == (3, 31)
    assert rows.isfinite().all()
    net = fastmlp.ElementwiseMLP(10, dtype=torch.float64)
    for row in rows:
        load(net, row)
        # one sample: nothing but rounding is left on either side
        assert (net(x) - y).square().sum() <= (y - y.mean()).square().sum() + 1e-12


def test_wide_nets_are_drawn_in_pieces(monkeypatch, draw):
    x = draw(300)
    sums = sums_of(x, x.sin())
    whole = hinge_starts.draw(5, 0.0, *sums, 4, generator())
    assert whole.shape == (4, 16)
    monkeypatch.setattr(hinge_starts, "MAX_ENTRIES", 100)  # one start at a time
    pieces = hinge_starts.draw(5, 0.0, *sums, 4, generator())
    assert pieces.shape == (4, 16)
    assert torch.equal(pieces[0], hinge_starts.draw(5, 0.0, *sums, 1, generator())[0])


def test_same_seed_gives_the_same_bits_on_any_number_of_threads():
    x = grid(3000)
    settings = LevenbergMarquardt(restarts=4)
    outcomes = []
    before = torch.get_num_threads()
    for seed, threads in ((3, 1), (3, 2), (4, 2)):
        net = fastmlp.ElementwiseMLP(6)
        torch.set_num_threads(threads)
        try:
            outcomes.append(train([net], x, x.exp(), settings, max_steps=5, seed=seed))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(outcomes[0].parameters, outcomes[1].parameters)
    assert not torch.equal(outcomes[0].parameters, outcomes[2].parameters)


def test_models_of_a_list_start_apart():
    x = grid(1000)
    nets = [fastmlp.ElementwiseMLP(6, dtype=torch.float64) for _ in range(2)]
    outcome = train(nets, x, x.exp(), LevenbergMarquardt(restarts=3), max_steps=1)
    assert len(outcome.parameters.unique(dim=0)) == 6


def test_nets_without_bias_draw_their_own_weights():
    x = grid(1000)
    net = fastmlp.ElementwiseMLP(6, bias=False, dtype=torch.float64)
    outcome = train([net], x, x.abs(), LevenbergMarquardt(restarts=3), max_steps=20)
    assert outcome.parameters.shape == (3, 12)
    # |x| is two units exactly: what is left of 1000 squares is where a run stops, not a fit's
    assert outcome.final.min() < 1e-12


def test_drawing_leaves_the_generator_alone():
    sums = sums_of(grid(100), grid(100).sin())
    state = torch.get_rng_state()
    hinge_starts.draw(5, 0.0, *sums, 3, generator())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_knots_at_one_sample():
    x = grid(2000)
    sums = sums_of(x, (x > 0).double())  # all want to be at the jump
    density = hinge_starts._knot_density(10, sums[1])
    knots = hinge_starts._knots(10, sums[0], *density, 50, generator())
    assert (knots.diff() > 0).all()
    assert (knots >= x[0]).all()
    assert (knots <= x[-1]).all()
