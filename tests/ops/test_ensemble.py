"""The ops of many models: bits of each model's own call, under vmap too."""

import pytest
import torch
from closeness import ULPS_OF_SCALE, assert_as_good_as_torch, assert_modules_agree, scale_of
from structures_of_many import MODELS

import fastmlp
from fastmlp import Ensemble

N, ROWS = 4, 7


def case(name, dtype, own, n=N, rows=ROWS):
    generator = torch.Generator().manual_seed(3)
    ensemble = Ensemble(MODELS[name]().to(dtype), n, seed=0)
    shape = (n, rows, 3) if own else (rows, 3)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return ensemble, x.requires_grad_()


def gradients(y, x, parameters):
    generator = torch.Generator().manual_seed(4)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, [x, *parameters], dy), dy


def assert_bits_of_each(ensemble, x, own):
    y = ensemble(x, own=own)
    (dx, *of_all), dy = gradients(y, x, ensemble.parameters())
    dxs = []
    for i, model in enumerate(ensemble):
        xi = (x[i] if own else x).detach().requires_grad_()
        yi = model(xi)
        assert torch.equal(y[i], yi)
        dxi, *of_one = torch.autograd.grad(yi, [xi, *model.parameters()], dy[i])
        dxs.append(dxi)
        for whole, one in zip(of_all, of_one, strict=True):
            assert torch.equal(whole[i], one)
    total = torch.stack(dxs)
    # of rows that all share: by halves, as four are
    wanted = total if own else (total[0] + total[2]) + (total[1] + total[3])
    assert torch.equal(dx, wanted)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_bits_of_each_model_alone(backend, name, own):
    pytest.importorskip(backend)
    with fastmlp.backend(backend):
        assert_bits_of_each(*case(name, torch.float32, own), own)


def values_and_gradients(ensemble, x, own):
    y = ensemble(x, own=own)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *ensemble.parameters()])]


@pytest.mark.parametrize(
    ("name", "n", "own"),
    [
        ("sines_all", 1, True), ("elementwise", 1, False), ("per_feature", 1, True),
        ("additive", 1, False), ("mlp", 1, True),
        ("sines_all", 3, False), ("elementwise", 3, True), ("per_feature", 3, False),
        ("additive", 3, True), ("mlp", 3, False),
        ("sines_all", 33, True), ("elementwise", 33, False), ("mlp", 33, True),
    ],
)  # fmt: skip
def test_triton_is_as_good_as_pytorch(name, n, own):
    pytest.importorskip("triton")
    ensemble, x = case(name, torch.float32, own, n, rows=3)
    with fastmlp.backend("triton"):
        ours = values_and_gradients(ensemble, x, own)
    with fastmlp.backend("torch"):
        torchs = values_and_gradients(ensemble, x, own)
        double = x.detach().double().requires_grad_()
        exact = values_and_gradients(ensemble.double(), double, own)
    for our, plain, right in zip(ours, torchs, exact, strict=True):
        terms = torch.maximum(right.detach().abs(), scale_of(right))
        assert_as_good_as_torch(our, plain, right.detach(), terms=terms, floor=ULPS_OF_SCALE)


@pytest.mark.parametrize("name", ["sines_all", "additive", "mlp"])
def test_triton_with_parameters_in_one_buffer_by_several_launches(name, monkeypatch):
    pytest.importorskip("triton")
    from fastmlp.kernels.gpu.machine import models

    monkeypatch.setattr(models, "MAX_MODELS", 3)
    ensemble, x = case(name, torch.float32, True)
    parameters = list(ensemble.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view(p.shape)
    with fastmlp.backend("triton"):
        assert_bits_of_each(ensemble, x, True)
        empty = x[:, :0].detach().requires_grad_()
        found = values_and_gradients(ensemble, empty, True)
    inputs = [empty, *parameters]
    assert found[0].shape[:2] == (N, 0)
    assert [g.shape for g in found[1:]] == [t.shape for t in inputs]
    assert not any(bool(g.any()) for g in found)


@pytest.mark.parametrize(("sizes", "activation"), [((70, 18, 1), "relu"), ((17, 3, 9), "tanh")])
def test_triton_with_several_groups_of_units_blocks_of_features_and_of_outputs(sizes, activation):
    pytest.importorskip("triton")
    ensemble = Ensemble(fastmlp.AdditiveMLP(*sizes, activation=activation), 2, seed=0)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, sizes[0], generator=generator).requires_grad_()
    with fastmlp.backend("triton"):
        y = ensemble(x, own=True)
        (dx, *of_all), dy = gradients(y, x, ensemble.parameters())
        for i, model in enumerate(ensemble):
            xi = x[i].detach().requires_grad_()
            yi = model(xi)
            found = torch.autograd.grad(yi, [xi, *model.parameters()], dy[i])
            pairs = zip([y[i], dx[i], *(g[i] for g in of_all)], [yi, *found], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["sines_all", "elementwise", "additive", "mlp"])
