"""Settings of `fit`: optimizers and schedules, checked when they are made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias

import numpy as np
import torch

from fastmlp.arguments import flag, integer, number, sequence

PerModel: TypeAlias = float | Sequence[float]
"""A setting: one value for all models, or one for each."""


def as_list(name, value):
    """A setting as a list with one value per model, or ``None`` where it is one value for all."""
    values = sequence(value.numpy(force=True) if isinstance(value, torch.Tensor) else value)
    if values is not None and len(values) == 0:
        raise ValueError(f"{name} must hold one value per model, got an empty sequence")
    return values


def spread(name, value, n_models):
    """A setting as a float64 array with one value per model."""
    values = as_list(name, value)
    if values is None:
        return np.broadcast_to(np.float64(value), n_models)
    if len(values) != n_models:
        raise ValueError(f"{name} must hold {n_models} values, one per model, got {len(values)}")
    return np.array(values, np.float64)


def each(name, value, check):
    """A setting as plain numbers: one, or a list with one per model; each as ``check`` gives it.

    ``check`` asks for a range, so of an array it is asked about the ends alone.
    """
    values = as_list(name, value)
    if isinstance(value, np.ndarray | torch.Tensor) and values is not None:
        array = np.asarray(values)
        if array.ndim == 1 and array.dtype.kind in "iuf":
            for end in (*array[~np.isfinite(array)][:1], array.min(), array.max()):
                check(name, end.item())
            return values
    return check(name, value) if values is None else [check(name, one) for one in values]


def not_negative(name, value):
    """``value`` as a finite number, not below 0."""
    return number(name, value, 0)


def _below_one(name, value):
    return number(name, value, 0, 1)


class Optimizer:
    """What all optimizer settings have in common: a name for the kernels, and checks of fields."""

    name: ClassVar[str]
    """The optimizer's name in the kernels."""

    def _set(self, check, *names):
        for name in names:
            object.__setattr__(self, name, each(name, getattr(self, name), check))

    def per_model(self, n_models):
        """Every field as a float64 array with one value per model, by name."""
        raise NotImplementedError

    def describe(self):
        """The settings as plain numbers and lists, to be stored."""
        return {
            "optimizer": type(self).__name__,
            **{f.name: _plain(getattr(self, f.name)) for f in fields(self)},
        }


