"""What the training loops must know of a module: the table of the kinds they can train."""

import math
from typing import NamedTuple

import torch

from fastmlp.modules.additive_mlp import AdditiveMLP
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sine_sum import SineSum
from fastmlp.reference import ACTIVATIONS


class Structure(NamedTuple):
    """A module without its numbers: modules of one structure are trained by one kernel.

    Args:
        kind: Name of the op, a key of the kernels' tables of verbs.
        sizes: Integers that the verbs want.
        constants: Numbers that the verbs want.
        shapes: Shape of every parameter, in order.
        trained: Whether each parameter requires a gradient.
    """

    kind: str
    sizes: tuple
    constants: tuple
    shapes: tuple
    trained: tuple


def _subnet_names(module):
    layers = [name for name in ("fc1", "fc2", "fc3") if hasattr(module, name)]
    parts = ("weight", "bias") if module.fc1.bias is not None else ("weight",)
    return [f"{layer}.{part}" for layer in layers for part in parts]


def _elementwise_mlp(module):
    bias = module.fc1.bias is not None
    return (module.hidden_features, int(bias)), (), _subnet_names(module)


def _additive_mlp(module):
    bias = module.fc1.bias is not None
    sizes = module.hidden_features, int(bias), module.in_features, module.out_features
    return sizes, (), _subnet_names(module)


def _mlp(module):
    bias = getattr(module, "0").bias is not None
    names = list(ACTIVATIONS)
    codes = names.index(module.activation), names.index(module.output_activation or "identity")
    widths = module.in_features, *module.hidden_features, module.out_features
    parts = ("weight", "bias") if bias else ("weight",)
    wanted = [f"{2 * i}.{part}" for i in range(len(widths) - 1) for part in parts]
    return (len(widths) - 1, int(bias), *codes, *widths), (), wanted


def _sine_sum(module):
    optional = [name for name in ("amplitude", "phase") if getattr(module, name) is not None]
    sizes = module.width, int("amplitude" in optional), int("phase" in optional)
    factor = 1.0 / module.width if module.reduction == "mean" else 1.0
    return sizes, (module.scale / (2 * math.pi), factor), ["w", *optional]


# module class to the name of its op and a function that gives (sizes, constants, parameter names)
KINDS = {
    ElementwiseMLP: ("elementwise_mlp", _elementwise_mlp),
    AdditiveMLP: ("additive_mlp", _additive_mlp),
    MLP: ("mlp", _mlp),
    SineSum: ("sine_sum", _sine_sum),
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
    wanted = {"activation": "relu", "shared": True, "dropout": 0.0}
    if base is MLP:
        del wanted["activation"]
    for option, value in wanted.items():
        if getattr(module, option, value) != value:
            raise ValueError(
                f"{name} has {option}={getattr(module, option)!r}, which has no training kernel"
            )
    kind, describe = KINDS[base]
    sizes, constants, wanted = describe(module)
    parameters = dict(module.named_parameters())
    if list(parameters) != wanted:
        raise ValueError(
            f"{name} must have the parameters {', '.join(wanted)}, each its own, "
            f"got {', '.join(parameters)}"
        )
    return Structure(
        kind,
        sizes,
        constants,
        tuple(tuple(p.shape) for p in parameters.values()),
        tuple(p.requires_grad for p in parameters.values()),
    )


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
