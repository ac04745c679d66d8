"""Forward, backward and whole training steps as CUDA graphs; ops on a device that is not current.

What can be known without a device is in kernels/gpu/test_launchers.py.
"""

import copy

import pytest
import torch

import fastmlp

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device, on which alone graphs are captured"
)

MODULES = {
    "additive": lambda: fastmlp.AdditiveMLP(5, 14),
    "additive_dropout": lambda: fastmlp.AdditiveMLP(5, 14, dropout=0.2),
    "stacked": lambda: fastmlp.AdditiveMLP(5, 14, shared=False, activation="silu"),
    "elementwise": lambda: fastmlp.ElementwiseMLP(14),
    "sines": lambda: fastmlp.SineSum(8, learn_amplitude=True, learn_phase=True),
    "mlp": lambda: fastmlp.MLP(5, [16, 16], 3, activation="tanh"),
}


@pytest.fixture(autouse=True)
def _failures_stay_inside():
    """Let no failed capture reach the next test: it leaves its own stream as the current one."""
    stream = torch.cuda.current_stream()
    yield
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize()


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]().cuda()


def drops(module):
    return getattr(module, "dropout", 0.0) != 0.0


def warm_up(step, times=3):
    """Run a step on a side stream, as captures want it: kernels compile here."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(times):
            step()
    torch.cuda.current_stream().wait_stream(stream)


def test_forward(module, draw):
    x = draw(300, 5).float().cuda()
    module.eval()
    with torch.no_grad():
        warm_up(lambda: module(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        x.copy_(draw(300, 5))
        graph.replay()
        assert torch.equal(y, module(x))


def test_forward_and_backward_as_one_callable(module, draw):
    module.eval()
    plain = copy.deepcopy(module)
    x = draw(300, 5).float().cuda().requires_grad_()
    graphed = torch.cuda.make_graphed_callables(module, (x,))
    for _ in range(2):
        x = draw(300, 5).float().cuda().requires_grad_()
        y, wanted = graphed(x), plain(x)
        dy = draw(*y.shape).to(y)
        gradients = torch.autograd.grad(y, [x, *module.parameters()], dy)
        exact = torch.autograd.grad(wanted, [x, *plain.parameters()], dy)
        assert torch.equal(y, wanted)
        assert all(torch.equal(a, b) for a, b in zip(gradients, exact, strict=True))


def test_training_step(module, draw):
    if drops(module):
        pytest.skip("a replay draws other masks than a step outside the graph")
    plain = copy.deepcopy(module)
    x, shape = draw(300, 5).float().cuda(), module(draw(300, 5).float().cuda()).shape
    target = draw(*shape).float().cuda()
    batches = [(draw(300, 5).float(), draw(*shape).float()) for _ in range(3)]

    def stepper(net):
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, capturable=True)

        def step():
            optimizer.zero_grad(set_to_none=True)
            (net(x) - target).square().mean().backward()
            optimizer.step()

        return step

    captured, eager = stepper(module), stepper(plain)
    warm_up(captured)
    warm_up(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured()
    for new_x, new_target in batches:
        x.copy_(new_x)
        target.copy_(new_target)
        graph.replay()
        eager()
        for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_every_replay_draws_new_masks(draw):
    module = MODULES["additive_dropout"]().cuda()
    x = draw(300, 5).float().cuda()
    with torch.no_grad():
        warm_up(lambda: module(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        graph.replay()
        first = y.clone()
        graph.replay()
        assert not torch.equal(y, first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one(module, draw):
    module.eval()
    x = draw(300, 5).float().cuda()
    here = module(x)
    y = module.to("cuda:1")(x.to("cuda:1"))
    y.sum().backward()
    assert y.device == torch.device("cuda", 1)
    assert torch.cuda.current_device() == 0
    assert torch.equal(y.cpu(), here.cpu())
    assert all(p.grad.device == y.device for p in module.parameters())
