"""Patterns of plain PyTorch that have a fused module, and what forbids a swap."""

import copy
import inspect
import itertools
from typing import NamedTuple

import torch
from torch import nn

from fastmlp.backends import backend
from fastmlp.drop_in import Plan, plan_of
from fastmlp.kernels.spec import KINK_SLOPES
from fastmlp.models import NAMESAKES, is_ours, namesake_of
from fastmlp.modules.additive_mlp import AdditiveMLP
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sine_sum import SineSum
from fastmlp.parts import (
    ACTIVATION_NAMES,
    SILENT,
    Unknown,
    activation_of,
    hooks_of,
    is_linear,
    oddity_of,
)
from fastmlp.probes import answer, is_candidate, is_close, plan_for, undisturbed

# leading shapes and sizes of a probe's inputs; only matrices must be accepted
_PROBES = (((5,), 1.0), ((1,), 1.0), ((5,), 1e3), ((5,), 1e-3), ((2, 3), 1.0), ((), 1.0))


class Pattern(NamedTuple):
    """How a module becomes a fused one, or why it does not.

    Args:
        fused_class: The class of ours that takes its place.
        options: Arguments of its constructor.
        layers: Names of its layers, and the names of the same layers in the module.
        reason: Why the module cannot be swapped, or ``None``.
        plan: How the module takes the kernel and stays what it is, or ``None``.
    """

    fused_class: type
    options: dict
    layers: dict
    reason: str | None = None
    plan: Plan | None = None


def pattern_of(module):
    """The pattern that a module is or nearly is, or ``None``."""
    if is_ours(module) or plan_of(module) is not None:
        return None
    if isinstance(module, nn.Sequential):
        pattern = _sequential_pattern(module)
    elif (cls := namesake_of(module)) is not None:
        layers = {name: name for name in module._modules}
        pattern = Pattern(cls, options_of(cls, module), layers)
    else:
        return _pattern_of_a_class(module)
    if pattern is None or pattern.reason is not None:
        return pattern
    return pattern._replace(reason=_obstacle(module, pattern))


def _pattern_of_a_class(module):
    """A class that we do not know: one of ours takes its place, or it stays and takes a kernel."""
    pattern, difference, lost = _additive_pattern(module), None, [*_lost_names(type(module))]
    if pattern is not None:
        pattern = pattern._replace(reason=pattern.reason or _obstacle(module, pattern))
        if pattern.reason is None and not lost:
            difference = _difference(module, pattern)
            if difference is None:
                return pattern
    if not is_candidate(module):
        return pattern
    try:
        plan = plan_for(module)
    except Unknown as unknown:
        return pattern and pattern._replace(reason=difference or str(unknown))
    return Pattern(AdditiveMLP if plan.sines is None else SineSum, {}, {}, plan=plan)


def _activation_name(layer):
    name, slope = activation_of(layer) or (None, 0.0)
    return None if name == "leaky_relu" and slope != KINK_SLOPES[name] else name


def _sequential_pattern(module):
    core = [(n, layer) for n, layer in module._modules.items() if not isinstance(layer, SILENT)]
    layers = [layer for _, layer in core]
    if _is_chain(layers) and not _is_scalar_subnet(layers):
        return _chain_pattern(module, core)
    starts = [
        i
        for i, (first, middle, last) in enumerate(zip(layers, layers[1:], layers[2:]))  # noqa: B905
        if is_linear(first, 1)
        and not isinstance(middle, nn.Linear)
        and is_linear(last, first.out_features, 1)
    ]
    if not starts:
        return None
    (name1, first), (_, middle), (name2, _) = core[starts[0] : starts[0] + 3]
    activation = _activation_name(middle)
    options = {"hidden_features": first.out_features, "activation": activation}
    if type(module) is not nn.Sequential:
        reason = f"its class {type(module).__name__} is a subclass of Sequential"
    elif len(core) != 3:
        reason = "part of a longer Sequential; give the three layers a Sequential of their own"
    elif activation is None:
        reason = f"activation {type(middle).__name__} has no kernel"
    else:
        dropout, reason = _dropout_of_a_subnet(module)
        options["dropout"] = dropout
    return Pattern(ElementwiseMLP, options, {"fc1": name1, "fc2": name2}, reason)


