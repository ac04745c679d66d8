"""The modules: parameters, initialisation, checks, copies; the ops below have their own tests."""

import copy
import io
import math
import pickle

import pytest
import torch
from closeness import (
    ULPS_OF_SCALE,
    assert_as_good_as_torch,
    assert_modules_agree,
    scale_of,
)
from torch import nn

import fastmlp
from fastmlp import reference

MODULES = {
    "ElementwiseMLP": ((14,), {}, (3, 5)),
    "AdditiveMLP": ((5, 14, 2), {}, (3, 5)),
    "MLP": ((5, [7, 6], 2), {"activation": "tanh", "output_activation": "silu"}, (3, 5)),
    "SineSum": ((8,), {"learn_amplitude": True, "learn_phase": True}, (3, 5)),
}


@pytest.fixture(params=MODULES)
def build(request):
    """Function that builds a module of one class, ours by default."""
    args, kwargs, _ = MODULES[request.param]

    def build(package=fastmlp, **more):
        return getattr(package, request.param)(*args, **{**kwargs, **more})

    return build


@pytest.fixture
def x(draw):
    return draw(3, 5).float()


def test_state_dict_goes_both_ways(build, x):
    ours, plain = build(), build(reference)
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict(), strict=True)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    fresh = build(reference)
    fresh.load_state_dict(ours.state_dict(), strict=True)
    assert_modules_agree(ours, fresh, x, gradients=True)


def test_a_checkpoint_of_the_plain_network_loads():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(1, 14), nn.Linear(14, 1), nn.Linear(64, 1)

    plain, ours = Plain(), fastmlp.AdditiveMLP(64, 14)
    ours.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert [name for name, _ in ours.named_children()] == ["fc1", "fc2", "fc3"]


def test_a_checkpoint_of_a_sequential_loads_into_an_mlp(draw):
    plain = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2))
    ours = fastmlp.MLP(3, [5, 4], 2, activation="gelu")
    ours.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert_modules_agree(ours, plain, draw(7, 3).float(), gradients=True)


def test_elementwise_mlp_of_several_hidden_layers(draw):
    ours = fastmlp.ElementwiseMLP([7, 5, 6], activation="gelu")
    assert list(ours.state_dict())[::2] == [f"fc{i}.weight" for i in (1, 2, 3, 4)]
    plain = reference.ElementwiseMLP([7, 5, 6], activation="gelu")
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert repr(plain) == repr(ours)
    gelu = nn.GELU()
    layers = nn.Sequential(ours.fc1, gelu, ours.fc2, gelu, ours.fc3, gelu, ours.fc4)
    for shape in ((), (4,), (2, 0), (3, 5)):
        x = draw(*shape).float()
        assert ours(x).shape == shape
        assert_modules_agree(lambda x: ours(x.squeeze(-1)).unsqueeze(-1), layers, x.unsqueeze(-1))
        assert_modules_agree(ours, plain, x, gradients=True)
    assert fastmlp.unfuse(ours).fc4 is ours.fc4
    assert fastmlp.ElementwiseMLP([9]).hidden_features == 9


def test_dropout_of_several_hidden_layers_is_the_same_on_every_backend(draw):
    ours = fastmlp.ElementwiseMLP([7, 5], dropout=(0.1, 0.3, 0.2))
    x = draw(50).float()

    def call(backend, module, x):
        torch.manual_seed(1)
        with fastmlp.backend(backend):
            return module(x)

    plain, exact = call("torch", ours, x), call("torch", copy.deepcopy(ours).double(), x.double())
    y = call(fastmlp.backends.choose("cpu"), ours, x)
    assert_as_good_as_torch(
        y, plain, exact, terms=torch.maximum(exact.abs(), scale_of(exact)), floor=ULPS_OF_SCALE
    )
    assert (y == 0).any()
    assert not (ours.eval()(x) == 0).any()


def test_mlp_of_any_depth():
    assert fastmlp.MLP(3, 5, 2).hidden_features == (5,)
    assert list(fastmlp.MLP(3, [], 2, bias=False).state_dict()) == ["0.weight"]
    assert fastmlp.MLP(128, [128] * 5, 128)(torch.zeros(1, 128)).shape == (1, 128)


