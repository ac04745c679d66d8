"""The registered ops: schemas, fake tensors, autograd, and torch.compile on top of them."""

import pytest
import torch

import fastmlp
from fastmlp import functional, reference

SEED = "seed"
SHAPES = {
    "elementwise_mlp": [(3, 5), (14, 1), (14,), (1, 14), (1,), SEED],
    "additive_mlp": [(3, 5), (14, 1), (14,), (1, 14), (1,), (2, 5), (2,), SEED],
    "sine_sum": [(3, 5), (8,), (8,), (8,)],
}
OPTIONS = {
    "elementwise_mlp": ("tanh", 0.2, 0.1, 0.3),
    "additive_mlp": ("tanh", 0.2, 0.1, 0.3),
    "sine_sum": (3.0, True),
}
WITHOUT_SEED = ("relu", 0.0, 0.0, 0.0)


def arguments(op, draw, device, *, optional=True):
    """Tensors and options of one registered op; without its optional ones where asked."""
    tensors = [
        torch.tensor([7], device=device) if shape is SEED else draw(*shape).float().to(device)
        for shape in SHAPES[op]
    ]
    if optional:
        return (*tensors, *OPTIONS[op])
    absent = {"elementwise_mlp": (2, 4, 5), "additive_mlp": (2, 4, 6, 7), "sine_sum": (2, 3)}[op]
    tensors = [None if i in absent else t for i, t in enumerate(tensors)]
    return (*tensors, *(WITHOUT_SEED if SEED in SHAPES[op] else OPTIONS[op]))


@pytest.fixture
def fast_backend(backend):
    """Each backend but Triton in its interpreter, where every check takes many seconds."""
    if backend.interpreted:
        pytest.skip("too slow in Triton's interpreter; the code around the kernels is the same")
    return backend


@pytest.fixture
def op_backend(fast_backend):
    """The same, where a registered op finds a kernel."""
    try:
        fastmlp.backends.choose_compiled(fast_backend.device)
    except RuntimeError as error:
        pytest.skip(str(error))
    return fast_backend


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("optional", [True, False], ids=["all_tensors", "required_tensors"])
def test_opcheck_of_forward(op, optional, op_backend, draw):
    call = getattr(torch.ops.fastmlp, op + "_fwd").default
    for requires_grad in (False, True):
        args = arguments(op, draw, op_backend.device, optional=optional)
        args = [
            a.requires_grad_(requires_grad) if torch.is_tensor(a) and a.is_floating_point() else a
            for a in args
        ]
        torch.library.opcheck(call, args)


def needs_of(op, need_dx, need_dparams):
    """Which gradients a registered backward is asked for: of x and of each parameter."""
    n_parameters = sum(shape is not SEED for shape in SHAPES[op]) - 1
    return [need_dx, *[need_dparams] * n_parameters]


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("need_dx", [True, False], ids=["dx", "no_dx"])
@pytest.mark.parametrize("need_dparams", [True, False], ids=["dparams", "no_dparams"])
def test_opcheck_of_backward(op, need_dx, need_dparams, op_backend, draw):
    args = arguments(op, draw, op_backend.device)
    dy = getattr(torch.ops.fastmlp, op + "_fwd")(*args)
    call = getattr(torch.ops.fastmlp, op + "_bwd").default
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(call, (dy, *args, needs_of(op, need_dx, need_dparams)), test_utils=tests)


@pytest.mark.parametrize("op", SHAPES)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_tensors_have_the_dtypes_of_real_ones(op, x_dtype, op_backend, draw):
    args = list(arguments(op, draw, op_backend.device))
    args[0] = args[0].to(x_dtype)
    torch.library.opcheck(
        getattr(torch.ops.fastmlp, op + "_fwd").default, args, test_utils="test_faketensor"
    )
    dy = getattr(torch.ops.fastmlp, op + "_fwd")(*args)
    call = getattr(torch.ops.fastmlp, op + "_bwd").default
    needs = needs_of(op, True, True)
    torch.library.opcheck(call, (dy, *args, needs), test_utils="test_faketensor")


@pytest.fixture(params=SHAPES)
def module(request):
    """A module of each op; its input has 5 features."""
    return {
        "elementwise_mlp": lambda: fastmlp.ElementwiseMLP(14),
        "additive_mlp": lambda: fastmlp.AdditiveMLP(5, 14, 2),
        "sine_sum": lambda: fastmlp.SineSum(8, learn_amplitude=True, learn_phase=True),
    }[request.param]()


def assert_same(backend, eager, traced):
    """Bit for bit where kernels of ours compute; traced PyTorch may add in another order."""
    if backend.name == "torch":
        torch.testing.assert_close(traced, eager)
    else:
        assert torch.equal(traced, eager)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic_batch"])
def test_compiled_module_equals_eager(module, dynamic, fast_backend, draw):
    torch.compiler.reset()
    module = module.to(fast_backend.device)
    graphs, n_first = [], 0

    def count(graph, example_inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    compiled = torch.compile(module, fullgraph=True, backend=count, dynamic=dynamic)
    for n_rows in (3, 4, 7):
        x = draw(n_rows, 5).float().to(fast_backend.device)
        results = []
        for call in (module, compiled):
            module.zero_grad()
            leaf = x.clone().requires_grad_()
            y = call(leaf)
            y.square().sum().backward()
            results.append([y.detach(), leaf.grad, *(p.grad for p in module.parameters())])
        for eager, traced in zip(*results, strict=True):
            assert_same(fast_backend, eager, traced)
        # the first call may trace twice: a float such as `scale` is first taken as variable
        n_first = n_first or len(graphs)
    if dynamic:
        assert len(graphs) == n_first, "another batch size was compiled anew"


def test_compiled_graph_holds_the_fused_op(module, kernel_backend, draw):
    torch.compiler.reset()
    targets = []

    def look(graph, example_inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    module = module.to(kernel_backend.device)
    torch.compile(module, fullgraph=True, backend=look)(
        draw(3, 5).float().to(kernel_backend.device)
    )
    assert any("fastmlp" in target for target in targets)


def test_compiled_module_without_gradients(module, fast_backend, draw):
    torch.compiler.reset()
    module = module.to(fast_backend.device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = draw(3, 5).float().to(fast_backend.device)
    with torch.no_grad():
        assert_same(fast_backend, module(x), compiled(x))


def test_export(module, draw):
    x = draw(3, 5).float()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    larger = draw(9, 5).float()
    assert torch.equal(program.module()(larger), module(larger))


@pytest.mark.parametrize("op", SHAPES)
def test_function_transforms(op, backend, draw):
    x, *rest = (
        t.detach()
        for t in arguments(op, draw, backend.device)
        if torch.is_tensor(t) and t.is_floating_point()
    )
    options = {"scale": 3.0} if op == "sine_sum" else {}

    def total(module):
        return lambda x, *rest: getattr(module, op)(x, *rest, **options).square().sum()

    ours = torch.func.grad(total(functional), argnums=(0, 1))(x, *rest)
    plain = torch.func.grad(total(reference), argnums=(0, 1))(x, *rest)
    for a, b in zip(ours, plain, strict=True):
        # kernels add in another order
        torch.testing.assert_close(a, b)
    in_dims = (0, *[None] * len(rest))
    ours = torch.func.vmap(torch.func.grad(total(functional)), in_dims)(x, *rest)
    plain = torch.func.vmap(torch.func.grad(total(reference)), in_dims)(x, *rest)
    torch.testing.assert_close(ours, plain)
