"""What kernels are told of a module, as integers and numbers: to train it, and for least squares.

A new model is a row in :data:`_ENCODERS` for `fit`, and one in :data:`_BUILDERS` for
Levenberg–Marquardt.
"""

import math
from typing import NamedTuple

import torch

from fastmlp.kernels.runs import Structure
from fastmlp.kernels.spec import (
    ADDITIVE,
    CODES,
    KINK_SLOPES,
    MLP,
    SINE,
    Layers,
    Sines,
    Subnet,
    layers_of,
    model_of,
)
from fastmlp.models import NAMESAKES, base_of, spec_of

_KNOWN = ", ".join(cls.__name__ for cls in NAMESAKES)


def _bias(record):
    """Whether there are biases: the kernels know all or none."""
    if len({*record.biases}) > 1:
        raise ValueError("some of its layers have a bias and some have none")
    return int(record.biases[0])


def _encode_subnet(record):
    """A scalar subnet: of the kind that has a quick form, or of the one that has all."""
    sizes = record.n_hidden, _bias(record), record.n_in, record.n_out
    features = record.n_in, record.n_out
    if record.activation == "relu" and record.shared and not any(record.dropout):
        return "additive_mlp", sizes, (), features, False
    sizes = *sizes, CODES[record.activation], int(not record.shared), 1
    return "general", sizes, record.dropout, features, any(record.dropout)


def _encode_layers(record):
    bias, activation = _bias(record), record.hidden_activation or "identity"
    if record.hidden_activation is None and len(record.biases) > 1:
        raise ValueError("its hidden layers have activations that differ, or slopes of their own")
    if record.output_activation is None:
        raise ValueError("its output activation has a slope of its own")
    if record.elementwise and len(record.biases) == 2 and record.output_activation == "identity":
        if activation == "relu" and not any(record.dropout):
            return "elementwise_mlp", (record.widths[1], bias), (), None, False
        sizes = record.widths[1], bias, 1, 1, CODES[activation], 0, 0
        return "general", sizes, record.dropout, None, any(record.dropout)
    codes = CODES[activation], CODES[record.output_activation]
    features = None if record.elementwise else (record.widths[0], record.widths[-1])
    sizes = len(record.biases), bias, *codes, *record.widths
    rates = record.dropout
    # saved results know one number where that says all
    p = max(rates[1:-1], default=0.0)
    alike = rates == (0.0, *[p] * (len(rates) - 2), 0.0)
    constants = (p,) if alike else rates
    return "mlp", sizes, constants, features, any(rates)


def _encode_sines(record):
    sizes = record.width, int(record.amplitude), int(record.phase)
    return "sine_sum", sizes, (record.scale / (2 * math.pi), record.factor), None, False


_ENCODERS = {Subnet: _encode_subnet, Layers: _encode_layers, Sines: _encode_sines}