def _is_chain(layers):
    """Whether Linear and something else take turns, with two Linear or more that fit."""
    linears = layers[::2]
    return (
        len(linears) > 1
        and all(map(is_linear, linears))
        and not any(map(is_linear, layers[1::2]))
        and all(a.out_features == b.in_features for a, b in itertools.pairwise(linears))
    )


def _is_scalar_subnet(layers):
    return len(layers) == 3 and is_linear(layers[0], 1) and is_linear(layers[2], n_out=1)


def _chain_pattern(module, core):
    linears, others = core[::2], [layer for _, layer in core[1::2]]
    names = [_activation_name(layer) for layer in others]
    hidden = names[: len(linears) - 1]
    unknown = [type(o).__name__ for o, name in zip(others, names, strict=True) if name is None]
    if type(module) is not nn.Sequential:
        reason = f"its class {type(module).__name__} is a subclass of Sequential"
    elif unknown:
        reason = f"activation {unknown[0]} has no kernel"
    elif len(set(hidden)) > 1:
        reason = f"its hidden layers have several activations: {', '.join(hidden)}"
    else:
        reason = _silent_reason(module)
    options = {
        "in_features": linears[0][1].in_features,
        "hidden_features": [layer.out_features for _, layer in linears[:-1]],
        "out_features": linears[-1][1].out_features,
        "activation": hidden[0],
        "output_activation": names[-1] if len(names) == len(linears) else None,
    }
    places = {str(2 * i): name for i, (name, _) in enumerate(linears)}
    return Pattern(MLP, options, places, reason)


def _additive_pattern(module):
    children, names = dict(module._modules.items()), ("fc1", "fc2", "fc3")
    fc1, fc2, fc3 = (children.get(name) for name in names)
    if not (is_linear(fc1, 1) and is_linear(fc2, fc1.out_features, 1) and is_linear(fc3)):
        return None
    if type(module).forward is nn.Module.forward:  # a container
        return None
    others = [layer for name, layer in children.items() if name not in names and layer is not None]
    known = (*SILENT, *ACTIVATION_NAMES)
    unknown = [type(layer).__name__ for layer in others if type(layer) not in known]
    options = {
        "in_features": fc3.in_features,
        "hidden_features": fc1.out_features,
        "out_features": fc3.out_features,
    }
    reason = _silent_reason(module)
    if unknown:
        reason = f"it has layers besides fc1, fc2 and fc3: {', '.join(unknown)}"
    return Pattern(AdditiveMLP, options, {name: name for name in names}, reason)


def _dropout_of_a_subnet(module):
    """Dropout probabilities (input, hidden, output) of Linear, activation, Linear; or a reason."""
    places, stage = [0.0] * 4, 0  # before the first layer, before and after σ, at the end
    for name, layer in module._modules.items():
        if not isinstance(layer, SILENT):
            stage += 1
        elif isinstance(layer, nn.Dropout) and layer.p > 0:
            if stage == 1:
                return None, f"Dropout(p={layer.p}) before the activation has no kernel"
            if places[stage] > 0:
                return None, "two Dropout in one place have no kernel"
            if layer.training != module.training:
                return None, f"layer {name} is in another mode than the whole"
            places[stage] = layer.p
    return (places[0], places[2], places[3]), _silent_reason(module, dropout=True)


def _silent_reason(module, dropout=False):
    for layer in module.children():
        if isinstance(layer, SILENT) and type(layer) not in SILENT:
            return f"{type(layer).__name__} has no kernel"
        if isinstance(layer, nn.Dropout) and layer.p > 0 and not dropout:
            return f"Dropout(p={layer.p}) has no kernel"
    return None