def test_large_models_run_one_after_the_other(name, monkeypatch):
    pytest.importorskip("numba")
    from fastmlp.kernels.cpu import ensemble

    monkeypatch.setattr(ensemble, "LARGE", 1)
    for own in (False, True):
        assert_bits_of_each(*case(name, torch.float32, own), own)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", MODELS)
def test_vmap_over_stacked_state_calls_the_same_kernels(name, own):
    pytest.importorskip("numba")
    ensemble, x = case(name, torch.float32, own)
    models = ensemble.to_modules()
    parameters, _ = torch.func.stack_module_state(models)

    def call(parameters, x):
        return torch.func.functional_call(models[0], parameters, (x,))

    mapped = torch.vmap(call, in_dims=(0, 0 if own else None))(parameters, x)
    y = ensemble(x, own=own)
    assert torch.equal(mapped, y)
    pairs = zip(
        gradients(mapped, x, parameters.values())[0],
        gradients(y, x, ensemble.parameters())[0],
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["sines_all", "additive", "mlp"])
def test_vmap_over_inputs_alone_and_one_in_another(name):
    pytest.importorskip("numba")
    ensemble, x = case(name, torch.float32, True)
    model = ensemble[0]
    assert torch.equal(torch.vmap(model)(x), torch.stack([model(one) for one in x]))
    parameters, _ = torch.func.stack_module_state(ensemble.to_modules())

    def call(parameters, x):
        return torch.func.functional_call(model, parameters, (x,))

    inner = torch.vmap(call, in_dims=(None, 0))
    both = torch.vmap(inner, in_dims=(0, None))(parameters, x)
    for i, one in enumerate(ensemble):
        for k in range(N):
            # the reference may serve the inner one
            assert_modules_agree(lambda _, y=both[i, k]: y, one, x[k])


@pytest.mark.parametrize("name", MODELS)
def test_second_derivatives(name):
    pytest.importorskip("numba")
    ensemble, x = case(name, torch.float64, True, n=2, rows=2)
    inputs = x, *ensemble.parameters()
    names = [n for n, _ in ensemble.named_parameters()]

    def call(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(ensemble, given, (x, True))

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_and_shapes(dtype):
    pytest.importorskip("numba")
    for name in ("sines", "additive", "mlp"):
        for own in (False, True):
            ensemble, x = case(name, dtype, own)
            y = ensemble(x, own=own)
            assert y.dtype is dtype
            wanted = torch.stack([m(x[i] if own else x) for i, m in enumerate(ensemble)])
            assert torch.equal(y, wanted)
            assert all(g.dtype is dtype for g in gradients(y, x, ensemble.parameters())[0])
    ensemble = Ensemble(fastmlp.SineSum(2, dtype=dtype), 3, seed=0)
    assert ensemble(torch.zeros((), dtype=dtype)).shape == (3,)
    assert ensemble(torch.zeros(3, dtype=dtype), own=True).shape == (3,)
    assert ensemble(torch.zeros(0, 4, dtype=dtype)).shape == (3, 0, 4)
    empty = torch.zeros(0, dtype=dtype, requires_grad=True)
    ensemble(empty).sum().backward()
    assert not bool(ensemble.w.grad.any())


def test_strided_inputs_and_many_models():
    pytest.importorskip("numba")
    ensemble = Ensemble(fastmlp.SineSum(3), 300, seed=0)
    x = torch.randn(5, 600).T[::2]
    y = ensemble(x, own=True)
    assert all(torch.equal(y[i], ensemble[i](x[i])) for i in (0, 7, 299))


def test_dropout_draws_masks_for_each_model():
    ensemble = Ensemble(fastmlp.MLP(1, [64], 1, dropout=0.5), 2, seed=0)
    ensemble[1].load_state_dict(ensemble[0].state_dict())
    x = torch.ones(3, 1)
    torch.manual_seed(0)
    one = ensemble(x)
    torch.manual_seed(0)
    assert torch.equal(one, ensemble(x))
    assert not torch.equal(one[0], one[1])
    ensemble.eval()
    assert torch.equal(ensemble(x)[0], ensemble(x)[1])


def test_compiled():
    pytest.importorskip("numba")
    ensemble, x = case("mlp", torch.float32, True)
    compiled = torch.compile(ensemble, fullgraph=True, backend="aot_eager")
    y = compiled(x, own=True)
    assert torch.equal(y, ensemble(x, own=True))