def test_dropout_of_an_mlp_is_the_sequentials():
    plain = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Dropout(0.4), nn.Linear(50, 2))
    ours = fastmlp.MLP(3, 50, 2, dropout=0.4)
    ours.load_state_dict({name.replace("3.", "2."): t for name, t in plain.state_dict().items()})
    x = torch.randn(1, 3)
    assert_modules_agree(ours.eval(), plain.eval(), x, gradients=True)
    # the masks differ, their distribution does not: means and variances of many draws
    many = x.expand(20_000, 3)
    with torch.no_grad():
        y, expected = ours.train()(many), plain.train()(many)
    standard_error = (y.var(0) + expected.var(0)).div(len(many)).sqrt()
    assert ((y.mean(0) - expected.mean(0)).abs() < 4 * standard_error).all()
    # of a sum of many small terms the variance has a relative error of about √(2/n)
    assert ((y.var(0) / expected.var(0)).log().abs() < 8 / len(many) ** 0.5).all()


def test_same_seed_same_parameters_as_the_reference(build):
    torch.manual_seed(3)
    ours = build()
    torch.manual_seed(3)
    plain = build(reference)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frequencies_are_uniform_from_0_to_2():
    w = fastmlp.SineSum(10_000).w.detach()
    assert 0 <= w.min() < 0.01
    assert 1.99 < w.max() <= 2
    # mean and standard deviation of U(0, 2), within four standard errors
    assert abs(w.mean() - 1) < 4 * math.sqrt(1 / 3 / 10_000)
    assert abs(w.std() - math.sqrt(1 / 3)) < 0.02


def test_amplitudes_start_at_one_and_phases_at_zero():
    module = fastmlp.SineSum(8, learn_amplitude=True, learn_phase=True)
    assert torch.equal(module.amplitude, torch.ones(8))
    assert torch.equal(module.phase, torch.zeros(8))
    nn.init.zeros_(module.w)
    module.reset_parameters()
    assert module.w.min() > 0


def test_unlearned_amplitude_and_phase_are_no_parameters():
    module = fastmlp.SineSum(8)
    assert list(module.state_dict()) == ["w"]
    assert module.amplitude is None
    assert module.phase is None


def test_linear_layers_are_initialised_by_torch():
    module = fastmlp.AdditiveMLP(400, 100)
    assert module.fc1.weight.abs().max() <= 1
    assert module.fc2.weight.abs().max() <= 1 / math.sqrt(100)
    assert 0.04 < module.fc3.weight.abs().max() <= 1 / math.sqrt(400)


@pytest.mark.parametrize("name", ["ElementwiseMLP", "AdditiveMLP", "MLP"])
def test_bias_can_be_left_out(name, x):
    args, kwargs, _ = MODULES[name]
    module = getattr(fastmlp, name)(*args, **kwargs, bias=False)
    assert all(parameter.endswith("weight") for parameter in module.state_dict())
    plain = getattr(reference, name)(*args, **kwargs, bias=False)
    plain.load_state_dict(module.state_dict(), strict=True)
    assert_modules_agree(module, plain, x, gradients=True)


def test_repr_shows_every_argument():
    assert repr(fastmlp.ElementwiseMLP(7)).startswith(
        "ElementwiseMLP(\n  hidden_features=7, activation='relu', dropout=0.0\n  (fc1): Linear("
    )
    assert (
        "in_features=6, hidden_features=7, out_features=8, shared=True, activation='relu'"
        in repr(fastmlp.AdditiveMLP(6, 7, 8))
    )
    assert repr(fastmlp.SineSum(5, scale=2, reduction="sum", learn_phase=True)) == (
        "SineSum(width=5, scale=2, reduction='sum', learn_amplitude=False, learn_phase=True)"
    )


def test_deepcopy_is_independent(build, x):
    module = build()
    module(x).sum().backward()
    clone = copy.deepcopy(module)
    assert torch.equal(clone(x), module(x))
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.add_(1)
    assert not torch.equal(clone(x), module(x))


def test_pickle_and_save(build, x):
    module = build()
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = build()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), module(x))


