"""What only the Triton launchers of elementwise_mlp do; tests/ops judges values and gradients."""

import pytest
import torch
from closeness import assert_as_good_as_torch, elementwise_mlp_terms

pytest.importorskip("triton")

from fastmlp.kernels.gpu.elementwise_mlp import elementwise_mlp_bwd, elementwise_mlp_fwd
from fastmlp.kernels.gpu.machine import launch

from fastmlp import reference

ALL = (True,) * 5  # gradients needed: of x and four parameters


def subnet(draw, n_hidden, device):
    shapes = ((n_hidden, 1), (n_hidden,), (1, n_hidden), (1,))
    return [draw(*shape).float().to(device) for shape in shapes]


def judge_gradients(x, params, dy):
    """Compare the launchers with plain PyTorch; return the gradients."""
    names = ("x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    results = []
    for dtype in (x.dtype, torch.float64):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *params)]
        y = reference.elementwise_mlp(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, dy.to(dtype))))
    y = elementwise_mlp_fwd(x, *params)
    gradients = elementwise_mlp_bwd(dy, x, *params, needs=ALL)
    ours = [y, *gradients]
    terms = elementwise_mlp_terms(dy.double(), x.double(), *(p.double() for p in params))
    for name, our, plain, exact in zip(("y", *names), ours, *results, strict=True):
        assert_as_good_as_torch(our, plain, exact, terms=terms[name], name=name)
    return gradients


@pytest.mark.parametrize(
    "n_hidden",
    [
        pytest.param(1, id="one_unit"),
        pytest.param(32, id="widest_canonical_two_groups"),
        pytest.param(33, id="dense_uneven_groups"),
    ],
)
def test_widths_by_the_branch_they_reach(n_hidden, device, draw):
    params = subnet(draw, n_hidden, device)
    judge_gradients(draw(40).float().to(device), params, draw(40).float().to(device))


@pytest.mark.parametrize("n", [1, 511, 512, 513, 1024, 1025, 8192, 8193], ids="n_{}".format)
def test_sizes_around_tiles_and_pieces(n, device, draw):
    judge_gradients(draw(n).float().to(device), subnet(draw, 3, device), draw(n).float().to(device))


def test_one_value_that_is_not_finite_changes_no_other(device, draw):
    params = subnet(draw, 5, device)
    x = draw(50).float().to(device)
    healthy = elementwise_mlp_fwd(x, *params)
    x[7] = torch.nan
    y = elementwise_mlp_fwd(x, *params)
    others = torch.arange(50, device=device) != 7
    assert y[7].isnan()
    assert torch.equal(y[others], healthy[others])


@pytest.mark.parametrize("tiny", [2.0**-74, 2.0**-126], ids="{:.0e}".format)
def test_gradients_at_tiny_x_without_bias(tiny, device, draw):
    params = subnet(draw, 6, device)
    params[1] = torch.zeros_like(params[1])
    x = torch.tensor([tiny, -tiny, 0.0, 1.0], device=device)
    _, _, db1, *_ = judge_gradients(x, params, torch.ones(4, device=device))
    # db1 counts the active ones in full: tiny or -tiny, and 1 where w1 > 0
    w1, w2 = params[0].view(-1), params[2].view(-1)
    assert torch.equal(db1, w2 * (1 + (w1 > 0).float()))


def test_no_elements_need_no_launch(device, draw):
    params = subnet(draw, 4, device)
    x = torch.empty(0, 3, device=device)
    assert elementwise_mlp_fwd(x, *params).shape == (0, 3)
    gradients = elementwise_mlp_bwd(x, x, *params, needs=ALL)
    for gradient, argument in zip(gradients, (x, *params), strict=True):
        assert torch.equal(gradient, torch.zeros_like(argument))


def test_gradients_are_computed_only_on_demand(device, draw):
    params = subnet(draw, 4, device)
    x = draw(9).float().to(device)
    for needs in ((False, True, False, True, True), (True, False, False, False, False)):
        gradients = elementwise_mlp_bwd(x, x, *params, needs=needs)
        for gradient, argument, need in zip(gradients, (x, *params), needs, strict=True):
            assert gradient.shape == argument.shape if need else gradient is None


def test_float64_tiles_are_half_the_size():
    _, double = launch.compute_dtype(torch.float64)
    for name, config in launch.CONFIGS.items():
        half = launch.config_for(name, double)
        assert 2 * half.rows * half.cols == config.rows * config.cols
