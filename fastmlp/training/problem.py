"""A training run, checked: data, settings and the state of every model."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from fastmlp.arguments import check_choice, flag, integer
from fastmlp.kernels.runs import LOSSES, new_states
from fastmlp.training import checks
from fastmlp.training.settings import (
    Adam,
    CosineAnnealingLR,
    Optimizer,
    StepLR,
    each,
    not_negative,
    spread,
)
from fastmlp.training.structures import segments_of, structure_of, univariate_of


@dataclass
class Problem:
    """All that the loops need, as tensors and arrays that keep their place in memory.

    ``theta``, ``moment1``, ``moment2`` and ``best`` are flat: the parameters of model i are at
    ``offsets[i]`` … ``offsets[i + 1]``, in the order of its structure.
    """

    models: list
    structures: list
    x: torch.Tensor  # [N, …] in the models' dtype, contiguous
    y: torch.Tensor
    weight: torch.Tensor | None  # [1 or models, N]
    val_x: torch.Tensor | None
    val_y: torch.Tensor | None
    epochs: int
    batch_rows: int
    shuffle: bool
    optimizer_settings: Optimizer
    optimizer: str
    hyper: dict  # name to float64 [models]
    scheduler: object
    loss: str
    patience: int | None
    seeds: np.ndarray
    streams: np.ndarray
    offsets: np.ndarray
    segments: list
    univariate: list  # of each model the net of one variable that it is, or None
    theta: torch.Tensor
    moment1: torch.Tensor
    moment2: torch.Tensor
    best: torch.Tensor | None
    train_loss: np.ndarray
    val_loss: np.ndarray | None
    grad_norm: np.ndarray | None
    states: np.ndarray
    description: dict = field(default_factory=dict)
    own: list = field(default_factory=list)  # the models that this process trains

    @property
    def steps_per_epoch(self):
        """Batches in an epoch."""
        return -(-len(self.x) // self.batch_rows)

    @property
    def n_steps(self):
        """Steps of one model in all."""
        return self.epochs * self.steps_per_epoch

    def rates(self, first_epoch, stop_epoch):
        """Learning rates ``[models, epochs]``, float64."""
        epochs = np.arange(first_epoch, stop_epoch)
        lr = self.hyper["lr"]
        if self.scheduler is None:
            return np.repeat(lr[:, None], len(epochs), 1)
        return np.ascontiguousarray(self.scheduler.rates(lr, epochs))

    def parameters(self, buffer, i):
        """Views of model i's part of a flat buffer, one per parameter."""
        flat = buffer[int(self.offsets[i]) : int(self.offsets[i + 1])]
        shapes = self.structures[i].shapes
        parts = flat.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def write_back(self):
        """Copy the weights into the modules: the best where ``patience`` asked for them."""
        for i, model in enumerate(self.models):
            use_best = self.best is not None and self.states["best_epoch"][i] >= 0
            parts = self.parameters(self.best if use_best else self.theta, i)
            for parameter, part in zip(self.structures[i].parameters(model), parts, strict=True):
                # outside of inference mode, what was made inside cannot be written to
                with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                    parameter.copy_(part)


def _check_models(models):
    """Modules, their structures, and the dtype and device that they share."""
    models = checks.modules(models)
    structures = [structure_of(model, f"models[{i}]") for i, model in enumerate(models)]
    first = next(models[0].parameters())
    for i, model in enumerate(models):
        for name, p in model.named_parameters():
            if p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"models[{i}].{name} must be float32 or float64, got {p.dtype}")
            if p.dtype != first.dtype or p.device != first.device:
                raise ValueError(
                    f"models must share one dtype and device, {first.dtype} on {first.device}, "
                    f"got {p.dtype} on {p.device} in models[{i}]"
                )
    checks.parameters(models)
    return models, structures, first.dtype, first.device


def _check_seeds(seed, n_models):
    seeds = each("seed", seed, checks.seed)
    if not isinstance(seeds, list):
        return np.full(n_models, seeds, np.int64), np.arange(n_models)
    if len(seeds) != n_models:
        raise ValueError(f"seed must hold {n_models} values, one per model, got {len(seeds)}")
    return np.array(seeds, np.int64), np.zeros(n_models, np.int64)


