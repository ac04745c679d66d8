"""Bad input is refused by name before anything runs; good input may have any form."""

import inspect
import re

import pytest
import torch

import fastmlp
from fastmlp import functional, op_arguments, reference
from fastmlp.ops.fused import FusedOp

GOOD = {
    "elementwise_mlp": {
        "x": torch.zeros(3, 5),
        "fc1_weight": torch.zeros(14, 1),
        "fc1_bias": torch.zeros(14),
        "fc2_weight": torch.zeros(1, 14),
        "fc2_bias": torch.zeros(1),
    },
    "sine_sum": {
        "x": torch.zeros(3, 5),
        "w": torch.zeros(8),
        "amplitude": torch.zeros(8),
        "phase": torch.zeros(8),
    },
}
GOOD["additive_mlp"] = {
    **GOOD["elementwise_mlp"],
    "fc3_weight": torch.zeros(2, 5),
    "fc3_bias": torch.zeros(2),
}
MLP = {
    "weights": [torch.zeros(4, 5), torch.zeros(2, 4)],
    "biases": [torch.zeros(4), None],
}
TENSORS = [(op, name) for op, tensors in GOOD.items() for name in tensors]
SUBNET_OPS = ["elementwise_mlp", "additive_mlp"]


@pytest.fixture
def refused(monkeypatch):
    """Function that asserts that a call is refused with a message, before anything runs."""

    def ran(*args, **kwargs):
        raise AssertionError("the op ran")

    # what is refused comes after what is good, by which tensors are known at a glance
    for op, tensors in GOOD.items():
        getattr(functional, op)(**tensors)
    functional.mlp(torch.zeros(3, 5), **MLP)
    monkeypatch.setattr(FusedOp, "__call__", ran)
    monkeypatch.setattr(fastmlp.backends, "launchers", ran)

    def refused(error, match, op, **changes):
        with pytest.raises(error, match=match):
            getattr(functional, op)(**{**(MLP if op == "mlp" else GOOD[op]), **changes})

    return refused


@pytest.mark.parametrize("op", GOOD)
def test_good_arguments_are_accepted(op):
    assert getattr(functional, op)(**GOOD[op]).shape in [(3, 5), (3, 2)]


@pytest.mark.parametrize(("op", "name"), TENSORS)
@pytest.mark.parametrize("value", [3.0, [0.0], "x"], ids=["number", "list", "text"])
def test_no_tensor(op, name, value, refused):
    refused(TypeError, f"^{name} must be a Tensor, got {type(value).__name__}", op, **{name: value})


@pytest.mark.parametrize(("op", "name"), TENSORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_wrong_dtype(op, name, dtype, refused):
    match = f"^{name} must be float32, float64, bfloat16 or float16, got {str(dtype)[6:]}"
    refused(TypeError, match, op, **{name: GOOD[op][name].to(dtype)})


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in TENSORS if name != "x"])
def test_another_device(op, name, refused):
    match = f"^{name} must be on the device of x, cpu, got meta"
    refused(ValueError, match, op, **{name: GOOD[op][name].to("meta")})


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, name in TENSORS if name != "x"])
def test_wrong_shape(op, name, refused):
    good = GOOD[op][name]
    for wrong in (good.unsqueeze(0), torch.cat([good, good[:1]]), good.sum()):
        # one more frequency or output makes its companions wrong
        names = {"w": "w|amplitude", "fc3_weight": "fc3_weight|fc3_bias"}.get(name, name)
        names = "fc1_weight|fc2_weight" if name == "fc1_weight" else names
        refused(ValueError, rf"^({names}) must have shape \[.*\].* got \[", op, **{name: wrong})


@pytest.mark.parametrize("op", SUBNET_OPS)
def test_wrong_number_of_hidden_features(op, refused):
    for n in (0, op_arguments.MAX_HIDDEN + 1):
        refused(ValueError, f"^fc1_weight .*between 1 and 1024 hidden .* got {n}", op,
                fc1_weight=torch.zeros(n, 1))  # fmt: skip


@pytest.mark.parametrize("op", SUBNET_OPS)
@pytest.mark.parametrize("activation", ["elu", "ReLU", "", None, 3], ids=str)
def test_unknown_activation(op, activation, refused):
    match = rf"^activation must be one of relu.*, got {activation!r}"
    refused(ValueError, match, op, activation=activation)


def test_features_of_additive_mlp_must_match(refused):
    for x in (torch.zeros(3, 4), torch.zeros(()), torch.zeros(5, 1)):
        match = r"^x must have shape \[\*, 5\] to match fc3_weight, got " + re.escape(
            str([*x.shape])
        )
        refused(ValueError, match, "additive_mlp", x=x)
    for shape in ((0, 5), (2, 0)):
        match = r"^fc3_weight must have shape \[out_features, in_features\], neither"
        refused(ValueError, match, "additive_mlp", fc3_weight=torch.zeros(shape))


