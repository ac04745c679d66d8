"""What `fit` returns: losses, the best model, and all that is needed to go on."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from fastmlp import plotting
from fastmlp.arguments import integer
from fastmlp.kernels.runs import FINISHED, NO_PROGRESS, NOT_FINITE, RUNNING, STATE
from fastmlp.training.members import Modules, members_of
from fastmlp.training.structures import as_saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMAT = "fastmlp.FitResult"
_VERSION = 1
_CURVES = ("train_loss", "val_loss", "grad_norm")
_BUFFERS = ("theta", "moment1", "moment2", "best", *_CURVES)
STOPPED = {
    RUNNING: "interrupted",
    FINISHED: "epochs",
    NO_PROGRESS: "patience",
    NOT_FINITE: "not finite",
}
"""Why a model stopped, by its status."""


def kept_columns(epochs, every):
    """The epochs of which losses are kept: every so many and the last."""
    return [min(last, epochs) - 1 for last in range(every, epochs + every, every)]


def hold_last(losses, known, stopped):
    """Repeat the last loss of every model that stopped by itself to the end, in place.

    Args:
        losses: ``[models, columns]``, or ``None``.
        known: Columns of which each model has a loss, ``[models]``.
        stopped: Whether it stopped by itself, ``[models]``.
    """
    if losses is None:
        return
    losses, known = np.asarray(losses), np.asarray(known)
    columns = np.arange(losses.shape[1])
    models = np.flatnonzero(np.asarray(stopped) & (known > 0) & (known < len(columns)))
    if len(models):
        known = known[models, None]
        last = np.take_along_axis(losses[models], known - 1, 1)
        losses[models] = np.where(columns < known, losses[models], last)


def hold_losses(train_loss, val_loss, grad_norm, states, steps_per_epoch, every=1):
    """The same for the curves of `fit`, from the states of the models.

    A column has the last of ``every`` epochs.
    """
    status, steps = np.asarray(states["status"]), np.asarray(states["step"])
    over = (status == NO_PROGRESS) | (status == NOT_FINITE)
    if not over.any():
        return
    whole = steps // steps_per_epoch
    # a loss that is not finite is written into its epoch at once
    begun = -(-(whole + (status == NOT_FINITE)) // every)
    hold_last(train_loss, np.minimum(begun, train_loss.shape[1]), over)
    for curve in (val_loss, grad_norm):
        hold_last(curve, -(-whole // every), over)


class BestIndex(int):
    """The index of the best model; called with a number, the indices of so many of the best."""

    _final_loss: torch.Tensor

    def __new__(cls, final_loss):
        """Of losses ``[models]``."""
        index = super().__new__(cls, final_loss.argmin())
        index._final_loss = final_loss
        return index

    def __call__(self, k: int) -> torch.Tensor:
        """Indices of the k models with the lowest losses, the best first.

        Args:
            k: How many, from 1 to the number of models.

        Returns:
            Int64 ``[k]``.
        """
        k = integer("k", k, 1, len(self._final_loss))
        return self._final_loss.sort(stable=True).indices[:k]

    def __reduce__(self):
        return int, (int(self),)


class FitResult:
    """Losses of every model in every epoch, which model is best, and the state of the run.

    A training loss is the mean over an epoch's rows of the loss at the time of their step, or the
    sum, where the loss is one; a validation loss is that of the weights after the epoch. A model
    that stopped by itself, by patience or a loss that is not finite, keeps its last losses for the
    rest of the epochs, so that ``train_loss[:, -1]`` is what all models came to; :attr:`epochs`
    tells how many each has seen. Epochs that an interrupted run did not reach have NaN. There is a
    column for every epoch, or for those that ``history`` asked for.

    Args:
        models: The trained modules, in the order given to ``fit``, or the ensemble; ``None`` after
            a bare load.
        tensors: The flat buffers ``theta``, ``moment1``, ``moment2``, ``best`` (or ``None``), and
            ``train_loss``, ``val_loss`` and ``grad_norm`` (or ``None``), float64
            ``[models, epochs]``.
        states: State of every model, a dictionary of tensors ``[models]``.
        description: Settings of the run, as plain numbers and lists.
        seconds: Time that the run took.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-1, 1, 32)
        >>> nets = [fastmlp.SineSum(2) for _ in range(3)]
        >>> result = fastmlp.fit(nets, x, x.sin(), epochs=2, progress=False)
        >>> result.train_loss.shape, result.stopped[0], result.best_model is nets[result.best]
        (torch.Size([3, 2]), 'epochs', True)
    """

    reasons: ClassVar[dict[int, str]] = STOPPED
    """Why a model stopped, by its :attr:`status`."""

    def __init__(self, models, tensors, states, description, seconds):
        self.models = models
        self._tensors = tensors
        self._states = states
        self._description = description
        self.seconds = seconds

    @property
    def train_loss(self) -> torch.Tensor:
        """Training loss, float64 ``[models, epochs]``."""
        return self._tensors["train_loss"]

    @property
    def val_loss(self) -> torch.Tensor | None:
        """Validation loss, float64 ``[models, epochs]``; ``None`` without validation."""
        return self._tensors["val_loss"]

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """Norm of the gradient over all rows after each epoch, float64 ``[models, epochs]``;
        ``None`` where ``track`` did not ask for it."""
        return self._tensors["grad_norm"]

    @property
    def steps(self) -> int:
        """Optimizer steps of all models together."""
        return int(self._states["updates"].sum())

    @property
    def epochs(self) -> torch.Tensor:
        """Whole epochs that each model has seen, int64 ``[models]``."""
        return self._states["step"] // self._steps_per_epoch

    @property
    def _steps_per_epoch(self):
        rows, batch = (np.array(self._description[key]) for key in ("rows", "batch_size"))
        return torch.from_numpy(np.atleast_1d(-(-rows // batch)))

    @property
    def status(self) -> torch.Tensor:
        """Why each model stopped, int8 ``[models]``: a key of :attr:`reasons`."""
        return self._states["status"].to(torch.int8)

    @property
    def stopped(self) -> list[str]:
        """Why each model stopped: ``"epochs"``, ``"patience"``, ``"not finite"`` or
        ``"interrupted"``."""
        return [self.reasons[status] for status in self._states["status"].tolist()]

    @property
    def loss(self) -> str:
        """Name of the loss that was minimised, as given to ``fit``."""
        return self._description["loss"]

    @property
    def final_loss(self) -> torch.Tensor:
        """The loss that ranks each model, float64 ``[models]``; infinite where not finite.

        Where there was validation: the best validation loss under ``patience`` (whose weights the
        module has), else the last. Without validation: the last training loss.
        """
        losses = self.train_loss if self.val_loss is None else self.val_loss
        if self._tensors["best"] is not None:
            final = self._states["best_loss"].clone()
        else:
            # the epoch before last of an interrupted run may be the last that has a loss
            known = (~losses.isnan()).long() * torch.arange(1, losses.shape[1] + 1, device="cpu")
            last = known.max(1).values
            final = losses.gather(1, (last - 1).clamp(min=0)[:, None])[:, 0]
        broken = self._states["status"] == NOT_FINITE
        return torch.where(final.isnan() | broken, math.inf, final)

    @property
    def best(self) -> BestIndex:
        """Index of the model with the lowest :attr:`final_loss`; ``best(k)`` gives the indices of
        the k best, int64 ``[k]``, the best first."""
        return BestIndex(self.final_loss)

    @property
    def best_model(self) -> torch.nn.Module:
        """The module with the lowest :attr:`final_loss`."""
        if self.models is None:
            raise ValueError("this result was loaded without modules: load(path, models=…)")
        return self.models[self.best]

    def __repr__(self) -> str:
        best, counts = self.best, self._counts()
        return (
            f"FitResult({sum(counts.values())} models, stopped: "
            f"{', '.join(f'{n} {reason}' for reason, n in counts.items())}; best: model {best:d}, "
            f"loss {self.final_loss[best].item():.6g}; {self.steps} steps, "
            f"{self.seconds:.3g} s)"
        )

    def _counts(self):
        """How many models stopped for each reason."""
        codes, counts = self.status.unique(return_counts=True)
        return {
            self.reasons[code]: n for code, n in zip(codes.tolist(), counts.tolist(), strict=True)
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result, with the weights and moments of every model, to one file.

        Args:
            path: Where; an existing file is replaced once the new one is whole.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "tensors": {k: None if t is None else t.cpu() for k, t in self._tensors.items()},
            "states": self._states,
            "description": self._description,
            "seconds": self.seconds,
        }
        path = os.fspath(path)
        torch.save(content, path + ".part")
        os.replace(path + ".part", path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        models: torch.nn.Module | Sequence[torch.nn.Module] | None = None,
    ) -> FitResult:
        """Read a file that :meth:`save` wrote; nothing in it is executed.

        Args:
            path: The file.
            models: Modules of the run's structures, in its order: they get the trained weights.

        Raises:
            ValueError: The file is no FitResult, or damaged; ``models`` do not match it.
            OSError: The file cannot be read.
        """
        # read first: what is wrong with the content is no OSError, whatever PyTorch makes of it
        file = io.BytesIO(Path(path).read_bytes())
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} is no saved FitResult, or damaged: {error}") from error
        reason = _defect(content)
        if reason is not None:
            raise ValueError(f"{path} is no saved FitResult, or damaged: {reason}")
        result = cls(
            None,
            content["tensors"],
            content["states"],
            content["description"],
            content["seconds"],
        )
        tensors = result._tensors
        # earlier files have NaN after a stop
        history = result._description.get("history", 1)
        every = 1 << 62 if history == "last" else history
        train_loss, val_loss, grad_norm = (
            None if tensors[name] is None else tensors[name].numpy() for name in _CURVES
        )
        steps = result._steps_per_epoch.numpy()
        hold_losses(train_loss, val_loss, grad_norm, result._states, steps, every)
        if models is not None:
            result._give_weights(models)
        return result

    def _give_weights(self, models):
        members = members_of(models)
        kinds = range(1) if not isinstance(members, Modules) else members.kinds
        told = [as_saved(members.structures[kind]) for kind in kinds]
        n_models = len(self._states["status"])
        if told != self._description["structures"] or len(members) != n_models:
            raise ValueError("models must have the structures of the saved run, in its order")
        weights = self._tensors["theta"]
        if self._tensors["best"] is not None:
            sizes = torch.from_numpy(np.diff(members.offsets))
            has_best = (self._states["best_epoch"] >= 0).repeat_interleave(sizes)
            weights = torch.where(has_best, self._tensors["best"].cpu(), weights.cpu())
        members.load(weights)
        self.models = members.models

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss of every model over the epochs: :func:`fastmlp.plotting.plot_fit`.

        Args:
            ax: Axes of matplotlib; new ones by default.

        Returns:
            The axes.
        """
        return plotting.plot_fit(self, ax=ax)


