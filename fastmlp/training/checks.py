"""What all drivers of `fit` accept: models and data, checked in one place."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastmlp.arguments import in_memory, integer, told

TRACKABLE = ("grad_norm",)
"""What `fit` can record besides losses."""


def seed(name, value):
    """``value`` as an int from 0 to 2⁶³ − 1."""
    whole = integer(name, value)
    if not 0 <= whole < 2**63:
        raise ValueError(f"{name} must be in [0, 2^63), got {value}")
    return whole


def tracked(names):
    """What `fit` is asked to record besides losses, as a tuple."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"track must be a sequence of str, got {told(names)}")
    for name in names:
        if name not in TRACKABLE:
            raise ValueError(f"track must hold names of {', '.join(TRACKABLE)}, got {name!r}")
    return tuple(names)


def modules(models):
    """One module or several as a list."""
    if isinstance(models, torch.nn.Module) and not isinstance(models, torch.nn.ModuleList):
        models = [models]
    elif not isinstance(models, list | tuple | torch.nn.ModuleList):
        raise TypeError(f"models must be a Module or a list of them, got {told(models)}")
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one module, got an empty list")
    for i, model in enumerate(models):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"models[{i}] must be a Module, got {told(model)}")
    return models


class _Place(NamedTuple):
    """The bytes between which a parameter's numbers lie."""

    first: int
    stop: int
    label: str
    parameter: torch.Tensor


def parameters(models, names=None):
    """Raise unless every trained parameter is plain numbers in memory of its own.

    Frozen parameters may share theirs with each other: nobody writes it. ``names`` are what errors
    call the models, ``models[0]`` and so on by default.
    """
    names = [f"models[{i}]" for i in range(len(models))] if names is None else names
    near = []  # whose bytes are not all behind
    for place in sorted(_places(models, names), key=lambda place: place.first):
        near = [other for other in near if other.stop > place.first]
        p = place.parameter
        for other in near:
            trained = p.requires_grad or other.parameter.requires_grad
            if trained and p.device == other.parameter.device:
                _check_apart(place, other)
        if p.requires_grad and not p.is_contiguous():
            _check_apart(place)
        near.append(place)


def _places(models, names):
    """Where each parameter lies; raise where one has no memory, or models share a trained one."""
    seen = {}
    for i, model in enumerate(models):
        for name, p in model.named_parameters():
            label = f"{names[i]}.{name}"
            if isinstance(p, torch.nn.parameter.UninitializedParameter):
                raise ValueError(f"{label} must have a shape: call the lazy module once")
            in_memory(label, p)
            if id(p) not in seen:
                seen[id(p)] = i, name
                reach = sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
                first = p.data_ptr()
                if p.numel() > 0:
                    yield _Place(first, first + (reach + 1) * p.element_size(), label, p)
            elif p.requires_grad:
                j, called = seen[id(p)]
                also = "" if called == name else f", there called {called}"
                raise ValueError(
                    f"{names[i]} and {names[j]} share the parameter {name}{also}: every model must "
                    "have its own"
                )


def _check_apart(*places):
    """Raise if two parameters have a number in common; of one, if two of its places are one."""
    tensors = [place.parameter for place in places]
    starts = np.concatenate([_addresses(t) for t in tensors])
    sizes = np.concatenate([np.full(t.numel(), t.element_size()) for t in tensors])
    order = np.argsort(starts, kind="stable")
    if (starts[order][:-1] + sizes[order][:-1] > starts[order][1:]).any():
        who = " and ".join(place.label for place in places)
        what = "share memory" if len(places) > 1 else "overlaps itself"
        raise ValueError(f"{who} {what}: every trained parameter must have memory of its own")


def _addresses(tensor):
    """Address of every number of a tensor."""
    at = np.array([tensor.data_ptr()], np.int64)
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        at = (at[:, None] + np.arange(n, dtype=np.int64) * stride * tensor.element_size()).ravel()
    return at


def tensor(name, value, device):
    """Numbers as a dense floating-point tensor on a device: a Tensor there, or a NumPy array."""
    if isinstance(value, np.ndarray):
        # a masked array's mask would be lost
        if type(value) is not np.ndarray or value.dtype.kind != "f" or value.dtype.itemsize > 8:
            kind = value.dtype if type(value) is np.ndarray else type(value).__name__
            raise TypeError(f"{name} must hold float16, float32 or float64, got {kind}")
        # a copy in order, with bytes in order: PyTorch takes no others, nor read-only memory
        value = np.array(value, value.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(value).to(device)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a Tensor or a NumPy array, got {told(value)}")
    value = in_memory(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    if value.device != device:
        raise ValueError(
            f"{name} must be on the device of the models, {device}, got {value.device}"
        )
    return value


def data(name, x, y, device):
    """Inputs and targets as tensors of as many rows, at least one."""
    x, y = tensor(f"{name}x", x, device), tensor(f"{name}y", y, device)
    for what, value in ((f"{name}x", x), (f"{name}y", y)):
        if value.dim() == 0 or len(value) == 0:
            raise ValueError(f"{what} must have at least one row, got shape {list(value.shape)}")
    if len(x) != len(y):
        raise ValueError(f"{name}x and {name}y must have as many rows, got {len(x)} and {len(y)}")
    return x, y


def validation(pair, device):
    """A pair of inputs and targets, or a pair of ``None``."""
    if pair is None:
        return None, None
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        came = f"{len(pair)} of them" if isinstance(pair, list | tuple) else told(pair)
        raise TypeError(f"validation must be a pair (x, y), got {came}")
    return data("validation ", *pair, device)


def shapes(name, label, features, x, y, n_lead=1):
    """Raise unless a model of (in, out) features, or ``None``, takes x and gives y's shape.

    ``n_lead``: dimensions of x ahead of a row's, 1 or, with the model's, 2.
    """
    wanted = list(x.shape)
    if features is not None:
        n_in, n_out = features
        if x.dim() <= n_lead or x.shape[-1] != n_in:
            lead = "n, N" if n_lead == 2 else "N"
            raise ValueError(
                f"{name}x must have shape [{lead}, …, {n_in}] for {label}, got {list(x.shape)}"
            )
        wanted[-1] = n_out
    outputs(name, label, wanted, y)


def outputs(name, label, wanted, y):
    """Raise unless y has the shape of a model's outputs."""
    if list(y.shape) != list(wanted):
        raise ValueError(
            f"{name}y must have the shape of {label}({name}x), {list(wanted)}, got {list(y.shape)}"
        )


def weights(value, n_rows, device, n_models=None, offsets=None):
    """Weights of the rows, ``[1 or models, N]``, or ``None``; one for each model where allowed.

    With ``offsets`` they are flat, ``[N]``, those of each model between two of these.
    """
    if value is None:
        return None
    value = tensor("sample_weight", value, device)
    allowed = [(n_rows,)] if n_models is None else [(n_rows,), (n_models, n_rows)]
    if value.shape not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"sample_weight must have shape {wanted}, got {list(value.shape)}")
    value = value.reshape(-1, n_rows)
    if not bool((value >= 0).all() & value.isfinite().all()):
        raise ValueError("sample_weight must be finite and not negative")
    if offsets is None:
        taught = (value > 0).any(1)
    else:
        totals = np.add.reduceat((value[0] > 0).cpu().numpy().astype(np.int64), offsets[:-1])
        taught = torch.from_numpy(totals > 0)
    if not bool(taught.all()):
        raise ValueError("sample_weight must be above 0 for at least one row of every model")
    return value
