"""What a layer of a module is, and what is done to it: hooks, parametrizations, patches."""

from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

ACTIVATION_NAMES = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Softplus: "softplus",
}
"""PyTorch's modules and the names of their functions."""

_KINDS = {"approximate": "none", "beta": 1, "threshold": 20}
"""Attributes of such modules that make another function of one, and what they are here."""

SILENT = (nn.Identity, nn.Dropout)
"""Layers that do nothing, given that p = 0."""

# attributes of an instance that decide what a call does
_CALLS = ("forward", "_call_impl")
CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Unknown(Exception):
    """A module is not known; whether for a type."""

    def __init__(self, reason, is_foreign=False):
        super().__init__(reason)
        self.is_foreign = is_foreign


def oddity_of(part: nn.Module, place: str, *, hooks: bool = True) -> str | None:
    """Why a call of a module is not its class's forward alone, or ``None``.

    Args:
        part: Any module.
        place: What to call it.
        hooks: Whether hooks count.
    """
    if "parametrizations" in part._modules:
        return f"{place} is parametrized"
    if hooks and (found := hooks_of(part, CALL_HOOKS)):
        return f"{place} has {found[0].strip('_').replace('_', ' ')}"
    patched = [name for name in _CALLS if name in vars(part)]
    return f"{place} has a {patched[0]} of its own" if patched else None


def hooks_of(module: nn.Module, names: Any = None) -> list[str]:
    """The dictionaries of hooks of a module that are not empty, all or some of them."""
    own = vars(module)
    names = [name for name in own if name.endswith("_hooks")] if names is None else names
    return [name for name in names if own.get(name)]


def draws_masks(part: nn.Module) -> bool:
    """Tell whether dropout is at work in this very module, PyTorch's or ours, in its mode."""
    chances = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0.0)
    chances = chances if isinstance(chances, (tuple, list)) else [chances]
    numbers = (int, float, np.number)
    return part.training and any(isinstance(p, numbers) and p > 0 for p in chances)


def is_linear(layer: Any, n_in: int | None = None, n_out: int | None = None) -> bool:
    """Tell whether this is a linear layer, perhaps of a subclass, of the given sizes."""
    return (
        isinstance(layer, nn.Linear)
        and n_in in (None, layer.in_features)
        and n_out in (None, layer.out_features)
    )


def activation_of(layer: nn.Module) -> tuple[str, float] | None:
    """Name and slope below 0 (of leaky ReLU) of an activation module, or ``None``."""
    name = ACTIVATION_NAMES.get(type(layer))
    if name is None or any(getattr(layer, at, kind) != kind for at, kind in _KINDS.items()):
        return None
    return name, float(getattr(layer, "negative_slope", 0.0))


def at(module, path):
    """The submodule at a path, or ``None``: PyTorch's own look takes ten times as long."""
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def sizes_of(module, path, kind=nn.Linear):
    """Inputs, outputs and whether there is a bias of a plain layer, as its parameters have it.

    Raises:
        Unknown: The layer is not plain, with the reason.
    """
    place = f"layer {path}" if path else "it"
    layer = at(module, path)
    if layer is None:
        raise Unknown(f"{place} is no plain Linear", is_foreign=True)
    oddity = oddity_of(layer, place, hooks=bool(path))
    if oddity is not None:
        raise Unknown(oddity)
    own = layer._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if type(layer) is not kind or weight is None or "bias" not in own:
        raise Unknown(f"{place} is no plain Linear", is_foreign=True)
    if len(own) > 2 or layer._buffers or layer._modules:
        raise Unknown(f"{place} has more than a weight and a bias")
    for name, parameter in (("weight", weight), ("bias", bias)):
        label = f"{path}.{name}".lstrip(".")
        if parameter is not None and type(parameter) is not nn.Parameter:
            raise Unknown(f"{label} is a {type(parameter).__name__}, no plain Parameter")
    n_dims = 2 if kind is nn.Linear else 3
    if weight.dim() != n_dims or (bias is not None and bias.shape != weight.shape[:-1]):
        shapes = [list(p.shape) for p in (weight, bias) if p is not None]
        raise Unknown(f"{place} has a weight and a bias that do not fit: {shapes}")
    return weight.shape[-1], weight.shape[-2], bias is not None
