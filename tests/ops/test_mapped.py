"""vmap, reverse mode and both in one another: one kernel for all, to any order of derivatives."""

from collections import Counter

import pytest
import torch
from closeness import assert_as_good_as_torch
from structures_of_many import MODELS
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import fastmlp
from fastmlp import Ensemble

N, ROWS = 3, 4


class Case:
    """Stacked models of float64, one of them, inputs, and a loss."""

    def __init__(self, name, dtype=torch.float64):
        self.model = MODELS[name]().to(dtype)
        self.ensemble = Ensemble(self.model, N, seed=0)
        self.stacked = {k: p.detach() for k, p in self.ensemble.named_parameters()}
        self.one = {k: p[1] for k, p in self.stacked.items()}
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randn(N, ROWS, 3, generator=generator, dtype=torch.float64).to(dtype)

    def call(self, parameters, x):
        return functional_call(self.model, parameters, (x,))

    def loss(self, parameters, x):
        return self.call(parameters, x).square().sum()

    def leaves(self, tensors):
        return [t.clone().requires_grad_() for t in tensors]

    def named(self, tensors):
        return dict(zip(self.stacked, tensors, strict=True))


@pytest.fixture(params=MODELS)
def case(request):
    pytest.importorskip("numba")
    return Case(request.param)


@pytest.fixture
def launches(monkeypatch):
    """How often each launcher of the CPU wing is called, by name."""
    pytest.importorskip("numba")
    calls = Counter()

    def counted(function):
        def call(*arguments, **options):
            calls[function.__name__] += 1
            return function(*arguments, **options)

        return call

    for file in ("additive_mlp", "elementwise_mlp", "ensemble", "mlp", "sine_sum"):
        module = fastmlp.backends.launchers("numba", file)
        for name in dir(module):
            # of the file's op, not what it is made of
            of_op = name.startswith(file) or (file == "ensemble" and "_ensemble_" in name)
            if of_op and name.endswith(("_fwd", "_bwd")):
                monkeypatch.setattr(module, name, counted(getattr(module, name)))
    return calls


def both(function):
    """Results of a function by kernels and by the reference."""
    ours = function()
    with fastmlp.backend("torch"):
        return tree_leaves(ours), tree_leaves(function())


def assert_same(function):
    """Float64 by kernels and by the reference: a sum of some dozen terms in another order."""
    for ours, wanted in zip(*both(function), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)


OF_STACKED = {
    "own_rows": lambda c: vmap(grad(c.loss, (0, 1)))(c.stacked, c.x),
    "shared_rows": lambda c: vmap(grad(c.loss, (0, 1)), (0, None))(c.stacked, c.x[0]),
    "only_x": lambda c: vmap(grad(c.loss, 1))(c.stacked, c.x),
    "only_parameters": lambda c: vmap(grad(c.loss), (0, None))(c.stacked, c.x[0]),
    "gradient_of_each_row": lambda c: vmap(grad(c.loss, (0, 1)), (None, 0))(c.one, c.x),
    "x_of_each_row": lambda c: vmap(grad(c.loss, 1), (None, 0))(c.one, c.x),
    "one": lambda c: grad(c.loss, (0, 1))(c.one, c.x[0]),
    "last_dimension": lambda c: vmap(grad(c.loss, 1), (None, 1))(c.one, c.x),
    "models_in_rows": lambda c: vmap(vmap(grad(c.loss, (0, 1)), (0, None)), (None, 0))(
        c.stacked, c.x
    ),
    "rows_in_models": lambda c: vmap(vmap(grad(c.loss, (0, 1)), (None, 0)), (0, None))(
        c.stacked, c.x
    ),
    "models_in_models": lambda c: vmap(
        lambda s: vmap(grad(lambda p, x: c.loss({k: v * s for k, v in p.items()}, x), (0, 1)))(
            c.stacked, c.x
        )
    )(torch.tensor([1.0, 2.0], dtype=torch.float64)),
    "ensemble": lambda c: vmap(
        grad(lambda x: functional_call(c.ensemble, c.stacked, (x,)).square().sum())
    )(c.x),
}


