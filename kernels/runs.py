"""What all backends of a training run share: what a run is, its state, and codes of its options."""

import math
from typing import NamedTuple

import numpy as np
import torch

STATE = np.dtype(
    [
        ("step", np.int64),  # batches seen
        ("updates", np.int64),  # batches that moved the weights
        ("status", np.int64),
        ("best_epoch", np.int64),  # of the validation loss; -1: none yet
        ("loss_sum", np.float64),  # of the epoch so far, and the weight of its rows
        ("weight_sum", np.float64),
        ("beta1_power", np.float64),  # beta1^updates
        ("beta2_power", np.float64),
        ("best_loss", np.float64),
    ]
)
"""How far one model has come; read and written by the loops."""

RUNNING, FINISHED, NO_PROGRESS, NOT_FINITE = range(4)
"""Values of ``status``."""

OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("mse", "l1", "huber", "bce_with_logits", "sse")
"""The last is a sum over rows and outputs, the others are means."""


class Structure(NamedTuple):
    """A model without its numbers: models of one structure are trained by one kernel.

    Args:
        kind: Name of the op, a key of the kernels' tables of verbs.
        sizes: Integers that the verbs want.
        constants: Numbers that the verbs want.
        features: Numbers (in, out) of the last dimension; ``None`` where any shape will do.
        draws: Whether training draws random numbers.
        shapes: Shape of every parameter, in order.
        trained: Whether each parameter requires a gradient.
        names: Of the parameters, in that order, in the modules.
    """

    kind: str
    sizes: tuple
    constants: tuple
    features: tuple | None
    draws: bool
    shapes: tuple
    trained: tuple
    names: tuple

    @property
    def n_parameters(self):
        """Numbers in all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def trained_parts(self):
        """The trained parts ``[n, 2]`` of a flat parameter vector, neighbours merged."""
        parts, at = [], 0
        for shape, trained in zip(self.shapes, self.trained, strict=True):
            size = math.prod(shape)
            if trained and parts and parts[-1][1] == at:
                parts[-1][1] = at + size
            elif trained:
                parts.append([at, at + size])
            at += size
        return parts


class Rows(NamedTuple):
    """Inputs and targets as rows one after the other; every model takes some that lie together.

    Model i takes the rows ``first[i]`` … ``first[i] + count[i] − 1`` of ``x`` and ``y``, with the
    numbers of ``weight`` from ``first_weight[i]`` on. The three are int64 arrays of one number,
    where all models have the same, or of one for each.

    Args:
        x: Inputs ``[rows, …]`` in the models' dtype, contiguous.
        y: Targets ``[rows, …]``, likewise.
        weight: Flat, likewise; ``None`` where each row counts as one.
        first: See above.
        count: At least 1.
        first_weight: See above.
    """

    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor | None
    first: np.ndarray
    count: np.ndarray
    first_weight: np.ndarray

    def of(self, i):
        """Inputs, targets and weights, or ``None``, of model i."""
        first, count, at = (int(pick(a, i)) for a in (self.first, self.count, self.first_weight))
        weight = None if self.weight is None else self.weight[at : at + count]
        return self.x[first : first + count], self.y[first : first + count], weight

    def among(self, models):
        """The rows of some models, numbered anew."""
        first, count, first_weight = (
            a[models] if len(a) > 1 else a for a in (self.first, self.count, self.first_weight)
        )
        return self._replace(first=first, count=count, first_weight=first_weight)

    @property
    def are_shared(self):
        """Whether all models take the same rows, with the same weights."""
        return len(self.first) == len(self.first_weight) == 1


class Job(NamedTuple):
    """A training run as kernels take it; its tensors and arrays keep their place in memory.

    ``theta``, ``moment1``, ``moment2`` and ``best`` are flat: the parameters of model i are at
    ``offsets[i]`` … ``offsets[i + 1]``, in the order of its structure. The losses have a column for
    every ``every`` epochs, each with the last of these.

    Args:
        structures: The different ones among the models.
        kinds: Which of these each model has, int64 ``[n]``.
        offsets: Where each model's parameters begin, and the last end, int64 ``[n + 1]``.
        data: The rows to train with.
        validation: Those to validate with, or ``None``.
        epochs: How many.
        every: See above.
        batch_rows: Rows of a step, int64 ``[1 or models]``.
        shuffle: Whether a model takes the rows in an order of its own, ``[1 or models]``.
        shared_order: Whether all models that shuffle have one order.
        n_steps: Steps of one model in all, int64 ``[1 or models]``.
        optimizer: Its name.
        hyper: Name of a setting to float64 ``[models]``.
        loss: Its name.
        patience: Epochs without a better validation loss before a model stops, or ``None``.
        seeds: With ``streams`` the key of each model's random numbers, int64 ``[models]``.
        streams: See above.
        theta: See above.
        moment1: See above.
        moment2: See above.
        best: See above; ``None`` where nobody asks for the weights of the best epoch.
        train_loss: Float64 ``[models, columns]``.
        val_loss: Likewise, or ``None``.
        grad_norm: Likewise, or ``None``.
        states: :data:`STATE` of each model.
    """

    structures: list
    kinds: np.ndarray
    offsets: np.ndarray
    data: Rows
    validation: Rows | None
    epochs: int
    every: int
    batch_rows: np.ndarray
    shuffle: np.ndarray
    shared_order: bool
    n_steps: np.ndarray
    optimizer: str
    hyper: dict
    loss: str
    patience: int | None
    seeds: np.ndarray
    streams: np.ndarray
    theta: torch.Tensor
    moment1: torch.Tensor
    moment2: torch.Tensor
    best: torch.Tensor | None
    train_loss: np.ndarray
    val_loss: np.ndarray | None
    grad_norm: np.ndarray | None
    states: np.ndarray


class NoVerb(ValueError):
    """No kernel trains the structure of a model.

    Args:
        model: Its index.
        reason: Why.
    """

    def __init__(self, model, reason):
        super().__init__(reason)
        self.model = model


def new_states(n_models):
    """States at the start of a run."""
    states = np.zeros(n_models, STATE)
    states["beta1_power"] = states["beta2_power"] = 1.0
    states["best_loss"] = np.inf
    states["best_epoch"] = -1
    return states


def pick(values, models):
    """Of an array of one number for all, or of one for each model, those of some models."""
    return values[models] if len(values) > 1 else values[0]


def different(*columns):
    """The different rows of integer columns, ``[rows, columns]`` sorted, and which row is which.

    Columns are of one length, or one number for all. ``numpy.unique`` of a table sorts bytes: 15 ms
    for 10 000 rows.
    """
    table = np.stack(np.broadcast_arrays(*columns), 1)
    keys = np.zeros(len(table), np.int64)
    for column in table.T:
        if column.min() != column.max():
            values, places = np.unique(column, return_inverse=True)
            keys = keys * len(values) + places
    if keys.max() == 0:
        return table[:1], keys
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    return table[first], which