def _obstacle(module, pattern):
    """Why the fused module would not do what this instance does, or ``None``."""
    try:
        fused = build(pattern.fused_class, pattern.options, pattern.layers, module)
    except (TypeError, ValueError) as error:
        return str(error)
    own = {**module._parameters, **module._buffers}.keys() - fused._parameters.keys()
    if own:
        return f"it has parameters or buffers of its own: {', '.join(sorted(own))}"
    for path, part in module.named_modules():
        place = f"layer {path}" if path else "it"
        oddity = oddity_of(part, place, hooks=part is not module)
        if oddity is not None:
            return oddity
        if "_compiled_call_impl" in vars(part):
            return f"{place} is compiled"
        # hooks on the output of the whole still run; those of a state dict would know old names
        hooks = [n for n in hooks_of(part) if part is not module or "state_dict" in n]
        if hooks:
            return f"{place} has {hooks[0].strip('_').replace('_', ' ')}"
    for name in pattern.layers.values():
        layer = module._modules[name]
        if type(layer) is not nn.Linear or layer._parameters.get("weight") is None:
            return f"layer {name} is no plain Linear"
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter:
            return f"{name} is a {type(parameter).__name__}, no plain Parameter"
    # a call without elements makes all the checks of a call: dtypes, devices, shapes
    some = next(module.parameters())
    shape = (0, getattr(fused, "in_features", 1))
    try:
        with torch.no_grad(), backend("torch"):
            fused.forward(torch.empty(shape, device=some.device))
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _difference(module, pattern):
    """Why a class that we do not know is not the pattern, or ``None``."""
    cls = type(module)
    if len(inspect.signature(cls.forward).parameters) != 2:
        return f"the forward of {cls.__name__} does not take exactly one argument"
    with undisturbed():
        try:
            return _probe(module, pattern)
        except Exception as error:
            return f"a probe of its forward raised {type(error).__name__}: {error}".split("\n")[0]


def _lost_names(cls):
    kept = {"__init__", "__repr__", "forward", "extra_repr"}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            if name.startswith("__"):
                outside = inspect.isroutine(value)
            else:
                outside = not name.startswith("_") or hasattr(nn.Module, name)
            if outside and name not in kept:
                yield name


def _probe(module, pattern):
    """Compare a copy with the reference, in float64 on the CPU, with random parameters."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(shape):
        return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)

    plain = copy.deepcopy(module).to_empty(device="cpu").double().requires_grad_(True)
    for parameter in plain.parameters():
        parameter.data = draw(parameter.shape)
    judge = build(NAMESAKES[pattern.fused_class], pattern.options, pattern.layers, plain)
    named = dict(judge.named_parameters())  # the very ones of the copy
    names = ["the output", "the output where x is NaN", "the gradient of x"]
    names += [f"the gradient of {name}" for name in named]
    for training in (False, True):
        plain.train(training)
        for leading, size in _PROBES:
            x = size * draw((*leading, judge.in_features))
            given = _answer(plain, x, named.values())
            if isinstance(given, Exception):
                if len(leading) == 1:
                    raise given
                continue  # ours accepts more shapes
            expected = answer(judge.forward, x, named.values())
            for name, value, wanted in zip(names, given, expected, strict=True):
                if not is_close(value, wanted, wanted, torch.float64):
                    mode = "training" if training else "evaluation"
                    return (
                        f"its forward differs from AdditiveMLP's in {mode} mode, "
                        f"for x of shape {list(x.shape)}, in {name}"
                    )
    return None


def _answer(module, x, parameters):
    """What a module gives, or what it raises."""
    try:
        return answer(module.forward, x, parameters)
    except Exception as error:
        return error


def options_of(cls, module):
    """Those arguments of a constructor that an instance keeps under the same name."""
    names = inspect.signature(cls).parameters
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def build(cls, options, layers, source):
    """Make an instance that holds the layers and Parameters of ``source``; draws no number."""
    new = cls(**options, device="meta")
    new._parameters.update({name: source._parameters.get(name) for name in new._parameters})
    for name, source_name in layers.items():
        new._modules[name] = source._modules[source_name]
    new.training = source.training
    return new