def _cast(dtype, *tensors):
    """Tensors, or ``None``, as the kernels take them."""
    return tuple(None if t is None else t.to(dtype).contiguous() for t in tensors)


def make_problem(
    models, x, y, *, epochs, batch_size, shuffle, optimizer, scheduler, loss, validation,
    sample_weight, patience, clip_norm, seed, track,
):  # fmt: skip
    """Check the arguments of ``fit`` and gather them; changes nothing of what came."""
    models, structures, dtype, device = _check_models(models)
    n_models = len(models)
    epochs = integer("epochs", epochs, 1)
    batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
    patience = None if patience is None else integer("patience", patience, 1)
    shuffle = flag("shuffle", shuffle)
    if not isinstance(loss, str):
        raise TypeError(f"loss must be a str, got {type(loss).__name__}")
    check_choice("loss", loss, LOSSES)
    track = checks.tracked(track)
    for i, structure in enumerate(structures):
        if track and structure.draws:
            raise ValueError(
                f"track must be empty with models[{i}], whose dropout makes its gradient random, "
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
    x, y = _cast(dtype, *checks.data("", x, y, device))
    val_x, val_y = _cast(dtype, *checks.validation(validation, device))
    for i, structure in enumerate(structures):
        checks.shapes("", f"models[{i}]", structure.features, x, y)
        if val_x is not None:
            checks.shapes("validation ", f"models[{i}]", structure.features, val_x, val_y)
    if val_x is None and patience is not None:
        raise ValueError("patience needs validation=(x, y): it watches the validation loss")
    (weight,) = _cast(dtype, checks.weights(sample_weight, x, n_models))
    hyper = optimizer.per_model(n_models)
    clips = np.inf if clip_norm is None else each("clip_norm", clip_norm, not_negative)
    hyper["clip_norm"] = spread("clip_norm", clips, n_models)
    seeds, streams = _check_seeds(seed, n_models)
    counts = [sum(math.prod(shape) for shape in s.shapes) for s in structures]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    theta = torch.empty(int(offsets[-1]), dtype=dtype, device=device)
    parameters = [p for m, s in zip(models, structures, strict=True) for p in s.parameters(m)]
    torch.cat([p.detach().reshape(-1) for p in parameters], out=theta)
    batch_rows = len(x) if batch_size is None else min(batch_size, len(x))
    problem = Problem(
        models=models,
        structures=structures,
        x=x,
        y=y,
        weight=weight,
        val_x=val_x,
        val_y=val_y,
        epochs=epochs,
        batch_rows=batch_rows,
        shuffle=shuffle and batch_rows < len(x),
        optimizer_settings=optimizer,
        optimizer=getattr(optimizer, "name", None),
        hyper=hyper,
        scheduler=scheduler,
        loss=loss,
        patience=patience,
        seeds=seeds,
        streams=streams,
        offsets=offsets,
        segments=[segments_of(s) for s in structures],
        univariate=[univariate_of(s) for s in structures],
        theta=theta,
        moment1=torch.zeros_like(theta),
        moment2=torch.zeros_like(theta),
        best=None if patience is None else theta.clone(),
        train_loss=np.full((n_models, epochs), np.nan),
        val_loss=None if val_x is None else np.full((n_models, epochs), np.nan),
        grad_norm=np.full((n_models, epochs), np.nan) if track else None,
        states=new_states(n_models),
        own=list(range(n_models)),
    )
    problem.description = _describe(problem)
    return problem


def _describe(problem):
    """What must be the same when a run is taken up again, in plain numbers and lists."""
    return {
        "structures": [
            [s.kind, list(s.sizes), list(s.constants), list(s.trained)] for s in problem.structures
        ],
        "dtype": str(problem.x.dtype),
        "rows": len(problem.x),
        "batch_size": problem.batch_rows,
        "shuffle": problem.shuffle,
        "optimizer": problem.optimizer_settings.describe(),
        "scheduler": repr(problem.scheduler),
        "loss": problem.loss,
        "patience": problem.patience,
        "clip_norm": problem.hyper["clip_norm"].tolist(),
        "seed": problem.seeds.tolist(),
        "streams": problem.streams.tolist(),
        "validation": 0 if problem.val_x is None else len(problem.val_x),
        "weighted": problem.weight is not None,
        # files of before know nothing of it
        **({} if problem.grad_norm is None else {"track": ["grad_norm"]}),
    }
