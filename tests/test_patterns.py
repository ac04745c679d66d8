"""What is recognised as a pattern, and every reason why a module that looks like one is left alone.

A swap that is not sound changes a user's results in silence: each test here is one way to be wrong.
"""

import copy
import re

import pytest
import torch
from closeness import assert_modules_agree
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import fastmlp
from fastmlp import convert, reference


def net(*middle, first=nn.Linear, container=nn.Sequential):
    return container(first(1, 8), *(middle or [nn.ReLU()]), nn.Linear(8, 1))


def changed(change):
    """Function that builds the plain pattern and does something to it."""

    def build():
        module = net()
        change(module)
        return module

    return build


class Block(nn.Sequential):
    pass


class Quiet(nn.Identity):
    def forward(self, x):
        return 2 * x


class Leaky(nn.ReLU):
    def forward(self, x):
        return F.leaky_relu(x)


SEQUENTIAL = {
    "activation": (lambda: net(nn.ELU()), "activation ELU has no kernel"),
    "activation_of_a_subclass": (lambda: net(Leaky()), "activation Leaky has no kernel"),
    "normalisation": (lambda: net(nn.BatchNorm1d(8)), "BatchNorm1d has no kernel"),
    "dropout_before_the_activation": (
        lambda: net(nn.Dropout(0.2), nn.ReLU()),
        r"Dropout\(p=0.2\) before the activation has no kernel",
    ),
    "two_dropouts": (
        lambda: net(nn.ReLU(), nn.Dropout(0.2), nn.Dropout(0.1)),
        "two Dropout in one place have no kernel",
    ),
    "dropout_in_another_mode": (
        lambda: net(nn.ReLU(), nn.Dropout(0.2).eval()),
        "layer 2 is in another mode than the whole",
    ),
    "subclass_of_identity": (lambda: net(nn.ReLU(), Quiet()), "Quiet has no kernel"),
    "subclass": (lambda: net(container=Block), "Block is a subclass of Sequential"),
    "longer": (
        lambda: nn.Sequential(*net(), nn.Flatten(), nn.Tanh()),
        "part of a longer Sequential",
    ),
    "leaky_slope": (lambda: net(nn.LeakyReLU(0.2)), "activation LeakyReLU has no kernel"),
    "gelu_of_another_kind": (lambda: net(nn.GELU("tanh")), "activation GELU has no kernel"),
    "softplus_of_another_kind": (
        lambda: net(nn.Softplus(beta=2)),
        "activation Softplus has no kernel",
    ),
    "softplus_straight_sooner": (
        lambda: net(nn.Softplus(threshold=5)),
        "activation Softplus has no kernel",
    ),
    "deep_with_two_activations": (
        lambda: net(nn.ReLU(), nn.Linear(8, 8), nn.Tanh()),
        "its hidden layers have several activations: relu, tanh",
    ),
    "deep_with_an_unknown_activation": (
        lambda: net(nn.ReLU(), nn.Linear(8, 8), nn.ELU()),
        "activation ELU has no kernel",
    ),
    "deep_and_wide": (
        lambda: nn.Sequential(nn.Linear(3, 129), nn.ReLU(), nn.Linear(129, 1)),
        r"hidden_features\[0\] must be between 1 and 128, got 129",
    ),
    "deep_with_dropout": (
        lambda: net(nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU()),
        r"Dropout\(p=0.5\) has no kernel",
    ),
    "deep_subclass": (
        lambda: Block(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        "Block is a subclass of Sequential",
    ),
    "wide": (
        lambda: nn.Sequential(nn.Linear(1, 1025), nn.ReLU(), nn.Linear(1025, 1)),
        "hidden_features must be between 1 and 1024, got 1025",
    ),
    "dtype": (
        changed(lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.to(torch.complex64)))),
        "fc1_weight must be float32, .*, got complex64",
    ),
    "devices": (changed(lambda m: m[2].to("meta")), "must be on the device of x, cpu, got meta"),
    "layer_hook": (
        changed(lambda m: m[1].register_forward_hook(lambda *_: None)),
        "layer 1 has forward hooks",
    ),
    "layer_backward_hook": (
        changed(lambda m: m[0].register_full_backward_hook(lambda *_: None)),
        "layer 0 has backward hooks",
    ),
    "state_dict_hook": (
        changed(lambda m: m.register_state_dict_post_hook(lambda *_: None)),
        "it has state dict hooks",
    ),
    "parametrized": (
        changed(lambda m: parametrizations.weight_norm(m[0])),
        "layer 0 is parametrized",
    ),
    "pruned": (changed(lambda m: prune.random_unstructured(m[2], "weight", 0.5)), "layer 2 has"),
    "parameter": (
        changed(lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(1)))),
        "parameters or buffers of its own: gain",
    ),
    "buffer": (
        changed(lambda m: m.register_buffer("gain", torch.ones(1))),
        "parameters or buffers of its own: gain",
    ),
    "forward": (changed(lambda m: vars(m).update(forward=abs)), "it has a forward of its own"),
    "layer_forward": (
        changed(lambda m: vars(m[1]).update(forward=abs)),
        "layer 1 has a forward of its own",
    ),
    "weight_that_is_no_parameter": (
        changed(lambda m: (m[0]._parameters.pop("weight"), vars(m[0]).update(weight=1))),
        "layer 0 is no plain Linear",
    ),
    "linear_of_a_subclass": (
        lambda: net(first=nn.modules.linear.NonDynamicallyQuantizableLinear),
        "layer 0 is no plain Linear",
    ),
}


