"""Full-batch least squares from prefix sums equals the direct computation."""

import itertools

import pytest
import torch
from torch import nn

pytest.importorskip("numba")

KINKS = {"relu": 0.0, "leaky_relu": 0.1}


def chain(*widths, alpha=0.0):
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out, dtype=torch.float64), nn.LeakyReLU(alpha)]
    return nn.Sequential(*layers[:-1])


def flat(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def judge(net, alpha, x, y):
    """Compare loss and gradient with autograd's, 1e-10 relative to the largest."""
    from fastmlp.kernels.cpu.training.full_batch import FullBatch

    widths = [1, *(m.out_features for m in net if isinstance(m, nn.Linear))]
    loss = nn.functional.mse_loss(net(x.reshape(-1, 1)).reshape(-1), y)
    direct = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
    ours, gradient = FullBatch(x, y).value_and_gradient(flat(net), torch.tensor(widths), alpha)
    # differences of prefix sums lose what lies before a segment: thousands of ulps of the whole
    assert ours.item() == pytest.approx(loss.item(), rel=1e-10, abs=1e-14)
    error = (gradient - direct).abs().max()
    assert error <= 1e-10 * direct.abs().max() + 1e-14
    return loss.item()


@pytest.mark.parametrize("alpha", KINKS.values(), ids=KINKS)
@pytest.mark.parametrize("hidden", [(1,), (14,), (10, 10, 10), (30, 30, 30, 30)], ids=str)
def test_equals_the_direct_computation(hidden, alpha, draw):
    x = torch.linspace(-5, 7, 4001, dtype=torch.float64)
    for y in (torch.sin(x), torch.exp(x), 1e3 + draw(4001)):
        judge(chain(1, *hidden, 1, alpha=alpha), alpha, x, y)


def test_unsorted_and_repeated_points(draw):
    x = draw(500).repeat(3)
    judge(chain(1, 10, 10, 1), 0.0, x, draw(1500))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_points(n, draw):
    for _ in range(5):
        judge(chain(1, 10, 10, 1), 0.0, draw(n), draw(n))


def test_points_far_from_zero(draw):
    x = 1000 + draw(3000)
    net = chain(1, 10, 10, 1)
    with torch.no_grad():
        net[0].bias.copy_(-1000 * net[0].weight[:, 0] + draw(10))
    judge(net, 0.0, x, torch.sin(x))


def test_degenerate_nets(draw):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    net = chain(1, 10, 10, 1)
    with torch.no_grad():
        net[0].weight[:4] = 0
        net[0].bias[2:6] = 0
        net[0].weight[6] = net[0].weight[7]
        net[0].bias[6] = net[0].bias[7]
        net[2].weight[3] = 0
        net[2].bias[5] = -100  # dead
    judge(net, 0.0, x, torch.sin(x))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    judge(net, 0.0, x, torch.sin(x))


def test_points_on_breakpoints_have_the_derivative_of_zero():
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    net = chain(1, 6, 1)
    with torch.no_grad():
        # at 0 from both sides, at 2, at the first and last point from both sides
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0], [-1.0], [1.0], [1.0], [-1.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 0.0, 2.0, 5.0, -5.0, 5.0]))
    judge(net, 0.0, x, torch.sin(x) + 1)
    judge(net, 0.0, x.repeat(2), torch.cat([torch.sin(x) + 1, x]))


def test_float32_parameters_and_no_biases(draw):
    from fastmlp.kernels.cpu.training.full_batch import FullBatch

    x = draw(800)
    weights = [draw(5, 1), draw(4, 5), draw(1, 4)]
    net = chain(1, 5, 4, 1)
    with torch.no_grad():
        for layer, weight in zip(net[::2], weights, strict=True):
            layer.weight.copy_(weight)
            layer.bias.zero_()
    loss = nn.functional.mse_loss(net(x[:, None])[:, 0], x.sin())
    direct = torch.autograd.grad(loss, [layer.weight for layer in net[::2]])
    direct = torch.cat([g.reshape(-1) for g in direct])
    theta = torch.cat([w.reshape(-1) for w in weights])
    batch, widths = FullBatch(x, x.sin()), torch.tensor([1, 5, 4, 1])
    ours, gradient = batch.value_and_gradient(theta, widths, 0.0, has_bias=False)
    # as in `judge`; of float32 parameters the gradient is rounded once, after sums in float64
    assert ours.item() == pytest.approx(loss.item(), rel=1e-10)
    assert (gradient - direct).abs().max() <= 1e-10 * direct.abs().max()
    short, gradient = batch.value_and_gradient(theta.float(), widths, 0.0, has_bias=False)
    assert short.item() == pytest.approx(loss.item(), rel=1e-6)
    assert gradient.dtype is torch.float32
    assert (gradient - direct).abs().max() <= 1e-6 * direct.abs().max()


def test_a_wrong_slope_is_found(draw):
    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    with pytest.raises(AssertionError):
        judge(chain(1, 10, 10, 1, alpha=0.1), 0.1 + 1e-8, x, torch.sin(x))


def test_a_perfect_fit_is_left_to_the_points():
    x = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    net = chain(1, 10, 10, 1)
    y = net(x[:, None])[:, 0].detach()
    from fastmlp.kernels.cpu.training.full_batch import FullBatch

    loss, _ = FullBatch(x, y).value_and_gradient(flat(net), torch.tensor([1, 10, 10, 1]), 0.0)
    assert loss.item() < 0
