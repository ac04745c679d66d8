"""The guard before every kernel, the ways around it, and what `explain` says of them."""

import copy
import threading

import pytest
import torch
import torch.autograd.forward_ad as fwad
from closeness import assert_same_number
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import fastmlp
from fastmlp import backends, boundary, functional

MODULES = {
    "elementwise": lambda: fastmlp.ElementwiseMLP(4, activation="tanh"),
    "relu": lambda: fastmlp.ElementwiseMLP(4),
    "additive": lambda: fastmlp.AdditiveMLP(3, 4),
    "additive_two_outputs": lambda: fastmlp.AdditiveMLP(3, 4, 2, activation="sigmoid"),
    "stacked": lambda: fastmlp.AdditiveMLP(3, 4, shared=False),
    "sines": lambda: fastmlp.SineSum(4, learn_amplitude=True, learn_phase=True),
    "mlp": lambda: fastmlp.MLP(3, [4, 5], 2, activation="tanh"),
    "mlp_one_output": lambda: fastmlp.MLP(3, [4], 1, activation="silu"),
}


@pytest.fixture(params=MODULES)
def module(request):
    torch.manual_seed(0)
    return MODULES[request.param]().double()


def of_tensors(module):
    """The module as a function of its input and its parameters, and these."""
    names = [name for name, _ in module.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    return call, [p.detach() for p in module.parameters()]


def test_all_derivatives_of_modules(module, draw):
    call, parameters = of_tensors(module)
    leaves = [t.clone().requires_grad_() for t in (draw(2, 3), *parameters)]
    batched = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(call, leaves, check_forward_ad=True, **batched)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, check_batched_grad=True)


def test_forward_derivatives_by_kernels(module, draw):
    # frozen parameters: the tangent of x alone, which kernels give where outputs do not share x
    call, parameters = of_tensors(module)
    x = draw(2, 3).requires_grad_()
    assert gradcheck(lambda x: call(x, *parameters), (x,), check_forward_ad=True)


@pytest.mark.parametrize("outputs", [(), (2,)], ids=["one", "two"])
def test_all_derivatives_of_tables_of_lines(outputs, draw):
    breakpoints = draw(4).sort().values
    anchors = draw(5)
    x = breakpoints[draw(6).abs().argsort() % 4] + 0.01  # off the breakpoints
    leaves = [t.requires_grad_() for t in (x, draw(5, *outputs), draw(5, *outputs))]

    def call(x, values, slopes):
        return functional.piecewise_linear(x, breakpoints, anchors, values, slopes)

    assert gradcheck(call, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, check_batched_grad=True)
    jacobian = torch.func.jacfwd(lambda x: call(x, *leaves[1:]))(x.detach())
    exact = torch.func.jacrev(
        lambda x: fastmlp.reference.piecewise_linear(x, breakpoints, anchors, *leaves[1:])
    )(x.detach())
    assert_same_number(jacobian, exact)


def test_tangents_come_from_a_kernel_where_one_gives_them(kernel_backend, monkeypatch):
    device = kernel_backend.device
    x, dx = torch.linspace(-1, 1, 6, device=device), torch.ones(6, device=device)
    for make in (lambda: fastmlp.ElementwiseMLP(4), lambda: fastmlp.SineSum(3)):
        module = make().to(device).requires_grad_(False)
        with fwad.dual_level(), monkeypatch.context() as patch:
            y = module(fwad.make_dual(x, dx))
            patch.setattr(functional._elementwise_mlp, "reference", None)
            patch.setattr(functional._sine_sum, "reference", None)
            tangent = fwad.unpack_dual(module(fwad.make_dual(x, dx))).tangent
            # PyTorch's bound for float32: a formula of ours beside one of theirs
            torch.testing.assert_close(tangent, fwad.unpack_dual(y).tangent)


ODD = {
    "negated view": lambda: torch._neg_view(torch.ones(3)),
    "zeros without memory": lambda: torch._efficientzerotensor(3),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "nested": lambda: torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)]),
    "functionalized": lambda: torch._to_functional_tensor(torch.ones(3)),
    "meta": lambda: torch.ones(3, device="meta"),
    "fake": lambda: FakeTensorMode().from_tensor(torch.ones(3)),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_not_plain(kind, recwarn):
    plain, odd = torch.ones(3), ODD[kind]()
    for _ in range(2):  # the second time patterns are known
        assert boundary.is_plain((plain,))
        assert boundary.is_plain((plain, plain))
        assert not boundary.is_plain((odd,))
        assert not boundary.is_plain((plain, odd))
    assert boundary.oddity(odd)
    assert boundary.oddity(plain) is None


def test_plain_tensors_in_every_grad_mode():
    x, p = torch.ones(3), nn.Parameter(torch.ones(2, 2))
    with torch.inference_mode():
        made_in_inference = torch.ones(3)
        assert boundary.is_plain((x, p, made_in_inference))
    with torch.no_grad():
        assert boundary.is_plain((x, p, made_in_inference))
    with torch.autocast("cpu", torch.bfloat16):
        assert boundary.is_plain((x, p))
    assert boundary.is_plain((x[::2], p.t(), x.expand(4, 3)))


