"""What a univariate net consists of: affine steps and kinks, read from the modules we know."""

import math
from typing import NamedTuple

import numpy as np

from fastmlp.arguments import in_memory
from fastmlp.kernels.spec import KINK_SLOPES, Layers
from fastmlp.models import spec_of

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
    spec = spec_of(module)
    if spec.obstacle is not None or not spec.steps:
        why = "" if spec.obstacle is None else f": {spec.obstacle}"
        hooked = spec.around is not None or not (spec.is_foreign or spec.obstacle is None)
        raise (ValueError if hooked else TypeError)(
            f"module is a {type(module).__name__}, which is not known to be univariate and "
            f"piecewise linear{why}; known are {KNOWN}"
        )
    if spec.active:
        raise ValueError("module drops units at random in training mode: call module.eval() first")
    steps = [made for step in spec.steps for made in _made(module, step)]
    affine = [step for step in steps if isinstance(step, Affine)]
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
    record = spec_of(module).record
    return type(record) is Layers and record.elementwise


def _made(module, step):
    """What a step of a chain is on the line: at most one thing."""
    if step.name == "linear":
        return _linear(module.get_submodule(step.path), step.path)
    if step.name in ("dropout", "identity"):
        return iter(())
    if step.name not in KINK_SLOPES:
        layer = type(module.get_submodule(step.path)).__name__
        what = (
            f"the activation {step.name!r} of {step.path}"
            if layer == "Linear"
            else f"{step.path} is a {layer}, which"
        )
        raise TypeError(
            f"{what} is not piecewise linear; wanted one of {', '.join(KINK_SLOPES)}, identity"
        )
    return _kink(step.value, step.path)


def _linear(layer, name):
    weight = in_memory(f"{name}.weight", layer.weight).cpu().double().numpy()
    bias = np.zeros(weight.shape[0])
    if layer.bias is not None:
        bias = in_memory(f"{name}.bias", layer.bias).cpu().double().numpy()
    for what, values in (("weight", weight), ("bias", bias)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}.{what} must be finite, got NaN or infinity".lstrip("."))
    yield Affine(weight, bias, name or "module")


def _kink(negative_slope, name):
    if not math.isfinite(negative_slope):
        raise ValueError(f"{name}.negative_slope must be finite, got {negative_slope}")
    if negative_slope != 1:
        yield Kink(float(negative_slope), name)
