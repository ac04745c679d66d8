"""The runs of models that have a program each: a launch for each structure."""

import itertools
from functools import partial

import numpy as np
import torch
import triton

from ...runs import NoVerb
from ..layers import verbs as layers
from ..machine.launch import compute_dtype
from ..models import VERBS
from .loop import OPTIMIZERS, train_kernel

BLOCK = 512
"""Parameters that are updated at a time."""


class ProgramRuns:
    """The runs of some models, a program each.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64.
        tables: Its :class:`.tables.Tables`.
    """

    def __init__(self, job, models, tables):
        self._job, self._tables, n_models = job, tables, len(job.kinds)
        self._grad = torch.zeros_like(job.theta)
        trained = np.zeros(int(job.offsets[-1]), np.int8)
        for kind, structure in enumerate(job.structures):
            firsts = job.offsets[:-1][job.kinds == kind]
            for first, stop in structure.trained_parts:
                trained[(firsts[:, None] + np.arange(first, stop)).ravel()] = 1
        self._trained = torch.from_numpy(trained).to(job.theta.device)
        shuffle = np.broadcast_to(job.shuffle, n_models)[models]
        batch = np.broadcast_to(job.batch_rows, n_models)
        groups = {}
        n_in = job.data.x[0].numel()
        for kind, structure in enumerate(job.structures):
            # the batch of a model decides for it alone
            is_mlp = structure.kind == "mlp"
            large = is_mlp and layers.is_large(structure.sizes, n_in, batch[models])
            for mixed, on_cores in itertools.product((False, True), repeat=2):
                here = (job.kinds[models] == kind) & (shuffle == mixed) & (large == on_cores)
                if here.any():
                    # those that differ in names alone are one group
                    alike = structure._replace(trained=(), names=())
                    groups.setdefault((alike, mixed, on_cores), []).append(models[here])
        self._groups = []
        for (structure, mixed, on_cores), parts in groups.items():
            chosen = np.sort(np.concatenate(parts))
            verb = self._verb(structure, int(chosen[0]), int(batch[chosen].max()), on_cores)
            self._groups.append((verb, structure.draws, mixed, chosen))

    def _verb(self, structure, first, batch_rows, on_cores):
        """The verb of a structure, of which model ``first`` is one."""
        kind, x = structure.kind, self._job.data.x
        _, compute = compute_dtype(x.dtype)
        if on_cores:
            verb = layers.cores_verb_of(structure.sizes, structure.constants, x, compute)
            if verb is not None:
                return verb
        try:
            if kind not in VERBS:
                raise ValueError(f"there is none of the kind {kind!r}")
            options = x[0].numel(), batch_rows, compute
            return VERBS[kind](structure.sizes, structure.constants, *options)
        except ValueError as error:
            raise NoVerb(first, error) from None

    def launches(self, stop_step, first_epoch):
        """Functions that advance all that still run to ``stop_step``, to be called once each.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first of the rates is of.
        """
        launches = []
        for verb, draws, mixed, models in self._groups:
            models = models[self._tables.go_on(models, stop_step)]
            if len(models):
                places = torch.from_numpy(models).to(self._job.theta.device)
                options = stop_step, first_epoch, int(models[0]), places
                launches.append(partial(self._launch, verb, draws, mixed, *options))
        return launches

    def _launch(self, verb, draws, mixed, stop_step, first_epoch, one, places):
        job, tables = self._job, self._tables
        x, y, weight, *_ = job.data
        val_x, val_y, val_weight, *_ = (None,) * 3 if job.validation is None else job.validation
        _, compute = compute_dtype(x.dtype)
        n_parameters = int(job.offsets[one + 1] - job.offsets[one])
        train_kernel[(len(places),)](
            job.theta, job.moment1, job.moment2, job.theta if job.best is None else job.best,
            self._grad, self._trained, tables.starts, places, tables.rows, x, y, weight, val_x,
            val_y, val_weight, tables.states, tables.hyper, tables.rates, tables.seeds,
            tables.streams, tables.train_loss, tables.val_loss, tables.grad_norm, n_parameters,
            x[0].numel(), y[0].numel(), job.epochs, job.every, tables.train_loss.shape[1],
            first_epoch, tables.rates_stride, stop_step, job.patience or 0,
            MODEL=verb.function, UPDATE=OPTIMIZERS[job.optimizer], LOSS=job.loss, SHUFFLE=mixed,
            DRAWS=draws, SIZES=verb.sizes, CONSTANTS=verb.constants, COMPUTE=compute,
            BLOCK=min(BLOCK, triton.next_power_of_2(n_parameters)), num_warps=verb.warps,
        )  # fmt: skip
