"""Calls of many models of one structure at once, their parameters stacked: checks, then ops."""

import math

from fastmlp.arguments import check_tensor
from fastmlp.functional import as_autocast
from fastmlp.kernels.spec import Layers, Sines, Subnet
from fastmlp.op_arguments import MAX_HIDDEN, MAX_WIDTH
from fastmlp.ops import ensemble


def obstacle(record):
    """Why there is no op for the models of a record, or ``None``."""
    if isinstance(record, Sines):
        return None
    if len({*record.biases}) > 1:
        return "some of its layers have a bias and some have none"
    subnet = isinstance(record, Subnet)
    widths = (record.n_hidden,) if subnet else record.widths
    is_scalar = subnet or (record.elementwise and len(record.biases) == 2)
    most = MAX_HIDDEN if is_scalar else MAX_WIDTH
    if max(widths) > most:
        return f"its widest layer has {max(widths)} units, more than {most}"
    if subnet:
        return None
    if record.hidden_activation is None and len(record.biases) > 1:
        return "its hidden layers have activations that differ, or slopes of their own"
    if record.output_activation is None:
        return "its output activation has a slope of its own"
    return None


def check(record, x, first, own):
    """Raise unless the models of a record take x.

    Args:
        record: One of :mod:`fastmlp.kernels.spec`.
        x: What came.
        first: One of the stacked parameters.
        own: Whether the first dimension of x is the model.
    """
    check_tensor("x", x, first.device)
    n, shape = len(first), list(x.shape)
    if own and (x.dim() == 0 or shape[0] != n):
        raise ValueError(f"x must have {n} inputs, one a model, as first dimension, got {shape}")
    inner = shape[1:] if own else shape
    n_in = None if isinstance(record, Sines) or _is_elementwise(record) else _n_in(record)
    if n_in is not None and (not inner or inner[-1] != n_in):
        wanted = f"[{n}, *, {n_in}]" if own else f"[*, {n_in}]"
        raise ValueError(f"x must have shape {wanted}, got {shape}")


def _is_elementwise(record):
    return isinstance(record, Layers) and record.elementwise


def _n_in(record):
    return record.n_in if isinstance(record, Subnet) else record.widths[0]


def call(record, x, parameters, own):
    """All models on x: ``[n, …]``.

    Args:
        record: One of :mod:`fastmlp.kernels.spec`, without dropout at work.
        x: Input; ``[n, …]`` where each model has its own.
        parameters: Stacked, in the order of the record.
        own: Whether the first dimension of x is the model.
    """
    x = x if own else x.unsqueeze(0)
    return as_autocast(_CALLS[type(record)](record, x, parameters))


def _elements(op, x, parameters, *options):
    """An op of elements, whatever the shape of x."""
    numbers = x.reshape(len(x), math.prod(x.shape[1:]))
    y = op.run((numbers, *parameters), options)
    return y.view(len(y), *x.shape[1:])


def _rows(op, x, parameters, *options):
    """An op of rows, whatever the dimensions ahead of them."""
    n_rows = math.prod(x.shape[1:-1])
    y = op.run((x.reshape(len(x), n_rows, x.shape[-1]), *parameters), options)
    return y.view(len(y), *x.shape[1:-1], y.shape[-1])


def _sines(record, x, parameters):
    given = iter(parameters)
    presence = True, record.amplitude, record.phase
    w, amplitude, phase = (next(given) if there else None for there in presence)
    options = record.scale, record.reduction == "mean"
    return _elements(ensemble.sine_sum, x, (w, amplitude, phase), *options)


def _with_gaps(record, parameters):
    """Weight and bias of each layer in turn, ``None`` for a bias that is not there."""
    given = iter(parameters)
    pairs = [(next(given), next(given) if has_bias else None) for has_bias in record.biases]
    return [t for pair in pairs for t in pair]


def _subnet(record, x, parameters):
    layers = _with_gaps(record, parameters)
    return _rows(ensemble.additive_mlp, x, layers, record.activation)


def _layers(record, x, parameters):
    layers = _with_gaps(record, parameters)
    hidden, last = record.hidden_activation or "identity", record.output_activation
    if not record.elementwise:
        return _rows(ensemble.mlp, x, layers, hidden, last)
    if len(record.biases) == 2 and last == "identity":
        return _elements(ensemble.elementwise_mlp, x, layers, hidden)
    return _rows(ensemble.mlp, x.unsqueeze(-1), layers, hidden, last).squeeze(-1)


_CALLS = {Sines: _sines, Subnet: _subnet, Layers: _layers}