def test_empty_frequencies(refused):
    refused(ValueError, r"^w must have shape \[width\]", "sine_sum", w=torch.zeros(0))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_scale_not_finite(scale, refused):
    refused(ValueError, f"^scale must be finite, got {scale}", "sine_sum", scale=scale)


@pytest.mark.parametrize("scale", ["1", None, True, torch.ones(()), 1j], ids=repr)
def test_scale_no_number(scale, refused):
    refused(TypeError, "^scale must be a number", "sine_sum", scale=scale)


@pytest.mark.parametrize("reduction", ["none", "max", None], ids=str)
def test_unknown_reduction(reduction, refused):
    match = f"^reduction must be one of mean, sum, got {reduction!r}"
    refused(ValueError, match, "sine_sum", reduction=reduction)


BAD_MLP = {
    "x_no_tensor": (TypeError, "x must be a Tensor", {"x": 3}),
    "x_without_features": (ValueError, r"x must have shape \[\*, in_features\]", {}),
    "x_of_another_width": (ValueError, r"weights\[0\] .*, 6\] to match x, got \[4, 5\]", {}),
    "no_sequence": (TypeError, "weights must be a list or tuple, got int", {"weights": 3}),
    "a_tensor": (TypeError, "biases must be a list or tuple", {"biases": torch.zeros(2)}),
    "no_layer": (ValueError, ".* at least one, got 0 and 0", {"weights": [], "biases": []}),
    "too_few_biases": (ValueError, ".* got 2 and 1", {"biases": [None]}),
    "weights_do_not_match": (
        ValueError,
        r"weights\[1\] must have shape \[out_features, 4\] to match weights\[0\]",
        {"weights": [torch.zeros(4, 5), torch.zeros(2, 3)]},
    ),
    "too_wide": (
        ValueError,
        r"weights\[0\] must have sizes between 1 and 128, got \[129, 5\]",
        {"weights": [torch.zeros(129, 5)], "biases": None},
    ),
    "bias_of_another_width": (
        ValueError,
        r"biases\[1\] must have shape \[2\], got \[1\]",
        {"biases": [None, torch.zeros(1)]},
    ),
    "dtype": (
        TypeError,
        r"weights\[0\] must be float32",
        {"weights": [torch.zeros(4, 5).int(), torch.zeros(2, 4)]},
    ),
    "device": (
        ValueError,
        r"biases\[0\] must be on the device of x, cpu, got meta",
        {"biases": [torch.zeros(4, device="meta"), None]},
    ),
    "activation": (ValueError, "activation must be one of relu", {"activation": "elu"}),
    "output_activation": (ValueError, "output_activation must be", {"output_activation": None}),
    "dropout": (ValueError, "dropout must be between 0 and 1, got 2", {"dropout": 2}),
}


@pytest.mark.parametrize("case", BAD_MLP)
def test_bad_arguments_of_mlp(case, refused):
    error, match, changes = BAD_MLP[case]
    shapes = {"x_without_features": (), "x_of_another_width": (3, 6)}
    x = torch.zeros(shapes.get(case, (3, 5)))
    refused(error, f"^{match}|^weights and biases{match}", "mlp", **{"x": x, **changes})


@pytest.mark.parametrize("op", [*GOOD, "mlp"])
def test_signatures_are_those_of_the_reference(op):
    ours = inspect.signature(getattr(functional, op))
    assert ours == inspect.signature(getattr(reference, op))


def test_everything_public_is_listed():
    assert set(functional.__all__) == {*GOOD, "mlp", "piecewise_linear"}
    assert set(functional.__all__) < set(reference.__all__)


def test_an_unserved_device_runs_the_reference():
    tensors = {name: t.to("meta") for name, t in GOOD["additive_mlp"].items()}
    y = functional.additive_mlp(**tensors)
    assert y.shape == (3, 2)
    assert y.device.type == "meta"


def test_an_integer_scale_is_a_number(kernel_backend):
    x, w = torch.full((3,), 0.5), torch.ones(2)
    x, w = x.to(kernel_backend.device), w.to(kernel_backend.device)
    assert torch.equal(functional.sine_sum(x, w, scale=2), functional.sine_sum(x, w, scale=2.0))


def test_parameters_give_plain_tensors(kernel_backend):
    x = torch.nn.Parameter(torch.ones(3, device=kernel_backend.device))
    w = torch.nn.Parameter(torch.ones(2, device=kernel_backend.device))
    assert type(functional.sine_sum(x, w)) is torch.Tensor
