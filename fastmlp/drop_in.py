"""A module that stays what it is, of a generated subclass, with a kernel for its forward.

What is known of the author's forward is a :class:`Plan`. The subclass takes the kernel for what
the plan covers: the layers are there and plain, the input is of the probed kind. Anything else runs
the author's own forward. Methods, attributes, ``state_dict`` and identity of the object stay.
"""

import copyreg
import functools
import types
from typing import Any, NamedTuple

import torch
from torch import nn

from fastmlp import functional
from fastmlp.reference.layers import plain_parameters


class Plan(NamedTuple):
    """What a forward computes, and of which parts of the module.

    Args:
        layers: Paths, split at the dots: of the three linear layers of a subnet with a read-out;
            or of the parameter that holds the frequencies of sines.
        dropout: Where each of a subnet's three probabilities is found: ``("layer", path)``, the
            name of a number ``("attribute", name)``, a number ``("number", p)``, or ``None``.
        dtype: To which the input is cast, or ``None``.
        sines: ``(scale, reduction)``, or ``None`` for a subnet.
        shapes: For sines pairs: the dimensions of an input, ``"n"`` for any, and those of the
            output.
    """

    layers: tuple
    dropout: tuple = (None, None, None)
    dtype: Any = None
    sines: tuple | None = None
    shapes: tuple = ()


def plan_of(module: nn.Module) -> Plan | None:
    """The plan of a module that stays what it is, or ``None``."""
    cls = type(module)
    # a subclass of a generated class may have a forward of its own
    return vars(cls).get("_fastmlp_plan")


def part(module: nn.Module, path: tuple) -> Any:
    """The submodule at a path; a KeyError where there is none."""
    for name in path:
        module = module._modules[name]  # type: ignore[assignment]
    return module


def rates_of(module: nn.Module, plan: Plan) -> tuple[list, bool]:
    """The three probabilities of dropout as they are now, and whether any is at work."""
    found, active = [], False
    for source in plan.dropout:
        p, at_work = 0.0, module.training
        if source is not None:
            kind, where = source
            if kind == "layer":
                layer = part(module, where)
                p, at_work = layer.p, layer.training
            else:
                p = getattr(module, where) if kind == "attribute" else where
        found.append(float(p))
        active = active or (at_work and p > 0)
    return found, active


def _working(module, plan):
    """The probabilities that are at work in this call."""
    if plan.dropout == (None, None, None):
        return 0.0
    found = [0.0, 0.0, 0.0]
    for i, source in enumerate(plan.dropout):
        if source is None:
            continue
        kind, where = source
        if kind == "layer":
            layer = part(module, where)
            if type(layer) is not nn.Dropout or layer._forward_hooks or layer._forward_pre_hooks:
                return None
            found[i] = layer.p if layer.training else 0.0
        elif module.training:
            found[i] = getattr(module, where) if kind == "attribute" else where
    return found if any(found) else 0.0


def fused(module: nn.Module, plan: Plan, x: Any) -> torch.Tensor | None:
    """The result of a kernel, or ``None`` where the plan does not cover this call."""
    if not isinstance(x, torch.Tensor):
        return None
    if plan.dtype is not None:
        x = x.to(plan.dtype)
    try:
        if plan.sines is not None:
            return _sines(module, plan, x)
        parameters = plain_parameters([part(module, path) for path in plan.layers])
        dropout = _working(module, plan)
    except KeyError:  # a part has gone
        return None
    if parameters is None or dropout is None or x.dim() != 2:
        return None
    if x.shape[1] != parameters[4].shape[-1] or x.dtype is not parameters[0].dtype:
        return None
    return functional.additive_mlp(x, *parameters, "relu", dropout)  # type: ignore[call-arg]


def _sines(module, plan, x):
    owner, name = part(module, plan.layers[0][:-1]), plan.layers[0][-1]
    if owner is not module and plain_parameters([owner]) is None:
        return None
    w = owner._parameters[name]
    kind = _kind(x.shape)
    shape = next((out for given, out in plan.shapes if given == kind), None)
    if shape is None or x.dtype is not w.dtype:
        return None
    y = functional.sine_sum(x.reshape(-1), w.reshape(-1), None, None, *plan.sines)
    return y.reshape([len(x) if size == "n" else size for size in shape])


def _kind(shape):
    """Dimensions of an input, with ``"n"`` for a number of rows other than 1."""
    return tuple("n" if i == 0 and size != 1 else size for i, size in enumerate(shape))


@functools.cache
def subclass(cls: Any, plan: Plan) -> Any:
    """The class of modules of an author's class whose forward takes the kernel of a plan."""

    @functools.wraps(cls.forward)
    def forward(self, *args, **named):
        if len(args) == 1 and not named:
            y = fused(self, plan, args[0])
            if y is not None:
                return y
        return cls.forward(self, *args, **named)

    def reduce_ex(self, protocol):
        function, arguments, *state = cls.__reduce_ex__(self, protocol)
        if function is not copyreg.__newobj__ or arguments[0] is not type(self):
            return (function, arguments, *state)
        return (_new, (cls, plan, *arguments[1:]), *state)

    members = {
        "__module__": __name__,
        "__doc__": cls.__doc__,
        "forward": forward,
        "__reduce_ex__": reduce_ex,
        "_fastmlp_plan": plan,
        "_fastmlp_class": cls,
    }
    return types.new_class(f"Fused{cls.__name__}", (cls,), {}, lambda body: body.update(members))


def _new(cls, plan, *arguments):
    """What a copy or a pickle of such a module begins with."""
    made = subclass(cls, plan)
    return made.__new__(made, *arguments)


def take(module: nn.Module, plan: Plan) -> nn.Module:
    """Give a module the kernel for its forward, in place."""
    cls: Any = type(module)
    module.__class__ = subclass(cls, plan)
    return module


def give_back(module: nn.Module) -> nn.Module:
    """Make a module an instance of the author's class again, in place."""
    module.__class__ = type(module)._fastmlp_class  # type: ignore[attr-defined]
    return module