def _plain(value):
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, as ``torch.optim.SGD``, for :func:`fastmlp.fit`.

    Every field may be a sequence with one value per model.

    Args:
        lr: Learning rate.
        momentum: Decay of the running sum of gradients; 0 for none.
        dampening: Share of a gradient that is kept out of that sum.
        weight_decay: L2 penalty: this times the weight is added to the gradient.
        nesterov: Whether to step along the gradient as the momentum will make it.

    Raises:
        TypeError: A field is no number (``nesterov``: no bool).
        ValueError: A field is negative or not finite, or ``nesterov`` without momentum or with
            dampening.

    Source: formulas of ``torch.optim.SGD``.

    Example:
        >>> import fastmlp
        >>> fastmlp.SGD(lr=0.1, momentum=0.9)
        SGD(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False)
    """

    lr: PerModel = 1e-3
    momentum: PerModel = 0.0
    dampening: PerModel = 0.0
    weight_decay: PerModel = 0.0
    nesterov: bool | Sequence[bool] = False
    name: ClassVar[str] = "sgd"

    def __post_init__(self):
        self._set(not_negative, "lr", "momentum", "dampening", "weight_decay")
        self._set(flag, "nesterov")

    def per_model(self, n_models):
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
        values = {name: spread(name, getattr(self, name), n_models) for name in names}
        wrong = (values["nesterov"] > 0) & ((values["momentum"] == 0) | (values["dampening"] != 0))
        if wrong.any():
            raise ValueError(
                f"nesterov needs momentum above 0 and dampening 0, got momentum "
                f"{values['momentum'][wrong][0]:g} and dampening {values['dampening'][wrong][0]:g}"
            )
        return values


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, as ``torch.optim.Adam``, for :func:`fastmlp.fit`.

    Every field may be a sequence with one value per model, ``betas`` a sequence of pairs.

    Args:
        lr: Learning rate.
        betas: Decay of the running means of gradients and of their squares, each in [0, 1).
        eps: Added to the root of the second.
        weight_decay: L2 penalty: this times the weight is added to the gradient.

    Raises:
        TypeError: A field is no number.
        ValueError: A field is negative or not finite, a beta outside [0, 1).

    Source: Kingma and Ba 2015, arXiv:1412.6980, with the formulas of ``torch.optim.Adam``.

    Example:
        >>> import fastmlp
        >>> fastmlp.Adam(lr=[1e-2, 1e-3])
        Adam(lr=[0.01, 0.001], betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)
    """

    lr: PerModel = 1e-3
    betas: tuple[float, float] | Sequence[tuple[float, float]] = (0.9, 0.999)
    eps: PerModel = 1e-8
    weight_decay: PerModel = 0.0
    name: ClassVar[str] = "adam"

    def __post_init__(self):
        self._set(not_negative, "lr", "eps", "weight_decay")
        pairs = as_list("betas", self.betas)
        one = pairs is not None and as_list("betas", pairs[0]) is None
        pairs = [as_list("betas", pair) for pair in ([pairs] if pairs is None or one else pairs)]
        if any(pair is None or len(pair) != 2 for pair in pairs):
            raise ValueError(f"betas must be a pair, or one pair per model, got {self.betas!r}")
        pairs = [tuple(_below_one("betas", beta) for beta in pair) for pair in pairs]
        object.__setattr__(self, "betas", pairs[0] if one else pairs)

    def _betas(self):
        """Both betas, each one value or a list with one per model."""
        one = isinstance(self.betas, tuple)
        return self.betas if one else tuple([pair[k] for pair in self.betas] for k in range(2))

    def per_model(self, n_models):
        values = {
            name: spread(name, getattr(self, name), n_models)
            for name in ("lr", "eps", "weight_decay")
        }
        for name, beta in zip(("beta1", "beta2"), self._betas(), strict=True):
            values[name] = spread("betas", beta, n_models)
        return values


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``, for :func:`fastmlp.fit`.

    Every field may be a sequence with one value per model, ``betas`` a sequence of pairs.

    Args:
        lr: Learning rate.
        betas: Decay of the running means of gradients and of their squares, each in [0, 1).
        eps: Added to the root of the second.
        weight_decay: Each step first shrinks the weights by the factor 1 − lr·weight_decay.

    Raises:
        TypeError: A field is no number.
        ValueError: A field is negative or not finite, a beta outside [0, 1).

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, as ``torch.optim.AdamW``.

    Example:
        >>> import fastmlp
        >>> fastmlp.AdamW(lr=1e-3).weight_decay
        0.01
    """

    weight_decay: PerModel = 0.01
    name: ClassVar[str] = "adamw"


@dataclass(frozen=True)
class StepLR:
    """Multiply the learning rate by ``gamma`` every ``step_size`` epochs.

    Args:
        step_size: Epochs between two drops, at least 1.
        gamma: The factor.

    Raises:
        TypeError: ``step_size`` is no int, ``gamma`` no number.
        ValueError: ``step_size`` below 1, ``gamma`` negative or not finite.

    Source: ``torch.optim.lr_scheduler.StepLR``.

    Example:
        >>> import fastmlp
        >>> fastmlp.StepLR(step_size=20, gamma=0.9)
        StepLR(step_size=20, gamma=0.9)
    """

    step_size: int
    gamma: float = 0.1

    def __post_init__(self):
        object.__setattr__(self, "step_size", integer("step_size", self.step_size, 1))
        object.__setattr__(self, "gamma", not_negative("gamma", self.gamma))

    def rates(self, lr, epochs):
        """Learning rates ``[models, epochs]`` from ``lr`` ``[models]`` for an array of epochs."""
        return lr[:, None] * np.power(float(self.gamma), epochs // self.step_size)[None]


@dataclass(frozen=True)
class CosineAnnealingLR:
    """Lower the learning rate along half a cosine, from ``lr`` to ``eta_min``.

    .. math:: \\eta_e = \\eta_{min} + (lr - \\eta_{min}) (1 + \\cos(\\pi e / T)) / 2

    Args:
        T_max: Epochs until ``eta_min`` is reached; then the rate rises again, as in PyTorch.
        eta_min: The lowest rate.

    Raises:
        TypeError: ``T_max`` is no int, ``eta_min`` no number.
        ValueError: ``T_max`` below 1, ``eta_min`` negative or not finite.

    Source: ``torch.optim.lr_scheduler.CosineAnnealingLR``, in closed form.

    Example:
        >>> import fastmlp
        >>> fastmlp.CosineAnnealingLR(100)
        CosineAnnealingLR(T_max=100, eta_min=0.0)
    """

    T_max: int
    eta_min: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "T_max", integer("T_max", self.T_max, 1))
        object.__setattr__(self, "eta_min", not_negative("eta_min", self.eta_min))

    def rates(self, lr, epochs):
        """Learning rates ``[models, epochs]`` from ``lr`` ``[models]`` for an array of epochs."""
        share = (1 + np.cos(math.pi * epochs / self.T_max)) / 2
        return self.eta_min + (lr[:, None] - self.eta_min) * share[None]
