"""The runs of small models: blocks of models of one structure, a model a lane."""

from functools import partial

import numpy as np
import torch

from ...runs import different, pick
from ..machine.launch import compute_dtype
from .loop import train_lanes_kernel
from .models import LANES, is_small, items_of, verb_of
from .update import OPTIMIZERS


def are_small(job, models):
    """Which models are trained a model a lane: by the structure and its rows alone.

    A model's numbers must not depend on how many there are.
    """
    small = np.zeros(len(models), bool)
    n_in = job.data.x[0].numel()
    _, compute = compute_dtype(job.data.x.dtype)
    n_rows, batch_rows = pick(job.data.count, models), pick(job.batch_rows, models)
    held_out = 0 if job.validation is None else pick(job.validation.count, models)
    known, which = different(job.kinds[models], n_rows, batch_rows, held_out)
    for i, (kind, count, batch, n_val_rows) in enumerate(known.tolist()):
        verb = verb_of(job.structures[kind], n_in, compute)
        if verb is not None:
            small[which == i] = is_small(verb, batch, -(-count // batch), n_val_rows)
    return small


class LaneRuns:
    """The runs of some models, a model a lane.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64; :func:`are_small` tells of each that it is.
        tables: Its :class:`.tables.Tables`.
    """

    def __init__(self, job, models, tables):
        self._job, self._tables = job, tables
        n_in, n_models = job.data.x[0].numel(), len(job.kinds)
        _, compute = compute_dtype(job.data.x.dtype)
        shuffle = np.broadcast_to(job.shuffle, n_models)[models]
        batch_rows = np.broadcast_to(job.batch_rows, n_models)[models]
        columns = job.kinds[models], shuffle, batch_rows
        found, which = different(*columns)
        held_out = job.validation or job.data
        are_shared = job.data.are_shared and held_out.are_shared
        self._groups = []
        for i, (kind, mixed, batch) in enumerate(found.tolist()):
            structure = job.structures[kind]
            verb, is_apart = verb_of(structure, n_in, compute), bool(mixed) or not are_shared
            settings = {
                "MODEL": verb.function, "SIZES": verb.sizes, "CONSTANTS": verb.constants,
                "ITEMS": items_of(structure.n_parameters, batch * verb.sizes.per_row, is_apart),
                "N": structure.n_parameters, "TRAINED": _trained(structure),
                "SHUFFLE": bool(mixed), "APART": not are_shared, "COMPUTE": compute,
            }  # fmt: skip
            self._groups.append((settings, models[which == i]))
        update = OPTIMIZERS[job.optimizer]
        has_moments = job.optimizer != "sgd" or job.hyper["momentum"].any()
        self._settings = {
            "UPDATE": update, "MOMENTS": update.moments if has_moments else 0, "LOSS": job.loss,
            "CLIPS": bool(np.isfinite(job.hyper["clip_norm"]).any()), "LANES": LANES,
        }  # fmt: skip

    def launches(self, stop_step, first_epoch):
        """Functions that advance all that still run to ``stop_step``, to be called once each.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first of the rates is of.
        """
        launches = []
        for settings, models in self._groups:
            models = models[self._tables.go_on(models, stop_step)]
            if len(models):
                blocks = self._blocks(models)
                steps = np.ascontiguousarray(self._job.states["step"][blocks[:, 0]])
                places = [torch.from_numpy(a).to(self._job.theta.device) for a in (blocks, steps)]
                launches.append(partial(self._launch, settings, stop_step, first_epoch, *places))
        return launches

    def _blocks(self, models):
        """Models ``[blocks, LANES]``, -1 behind the last: those of a block have as many rows, and
        are at the same step."""
        job = self._job
        held_out = 0 if job.validation is None else pick(job.validation.count, models)
        rows = pick(job.data.count, models), pick(job.batch_rows, models)
        found, which = different(*rows, held_out, job.states["step"][models])
        blocks = []
        for i in range(len(found)):
            alike = models[which == i]
            block = np.full(-(-len(alike) // LANES) * LANES, -1, np.int64)
            block[: len(alike)] = alike
            blocks.append(block)
        return np.concatenate(blocks).reshape(-1, LANES)

    def _launch(self, settings, stop_step, first_epoch, blocks, steps):
        job, tables = self._job, self._tables
        x, y, weight, *_ = job.data
        val_x, val_y, val_weight, *_ = (None,) * 3 if job.validation is None else job.validation
        train_lanes_kernel[(len(blocks),)](
            job.theta, job.moment1, job.moment2, job.best, tables.starts, blocks, steps,
            tables.rows, x, y, weight, val_x, val_y, val_weight, tables.states, tables.hyper,
            tables.rates, tables.seeds, tables.streams, tables.train_loss, tables.val_loss,
            tables.grad_norm, x[0].numel(), y[0].numel(), job.epochs, job.every,
            tables.train_loss.shape[1], first_epoch, tables.rates_stride, stop_step,
            job.patience or 0,
            **settings, **self._settings, num_warps=1,
        )  # fmt: skip


def _trained(structure):
    """Whether each number is trained."""
    trained = [0] * structure.n_parameters
    for first, stop in structure.trained_parts:
        trained[first:stop] = [1] * (stop - first)
    return tuple(trained)
