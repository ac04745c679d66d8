"""The runs of small models: vectors of models of one structure, and the tasks that threads take."""

from functools import partial

import numpy as np
import torch

from ...runs import LOSSES, OPTIMIZERS, RUNNING, different, pick
from ..machine.vectors import LANE_BYTES
from .models import KEPT_BYTES, groups_of, net_of, trainer_of
from .places import RUN
from .update import HYPER

TASKS = 64
"""Tasks of a launch, about: enough to balance a few threads, few enough to deal in no time."""


class LaneRuns:
    """The runs of some models, a model a lane.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64; :func:`.models.is_small` tells of each that it is.
    """

    def __init__(self, job, models):
        self._job, self._models = job, np.ascontiguousarray(models, np.int64)
        self._lanes = LANE_BYTES // job.data.x.element_size()
        self._hyper = np.zeros((len(models), len(HYPER)))
        for column, name in enumerate(HYPER):
            if name in job.hyper:
                self._hyper[:, column] = job.hyper[name][models]
        self._alive = []  # what only the records point to
        # models of a vector have one structure, and as many rows
        columns = [job.kinds[models], pick(job.data.count, models)]
        columns += [pick(job.batch_rows, models)]
        columns += [0 if job.validation is None else pick(job.validation.count, models)]
        rows, which = different(*columns)
        self._groups = [
            (*self._record(*row), np.flatnonzero(which == i)) for i, row in enumerate(rows.tolist())
        ]

    def _record(self, kind, n_rows, batch_rows, n_val_rows):
        """What a launch must know of such models, who trains them, and how many steps they take."""
        job, run = self._job, np.zeros(1, RUN)
        structure = job.structures[kind]
        n_in, n_out = job.data.x[0].numel(), job.data.y[0].numel()
        groups = groups_of(batch_rows)
        net = net_of(structure, n_in, -(-max(batch_rows, n_val_rows) // groups))
        trained = np.ascontiguousarray(structure.trained_parts, np.int64)
        self._alive += [net.records, trained]
        is_whole = batch_rows == n_rows and job.data.weight is None
        for name, value in {
            "states": job.states.ctypes.data, "offsets": job.offsets.ctypes.data,
            "seeds": job.seeds.ctypes.data, "streams": job.streams.ctypes.data,
            "models": self._models.ctypes.data, "n_places": len(self._models),
            "n_models": len(job.kinds), "hyper": self._hyper.ctypes.data,
            "lanes": self._lanes, "groups": groups, "every": job.every,
            "trained": trained.ctypes.data, "n_trained": trained.size // 2,
            "net": net.records.ctypes.data, "n_net": len(net.records),
            "n_parameters": structure.n_parameters,
            "n_rows": n_rows, "n_in": n_in, "n_out": n_out, "n_val_rows": n_val_rows,
            "batch_rows": batch_rows, "block_rows": net.block_rows,
            "stays": is_whole and n_rows * (n_in + n_out + 1) * LANE_BYTES <= KEPT_BYTES,
            "n_kept": net.n_kept, "n_widest": net.n_widest,
            "shuffle": job.shuffle.any() and batch_rows < n_rows, "shared_order": job.shared_order,
            "draws": structure.draws,
            "optimizer": OPTIMIZERS.index(job.optimizer), "loss": LOSSES.index(job.loss),
            "patience": job.patience or 0, "clips": np.isfinite(job.hyper["clip_norm"]).any(),
        }.items():  # fmt: skip
            run[name] = value
        for name in ("theta", "moment1", "moment2", "best"):
            if getattr(job, name) is not None:
                run[name] = getattr(job, name).data_ptr()
        for name in ("train_loss", "val_loss", "grad_norm"):
            array = getattr(job, name)
            if array is not None:
                run[name], run[name + "_step"] = array.ctypes.data, array.strides[0]
        self._fill_rows(run, job.data, "")
        if job.validation is not None:
            self._fill_rows(run, job.validation, "val_")
        steps = job.epochs * -(-n_rows // batch_rows)
        return run, trainer_of(net.kind)[job.data.x.dtype], steps

    @staticmethod
    def _fill_rows(run, rows, prefix):
        """Where the rows of each model begin, and whether all have the same."""
        run[prefix + "x"], run[prefix + "y"] = rows.x.data_ptr(), rows.y.data_ptr()
        run[prefix + "first"], run[prefix + "own"] = rows.first.ctypes.data, len(rows.first) > 1
        if rows.weight is not None:
            run[prefix + "weight"] = rows.weight.data_ptr()
            run[prefix + "first_weight"] = rows.first_weight.ctypes.data
            run[prefix + "own_weight"] = len(rows.first_weight) > 1

    def tasks(self, stop_step, first_epoch, rates):
        """Functions that advance all that still run to ``stop_step``, to be called once each.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[1 or models, epochs of this launch]``, contiguous.
        """
        tasks = []
        for run, train, n_steps, places in self._groups:
            run["stop_step"], run["first_epoch"] = min(stop_step, n_steps), first_epoch
            run["rates"] = rates.ctypes.data
            run["rates_step"] = rates.strides[0] if len(rates) > 1 else 0
            # so few that a lane a model would leave a thread idle: the same bits either way
            is_spread = len(places) * torch.get_num_threads() <= 2 * self._lanes
            run["spread"] = run["groups"] if is_spread else 1
            n = self._lanes // int(run["spread"][0])
            vectors = self._vectors(places, int(run["stop_step"][0]), n)
            n_tasks = min(len(vectors), TASKS)
            for i in range(n_tasks):
                first, last = (len(vectors) * k // n_tasks for k in (i, i + 1))
                tasks.append(partial(_call, train, run, vectors, first, last))
        return tasks

    def _vectors(self, places, stop_step, n):
        """Those that have to run, ``[vectors, n]``: the models of a vector are at the same step."""
        states = self._job.states[self._models[places]]
        runs = (states["status"] == RUNNING) & (states["step"] < stop_step)
        places, steps = places[runs], states["step"][runs]
        vectors = []
        for step in np.unique(steps):
            group = places[steps == step]
            padded = np.full(-(-len(group) // n) * n, -1, np.int64)
            padded[: len(group)] = group
            vectors.append(padded)
        return np.concatenate(vectors or [places]).reshape(-1, n)


def _call(train, run, vectors, first, last):
    # the arrays as arguments: they live until here
    train(run.ctypes.data, vectors.ctypes.data, first, last)