def test_subclass_without_operations_of_its_own_is_plain():
    class Named(torch.Tensor):
        pass

    x = torch.linspace(-1, 1, 3).as_subclass(Named)
    assert boundary.is_plain((x,))
    y = fastmlp.ElementwiseMLP(4)(x)
    assert type(y) is Named


def test_no_check_of_pytorchs_own(monkeypatch):
    # a version of PyTorch without it: every tensor is looked at
    monkeypatch.setattr(boundary, "_Guards", None)
    monkeypatch.setattr(boundary, "_plain", known := boundary.Known())
    plain, other = torch.ones(3), torch.ones(3)
    assert boundary.is_plain((plain, other))
    assert known.find((plain, other)) is None
    for make in ODD.values():
        assert not boundary.is_plain((plain, make()))


def test_tensors_of_two_devices_are_not_plain(monkeypatch):
    # stands for a second real device
    monkeypatch.setattr(boundary, "oddity", lambda t: None)
    x = torch.ones(3)
    assert boundary.is_plain((x, x + 1))
    assert not boundary.is_plain((x, x.to("meta")))


def test_patterns_are_bounded(monkeypatch):
    monkeypatch.setattr(boundary, "_plain", known := boundary.Known())
    seen = [torch.ones([1] * dim) for dim in range(3 * boundary.MAX_PATTERNS)]
    assert all(boundary.is_plain((t,)) for t in seen)
    assert [known.find((t,)) for t in seen[-boundary.MAX_PATTERNS :]] == [
        True
    ] * boundary.MAX_PATTERNS
    assert known.find(seen[:1]) is None


def test_modes_of_one_thread_are_not_those_of_another():
    x, seen = torch.ones(3), []
    with FakeTensorMode():
        assert not boundary.is_plain((x,))
        thread = threading.Thread(target=lambda: seen.append(boundary.is_plain((x,))))
        thread.start()
        thread.join()
    assert seen == [True]


def test_freed_memory_is_refused(kernel_backend):
    module = fastmlp.ElementwiseMLP(4).to(kernel_backend.device)
    x = torch.ones(3, device=kernel_backend.device)
    module(x)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="memory has been freed"):
        module(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_freed_parameters_are_refused_on_the_cpu(module, dtype):
    if backends.choose("cpu") == "torch":
        pytest.skip("without numba: PyTorch reads address 0")
    module, x = module.to(dtype), torch.ones(2, 3, dtype=dtype)
    for i in range(len([*module.parameters()])):
        broken = copy.deepcopy(module)
        y = broken(x)
        [*broken.parameters()][i].untyped_storage().resize_(0)
        for call in (lambda y=y: y.sum().backward(), lambda net=broken: net(x)):
            with pytest.raises(ValueError, match="memory has been freed"):
                call()


def test_shapes_changed_between_forward_and_backward_are_no_kernels(module, kernel_backend):
    # a kernel would read beyond the smaller ones
    module.float().to(kernel_backend.device)
    x = torch.zeros(2, 3, device=kernel_backend.device, requires_grad=True)
    for name in ("x", *dict(module.named_parameters())):
        copied, own = copy.deepcopy(module), x.detach().clone().requires_grad_()
        changed = own if name == "x" else copied.get_parameter(name)
        y = copied(own)
        changed.data = changed.new_zeros([3 * size for size in changed.shape])
        with pytest.raises(RuntimeError, match=r"shape|size"):
            y.sum().backward()


def test_explain_says_which_path_and_why(module):
    if backends.choose("cpu") == "torch":
        pytest.skip("without numba: every call takes plain PyTorch")
    x = torch.linspace(-1, 1, 6).reshape(2, 3).double()
    with fastmlp.backend("numba"):
        before = torch.get_rng_state()
        assert "runs as numba kernels" in fastmlp.explain(module, x)
        assert torch.equal(torch.get_rng_state(), before)
        assert "negated" in fastmlp.explain(module, torch._neg_view(x))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            text = fastmlp.explain(module, mode.from_tensor(x))
        assert "goes to the dispatcher" in text
        assert "FakeTensorMode is on" in text
        seen = []
        torch.vmap(lambda row: seen.append(fastmlp.explain(module, row)) or row)(x)
        assert "torch.func transform" in seen[0]
        with fwad.dual_level():
            assert "forward-mode" in fastmlp.explain(module, fwad.make_dual(x, x))
    with fastmlp.backend("torch"):
        assert "backend 'torch' was chosen" in fastmlp.explain(module, x)
    assert "no kernels for tensors on 'meta'" in fastmlp.explain(module.to("meta"), x.to("meta"))


def test_explain_of_other_modules():
    pair = nn.Sequential(fastmlp.SineSum(2), fastmlp.ElementwiseMLP(2))
    assert len(fastmlp.explain(pair, torch.ones(3)).splitlines()) == 2
    assert "No fastmlp layer" in fastmlp.explain(nn.Linear(2, 2), torch.ones(1, 2))
    assert "torch.compile" in fastmlp.explain(torch.compile(pair), torch.ones(3))
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got function"):
        fastmlp.explain(lambda x: x, torch.ones(3))