def test_device_and_dtype_are_the_factory_arguments(build):
    module = build(device="meta", dtype=torch.float64)
    for parameter in module.parameters():
        assert parameter.device.type == "meta"
        assert parameter.dtype == torch.float64


def test_module_moves_between_dtypes(build, x):
    module = build().double()
    assert module(x.double()).dtype == torch.float64
    assert module(x).dtype == torch.float64
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_training_lowers_the_loss(build, x, backend):
    module = build().to(backend.device)
    x = x.to(backend.device)
    target = module(x).detach() + 1
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (module(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_frozen_parameters_have_no_gradient(build, x):
    module = build()
    names = [name for name, _ in module.named_parameters()]
    for frozen in names:
        module.zero_grad()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name != frozen)
        module(x).sum().backward()
        for name, parameter in module.named_parameters():
            assert (parameter.grad is None) == (name == frozen), name


_MLP = {"in_features": 3, "hidden_features": [4, 5], "out_features": 2}
BAD = {
    "hidden_features_text": (TypeError, "ElementwiseMLP", {"hidden_features": "14"}),
    "hidden_features_float": (TypeError, "ElementwiseMLP", {"hidden_features": 14.0}),
    "hidden_features_bool": (TypeError, "AdditiveMLP", {"hidden_features": True}),
    "hidden_features_empty": (TypeError, "ElementwiseMLP", {"hidden_features": []}),
    "hidden_features_zero": (ValueError, "ElementwiseMLP", {"hidden_features": 0}),
    "hidden_features_1025": (ValueError, "AdditiveMLP", {"hidden_features": 1025}),
    "in_features_zero": (ValueError, "AdditiveMLP", {"in_features": 0}),
    "in_features_none": (TypeError, "AdditiveMLP", {"in_features": None}),
    "out_features_negative": (ValueError, "AdditiveMLP", {"out_features": -1}),
    "activation": (ValueError, "AdditiveMLP", {"activation": "elu"}),
    "bias": (TypeError, "ElementwiseMLP", {"bias": "no"}),
    "mlp_in_features": (ValueError, "MLP", {**_MLP, "in_features": 129}),
    "mlp_out_features": (ValueError, "MLP", {**_MLP, "out_features": 0}),
    "mlp_hidden_features": (TypeError, "MLP", {**_MLP, "hidden_features": "64"}),
    "mlp_hidden_width": (ValueError, "MLP", {**_MLP, "hidden_features": 129}),
    "mlp_activation": (ValueError, "MLP", {**_MLP, "activation": None}),
    "mlp_output_activation": (ValueError, "MLP", {**_MLP, "output_activation": "softmax"}),
    "mlp_bias": (TypeError, "MLP", {**_MLP, "bias": 1}),
    "mlp_dropout": (ValueError, "MLP", {**_MLP, "dropout": 1.5}),
    "mlp_dropout_text": (TypeError, "MLP", {**_MLP, "dropout": "0.5"}),
    "width_zero": (ValueError, "SineSum", {"width": 0}),
    "width_float": (TypeError, "SineSum", {"width": 2.0}),
    "scale_nan": (ValueError, "SineSum", {"width": 2, "scale": math.nan}),
    "scale_text": (TypeError, "SineSum", {"width": 2, "scale": "pi"}),
    "reduction": (ValueError, "SineSum", {"width": 2, "reduction": "max"}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_constructor_arguments_are_refused_by_name(case):
    error, name, arguments = BAD[case]
    # the last one, or the one that differs from a good MLP's
    wrong = next((key for key in _MLP if arguments.get(key, _MLP[key]) != _MLP[key]), None)
    wrong = wrong if name == "MLP" and wrong else list(arguments)[-1]
    with pytest.raises(error, match=f"^{wrong} must be .*, got "):
        getattr(fastmlp, name)(**arguments)


def test_a_bad_width_among_several_is_named():
    with pytest.raises(ValueError, match=r"^hidden_features\[1\] must be .*, got 0"):
        fastmlp.MLP(3, [4, 0], 2)


def test_wrong_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^x must have shape \[\*, 5\].*, got \[3, 4\]"):
        fastmlp.AdditiveMLP(5)(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"^x must be float32"):
        fastmlp.SineSum(5)(torch.zeros(3, dtype=torch.int64))
