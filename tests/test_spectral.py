"""The spectral start of a SineSum."""

import math
import warnings

import pytest
import torch

import fastmlp
from fastmlp.spectral import frequencies

UNIFORM = torch.linspace(-4, 4, 81, dtype=torch.float64)
GAP = UNIFORM[(UNIFORM < -0.95) | ((UNIFORM > 0.95) & (UNIFORM < 3.95))]
W = torch.tensor([0.3, 0.85, 1.1, 1.7], dtype=torch.float64)

# How near a start comes is not a matter of rounding alone: neighbouring sines in a short window are
# nearly dependent, so an ulp of the samples moves them by many. 1e-6 is far inside what any other
# start has, 1e-4 that of a window of a few periods.


def mean_of_sines(x, w, scale=math.pi):
    return torch.sin(scale * x[..., None] * w).mean(-1)


@pytest.mark.parametrize("x", [UNIFORM, GAP], ids=["uniform", "gap"])
def test_separate_frequencies_are_found(x):
    start = frequencies(x, mean_of_sines(x, W), 4)
    assert start.resolved
    assert start.order == 4
    assert (start.w - W).abs().max() < 1e-6


def test_samples_anywhere_on_one_side(draw):
    x = 4 * torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = frequencies(x.view(2, 100), mean_of_sines(x, W).view(2, 100), 4)
    assert (start.w - W).abs().max() < 1e-6


def test_signs_and_repetitions():
    w = torch.tensor([0.5, 0.5, 0.5, -1.3], dtype=torch.float64)
    with pytest.warns(UserWarning, match="does not resolve 4 frequencies: 2 are seen"):
        start = frequencies(UNIFORM, mean_of_sines(UNIFORM, w), 4)
    assert start.order == 2
    assert not start.resolved
    assert (start.w.sort().values - w.sort().values).abs().max() < 0.05
    assert (start.w < 0).sum() == 1
    assert len(start.w.unique()) == 4  # equal ones would stay equal


def test_other_scale_and_band():
    x = UNIFORM / 4
    start = frequencies(x, mean_of_sines(x, 5 * W, 2.0), 4, scale=2.0, max_frequency=10.0)
    assert (start.w - 5 * W).abs().max() < 1e-4


def test_noise_only_moves_them_a_little(draw):
    y = mean_of_sines(UNIFORM, W) + 1e-4 * draw(81)
    start = frequencies(UNIFORM, y, 4)
    assert (start.w - W).abs().max() < 0.05


def test_says_when_the_window_is_too_short():
    x = UNIFORM / 20
    with pytest.warns(UserWarning, match="does not resolve"):
        assert not frequencies(x, mean_of_sines(x, W), 4).resolved


@pytest.mark.parametrize("seed", range(4))
def test_levenberg_marquardt_takes_eight_sines_to_rounding(seed):
    pytest.importorskip("numba")
    from fastmlp.training.levenberg_marquardt import train

    generator = torch.Generator().manual_seed(seed)
    w = 2 * torch.rand(8, generator=generator, dtype=torch.float64)
    x = torch.cat([torch.arange(-40, -10), torch.arange(10, 40)]).double() / 10
    y = mean_of_sines(x, w)
    net = fastmlp.SineSum(8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some of these windows are said to be short
        start = frequencies(x, y, 8)
    with torch.no_grad():
        net.w.copy_(start.w)
    outcome = train([net], x, y, fastmlp.LevenbergMarquardt(), max_steps=200)
    # where the residuals are some thousand ulps the run has nothing left to do but rounding
    assert outcome.final[0] / 60 <= 1e-24
    assert (net.w.detach().sort().values - w.sort().values).abs().max() < 1e-8


def test_bad_input():
    y = mean_of_sines(UNIFORM, W)
    for match, arguments in {
        "y must have the shape of x": (UNIFORM, y[:-1], 4),
        "x must be finite": (UNIFORM * math.nan, y, 4),
        "y must be finite": (UNIFORM, y * math.inf, 4),
        "as many distinct": (UNIFORM[:3], y[:3], 4),
        "zero everywhere": (UNIFORM, 0 * y, 4),
        "width": (UNIFORM, y, 0),
    }.items():
        with pytest.raises(ValueError, match=match):
            frequencies(*arguments)
    with pytest.raises(ValueError, match="max_frequency"):
        frequencies(UNIFORM, y, 4, max_frequency=-1.0)
    with pytest.raises(TypeError, match="floating-point"):
        frequencies(UNIFORM.long(), y, 4)
