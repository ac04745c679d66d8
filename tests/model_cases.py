"""Modules that users make of our layers and PyTorch's, and what each computes in plain PyTorch."""

import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastmlp
from fastmlp import reference


class Case(NamedTuple):
    """A module and the one answer to what it is.

    Args:
        build: Makes it, in float64 where it can be.
        family: ``"additive"``, ``"elementwise"``, ``"chain"``, ``"sines"``, or ``""``.
        answer: Why its forward is not known, a pattern, or ``None``.
        layout: Why its parameters are not those of a record, likewise.
        fit: Why no run of ``fit`` trains what is known exactly, likewise.
        kernel: Whether Levenberg–Marquardt has its Jacobian.
        refused: Why Levenberg–Marquardt trains it neither way, a pattern, or ``None``.
        swapped: Whether ``fuse`` takes it; what is fused already stays.
        double: Whether its parameters are float64.
    """

    build: object
    family: str = "additive"
    answer: str | None = None
    layout: str | None = None
    fit: str | None = None
    kernel: bool = True
    refused: str | None = None
    swapped: bool = False
    double: bool = True


class Low(nn.Module):
    """A low-rank addition to a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, layer.out_features, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Squared(fastmlp.AdditiveMLP):
    def forward(self, x):
        return super().forward(x).square()


class Named(fastmlp.AdditiveMLP):
    def loss(self, x, y):
        return (self(x) - y).square().mean()


class Chain(nn.Sequential):
    def width(self):
        return self[0].out_features


class Negative(nn.Sequential):
    def forward(self, x):
        return -super().forward(x)


def additive(change=lambda m: None, cls=fastmlp.AdditiveMLP, **options):
    """Function that builds a net of 3 features and does something to it."""

    def build():
        module = cls(3, 5, **options).double()
        return change(module) or module

    return build


def elementwise(change=lambda m: None, hidden=5, **options):
    def build():
        module = fastmlp.ElementwiseMLP(hidden, **options).double()
        change(module)
        return module

    return build


def mlp(change=lambda m: None, **options):
    def build():
        module = fastmlp.MLP(1, [4, 4], 1, **options).double()
        change(module)
        return module

    return build


def sequence(*make, cls=nn.Sequential, change=lambda m: None):
    def build():
        module = cls(*(part() for part in make)).double()
        change(module)
        return module

    return build


def one(n_in, n_out):
    return lambda: nn.Linear(n_in, n_out)


def put(name, make):
    """Function that replaces a layer by what is made of it."""
    return lambda module: setattr(module, name, make(getattr(module, name)))


def hook(module, kind):
    """A hook that changes what the module computes, or its gradient."""
    if kind == "forward":
        module.register_forward_hook(lambda layer, args, y: 3 * y)
    elif kind == "pre":
        module.register_forward_pre_hook(lambda layer, args: (args[0] + 1,))
    else:
        module.register_full_backward_hook(lambda layer, dx, dy: tuple(2 * g for g in dx))


def patch(module):
    """What tools that fetch weights late do: another forward, on the instance."""
    inside = module.forward
    module.forward = lambda *args: 1.5 * inside(*args)


def resize(module):
    module.fc1 = nn.Linear(1, 2, dtype=torch.float64)
    module.fc2 = nn.Linear(2, 1, dtype=torch.float64)


def pruned(removed):
    def change(module):
        prune.l1_unstructured(module.fc2, "weight", 0.4)
        if removed:
            prune.remove(module.fc2, "weight")

    return change


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(module.fc1)


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = fastmlp.AdditiveMLP(3, 5).eval()
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def for_quantization():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = fastmlp.AdditiveMLP(3, 5).train()
        net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        return torch.ao.quantization.prepare_qat(net).eval()


def tied(first, second):
    return lambda m: setattr(m, second, getattr(m, first))


def twice(*order):
    """Function that builds a Sequential of a few parts, each as often as it is named."""

    def build():
        parts = {"l": nn.Linear(1, 4), "t": nn.Tanh(), "s": nn.Linear(4, 4), "o": nn.Linear(4, 1)}
        return nn.Sequential(*(parts[name] for name in order)).double()

    return build


L, O = one(1, 4), one(4, 1)
CASES = {
    "additive": Case(additive()),
    "additive_with_dropout_in_eval": Case(additive(lambda m: m.eval(), dropout=0.2)),
    "forward_hook_inside": Case(additive(lambda m: hook(m.fc1, "forward")), answer="fc1 has forw"),
    "pre_hook_inside": Case(additive(lambda m: hook(m.fc3, "pre")), answer="fc3 has forward pre"),
    "backward_hook_inside": Case(
        additive(lambda m: hook(m.fc2, "backward")), answer="fc2 has backward",
        refused="one that torch.func differentiates row by row",
    ),
    "forward_hook": Case(additive(lambda m: hook(m, "forward")), answer="it has hooks: forward"),
    "pre_hook": Case(additive(lambda m: hook(m, "pre")), answer="it has hooks: forward pre"),
    "weight_norm": Case(
        additive(lambda m: parametrizations.weight_norm(m.fc1) and None), answer="fc1 is param"
    ),
    "old_weight_norm": Case(additive(old_weight_norm), answer="fc1 has forward pre"),
    "spectral_norm": Case(
        additive(lambda m: parametrizations.spectral_norm(m.eval().fc3) and None),
        answer="fc3 is param",
    ),
    "parametrized": Case(
        additive(lambda m: parametrize.register_parametrization(m.fc1, "bias", nn.Tanh()) and None),
        answer="fc1 is parametrized",
    ),
    "pruned": Case(additive(pruned(False)), answer="fc2 has forward pre"),
    # its weight is registered behind its bias
    "pruned_for_good": Case(additive(pruned(True)), kernel=False),
    "low_rank": Case(additive(put("fc1", Low)), answer="fc1 is no plain Linear"),
    "low_rank_read_out": Case(additive(put("fc3", Low)), answer="fc3 is no plain Linear"),
    "layer_of_a_subclass": Case(
        additive(put("fc2", lambda old: Doubling(5, 1, dtype=torch.float64))),
        answer="fc2 is no plain Linear",
    ),
    "replaced_by_several": Case(
        additive(put("fc3", lambda old: nn.Sequential(old, nn.Tanh()))), answer="fc3 is no plain"
    ),
    "patched": Case(additive(patch), answer="it has a forward of its own"),
    "patched_inside": Case(additive(lambda m: patch(m.fc2)), answer="fc2 has a forward of its own"),
    "subclass_with_forward": Case(additive(cls=Squared), answer="a forward of its own"),
    "subclass": Case(additive(cls=Named)),
    "resized": Case(additive(resize)),
    "quantized": Case(
        quantized, answer="fc1 is no plain Linear", double=False, refused="no parameters to train"
    ),
    "for_quantization": Case(
        for_quantization, answer="fc1 (is no plain|has)", double=False, refused="the same outputs"
    ),
    "tied_bias": Case(
        additive(lambda m: setattr(m.fc3, "bias", m.fc2.bias)), layout="each its own"
    ),
    "some_biases": Case(
        additive(put("fc3", lambda old: nn.Linear(3, 1, bias=False, dtype=torch.float64))),
        fit="some have none",
        kernel=False,
    ),
    "frozen": Case(additive(lambda m: m.fc1.requires_grad_(False) and None), kernel=False),
    "one_more_parameter": Case(
        additive(lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(1).double()))),
        layout="each its own",
    ),
    "hook_on_a_gradient": Case(
        additive(lambda m: m.fc1.weight.register_hook(lambda g: 0 * g) and None),
        fit="fc1.weight has hooks on its gradient",
    ),
    "tanh_later": Case(additive(lambda m: setattr(m, "activation", "tanh"))),
    "per_feature": Case(additive(shared=False), kernel=False),
    "per_feature_hooked": Case(
        additive(lambda m: hook(m.fc1, "pre"), shared=False), answer="fc1 has forward pre"
    ),
    "reference": Case(additive(cls=reference.AdditiveMLP), swapped=True),
    "reference_hooked": Case(
        additive(lambda m: hook(m.fc1, "forward"), cls=reference.AdditiveMLP), answer="fc1 has"
    ),
    "elementwise": Case(elementwise(), "elementwise"),
    "elementwise_hooked": Case(
        elementwise(lambda m: hook(m.fc2, "forward")), "elementwise", "fc2 has forward"
    ),
    "elementwise_resized": Case(elementwise(resize, hidden=1000), "elementwise"),
    "elementwise_patched": Case(elementwise(patch), "elementwise", "it has a forward"),
    "deep": Case(elementwise(hidden=(4, 4)), "elementwise"),
    "deep_tied": Case(
        elementwise(tied("fc2", "fc3"), hidden=(4, 4, 4)), "elementwise", layout="each its own"
    ),
    "deep_hooked": Case(
        elementwise(lambda m: hook(m.fc2, "pre"), hidden=(4, 4)), "elementwise", "fc2 has forward"
    ),
    "mlp": Case(mlp(), "chain"),
    "mlp_tied": Case(mlp(lambda m: setattr(m, "2", m._modules["2"]), bias=False), "chain"),
    "mlp_hooked": Case(mlp(lambda m: hook(m._modules["2"], "forward")), "chain", "2 has forward"),
    "sequential": Case(sequence(L, nn.ReLU, O), "chain", swapped=True),
    "sequential_nested": Case(
        sequence(L, nn.Tanh, lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))),
        "chain",
    ),
    "sequential_subclass": Case(sequence(L, nn.ReLU, O, cls=Chain), "chain"),
    "sequential_with_forward": Case(
        sequence(L, nn.ReLU, O, cls=Negative), "chain", "which is not known", kernel=False
    ),
    "sequential_output_slope": Case(
        sequence(L, nn.Tanh, O, lambda: nn.LeakyReLU(0.2)), "chain", fit="slope of its own"
    ),
    "sequential_slope": Case(
        sequence(L, lambda: nn.LeakyReLU(0.2), O), "chain", fit="slopes of their own"
    ),
    "sequential_tanh_twice": Case(twice(*"ltsto"), "chain", swapped=True),
    "sequential_layer_twice": Case(twice(*"ltststo"), "chain", layout="each its own", swapped=True),
    "sequential_two_activations": Case(
        sequence(L, nn.ReLU, nn.ReLU, O), "chain", fit="follow each other", kernel=False
    ),
    "sequential_hooked_activation": Case(
        sequence(L, nn.ReLU, O, change=lambda m: hook(m[1], "forward")), "chain", "1 has forward"
    ),
    "sequential_gelu": Case(
        sequence(L, lambda: nn.GELU("tanh"), O), "chain", "1 is a GELU, which is not known"
    ),
    "sequential_softplus": Case(sequence(L, nn.Softplus, O), "chain", swapped=True),
    "sequential_softplus_of_another_kind": Case(
        sequence(L, lambda: nn.Softplus(2.0), O), "chain", "1 is a Softplus, which is not known"
    ),
    "sequential_norm": Case(
        sequence(L, lambda: nn.LayerNorm(4), O), "chain", "1 is a LayerNorm, which is not known"
    ),
    "sequential_dropout_in_eval": Case(
        sequence(L, nn.ReLU, lambda: nn.Dropout(0.3), O, change=lambda m: m.eval() and None),
        "chain",
        swapped=True,
    ),
    "sines": Case(lambda: fastmlp.SineSum(4).double(), "sines"),
    "sines_parametrized": Case(
        lambda: _parametrized(fastmlp.SineSum(4).double()), "sines", "it is parametrized"
    ),
    "sines_hooked": Case(lambda: _hooked(fastmlp.SineSum(4).double()), "sines", "it has hooks"),
}  # fmt: skip


def _parametrized(module):
    parametrize.register_parametrization(module, "w", nn.Tanh())
    return module


def _hooked(module):
    hook(module, "forward")
    return module


def plain(module, x):
    """What a module of a case computes, layer by layer."""
    for change in module._forward_pre_hooks.values():
        (x,) = change(module, (x,))
    y = _plain(module, x)
    if "forward" in vars(module):
        y = 1.5 * y
    for change in module._forward_hooks.values():
        y = change(module, (x,), y)
    return y


def _plain(module, x):
    if isinstance(module, nn.Sequential):
        for layer in module:
            x = layer(x)
        return -x if isinstance(module, Negative) else x
    if isinstance(module, reference.SineSum):
        return torch.sin(torch.pi * module.w * x[..., None]).mean(-1)
    sigma, layers = reference.ACTIVATIONS[module.activation], list(module._modules.values())
    if isinstance(module, reference.AdditiveMLP):
        y = module.fc3(module.fc2(sigma(module.fc1(x[..., None])))[..., 0])
        return y.square() if isinstance(module, Squared) else y
    column = isinstance(module, reference.ElementwiseMLP)
    x = x[..., None] if column else x
    for layer in layers[:-1]:
        x = sigma(layer(x))
    x = layers[-1](x)
    return x[..., 0] if column else x
