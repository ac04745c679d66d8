"""What the training loops must know of a module: the table of the kinds they can train."""

import math
from typing import NamedTuple

import torch

from fastmlp.modules.additive_mlp import AdditiveMLP
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sine_sum import SineSum
from fastmlp.reference import ACTIVATIONS, dropout_places

KINK_SLOPES = {"relu": 0.0, "leaky_relu": 0.01}
"""Activations of straight pieces, with their slopes below 0."""


class Structure(NamedTuple):
    """A module without its numbers: modules of one structure are trained by one kernel.

    Args:
        kind: Name of the op, a key of the kernels' tables of verbs.
        sizes: Integers that the verbs want.
        constants: Numbers that the verbs want.
        features: Numbers (in, out) of the last dimension; ``None`` where any shape will do.
        draws: Whether training draws random numbers.
        shapes: Shape of every parameter, in order.
        trained: Whether each parameter requires a gradient.
    """

    kind: str
    sizes: tuple
    constants: tuple
    features: tuple | None
    draws: bool
    shapes: tuple
    trained: tuple


def _subnet_names(module):
    layers = [name for name in ("fc1", "fc2", "fc3") if hasattr(module, name)]
    parts = ("weight", "bias") if module.fc1.bias is not None else ("weight",)
    return [f"{layer}.{part}" for layer in layers for part in parts]


def _subnet(module, plain_kind, n_in, n_out, has_readout):
    """A scalar subnet: of the kind that has a quick form, or of the one that has all."""
    bias, n_hidden = int(module.fc1.bias is not None), module.hidden_features
    shared = getattr(module, "shared", True)
    dropout = tuple(float(p) for p in dropout_places(module.dropout))
    features = (n_in, n_out) if has_readout else None
    if module.activation == "relu" and shared and not any(dropout):
        sizes = (n_hidden, bias, n_in, n_out) if has_readout else (n_hidden, bias)
        return plain_kind, sizes, (), features, False
    code, stacked = list(ACTIVATIONS).index(module.activation), int(not shared)
    sizes = n_hidden, bias, n_in, n_out, code, stacked, int(has_readout)
    return "dense", sizes, dropout, features, any(dropout)


def _elementwise_mlp(module):
    if not isinstance(module.hidden_features, int):
        if any(dropout_places(module.dropout)):
            raise ValueError("several hidden layers and dropout, which has no training kernel")
        return _layers(module, module.activation, None, None)
    return *_subnet(module, "elementwise_mlp", 1, 1, False), _subnet_names(module)


def _additive_mlp(module):
    n_in, n_out = module.in_features, module.out_features
    return *_subnet(module, "additive_mlp", n_in, n_out, True), _subnet_names(module)


def _layers(module, activation, output_activation, features, dropout=0.0):
    """Linear layers one after the other, for rows or, without ``features``, number by number."""
    names, layers = list(module._modules), list(module._modules.values())
    widths = layers[0].in_features, *(layer.out_features for layer in layers)
    codes = [
        list(ACTIVATIONS).index(name or "identity") for name in (activation, output_activation)
    ]
    bias = layers[0].bias is not None
    parts = ("weight", "bias") if bias else ("weight",)
    parameters = [f"{name}.{part}" for name in names for part in parts]
    sizes = len(layers), int(bias), *codes, *widths
    return "mlp", sizes, (float(dropout),), features, dropout > 0, parameters


def _mlp(module):
    features = module.in_features, module.out_features
    options = module.activation, module.output_activation
    return _layers(module, *options, features, module.dropout)


def _sine_sum(module):
    optional = [name for name in ("amplitude", "phase") if getattr(module, name) is not None]
    sizes = module.width, int("amplitude" in optional), int("phase" in optional)
    factor = 1.0 / module.width if module.reduction == "mean" else 1.0
    constants = module.scale / (2 * math.pi), factor
    return "sine_sum", sizes, constants, None, False, ["w", *optional]


# module class to the function that gives (kind, sizes, constants, features, draws, names)
KINDS = {
    ElementwiseMLP: _elementwise_mlp,
    AdditiveMLP: _additive_mlp,
    SineSum: _sine_sum,
    MLP: _mlp,
}


def structure_of(module, name):
    """The structure of a module; a clear error where no kernel trains it.

    Args:
        module: Anything.
        name: What to call it in errors, e.g. ``models[3]``.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name} must be a Module, got {type(module).__name__}")
    base = next((cls for cls in KINDS if isinstance(module, cls)), None)
    known = ", ".join(cls.__name__ for cls in KINDS)
    if base is None:
        raise ValueError(
            f"{name} is a {type(module).__name__}, which has no training kernel; "
            f"fit trains {known} (fastmlp.fuse may turn a plain module into one)"
        )
    if type(module).forward is not base.forward or "forward" in vars(module):
        raise ValueError(f"{name} has a forward of its own; fit trains {known} as they are")
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise ValueError(f"{name} has hooks, which a training kernel cannot call")
    try:
        kind, sizes, constants, features, draws, wanted = KINDS[base](module)
    except ValueError as error:
        raise ValueError(f"{name} has {error}") from None
    parameters = dict(module.named_parameters())
    if list(parameters) != wanted:
        raise ValueError(
            f"{name} must have the parameters {', '.join(wanted)}, each its own, "
            f"got {', '.join(parameters)}"
        )
    return Structure(
        kind,
        tuple(sizes),
        tuple(constants),
        features,
        draws,
        tuple(tuple(p.shape) for p in parameters.values()),
        tuple(p.requires_grad for p in parameters.values()),
    )


class Univariate(NamedTuple):
    """A net of one variable that is linear between breakpoints.

    Args:
        widths: Of all layers, ``(1, H₁, …, 1)``.
        has_bias: Whether the layers have biases.
        negative_slope: Of the activation below 0.
    """

    widths: tuple
    has_bias: bool
    negative_slope: float


_KINKS = {list(ACTIVATIONS).index(name): slope for name, slope in KINK_SLOPES.items()}
_IDENTITY = list(ACTIVATIONS).index("identity")


def univariate_of(structure):
    """The :class:`Univariate` that a structure is, or ``None``."""
    kind, sizes = structure.kind, structure.sizes
    if kind == "elementwise_mlp":
        return Univariate((1, sizes[0], 1), bool(sizes[1]), 0.0)
    if kind == "dense":
        n_hidden, bias, _, _, code, stacked, has_readout = sizes
        if code in _KINKS and not (stacked or has_readout or structure.draws):
            return Univariate((1, n_hidden, 1), bool(bias), _KINKS[code])
    if kind == "mlp" and not structure.draws:
        _, bias, code, last, *widths = sizes
        if code in _KINKS and last == _IDENTITY and widths[0] == widths[-1] == 1:
            return Univariate(tuple(widths), bool(bias), _KINKS[code])
    return None


def segments_of(structure):
    """The trained parts ``[n, 2]`` of a flat parameter vector, neighbours merged."""
    segments, at = [], 0
    for shape, trained in zip(structure.shapes, structure.trained, strict=True):
        size = math.prod(shape)
        if trained and segments and segments[-1][1] == at:
            segments[-1][1] = at + size
        elif trained:
            segments.append([at, at + size])
        at += size
    return segments