@pytest.mark.parametrize("case", SEQUENTIAL)
def test_near_misses_among_sequentials(case):
    build, reason = SEQUENTIAL[case]
    check_near_miss(build(), "MLP" if case.startswith("deep") else "ElementwiseMLP", reason)


def check_near_miss(module, kind, reason):
    model = nn.ModuleDict({"inner": module})
    (match,) = convert.find(model)
    assert (match.path, match.kind) == ("inner", kind)
    assert re.search(reason, match.reason or "it is swapped"), match
    assert fastmlp.fuse(model)["inner"] is module


class Net(nn.Module):
    """A class of the user's that computes what AdditiveMLP computes, in its own way."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(1, 8), nn.Linear(8, 1), nn.Linear(5, 2)
        nn.init.zeros_(self.fc3.weight)  # must not make all nets look alike

    def _subnet(self, x):
        return self.fc2(F.relu(self.fc1(x.unsqueeze(-1)))).squeeze(-1)

    def forward(self, x):
        return self.fc3(self._subnet(x))


class Einsum(Net):
    def forward(self, x):
        hidden = torch.einsum("...j,k->...jk", x, self.fc1.weight[:, 0]) + self.fc1.bias
        f = torch.einsum("...jk,k->...j", hidden.clamp(min=0), self.fc2.weight[0]) + self.fc2.bias
        return torch.einsum("...j,mj->...m", f, self.fc3.weight) + self.fc3.bias


class MatricesOnly(Net):
    def forward(self, x):
        n, n_in = x.shape
        f = self.fc2(self.fc1(x.reshape(n * n_in, 1)).relu())
        return self.fc3(f.view(n, n_in))


class WithModules(Net):
    def __init__(self):
        super().__init__()
        self.activation, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.0)

    def forward(self, x):
        return self.fc3(self.fc2(self.dropout(self.activation(self.fc1(x[..., None]))))[..., 0])


@pytest.mark.parametrize("build", [Net, Einsum, MatricesOnly, WithModules])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_classes_that_compute_the_same_are_swapped(build, dtype):
    module = build().to(dtype)
    assert convert.find(module) == [("", "AdditiveMLP", None)]
    assert type(fastmlp.fuse(module)) is fastmlp.AdditiveMLP


def variant(base=Net, **members):
    """A user's class that is almost the pattern."""
    return type("Variant", (base,), members)


def after(change):
    return variant(forward=lambda self, x: change(self, Net.forward(self, x)))


def before(change):
    return variant(forward=lambda self, x: Net.forward(self, change(self, x)))


def with_part(add):
    def __init__(self):
        Net.__init__(self)
        add(self)

    return variant(__init__=__init__)


def hidden(activation):
    def forward(self, x):
        return self.fc3(self.fc2(activation(self.fc1(x[..., None])))[..., 0])

    return variant(forward=forward)


def of_two(self, x, mask=None):
    return Net.forward(self, x)


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


FOREIGN = {
    "scaled": (after(lambda self, y: y * (1 + 1e-6)), "differs .* in evaluation mode, .* output"),
    "residual": (after(lambda self, y: y + self.fc1.bias.sum()), "differs"),
    "tanh": (hidden(torch.tanh), "differs"),
    "leaky": (hidden(lambda h: F.leaky_relu(h, 1e-4)), "differs"),
    "relu6": (hidden(F.relu6), "differs"),
    "hardswish": (hidden(F.hardswish), "differs"),
    "clamped_input": (before(lambda self, x: x.clamp(-50, 50)), "differs"),
    "rounded_input": (before(lambda self, x: x.bfloat16().to(x.dtype)), "differs"),
    "nan_to_num": (before(lambda self, x: x.nan_to_num()), "in the output where x is NaN"),
    "noise_in_training": (
        after(lambda self, y: y + 1e-3 * torch.randn_like(y) * self.training),
        "in training mode",
    ),
    "detached_input": (before(lambda self, x: x.detach()), "the gradient of x"),
    "straight_through": (
        hidden(lambda h: h + (h.relu() - h).detach()),
        "the gradient of",
    ),
    "frozen_read_out": (
        variant(
            forward=lambda self, x: F.linear(
                self._subnet(x), self.fc3.weight.detach(), self.fc3.bias
            )
        ),
        "the gradient of fc3.weight",
    ),
    "no_grad": (variant(forward=torch.no_grad()(Net.forward)), "probe of its forward raised Runt"),
    "tuple": (after(lambda self, y: (y, y)), "probe of its forward raised AttributeError"),
    "squeezed": (after(lambda self, y: y.squeeze(0)), "differs"),
    "two_arguments": (variant(forward=of_two), "does not take exactly one argument"),
    "buffer": (Counting, "parameters or buffers of its own: calls"),
    "getattr": (variant(__getattr__=nn.Module.__getattr__), "defines __getattr__"),
    "not_copyable": (
        with_part(lambda self: vars(self).update(rows=(row for row in ()))),
        "raised TypeError: cannot pickle",
    ),
    "other_layer": (
        with_part(lambda self: self.add_module("norm", nn.LayerNorm(5))),
        "layers besides fc1, fc2 and fc3: LayerNorm",
    ),
}


