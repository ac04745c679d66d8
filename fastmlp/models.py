"""What a module is: the one place that recognises the models that the kernels know.

Conversion, training, tables and reports all ask :func:`spec_of`, so they agree on what a module
computes. A module that is known exactly has a record, a kernel's words for it. Of any other the
answer says why, and it is run as the module itself computes, or refused with that reason.
"""

import functools
from operator import itemgetter
from typing import Any, NamedTuple

from torch import nn

from fastmlp import reference
from fastmlp.arguments import number, probabilities, probability
from fastmlp.drop_in import part, plan_of, rates_of
from fastmlp.kernels.spec import KINK_SLOPES, Layers, Sines, Subnet
from fastmlp.modules.additive_mlp import AdditiveMLP
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sine_sum import SineSum
from fastmlp.parts import (
    CALL_HOOKS,
    Unknown,
    activation_of,
    hooks_of,
    is_linear,
    oddity_of,
    sizes_of,
)

NAMESAKES = {
    ElementwiseMLP: reference.ElementwiseMLP,
    AdditiveMLP: reference.AdditiveMLP,
    MLP: reference.MLP,
    SineSum: reference.SineSum,
}
"""Our modules and what they are in plain PyTorch."""

_LEAKY = KINK_SLOPES["leaky_relu"]


class Step(NamedTuple):
    """What happens to the numbers at a place of a chain.

    Args:
        path: The place, as in ``named_modules()``.
        name: ``"linear"``, ``"dropout"``, or the name of an activation.
        value: The probability of dropout, the slope of leaky ReLU below 0.
    """

    path: str
    name: str
    value: float = 0.0


class Spec(NamedTuple):
    """What a module computes.

    Args:
        record: One of :mod:`fastmlp.kernels.spec`, or ``None``: ``reason`` or ``steps`` tell more.
        steps: Of a chain of layers, all that it does, in order.
        layers: Paths of the linear layers.
        names: Those of the parameters, in the layout of the record.
        reason: Why the module's forward is not known to be the record's, or ``None``.
        is_foreign: Whether the reason is that a type is not known.
        around: What is called beside the forward, or ``None``.
        layout: Why its parameters are not those of the record, each its own, or ``None``.
        randomness: Why no kernel draws its dropout, or ``None``.
        active: Whether dropout is at work in its mode.
    """

    record: Any = None
    steps: tuple = ()
    layers: tuple = ()
    names: tuple = ()
    reason: str | None = None
    is_foreign: bool = False
    around: str | None = None
    layout: str | None = None
    randomness: str | None = None
    active: bool = False

    @property
    def obstacle(self):
        """Why a call is not the record's function, or ``None``."""
        return self.reason or self.around


