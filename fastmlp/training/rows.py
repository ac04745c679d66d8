"""Rows of data, and which of them each model takes: shared by all, or each its own."""

import numpy as np
import torch

from fastmlp.arguments import integer, told
from fastmlp.kernels.runs import Rows, pick
from fastmlp.training import checks


def _numbers(*values):
    return np.array(values, np.int64)


def rows_of(members, x, y, weight, own, offsets, name=""):
    """Check data and arrange them as :class:`Rows`.

    Args:
        members: A :class:`fastmlp.training.members.Members`; without a dtype data stay in theirs.
        x: Inputs; shape ``[N, …]``, with ``own`` ``[n, N, …]``, with ``offsets`` all models' rows.
        y: Targets.
        weight: Of the rows, or ``None``.
        own: Whether each model has rows of its own.
        offsets: Where those of each begin, and the last end, or ``None``.
        name: What errors put before ``x`` and ``y``.
    """
    n = len(members)
    x, y = (
        checks.tensor(f"{name}x", x, members.device),
        checks.tensor(f"{name}y", y, members.device),
    )
    lead = "[N, …" if not own or offsets is not None else "[n, N, …"
    n_lead = 1 if not own or offsets is not None else 2
    for what, value in ((f"{name}x", x), (f"{name}y", y)):
        shape = list(value.shape)
        if len(shape) < n_lead or 0 in shape[:n_lead]:
            at_least = "" if n_lead == 1 else f" of shape {lead}]"
            raise ValueError(f"{what} must have at least one row{at_least}, got shape {shape}")
        if n_lead == 2 and shape[0] != n:
            raise ValueError(
                f"{what} must have {n} as first dimension, the number of models, got shape {shape}"
            )
    if x.shape[:n_lead] != y.shape[:n_lead]:
        counts = x.shape[n_lead - 1], y.shape[n_lead - 1]
        raise ValueError(
            f"{name}x and {name}y must have as many rows, got {counts[0]} and {counts[1]}"
        )
    for structure, label in members.examples():
        checks.shapes(name, label, structure.features, x, y, n_lead)
    n_rows = x.shape[n_lead - 1]
    if offsets is not None:
        offsets = _offsets(offsets, n, n_rows, name)
        first, count = offsets[:-1], np.diff(offsets)
    elif own:
        first, count = np.arange(n, dtype=np.int64) * n_rows, _numbers(n_rows)
        x, y = x.flatten(0, 1), y.flatten(0, 1)
    else:
        first, count = _numbers(0), _numbers(n_rows)
    weight, first_weight = _weights(weight, members, n_rows, offsets)
    if members.dtype is not None:
        x, y = x.to(members.dtype), y.to(members.dtype)
        weight = None if weight is None else weight.to(members.dtype)
    x, y = x.contiguous(), y.contiguous()
    return Rows(x, y, weight, first, count, first_weight)


def _offsets(offsets, n, n_rows, name):
    """Where each model's rows begin, and the last end, checked."""
    label = f"{name}offsets"
    if isinstance(offsets, torch.Tensor):
        offsets = offsets.numpy(force=True)
    offsets = np.asarray(offsets)
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"{label} must hold integers, got {offsets.dtype}")
    offsets = offsets.astype(np.int64)
    if offsets.shape != (n + 1,):
        raise ValueError(
            f"{label} must have shape [{n + 1}], one more than there are models, "
            f"got {list(offsets.shape)}"
        )
    if offsets[0] != 0 or offsets[-1] != n_rows:
        raise ValueError(
            f"{label} must go from 0 to the number of rows, {n_rows}, "
            f"got {offsets[0]} to {offsets[-1]}"
        )
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        i = int(empty[0])
        raise ValueError(
            f"{label} must give every model at least one row, got {offsets[i]} and "
            f"{offsets[i + 1]} for model {i}"
        )
    return offsets


def _weights(weight, members, n_rows, offsets):
    """Weights in one flat tensor, or ``None``, and where those of each model begin."""
    if weight is None:
        return None, _numbers(0)
    if offsets is None:
        weight = checks.weights(weight, n_rows, members.device, len(members))
        first = np.arange(len(weight), dtype=np.int64) * n_rows
    else:
        weight = checks.weights(weight, n_rows, members.device, offsets=offsets)
        first = offsets[:-1]
    return weight.reshape(-1).contiguous(), first


def check_folds(folds, n):
    """``folds`` as an int that divides the number of models."""
    folds = integer("folds", folds, 2)
    if n % folds:
        raise ValueError(
            f"folds must divide the number of models, {n}: model i holds out fold i mod folds; "
            f"got {folds}"
        )
    return folds


def split(rows, folds, n):
    """Rows to train with and rows to validate with: model i holds out row r where r ≡ i mod folds.

    Args:
        rows: What all of them are.
        folds: Number of folds.
        n: Number of models.
    """
    if int(rows.count.min()) < folds:
        raise ValueError(
            f"folds must be at most the number of rows, {int(rows.count.min())}, got {folds}"
        )
    if rows.are_shared:
        return _split_shared(rows, folds, n)
    held_out = np.arange(n) % folds
    count = np.broadcast_to(rows.count, n)
    model = np.repeat(np.arange(n), count)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int64)
    place = np.arange(len(model)) - first[model]
    held = place % folds == held_out[model]
    order = np.lexsort((held, model))  # stable: each model's rows to train with, then the others
    place, model = place[order], model[order]
    x, y, weight = _take(
        rows, pick(rows.first, model) + place, pick(rows.first_weight, model) + place
    )
    n_held = np.bincount(model, held[order], n).astype(np.int64)
    n_kept = count - n_held
    return (
        Rows(x, y, weight, first, n_kept, first),
        Rows(x, y, weight, first + n_kept, n_held, first + n_kept),
    )


def _take(rows, at, at_weight):
    """Some rows, with their weights."""
    at = torch.from_numpy(at).to(rows.x.device)
    weight = rows.weight
    if weight is not None:
        weight = weight[torch.from_numpy(at_weight).to(weight.device)]
    return rows.x[at], rows.y[at], weight


def _split_shared(rows, folds, n):
    """The same rows for all: fold after fold, twice, so that all but one lie together."""
    n_rows = int(rows.count[0])
    order = np.concatenate([np.arange(f, n_rows, folds) for f in range(folds)])
    order = np.concatenate([order, order])
    x, y, weight = _take(rows, order, order)
    sizes = np.array([len(range(f, n_rows, folds)) for f in range(folds)], np.int64)
    stops, fold = np.cumsum(sizes), np.arange(n) % folds
    kept = stops[fold]
    held = kept - sizes[fold]
    return (
        Rows(x, y, weight, kept, n_rows - sizes[fold], kept),
        Rows(x, y, weight, held, sizes[fold], held),
    )


def check_validation(pair, own, offsets):
    """``validation`` as (x, y, offsets)."""
    size = 3 if offsets is not None else 2
    wanted = "(x, y, offsets)" if size == 3 else "(x, y)"
    if not isinstance(pair, list | tuple):
        raise TypeError(f"validation must be a pair {wanted}, got {told(pair)}")
    if len(pair) != size:
        raise TypeError(f"validation must be a pair {wanted}, got {len(pair)} of them")
    return pair if size == 3 else (*pair, None)
