"""fastmlp.graphed: which calls graphs serve, and that what comes out is the call's own.

Without a device the stand-in for a graph computes anew what was captured, where it was captured.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import fastmlp
from fastmlp import graphs

on_device = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device, on which alone graphs are captured"
)


class Graph:
    """Does what was captured once more, into the memory of the first time."""

    replays = 0

    def __init__(self, function):
        self.function, self.result = function, function()

    def pool(self):
        return None

    def replay(self):
        Graph.replays += 1
        graphs_of_sample = getattr(self.function, "__self__", None)
        if graphs_of_sample is not None:  # what a device keeps of forward is computed again here
            with torch.enable_grad():
                graphs_of_sample._taped = graphs_of_sample._module(graphs_of_sample._x)
        results = self.function()
        kept = self.result
        if isinstance(kept, torch.Tensor):
            kept, results = [kept], [results]
        with torch.no_grad():
            for a, b in zip(kept, results, strict=True):
                if a is not None:
                    a.data.copy_(b)


class Stream:
    def __init__(self, name="side"):
        self.name = name

    def wait_stream(self, other):
        waits.append((self.name, other.name))


waits: list = []


@pytest.fixture
def on_cpu(monkeypatch):
    """Graphs of CPU tensors, by the stand-in."""

    def captured(function, pool=None):
        with torch.enable_grad():
            graph = Graph(function)
        return graph, graph.result

    main = Stream("main")
    cuda = SimpleNamespace(
        Stream=Stream,
        current_stream=lambda: cuda.now,
        now=main,
        stream=lambda stream: contextlib.nullcontext(),
        device=lambda device: contextlib.nullcontext(),
        is_current_stream_capturing=lambda: False,
    )
    monkeypatch.setattr(graphs, "_cuda", cuda)
    monkeypatch.setattr(graphs, "_DEVICE", "cpu")
    monkeypatch.setattr(graphs, "_captured", captured)
    waits.clear()
    return cuda


def replays(call):
    before = Graph.replays
    return call(), Graph.replays - before


def gradients(call, module, x):
    inputs = [t for t in (x, *module.parameters()) if t.requires_grad]
    y = call(x)
    return [y, *torch.autograd.grad(y.square().sum(), inputs)]


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


def net():
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))


@pytest.mark.parametrize("needs_dx", [False, True])
def test_values_and_gradients_are_the_modules(on_cpu, needs_dx):
    module = net()
    x = torch.randn(3, 5, requires_grad=needs_dx)
    graphed = fastmlp.graphed(module, x)
    for _ in range(2):
        x = torch.randn(3, 5, requires_grad=needs_dx)
        found, n = replays(lambda x=x: gradients(graphed, module, x))
        assert n == 2
        same(found, gradients(module, module, x))


def test_results_of_one_call_outlive_the_next(on_cpu):
    module = net()
    graphed = fastmlp.graphed(module, torch.empty(3, 5))
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    y1, y2 = graphed(first), graphed(second)
    same([y1, y2], [module(first), module(second)])
    # backward of the first after forward of the second
    parameters = list(module.parameters())
    for x, y in ((first, y1), (second, y2)):
        found = torch.autograd.grad(y.square().sum(), parameters)
        same(found, torch.autograd.grad(module(x).square().sum(), parameters))


def test_two_backwards_add_up(on_cpu):
    module = net()
    graphed = fastmlp.graphed(module, torch.empty(3, 5))
    x = torch.randn(3, 5)
    for _ in range(2):
        graphed(x).sum().backward()
    twice = [p.grad for p in module.parameters()]
    once = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    for a, b in zip(twice, once, strict=True):
        assert torch.equal(a, 2 * b)


def test_calls_that_a_graph_does_not_fit_run_without(on_cpu):
    module = net()
    graphed = fastmlp.graphed(module, torch.empty(3, 5))
    x = torch.randn(3, 5)

    def without(x):
        y, n = replays(lambda: graphed(x))
        assert n == 0
        assert torch.equal(y, module(x))

    without(torch.randn(4, 5))
    without(x.clone().requires_grad_())
    module.eval()
    without(x)
    module.train()
    with torch.autocast("cpu", torch.bfloat16):
        without(x)
    on_cpu.is_current_stream_capturing = lambda: True
    without(x)
    on_cpu.is_current_stream_capturing = lambda: False
    torch.func.vmap(graphed)(x.unsqueeze(0))
    assert replays(lambda: graphed(x))[1] == 1
    module[0].bias.requires_grad_(False)
    without(x)
    module[0].bias.requires_grad_(True)
    module[0].weight.data = module[0].weight.data.clone()
    without(x)
    assert replays(lambda: fastmlp.graphed(module, x)(x))[1] == 1
    module[2].bias = torch.nn.Parameter(torch.zeros(2))
    without(x)


def test_parameters_changed_in_place_are_read_anew(on_cpu):
    module, x = net(), torch.randn(3, 5)
    graphed = fastmlp.graphed(module, x)
    with torch.no_grad():
        module[0].weight += 1
        assert torch.equal(graphed(x), module(x))
    y = graphed(x)
    with torch.no_grad():
        module[0].weight += 1
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_a_bounded_number_of_shapes(on_cpu, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_SHAPES", 2)
    module = net()
    graphed = fastmlp.graphed(module, [torch.empty(n, 5) for n in (1, 2)])
    graphed(torch.empty(1, 5))
    graphed.capture(torch.empty(3, 5))
    served = [replays(lambda n=n: graphed(torch.randn(n, 5)))[1] for n in (1, 2, 3)]
    assert served == [1, 0, 1]


def test_another_stream_waits_for_the_last(on_cpu):
    graphed = fastmlp.graphed(net(), torch.empty(3, 5))
    waits.clear()
    with torch.no_grad():
        graphed(torch.randn(3, 5))
        assert waits == []
        on_cpu.now = Stream("other")
        graphed(torch.randn(3, 5))
        graphed(torch.randn(3, 5))
    assert waits == [("other", "main")]


def test_second_derivatives(on_cpu):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    graphed = fastmlp.graphed(net().double(), x)
    assert replays(lambda: graphed(x))[1] == 1
    assert torch.autograd.gradcheck(graphed, x)
    assert torch.autograd.gradgradcheck(graphed, x)


def test_what_cannot_be_captured_is_refused_with_a_reason(on_cpu, monkeypatch):
    x = torch.empty(3, 5)
    dropping = fastmlp.AdditiveMLP(5, 6, dropout=0.2)
    with pytest.raises(ValueError, match=r"dropout masks at every call; eval\(\)"):
        fastmlp.graphed(dropping, x)
    fastmlp.graphed(dropping.eval(), x)
    with pytest.raises(ValueError, match="1 draws new dropout"):
        fastmlp.graphed(torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.Dropout(0.5)), x)
    hooked = net()
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks"):
        fastmlp.graphed(hooked, x)
    with pytest.raises(ValueError, match="device of the sample"):
        fastmlp.graphed(net(), x.to("meta"))
    with pytest.raises(TypeError, match="must return a Tensor"):
        fastmlp.graphed(torch.nn.LSTM(5, 6), x)
    with pytest.raises(TypeError, match="module must be"):
        fastmlp.graphed(torch.relu, x)
    with pytest.raises(TypeError, match="sample must be"):
        fastmlp.graphed(net(), [3])
    monkeypatch.setattr(graphs, "_DEVICE", "cuda")
    with pytest.raises(ValueError, match="CUDA devices alone"):
        fastmlp.graphed(net(), x)


@on_device
def test_replays_on_a_device(draw):
    module = fastmlp.AdditiveMLP(5, 14).cuda()
    graphed = fastmlp.graphed(module, torch.empty(300, 5, device="cuda"))
    for _ in range(3):
        x = draw(300, 5).float().cuda()
        same(gradients(graphed, module, x), gradients(module, module, x))


@on_device
def test_two_graphs_replayed_together(draw):
    modules = [fastmlp.AdditiveMLP(64, 14).cuda() for _ in range(2)]
    x = draw(5000, 64).float().cuda()
    pairs = [(m, fastmlp.graphed(m, x), torch.cuda.Stream()) for m in modules]
    wanted = [gradients(m, m, x) for m in modules]
    torch.cuda.synchronize()
    found = []
    for m, graphed, stream in pairs:
        with torch.cuda.stream(stream):
            found.append([gradients(graphed, m, x) for _ in range(20)])
    torch.cuda.synchronize()
    for mine, exact in zip(found, wanted, strict=True):
        for one in mine:
            same(one, exact)


@on_device
def test_reduce_overhead(draw):
    module = fastmlp.AdditiveMLP(5, 14).cuda()
    compiled = torch.compile(module, mode="reduce-overhead")
    for _ in range(4):
        x = draw(300, 5).float().cuda()
        torch.compiler.cudagraph_mark_step_begin()
        found = [t.clone() for t in gradients(compiled, module, x)]
        same(found, gradients(module, module, x))
