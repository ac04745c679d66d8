"""What only the Triton launchers of additive_mlp do; tests/ops judges values and gradients."""

import pytest
import torch
from closeness import additive_mlp_terms, assert_as_good_as_torch

pytest.importorskip("triton")

from fastmlp.kernels.gpu.additive_mlp import additive_mlp_bwd, additive_mlp_fwd

from fastmlp import reference

ALL = (True,) * 7  # gradients needed: of x and six parameters
NAMES = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "fc3_weight", "fc3_bias")


def network(draw, n_in, n_hidden, n_out, device):
    shapes = ((n_hidden, 1), (n_hidden,), (1, n_hidden), (1,), (n_out, n_in), (n_out,))
    return [draw(*shape).float().to(device) for shape in shapes]


def judge(x, params, dy):
    """Compare the launchers with plain PyTorch; return y and dparams."""
    results = []
    for dtype in (x.dtype, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *params)]
        y = reference.additive_mlp(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, dy.to(dtype))))
    y = additive_mlp_fwd(x, *params)
    gradients = additive_mlp_bwd(dy, x, *params, needs=ALL)
    ours = [y, *gradients]
    terms = additive_mlp_terms(dy.double(), x.double(), *(p.double() for p in params))
    for name, our, plain, exact in zip(("y", "x", *NAMES), ours, *results, strict=True):
        assert_as_good_as_torch(our, plain, exact, terms=terms[name], name=name)
    return y, gradients


@pytest.mark.parametrize(
    ("n_rows", "n_in", "n_hidden", "n_out"),
    [
        pytest.param(1, 1, 1, 1, id="all_ones"),
        pytest.param(257, 16, 3, 1, id="one_row_beyond_a_tile"),
        pytest.param(9, 70, 4, 1, id="two_blocks_of_features"),
        pytest.param(5, 17, 33, 1, id="dense_uneven_groups"),
        pytest.param(7, 5, 3, 9, id="two_blocks_of_outputs"),
        pytest.param(9, 65, 3, 2, id="blocks_of_features_many_outputs"),
        pytest.param(700, 13, 2, 1, id="two_pieces"),
    ],
)
def test_shapes_by_the_branch_they_reach(n_rows, n_in, n_hidden, n_out, device, draw):
    params = network(draw, n_in, n_hidden, n_out, device)
    x = draw(n_rows, n_in).float().to(device)
    judge(x, params, draw(n_rows, n_out).float().to(device))


def test_rows_apart_and_repeated_need_no_copy(device, draw):
    params = network(draw, 6, 3, 2, device)
    x = draw(8, 11).float().to(device)[:, :6]
    dy = draw(1, 2).float().to(device).expand(8, 2)
    judge(x, params, dy)
    judge(x[:1].expand(8, 6), params, dy)
    judge(x[::2], params, dy[::2])


@pytest.mark.parametrize("n_in", [16, 17], ids=["even", "masked"])
def test_one_row_that_is_not_finite_changes_no_other(n_in, device, draw):
    params = network(draw, n_in, 5, 1, device)
    x = draw(20, n_in).float().to(device)
    healthy = additive_mlp_fwd(x, *params)
    x[7, 3] = torch.nan
    y = additive_mlp_fwd(x, *params)
    others = torch.arange(20, device=device) != 7
    assert y[7].isnan().all()
    assert torch.equal(y[others], healthy[others])


@pytest.mark.parametrize("n_out", [1, 2])
def test_gradients_of_an_infinite_x_are_those_of_the_reference(n_out, device, draw):
    params = network(draw, 3, 4, n_out, device)
    x = draw(6, 3).float().to(device)
    x[2, 1] = torch.inf
    dy = draw(6, n_out).float().to(device)
    leaves = [p.double().requires_grad_() for p in params]
    wanted = torch.autograd.grad(reference.additive_mlp(x.double(), *leaves), leaves, dy.double())
    gradients = additive_mlp_bwd(dy, x, *params, needs=(False, *ALL[1:]))
    assert gradients[0] is None
    dparams = torch.cat([gradient.flatten() for gradient in gradients[1:]])
    wanted = torch.cat([w.flatten() for w in wanted])
    assert torch.equal(dparams.isnan(), wanted.isnan())
    assert torch.equal(dparams.isinf(), wanted.isinf())


def test_no_rows_need_no_launch(device, draw):
    params = network(draw, 4, 3, 2, device)
    x, dy = torch.empty(0, 4, device=device), torch.empty(0, 2, device=device)
    assert additive_mlp_fwd(x, *params).shape == (0, 2)
    gradients = additive_mlp_bwd(dy, x, *params, needs=ALL)
    for gradient, argument in zip(gradients, (x, *params), strict=True):
        assert torch.equal(gradient, torch.zeros_like(argument))


def test_float64_and_half_precision(device, draw):
    params = network(draw, 5, 14, 1, device)
    x, dy = draw(11, 5).float().to(device), draw(11, 1).float().to(device)
    exact, exact_gradients = judge(x.double(), [p.double() for p in params], dy.double())
    y = additive_mlp_fwd(x.bfloat16(), *params)
    assert y.dtype == torch.float32
    half = [p.half() for p in params]
    assert additive_mlp_fwd(x.half(), *half).dtype == torch.float16
    dx, *gradients = additive_mlp_bwd(dy, x.bfloat16(), *params, needs=ALL)
    assert dx.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert exact.dtype == exact_gradients[1].dtype == torch.float64
