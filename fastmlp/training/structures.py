"""What the training loops must know of a module: the records that they can train, as integers."""

import math

import torch

from fastmlp.kernels.runs import Structure
from fastmlp.kernels.spec import CODES, Layers, Sines, Subnet
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
