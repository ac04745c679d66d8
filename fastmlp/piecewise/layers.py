"""What a univariate net consists of: affine steps and kinks, read from the modules we know."""

import math
from typing import NamedTuple

import numpy as np
from torch import nn

from fastmlp import reference
from fastmlp.arguments import dense

KNOWN = (
    "ElementwiseMLP, MLP with one input, and nn.Sequential of Linear, ReLU, LeakyReLU, Identity "
    "and Dropout"
)


class Affine(NamedTuple):
    """z = W·h + b, in float64."""

    weight: np.ndarray  # [out, in]
    bias: np.ndarray  # [out]
    name: str


class Kink(NamedTuple):
    """h = z where z > 0, negative_slope·z elsewhere."""

    negative_slope: float
    name: str


def steps_of(module):
    """The steps of a univariate piecewise-linear net, in order.

    Args:
        module: The net, in eval mode where it has dropout.

    Returns:
        List of :class:`Affine` and :class:`Kink`; kinks that are straight are left out.

    Raises:
        TypeError: ``module`` is no module, or has a layer that is not piecewise linear.
        ValueError: Several inputs, layers that do not fit together, a parameter that is not
            finite, dropout in training mode, hooks.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    steps = list(_steps(module, ""))
    affine = [step for step in steps if isinstance(step, Affine)]
    if not affine:
        raise ValueError("module must have at least one Linear layer, got none")
    width = 1
    for step in affine:
        if step.weight.shape[1] != width:
            if step is affine[0]:
                raise ValueError(
                    f"module must be a function of one variable, {step.name} has "
                    f"{step.weight.shape[1]} inputs"
                )
            raise ValueError(f"{step.name} takes {step.weight.shape[1]} inputs, but gets {width}")
        width = step.weight.shape[0]
    return steps


def is_elementwise(module):
    """Whether a module maps any shape to the same shape, without a last dimension of 1."""
    return isinstance(module, reference.ElementwiseMLP)


def _steps(module, name):
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"{name or 'module'} has forward hooks: what it computes is unknown")
    for cls in type(module).__mro__:
        if cls in _ADAPTERS:
            # a subclass of a plain layer that computes something else is not that layer
            if cls in _PLAIN and type(module).forward is not cls.forward:
                break
            return _ADAPTERS[cls](module, name)
    raise TypeError(
        f"{name or 'module'} is a {type(module).__name__}, which is not known to be univariate and "
        f"piecewise linear; known are {KNOWN}"
    )


def _sequential(module, name):
    for child_name, child in module._modules.items():
        yield from _steps(child, f"{name}.{child_name}" if name else child_name)


def _linear(layer, name):
    weight = dense(f"{name}.weight", layer.weight).cpu().double().numpy()
    bias = np.zeros(weight.shape[0])
    if layer.bias is not None:
        bias = dense(f"{name}.bias", layer.bias).cpu().double().numpy()
    for what, values in (("weight", weight), ("bias", bias)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}.{what} must be finite, got NaN or infinity".lstrip("."))
    yield Affine(weight, bias, name or "module")


def _kink(negative_slope, name):
    if not math.isfinite(negative_slope):
        raise ValueError(f"{name}.negative_slope must be finite, got {negative_slope}")
    if negative_slope != 1:
        yield Kink(float(negative_slope), name)


def _dropout(layer, name):
    if layer.training and layer.p > 0:
        raise ValueError(
            f"{name or 'module'} drops units at random in training mode: call module.eval() first"
        )
    return iter(())


def _named_activation(activation, name):
    if activation in (None, "identity"):
        return iter(())
    slopes = {"relu": 0.0, "leaky_relu": nn.LeakyReLU().negative_slope}
    if activation not in slopes:
        raise TypeError(
            f"the activation {activation!r} of {name or 'module'} is not piecewise linear; "
            f"wanted one of {', '.join(slopes)}, identity"
        )
    return _kink(slopes[activation], name)


def _chain(module, name):
    dropout = getattr(module, "dropout", 0.0)
    rates = dropout if isinstance(dropout, (tuple, list)) else (dropout,)
    if module.training and any(isinstance(p, (int, float, np.number)) and p > 0 for p in rates):
        raise ValueError(
            f"{name or 'module'} drops units at random in training mode: call module.eval() first"
        )
    linears = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    for i, (child_name, layer) in enumerate(linears):
        path = f"{name}.{child_name}" if name else child_name
        yield from _linear(layer, path)
        if i + 1 < len(linears):
            yield from _named_activation(module.activation, path)
    yield from _named_activation(getattr(module, "output_activation", None), name)


_PLAIN = (nn.Sequential, nn.Linear, nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout)
_ADAPTERS = {
    nn.Sequential: _sequential,
    nn.Linear: _linear,
    nn.ReLU: lambda layer, name: _kink(0.0, name),
    nn.LeakyReLU: lambda layer, name: _kink(layer.negative_slope, name),
    nn.Identity: lambda layer, name: iter(()),
    nn.Dropout: _dropout,
    reference.ElementwiseMLP: _chain,
    reference.MLP: _chain,
}