KEPT = {
    "functional_dropout": before(lambda self, x: F.dropout(x, 0.2, self.training)),
    "flattened_rows": variant(
        forward=lambda self, x: self.fc3(self.fc2(self.fc1(x.reshape(-1, 1)).relu()).reshape(-1, 5))
    ),
    "method": variant(predict=lambda self, x: x),
    "state_dict": variant(_save_to_state_dict=lambda *_: None),
    "dropout_layer_without_use": with_part(lambda self: self.add_module("drop", nn.Dropout(0.2))),
}


@pytest.mark.parametrize("case", KEPT)
def test_classes_with_more_than_the_pattern_stay_what_they_are(case, draw):
    module = KEPT[case]().eval()
    plain, cls = copy.deepcopy(module), type(module)
    assert convert.find(module) == [("", "AdditiveMLP", None)]
    assert fastmlp.fuse(module) is module
    assert isinstance(module, cls)
    assert type(module) is not cls
    assert_modules_agree(module, plain, draw(9, 5).float())
    cube = draw(2, 3, 5).float()
    assert torch.equal(module(cube), plain(cube))  # by its own forward


@pytest.mark.parametrize("case", FOREIGN)
def test_near_misses_among_classes_of_the_user(case):
    build, reason = FOREIGN[case]
    state = torch.get_rng_state()
    module = build()
    torch.set_rng_state(state)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        check_near_miss(module, "AdditiveMLP", reason)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_a_probe_does_not_run_hooks():
    module, calls = Net(), []
    module.register_forward_hook(lambda *_: calls.append(1))
    assert convert.find(module)[0].reason is None
    assert calls == []


def test_a_layer_hook_of_a_user_class_is_a_near_miss():
    module = Net()
    module.fc2.register_forward_hook(lambda *_: None)
    check_near_miss(module, "AdditiveMLP", "layer fc2 has forward hooks")


def test_reference_modules_that_ours_refuse_are_near_misses():
    check_near_miss(reference.ElementwiseMLP(2000), "ElementwiseMLP", "between 1 and 1024")
    check_near_miss(reference.SineSum(3, scale=float("inf")), "SineSum", "scale must be finite")
    module = reference.AdditiveMLP(5)
    module.fc3 = nn.Linear(5, 1, dtype=torch.complex64)
    check_near_miss(module, "AdditiveMLP", "fc3_weight must be float32")


def test_subclasses_of_ours_are_left_alone():
    class Mine(fastmlp.AdditiveMLP):
        pass

    module = Mine(5)
    assert convert.find(module) == []
    assert fastmlp.unfuse(module) is module


def test_subclasses_of_the_reference_are_probed():
    class Same(reference.AdditiveMLP):
        pass

    class Other(reference.AdditiveMLP):
        def forward(self, x):
            return -super().forward(x)

    assert convert.find(Same(5))[0].reason is None
    check_near_miss(Other(5), "AdditiveMLP", "differs")


def test_a_probe_under_inference_mode_and_a_default_device():
    with torch.inference_mode():
        assert convert.find(Net())[0].reason is None
    with torch.device("meta"):
        assert convert.find(Net())[0].reason is None


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dropout_of_a_scalar_subnet_is_fused(training, draw):
    fc1, act, fc2 = nn.Linear(1, 14), nn.ReLU(), nn.Linear(14, 1)
    plain = nn.Sequential(
        nn.Dropout(0.1), fc1, act, nn.Dropout(0.2), nn.Identity(), fc2, nn.Dropout(0.3)
    ).train(training)
    fused = fastmlp.fuse(plain)
    assert type(fused) is fastmlp.ElementwiseMLP
    assert fused.dropout == (0.1, 0.2, 0.3)
    assert fused.training is training
    x = draw(2000, 1).float()
    if training:  # other masks, the same distribution
        moments = [[m(x).detach() for _ in range(20)] for m in (fused, plain)]
        ours, theirs = (torch.stack(m).std(0).mean() for m in moments)
        assert abs(ours / theirs - 1) < 0.1
    else:
        assert_modules_agree(fused, plain, x)
    assert fastmlp.unfuse(fused) is plain