@pytest.mark.parametrize("transform", OF_STACKED.values(), ids=OF_STACKED)
def test_gradients_are_right_and_one_call(case, transform, launches):
    transform(case)
    assert sorted(name[-3:] for name in launches.elements()) == ["bwd", "fwd"]
    assert_same(lambda: transform(case))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_bits_are_those_of_the_ensemble(name, own, launches):
    case = Case(name, torch.float32)
    x = case.x if own else case.x[0]
    found = vmap(grad(case.loss), (0, 0 if own else None))(case.stacked, x)
    assert set(launches.values()) == {1}
    loss = case.ensemble(x, own=own).square().sum()
    wanted = torch.autograd.grad(loss, [*case.ensemble.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found.values(), wanted, strict=True))


@pytest.mark.parametrize("name", ["sines", "elementwise", "additive", "mlp"])
def test_float32_is_as_good_as_pytorch(name):
    pytest.importorskip("numba")
    plain, exact = Case(name, torch.float32), Case(name)
    exact.stacked = {k: p.double() for k, p in plain.stacked.items()}
    exact.x = plain.x.double()
    for transform in ("own_rows", "gradient_of_each_row"):
        plain.one, exact.one = ({k: p[1] for k, p in c.stacked.items()} for c in (plain, exact))
        call = OF_STACKED[transform]
        ours, torchs = both(lambda call=call: call(plain))
        with fastmlp.backend("torch"):
            right = tree_leaves(call(exact))
        for our, torch_one, r in zip(ours, torchs, right, strict=True):
            terms = torch.full_like(r, r.abs().max())
            assert_as_good_as_torch(our, torch_one, r, terms=terms)


def vjp_after(c):
    y, pull_back = vjp(c.call, c.one, c.x[0])
    return pull_back(torch.ones_like(y)), vmap(pull_back)(torch.stack([y, y + 1, y * y]))


def jvp_of_pull_back(c):
    y, pull_back = vjp(c.call, c.one, c.x[0])
    of_gradient = jvp(lambda x: grad(c.loss, 1)(c.one, x), (c.x[0],), (c.x[1],))
    return jvp(pull_back, (torch.ones_like(y),), (y,)), of_gradient


def gradient_of_pull_back(c):
    y, pull_back = vjp(c.call, c.one, c.x[0])
    return grad(lambda dy: pull_back(dy)[1].square().sum())(torch.ones_like(y))


def third(c):
    def loss(x):
        return c.loss(c.one, x)

    def second(x):
        return grad(loss)(x).square().sum()

    return grad(lambda x: grad(second)(x).square().sum())(c.x[0])


def tape_around(c):
    leaves = c.leaves([*c.stacked.values(), c.x])
    of_parameters, dx = vmap(grad(c.loss, (0, 1)))(c.named(leaves[:-1]), leaves[-1])
    total = sum(g.square().sum() for g in of_parameters.values()) + dx.square().sum()
    first = torch.autograd.grad(total, leaves, create_graph=True)
    again = torch.autograd.grad(sum(g.sum() for g in first), leaves, materialize_grads=True)
    return first, again


HIGHER = {
    "jacrev": lambda c: jacrev(c.call, (0, 1))(c.one, c.x[0]),
    "hessian": lambda c: hessian(c.loss, (0, 1))(c.one, c.x[0]),
    "hessian_of_each": lambda c: vmap(hessian(c.loss))(c.stacked, c.x),
    "jacrev_twice": lambda c: vmap(jacrev(jacrev(c.loss, (0, 1)), (0, 1)))(c.stacked, c.x),
    **{f.__name__: f for f in (vjp_after, jvp_of_pull_back, gradient_of_pull_back)},
    **{f.__name__: f for f in (third, tape_around)},
}


