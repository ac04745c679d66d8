"""What several modules share: checks of constructor arguments, and quick access to parameters."""

from typing import Any

import torch

from fastmlp.arguments import check_choice, check_dropout
from fastmlp.op_arguments import MAX_HIDDEN
from fastmlp.reference import ACTIVATIONS


def check_size(name, value, largest=None):
    """Raise unless ``value`` is an int of at least 1 (and at most ``largest``)."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1 or (largest is not None and value > largest):
        wanted = "at least 1" if largest is None else f"between 1 and {largest}"
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_hidden(hidden_features, largest):
    """Raise unless this is a width or a sequence of widths; return them as a tuple."""
    if isinstance(hidden_features, (list, tuple)):
        for i, width in enumerate(hidden_features):
            check_size(f"hidden_features[{i}]", width, largest)
        return tuple(hidden_features)
    if isinstance(hidden_features, bool) or not isinstance(hidden_features, int):
        raise TypeError(
            "hidden_features must be an int or a list or tuple of ints, "
            f"got {type(hidden_features).__name__}"
        )
    check_size("hidden_features", hidden_features, largest)
    return (hidden_features,)


def check_subnet(hidden_features, activation, bias, dropout):
    """Raise unless these describe a subnet that the kernels know."""
    check_size("hidden_features", hidden_features, MAX_HIDDEN)
    check_choice("activation", activation, ACTIVATIONS)
    if not isinstance(bias, bool):
        raise TypeError(f"bias must be a bool, got {type(bias).__name__}")
    check_dropout(dropout)


def weight_and_bias(linear: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``linear.weight, linear.bias`` without the detour through ``nn.Module.__getattr__``.

    It takes half a microsecond an attribute, which counts on small batches. A parametrized or
    pruned layer keeps its weight elsewhere, and is asked the usual way.
    """
    parameters = linear._parameters
    try:
        return parameters["weight"], parameters["bias"]
    except KeyError:
        return linear.weight, linear.bias