def _defect(content):
    """What is wrong with a loaded file's content, or ``None``."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return "it was not written by FitResult.save"
    if content.get("version") != _VERSION:
        return f"version {content.get('version')}, this fastmlp reads {_VERSION}"
    tensors, states = content.get("tensors"), content.get("states")
    description = content.get("description")
    if isinstance(tensors, dict):
        tensors.setdefault("grad_norm", None)  # files of before have none
    if not isinstance(tensors, dict) or set(tensors) != set(_BUFFERS):
        return "it lacks tensors"
    if not isinstance(states, dict) or set(states) != set(STATE.names):
        return "it lacks states"
    if not isinstance(description, dict) or not isinstance(content.get("seconds"), float):
        return "it lacks settings"
    n_models = description.get("models", len(description.get("structures", [])))
    wanted = [t for k, t in tensors.items() if k not in ("best", "val_loss", "grad_norm")]
    if not all(isinstance(t, torch.Tensor) for t in (*wanted, *states.values())):
        return "it lacks numbers"
    flat = [tensors[k] for k in ("theta", "moment1", "moment2", "best") if tensors[k] is not None]
    if any(t.shape != flat[0].shape or t.dim() != 1 for t in flat):
        return "its buffers do not match"
    if any(t.shape != (n_models,) for t in states.values()):
        return "its states do not match its models"
    losses = [tensors[k] for k in _CURVES if tensors[k] is not None]
    if any(t.dim() != 2 or len(t) != n_models for t in losses):
        return "its losses do not match its models"
    return None