def spec_of(module: nn.Module) -> Spec:
    """Tell what a module computes.

    Args:
        module: Any module, in any mode.

    Returns:
        A :class:`Spec`. Two modules with equal records and no reason compute the same function of
        parameters and input, apart from dropout.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    try:
        base, plan = base_of(module), plan_of(module)
        oddity = oddity_of(module, "it", hooks=False)
        if oddity is not None:
            raise Unknown(oddity)
        if plan is not None:
            try:
                spec = _kept(module, plan)
            except KeyError as gone:
                raise Unknown(f"its part {gone} has gone") from None
        elif base is None and isinstance(module, tuple(_READERS)):
            what = f"a forward of its own in its class {type(module).__name__}"
            raise Unknown(f"it has {what}, or of what forward reads", is_foreign=True)
        else:
            spec = _chain(module) if base is None else _READERS[base](module)
    except Unknown as unknown:
        return Spec(reason=str(unknown), is_foreign=unknown.is_foreign, around=_around(module))
    return spec._replace(around=_around(module), layout=_layout(module, spec.names))


def is_ours(module: Any) -> bool:
    """Tell whether this is one of our modules, whatever a subclass of it computes."""
    return isinstance(module, tuple(NAMESAKES))


def namesake_of(module: nn.Module) -> type | None:
    """The class in plain PyTorch of one of our modules, or ours of one of those, by exact type."""
    ours = {plain: fused for fused, plain in NAMESAKES.items()}
    return {**NAMESAKES, **ours}.get(type(module))


def base_of(module: nn.Module) -> type | None:
    """The class of ours, or of the reference, whose forward a module has, or ``None``.

    Raises nothing for subclasses with a forward of their own: those compute something else.
    """
    cls: Any = type(module)
    return _base_of(cls)


@functools.lru_cache(256)
def _base_of(cls):
    return next((base for base in _READERS if _inherits(cls, base)), None)


def _inherits(cls, base):
    """Whether a class computes what its base does: nothing that forward reads is defined anew."""
    if not issubclass(cls, base):
        return False
    between = cls.__mro__[: cls.__mro__.index(base)]
    return not any(vars(one).keys() & _READ for one in between)


_READ = {
    "forward", "_deep", "__call__", "_call_impl", "__getattr__", "__getattribute__", "activation",
    "output_activation", "dropout", "training", "hidden_features", "fc1", "fc2", "fc3", "w",
    "amplitude", "phase", "scale", "reduction",
}  # fmt: skip


def _around(module):
    hooks = [name.strip("_").replace("_", " ") for name in hooks_of(module, CALL_HOOKS)]
    return f"it has hooks: {', '.join(hooks)}" if hooks else None


def _names(layers, biases):
    return tuple(
        f"{path}.{part}".lstrip(".")
        for path, has_bias in zip(layers, biases, strict=True)
        for part in (("weight", "bias") if has_bias else ("weight",))
    )


def _layout(module, names):
    """Why the parameters of a module are not those, each its own, or ``None``."""
    found = [name for name, _ in module.named_parameters()]
    if found == [*names] or sorted(found) == sorted(names):
        return None
    return f"its parameters must be {', '.join(names)}, each its own, got {', '.join(found)}"


def _active(module, *probabilities):
    return module.training and any(probabilities)


# ---- ours and their namesakes


def _checked(check, *arguments):
    """What a check of an attribute says, as a reason."""
    try:
        return check(*arguments)
    except (TypeError, ValueError) as error:
        raise Unknown(str(error)) from None


def _places(module):
    return tuple(map(float, reference.dropout_places(_checked(probabilities, module.dropout))))


def _activation(module, name="activation"):
    value = getattr(module, name, None)
    if name == "output_activation" and value is None:
        return "identity"
    if value not in reference.ACTIVATIONS:
        raise Unknown(f"{name} {value!r} is not known")
    return value


def _stack(module, layers, activations, dropout, elementwise):
    """The record of named layers in a row, each with an activation behind it."""
    sizes = [sizes_of(module, path) for path in layers]
    widths = [n_in for n_in, _, _ in sizes] + [sizes[-1][1]]
    for path, got, wanted in zip(layers[1:], [n for _, n, _ in sizes], widths[1:], strict=False):
        if got != wanted:
            raise Unknown(f"layer {path} takes {wanted} inputs, but gets {got}")
    if elementwise and (widths[0], widths[-1]) != (1, 1):
        raise Unknown(f"its layers map {widths[0]} to {widths[-1]} numbers, not one to one")
    biases = tuple(has_bias for _, _, has_bias in sizes)
    slopes = tuple(_LEAKY if name == "leaky_relu" else 0.0 for name in activations)
    record = Layers(tuple(widths), biases, tuple(activations), slopes, dropout, elementwise)
    steps = []
    for path, name, slope in zip(layers, activations, slopes, strict=True):
        steps += [Step(path, "linear"), Step(path, name, slope)]
    return Spec(
        record,
        tuple(steps),
        tuple(layers),
        _names(layers, biases),
        active=_active(module, *dropout),
    )


def _elementwise_mlp(module):
    p_input, p_hidden, p_output = _places(module)
    deep = not isinstance(module.hidden_features, int)
    layers = list(module._modules) if deep else ["fc1", "fc2"]
    n_hidden = len(layers) - 1
    activations = [_activation(module)] * n_hidden + ["identity"]
    dropout = (p_input, *[p_hidden] * n_hidden, p_output)
    return _stack(module, layers, activations, dropout, True)


def _mlp(module):
    p = _checked(probability, "dropout", module.dropout)
    layers = list(module._modules)
    if not layers:
        raise Unknown("it must have at least one Linear layer, got none")
    n_hidden = len(layers) - 1
    activations = [_activation(module)] * n_hidden + [_activation(module, "output_activation")]
    return _stack(module, layers, activations, (0.0, *[p] * n_hidden, 0.0), False)


def _additive_mlp(module):
    dropout = _places(module)
    return subnet(module, ("fc1", "fc2", "fc3"), _activation(module), dropout)


def subnet(module: Any, layers: tuple, activation: str, dropout: tuple) -> Spec:
    """The :class:`Spec` of a subnet and a read-out of three layers of a module."""
    featurewise = type(module._modules.get(layers[0])) is reference.FeaturewiseLinear
    kind = reference.FeaturewiseLinear if featurewise else nn.Linear
    (one, n_hidden, bias1), (also, out, bias2) = (sizes_of(module, p, kind) for p in layers[:2])
    n_in, n_out, bias3 = sizes_of(module, layers[2])
    if (one, also, out) != (1, n_hidden, 1):
        raise Unknown(f"its subnet maps {one} to {n_hidden} and {also} to {out} numbers")
    if featurewise and any(module._modules[p].weight.shape[0] != n_in for p in layers[:2]):
        raise Unknown(f"its subnets are not as many as the {n_in} features")
    biases = bias1, bias2, bias3
    return Spec(
        Subnet(n_in, n_hidden, n_out, biases, activation, not featurewise, tuple(dropout)),
        layers=tuple(layers),
        names=_names(layers, biases),
        active=_active(module, *dropout),
    )


def _sine_sum(module):
    _checked(number, "scale", module.scale)
    if module.reduction not in reference.REDUCTIONS:
        raise Unknown(f"reduction {module.reduction!r} is not known")
    names = ["w", *(n for n in ("amplitude", "phase") if module._parameters.get(n) is not None)]
    shape = getattr(module._parameters.get("w"), "shape", None)
    for name in names:
        parameter = module._parameters.get(name)
        if type(parameter) is not nn.Parameter:
            raise Unknown(f"{name} is a {type(parameter).__name__}, no plain Parameter")
        if parameter.dim() != 1 or parameter.shape != shape:
            raise Unknown(f"{name} has shape {list(parameter.shape)}, w {list(shape)}")
    record = Sines(
        shape[0], "amplitude" in names, "phase" in names, float(module.scale), module.reduction
    )
    return Spec(record, names=tuple(names))


# ---- modules of an author's class that `fuse` has given a kernel


def _kept(module, plan):
    if plan.sines is not None:
        name, (scale, reduction) = ".".join(plan.layers[0]), plan.sines
        owner = part(module, plan.layers[0][:-1])
        if owner is not module:
            sizes_of(module, name.rpartition(".")[0])
        width = owner._parameters[plan.layers[0][-1]].numel()
        return Spec(Sines(width, False, False, scale, reduction), names=(name,))
    for source in plan.dropout:
        if source is not None and source[0] == "layer":
            layer, place = part(module, source[1]), f"layer {'.'.join(source[1])}"
            reason = oddity_of(layer, place)
            if reason is not None or type(layer) is not nn.Dropout:
                raise Unknown(reason or f"{place} is no plain Dropout")
    layers = tuple(".".join(path) for path in plan.layers)
    dropout, active = rates_of(module, plan)
    return subnet(module, layers, "relu", tuple(dropout))._replace(active=active)


# ---- chains of PyTorch's layers


def _chain(module):
    """A Sequential of known layers, nested or not, or one layer."""
    steps, active = [], False
    for path, layer in _leaves(module, ""):
        steps.append(_step(module, layer, path))
        active = active or (steps[-1].name == "dropout" and _active(layer, steps[-1].value))
    layers = tuple(step.path for step in steps if step.name == "linear")
    if not layers:
        raise Unknown("it must have at least one Linear layer, got none")
    sizes = [sizes_of(module, path) for path in layers]
    for path, (n_in, _, _), (_, got, _) in zip(layers[1:], sizes[1:], sizes, strict=False):
        if n_in != got:
            raise Unknown(f"layer {path} takes {n_in} inputs, but gets {got}")
    biases = tuple(has_bias for _, _, has_bias in sizes)
    spec = Spec(None, tuple(steps), layers, _names(layers, biases), active=active)
    record, randomness = _as_layers(steps, sizes, biases)
    return spec._replace(record=record, randomness=randomness)


def _leaves(module, path):
    """What a Sequential calls, one after the other; a layer that it has twice comes twice."""
    place = f"layer {path}" if path else "it"
    reason = oddity_of(module, place, hooks=bool(path))
    if reason is not None:
        raise Unknown(reason)
    # of a subclass too: names of its own do not change what is called
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for name, child in module._modules.items():
            yield from _leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path, module


def _step(root, layer, path):
    if type(layer) is nn.Linear or is_linear(layer):
        sizes_of(root, path)
        return Step(path, "linear")
    if type(layer) is nn.Identity:
        return Step(path, "identity")
    if type(layer) is nn.Dropout:
        return Step(path, "dropout", float(layer.p))
    known = activation_of(layer)
    if known is None:
        what = f"{path} is" if path else "it is"
        raise Unknown(f"{what} a {type(layer).__name__}, which is not known", is_foreign=True)
    return Step(path, *known)


def _as_layers(steps, sizes, biases):
    """The record of steps, or ``None`` where activations follow each other; what is not drawn."""
    names, slopes, dropout, randomness = [], [], [0.0], None
    before = False  # whether a dropout came before the activation
    for step in steps:
        if step.name == "linear":
            names.append("identity")
            slopes.append(0.0)
            dropout.append(0.0)
            before = False
        elif step.name == "dropout" and step.value > 0:
            if dropout[-1] > 0:
                randomness = "two Dropout in one place have no kernel"
            dropout[-1], before = step.value, before or bool(names)
        elif step.name not in ("dropout", "identity"):
            if not names or names[-1] != "identity":
                return None, None
            if before:
                randomness = f"Dropout(p={dropout[-1]}) before the activation has no kernel"
            names[-1], slopes[-1] = step.name, step.value
    widths = (sizes[0][0], *(n_out for _, n_out, _ in sizes))
    lists = (tuple(values) for values in (names, slopes, dropout))
    return Layers(widths, biases, *lists, False), randomness


_READERS = {
    reference.ElementwiseMLP: _elementwise_mlp,
    reference.AdditiveMLP: _additive_mlp,
    reference.MLP: _mlp,
    reference.SineSum: _sine_sum,
}
_READERS |= {ours: _READERS[plain] for ours, plain in NAMESAKES.items()}

READ = {
    reference.SineSum: itemgetter("width", "scale", "reduction"),
    reference.ElementwiseMLP: itemgetter("hidden_features", "activation", "dropout"),
    reference.AdditiveMLP: itemgetter("shared", "activation", "dropout"),
    reference.MLP: itemgetter("activation", "output_activation", "dropout"),
}
READ |= {ours: READ[plain] for ours, plain in NAMESAKES.items()}
"""What forward reads of a module's attributes, besides its parameters."""
