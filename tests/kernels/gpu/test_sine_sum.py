"""What only the Triton launchers of sine_sum do; tests/ops judges values and gradients."""

import math

import pytest
import torch
from closeness import assert_as_good_as_torch, sine_sum_terms

pytest.importorskip("triton")

from fastmlp.kernels.gpu.sine_sum import sine_sum_bwd, sine_sum_fwd

from fastmlp import reference

X_AND_W = (True, True, False, False)  # gradients needed


def judge(x, w, amplitude, phase, scale, mean, dy):
    """Compare the launchers with plain PyTorch."""
    given = {"x": x, "w": w, "amplitude": amplitude, "phase": phase}
    given = {name: t for name, t in given.items() if t is not None}
    reduction = "mean" if mean else "sum"
    results = []
    for dtype in (x.dtype, torch.float64):
        leaves = {name: t.to(dtype).requires_grad_() for name, t in given.items()}
        y = reference.sine_sum(**leaves, scale=scale, reduction=reduction)
        results.append((y, *torch.autograd.grad(y, list(leaves.values()), dy.to(dtype))))
    y = sine_sum_fwd(x, w, amplitude, phase, scale, mean)
    needs = (True, True, amplitude is not None, phase is not None)
    gradients = sine_sum_bwd(dy, x, w, amplitude, phase, scale, mean, needs=needs)
    ours = (y, *(gradient for gradient in gradients if gradient is not None))
    doubles = [None if t is None else t.double() for t in (w, amplitude, phase)]
    terms = sine_sum_terms(dy.double(), x.double(), *doubles, scale, reduction)
    for name, our, plain, exact in zip(("y", *given), ours, *results, strict=True):
        assert_as_good_as_torch(our, plain, exact, terms=terms[name], name=name)


@pytest.mark.parametrize("has_amplitude", [False, True], ids=["", "amplitude"])
@pytest.mark.parametrize("has_phase", [False, True], ids=["", "phase"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_options(has_amplitude, has_phase, dtype, device, draw):
    x, w, dy = (draw(n).to(dtype).to(device) for n in (30, 9, 30))
    amplitude = draw(9).to(dtype).to(device) if has_amplitude else None
    phase = 3 * draw(9).to(dtype).to(device) if has_phase else None
    judge(x, w, amplitude, phase, 1.7, has_phase, dy)


@pytest.mark.parametrize("n", [1, 511, 513, 8193], ids="n_{}".format)
def test_sizes_around_tiles_and_pieces(n, device, draw):
    x, w, dy = (draw(k).float().to(device) for k in (n, 2, n))
    judge(x, w, None, None, math.pi, True, dy)


@pytest.mark.parametrize("size", [1e3, 2.0**21, 2.0**24, 2.0**60], ids="{:.0e}".format)
def test_whole_turns_of_any_size_are_exact(size, device):
    # w x/2 is a whole number of turns: the sine is 0 and the cosine 1, at either reduction
    x = torch.tensor([2.0, -4.0, 6.0], device=device) * round(size)
    w = torch.tensor([1.0, 2.0], device=device)
    ones = torch.ones_like(x)
    assert torch.equal(sine_sum_fwd(x, w, None, None, math.pi, False), torch.zeros_like(x))
    dx, dw, *_ = sine_sum_bwd(ones, x, w, None, None, math.pi, False, needs=X_AND_W)
    # four ulps, and π itself is rounded to float32
    torch.testing.assert_close(dx, 3 * math.pi * ones, rtol=5e-7, atol=0)
    torch.testing.assert_close(dw, x.sum() * math.pi * torch.ones_like(w), rtol=5e-7, atol=0)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf], ids=str)
def test_values_that_are_not_finite_give_nan(special, device, draw):
    x, w = draw(20).float().to(device), draw(3).float().to(device)
    x[4] = special
    y = sine_sum_fwd(x, w, None, None, math.pi, True)
    dx, dw, *_ = sine_sum_bwd(torch.ones_like(x), x, w, None, None, math.pi, True, needs=X_AND_W)
    assert y[4].isnan()
    assert y.isnan().sum() == dx.isnan().sum() == 1
    assert dw.isnan().all()


def test_no_elements_need_no_launch(device, draw):
    w, x = draw(3).float().to(device), torch.empty(0, device=device)
    assert sine_sum_fwd(x, w, w, None, 1.0, True).shape == (0,)
    dx, dw, da, _ = sine_sum_bwd(x, x, w, w, None, 1.0, True, needs=(True, True, True, False))
    assert dx.shape == (0,)
    assert torch.equal(dw, torch.zeros_like(w))
    assert torch.equal(da, torch.zeros_like(w))