@pytest.mark.parametrize("transform", HIGHER.values(), ids=HIGHER)
def test_higher_derivatives_and_pull_backs(case, transform):
    assert_same(lambda: transform(case))


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_gradients_of_the_tape(case, create_graph, launches):
    def of_one():
        leaves = case.leaves([*case.one.values(), case.x[0]])
        y = case.call(case.named(leaves[:-1]), leaves[-1])
        return batched(y, leaves)

    def of_many(own):
        leaves = case.leaves([*case.stacked.values(), case.x if own else case.x[0]])
        y = functional_call(case.ensemble, case.named(leaves[:-1]), (leaves[-1], own))
        return batched(y, leaves)

    def batched(y, leaves):
        dy = torch.stack([torch.ones_like(y), y.detach()])
        options = {"is_grads_batched": True, "create_graph": create_graph}
        launches.clear()
        gradients = torch.autograd.grad(y, leaves, dy, **options)
        if not create_graph and fastmlp.backends.choose("cpu") == "numba":
            assert [*launches.values()] == [1]
        return gradients

    for call in (of_one, lambda: of_many(True), lambda: of_many(False)):
        assert_same(call)


@pytest.mark.parametrize("mapped", [False, True], ids=["one", "mapped"])
def test_gradcheck(case, mapped):
    tensors = [*(case.stacked if mapped else case.one).values()]
    inputs = case.leaves([*tensors, case.x[0]])

    def call(*tensors):
        *parameters, x = tensors
        function = vmap(case.call, (0, None)) if mapped else case.call
        return function(case.named(parameters), x)

    options = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(call, inputs, **options)
    assert torch.autograd.gradgradcheck(call, inputs, **options)


def test_what_draws_is_called_once_for_each(launches):
    model = fastmlp.MLP(3, [4], 2, dropout=0.5)
    x = torch.randn(3, 5, 3)
    y = vmap(model, randomness="different")(x)
    assert y.shape == (3, 5, 2)
    table = torch.arange(4.0)
    lines = fastmlp.functional.piecewise_linear
    values = torch.randn(3, 5)

    def call(values):
        return lines(x, table, torch.zeros(5), values, torch.ones(5)).sum()

    found = vmap(grad(call))(values)
    assert torch.equal(found[1], grad(call)(values[1]))


def test_same_parameters_for_all_are_not_copied(monkeypatch):
    """n times the same is a stride of 0, in the kernels too."""
    numba = pytest.importorskip("numba")
    assert numba
    module = fastmlp.backends.launchers("numba", "ensemble")
    seen = []
    whole = module._as_computed

    def look(dtype, *tensors):
        compute, tensors = whole(dtype, *tensors)
        seen.extend(t.stride(0) for t in tensors[2:])
        return compute, tensors

    monkeypatch.setattr(module, "_as_computed", look)
    model = fastmlp.MLP(3, [4], 1)
    parameters = dict(model.named_parameters())
    x = torch.randn(50, 2, 3)
    rows = vmap(grad(lambda p, x: functional_call(model, p, (x,)).sum()), (None, 0))(parameters, x)
    assert seen == [0] * 4
    for i in (0, 49):
        y = model(x[i]).sum()
        found = torch.autograd.grad(y, [*model.parameters()])
        assert all(torch.equal(rows[k][i], g) for k, g in zip(rows, found, strict=True))


@pytest.mark.parametrize("name", ["sines_all", "elementwise", "additive", "mlp"])
def test_triton_gives_each_the_bits_of_its_own_call(name):
    pytest.importorskip("triton")
    case = Case(name, torch.float32)

    def total(parameters, x):  # y is that of all rows together
        return case.call(parameters, x).sum()

    with fastmlp.backend("triton"):
        found = vmap(grad(total, (0, 1)), (None, 0))(case.one, case.x)
        for i in range(N):
            leaves = case.leaves([*case.one.values(), case.x[i]])
            wanted = torch.autograd.grad(total(case.named(leaves[:-1]), leaves[-1]), leaves)
            ours = [*(g[i] for g in found[0].values()), found[1][i]]
            assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