def structure_of(module, name):
    """The structure of a module; a clear error where no kernel trains it.

    Args:
        module: Anything.
        name: What to call it in errors, e.g. ``models[3]``.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"{name} must be a Module, got {type(module).__name__}")
    spec = spec_of(module)
    if spec.layers == ("",) or (spec.is_foreign and base_of(module) is None):
        raise ValueError(
            f"{name} is a {type(module).__name__}, which has no training kernel"
            f"{f' ({spec.reason})' if spec.reason else ''}; "
            f"fit trains {_KNOWN} (fastmlp.fuse may turn a plain module into one)"
        )
    named = dict(module.named_parameters())
    reason = spec.obstacle or spec.layout or spec.randomness or _hooked(named)
    if reason is None and spec.record is None:
        reason = "its activations follow each other"
    if reason is None:
        try:
            encoded = _ENCODERS[type(spec.record)](spec.record)
        except ValueError as error:
            reason = str(error)
    if reason is not None:
        raise ValueError(f"{name} has no training kernel: {reason}; fit trains {_KNOWN}")
    parameters = [named[name] for name in spec.names]
    kind, sizes, constants, features, draws = encoded
    return Structure(
        kind,
        tuple(sizes),
        tuple(constants),
        features,
        draws,
        tuple(tuple(p.shape) for p in parameters),
        tuple(p.requires_grad for p in parameters),
        spec.names,
    )


def _hooked(named):
    """Which parameter has hooks on its gradient, which no kernel calls; or ``None``."""
    for name, p in named.items():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            return f"its parameter {name} has hooks on its gradient"
    return None


def as_saved(structure):
    """A structure as plain lists, as results store it; "dense" is their word for "general"."""
    kind = "dense" if structure.kind == "general" else structure.kind
    return [kind, list(structure.sizes), list(structure.constants), list(structure.trained)]


class Description(NamedTuple):
    """A model in the words of `kernels/cpu/models.py`.

    Equal descriptions mean the same function of (θ, x). ``elementwise`` models take any shape.
    """

    net: tuple
    reals: tuple
    n_in: int
    n_out: int
    n_parameters: int
    elementwise: bool


def describe(module):
    """The :class:`Description` of a module, or ``None`` where the kernels do not know it.

    Frozen or tied parameters are left to PyTorch, and so is a module with hooks, for those may
    change what it computes.
    """
    spec = spec_of(module)
    if spec.obstacle or spec.layout or spec.active or spec.record is None:
        return None
    named = dict(module.named_parameters())
    # pruning and the like register a weight anew, behind its bias
    if tuple(named) != spec.names or not all(p.requires_grad for p in named.values()):
        return None
    return _BUILDERS[type(spec.record)](spec.record)


def is_hinge_net(description):
    """Whether this is a net 1 → H → 1 with ReLU or leaky ReLU: linear between breakpoints."""
    model = model_of(description.net)
    if model.model != MLP or model.n_layers != 2:
        return False
    (n_in, _, n_out), _, (hidden, last) = layers_of(description.net, model.n_layers)
    hinges, linear = (CODES["relu"], CODES["leaky_relu"]), CODES["identity"]
    return n_in == n_out == 1 and hidden in hinges and last == linear


def has_biases(description):
    """Whether both layers of a hinge net have a bias."""
    _, biases, _ = layers_of(description.net, 2)
    return all(biases)


def hidden_units(description):
    """Hidden units of a hinge net."""
    (_, n_hidden, _), _, _ = layers_of(description.net, 2)
    return n_hidden


def n_readout(description):
    """Parameters of the last layer, the last ones, if the outputs are linear in them; else 0."""
    model = model_of(description.net)
    if model.model == ADDITIVE:
        return model.n_out * (model.n_in + model.bias)
    if model.model == MLP:
        widths, biases, codes = layers_of(description.net, model.n_layers)
        if codes[-1] == CODES["identity"]:
            return widths[-1] * (widths[-2] + biases[-1])
    return 0


def widest_layer(description):
    """Numbers in the widest layer of an MLP, its input among them; 0 for the other models."""
    model = model_of(description.net)
    if model.model != MLP:
        return 0
    widths, _, _ = layers_of(description.net, model.n_layers)
    return max(widths)


def below_zero(description):
    """The slope of a hinge net's activation below 0."""
    _, _, (hidden, _) = layers_of(description.net, 2)
    slope, _ = description.reals
    return slope if hidden == CODES["leaky_relu"] else 0.0


def _layers(record):
    codes = [CODES[name] for name in record.activations]
    return Description(
        (MLP, len(codes), *record.widths, *map(int, record.biases), *codes),
        record.slopes,
        record.widths[0],
        record.widths[-1],
        _n_parameters(record),
        record.elementwise,
    )


def _subnet(record):
    if not record.shared or len({*record.biases}) > 1:
        return None  # PyTorch differentiates a subnet for every feature
    sizes = record.n_in, record.n_hidden, record.n_out
    return Description(
        (ADDITIVE, *sizes, int(record.biases[0]), CODES[record.activation]),
        (KINK_SLOPES["leaky_relu"],),
        record.n_in,
        record.n_out,
        _n_parameters(record),
        False,
    )


def _sines(record):
    return Description(
        (SINE, 1, record.width, 1, int(record.amplitude), int(record.phase)),
        (record.scale, record.factor),
        1,
        1,
        _n_parameters(record),
        True,
    )


def _n_parameters(record):
    return sum(map(math.prod, record.shapes))


_BUILDERS = {Layers: _layers, Subnet: _subnet, Sines: _sines}
