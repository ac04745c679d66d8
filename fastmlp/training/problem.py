"""A training run, checked: data, settings and the state of every model."""

from dataclasses import dataclass, field

import numpy as np
import torch

from fastmlp.arguments import check_choice, flag, integer
from fastmlp.kernels.runs import LOSSES, Job, Rows, new_states
from fastmlp.training import checks
from fastmlp.training.members import Members, Modules, members_of
from fastmlp.training.rows import check_folds, check_validation, rows_of, split
from fastmlp.training.settings import (
    Adam,
    CosineAnnealingLR,
    Optimizer,
    StepLR,
    each,
    not_negative,
    spread,
)
from fastmlp.training.structures import as_saved


@dataclass
class Problem:
    """All that the loops need, as tensors and arrays that keep their place in memory.

    ``theta``, ``moment1``, ``moment2`` and ``best`` are flat: the parameters of model i are at
    ``offsets[i]`` … ``offsets[i + 1]`` of ``members``, in the order of its structure. The losses
    have a column for every ``every`` epochs, each with the last of these.
    """

    members: Members
    data: Rows
    validation: Rows | None
    epochs: int
    every: int
    batch_rows: np.ndarray  # int64 [1 or models], as is what follows from it
    shuffled: bool
    shared_order: bool  # whether all models that shuffle have one order
    optimizer_settings: Optimizer
    optimizer: str
    hyper: dict  # name to float64 [models]
    scheduler: object
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
    description: dict = field(default_factory=dict)
    here: np.ndarray | None = None  # the models that this process trains

    @property
    def steps_per_epoch(self):
        """Batches in an epoch, int64 ``[1 or models]``."""
        return -(-self.data.count // self.batch_rows)

    @property
    def shuffle(self):
        """Whether a model takes the rows in an order of its own, ``[1 or models]``."""
        return self.shuffled & (self.batch_rows < self.data.count)

    @property
    def n_steps(self):
        """Steps of one model in all, int64 ``[1 or models]``."""
        return self.epochs * self.steps_per_epoch

    def job(self):
        """The run as kernels take it."""
        known = vars(self.members) | vars(self)
        known |= {"shuffle": self.shuffle, "n_steps": self.n_steps}
        return Job(**{name: known[name] for name in Job._fields})

    def rates(self, models, first_epoch, stop_epoch):
        """Learning rates of some models, float64 ``[1 or models, epochs]``."""
        epochs, lr = np.arange(first_epoch, stop_epoch), self.hyper["lr"]
        # 0 bytes from one to the next: one value for all
        lr = lr[:1] if lr.strides[0] == 0 else lr[models]
        if self.scheduler is None:
            return np.repeat(lr[:, None], len(epochs), 1)
        return np.ascontiguousarray(self.scheduler.rates(lr, epochs))

    def write_back(self):
        """Copy the weights into the modules: the best where ``patience`` asked for them."""
        theta = self.theta
        if self.best is not None:
            has_best = torch.from_numpy(self.states["best_epoch"] >= 0)
            sizes = torch.from_numpy(np.diff(self.members.offsets))
            chosen = has_best.repeat_interleave(sizes).to(theta.device)
            theta = torch.where(chosen, self.best, theta)
        self.members.load(theta)


def _check_seeds(seed, n_models):
    seeds = each("seed", seed, checks.seed)
    if not isinstance(seeds, list):
        return np.full(n_models, seeds, np.int64), np.arange(n_models)
    if len(seeds) != n_models:
        raise ValueError(f"seed must hold {n_models} values, one per model, got {len(seeds)}")
    return np.array(seeds, np.int64), np.zeros(n_models, np.int64)


def _check_shared(members, seed):
    """Raise unless one order of rows can be that of all models."""
    if isinstance(each("seed", seed, checks.seed), list):
        raise ValueError("seed must be one number with shuffle='shared', whose order has one key")
    for structure, label in members.examples():
        if structure.draws:
            raise ValueError(
                f"shuffle must be True or False with {label}, whose dropout needs a key of each "
                "model's own, got 'shared'"
            )


def check_history(history, epochs):
    """``history``, and of how many epochs each column of the losses tells the last."""
    if isinstance(history, str):
        check_choice("history", history, ("all", "last"))
        return history, 1 if history == "all" else epochs
    history = integer("history", history, 1)
    return history, min(history, epochs)


def make_problem(
    models, x, y, *, epochs, batch_size, shuffle, optimizer, scheduler, loss, validation,
    sample_weight, patience, clip_norm, seed, track, own, offsets, folds, history,
):  # fmt: skip
    """Check the arguments of ``fit`` and gather them; changes nothing of what came."""
    members = members_of(models)
    n_models = len(members)
    epochs = integer("epochs", epochs, 1)
    batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
    patience = None if patience is None else integer("patience", patience, 1)
    shared_order, own = isinstance(shuffle, str), flag("own", own)
    if shared_order:
        check_choice("shuffle", shuffle, ("shared",))
    shuffle = shared_order or flag("shuffle", shuffle)
    history, every = check_history(history, epochs)
    if not isinstance(loss, str):
        raise TypeError(f"loss must be a str, got {type(loss).__name__}")
    check_choice("loss", loss, LOSSES)
    track = checks.tracked(track)
    for structure, label in members.examples():
        if track and structure.draws:
            raise ValueError(
                f"track must be empty with {label}, whose dropout makes its gradient random, "
                f"got {track!r}"
            )
    optimizer = Adam() if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "optimizer must be settings such as fastmlp.Adam(lr=1e-3), "
            f"got {type(optimizer).__name__}"
        )
    if scheduler is not None and not isinstance(scheduler, StepLR | CosineAnnealingLR):
        raise TypeError(
            "scheduler must be StepLR, CosineAnnealingLR or None (constant), "
            f"got {type(scheduler).__name__}"
        )
    data, held_out = gather_rows(
        members, x, y, sample_weight=sample_weight, validation=validation, own=own,
        offsets=offsets, folds=folds,
    )  # fmt: skip
    if held_out is None and patience is not None:
        raise ValueError("patience needs validation=(x, y): it watches the validation loss")
    hyper = optimizer.per_model(n_models)
    clips = np.inf if clip_norm is None else each("clip_norm", clip_norm, not_negative)
    hyper["clip_norm"] = spread("clip_norm", clips, n_models)
    seeds, streams = _check_seeds(seed, n_models)
    if shared_order:
        _check_shared(members, seed)
        streams = np.zeros_like(streams)
    theta = members.gather()
    n_columns = -(-epochs // every)

    def curve(is_wanted):
        return np.full((n_models, n_columns), np.nan) if is_wanted else None

    problem = Problem(
        members=members,
        data=data,
        validation=held_out,
        epochs=epochs,
        every=every,
        batch_rows=data.count if batch_size is None else np.minimum(data.count, batch_size),
        shuffled=shuffle,
        shared_order=shared_order,
        optimizer_settings=optimizer,
        optimizer=getattr(optimizer, "name", None),
        hyper=hyper,
        scheduler=scheduler,
        loss=loss,
        patience=patience,
        seeds=seeds,
        streams=streams,
        theta=theta,
        moment1=torch.zeros_like(theta),
        moment2=torch.zeros_like(theta),
        best=None if patience is None else theta.clone(),
        train_loss=curve(True),
        val_loss=curve(held_out is not None),
        grad_norm=curve(track),
        states=new_states(n_models),
        here=np.arange(n_models),
    )
    problem.description = _describe(problem, own, history, folds)
    return problem


def gather_rows(members, x, y, *, sample_weight, validation, own, offsets, folds):
    """The rows to train with and, or ``None``, those to validate with."""
    if offsets is not None and not own:
        raise ValueError("offsets needs own=True: they say which rows are each model's own")
    data = rows_of(members, x, y, sample_weight, own, offsets)
    if folds is not None:
        if validation is not None:
            raise ValueError("validation must be None with folds, which are what is held out")
        return split(data, check_folds(folds, len(members)), len(members))
    if validation is None:
        return data, None
    val_x, val_y, val_offsets = check_validation(validation, own, offsets)
    return data, rows_of(members, val_x, val_y, None, own, val_offsets, "validation ")


def _describe(problem, own, history, folds):
    """What must be the same when a run is taken up again, in plain numbers and lists."""
    members, data, held_out = problem.members, problem.data, problem.validation
    of_list = isinstance(members, Modules)
    structures = [as_saved(s) for s in members.structures]

    def told(values):
        """One number where all are the same, of an ensemble."""
        if not of_list and (values == values[0]).all():
            return values[0].item()
        return values.tolist()

    def rows(counts):
        return counts.tolist() if len(counts) > 1 else int(counts[0])

    description = {
        "structures": [structures[k] for k in members.kinds.tolist()] if of_list else structures,
        "dtype": str(members.dtype),
        "rows": rows(data.count),
        "batch_size": rows(problem.batch_rows),
        "shuffle": "shared" if problem.shared_order else problem.shuffle.any().item(),
        "optimizer": problem.optimizer_settings.describe(),
        "scheduler": repr(problem.scheduler),
        "loss": problem.loss,
        "patience": problem.patience,
        "clip_norm": told(problem.hyper["clip_norm"]),
        "seed": told(problem.seeds),
        "streams": problem.streams.tolist() if of_list else bool(problem.streams.any()),
        "validation": 0 if held_out is None else rows(held_out.count),
        "weighted": data.weight is not None,
    }
    # files of before know nothing of these
    rest = {
        "track": None if problem.grad_norm is None else ["grad_norm"],
        "models": None if of_list else len(members),
        "history": None if history == "all" else history,
        "own": own or None,
        "folds": folds,
    }
    return description | {name: value for name, value in rest.items() if value is not None}
