"""The runs of many models: their records, and the tasks that the threads are dealt."""

import numpy as np

from ...runs import LOSSES, OPTIMIZERS
from ..machine import pool
from . import full_batch
from .loop import RUN
from .models import VERBS, kind_of, trainer_of

TASKS = 64
"""Tasks of a launch, about: enough to balance a few threads, few enough to deal in no time."""


class Runs:
    """The runs of the models that are this process's own.

    Args:
        problem: A ``fastmlp.training.problem.Problem``: data, settings and state, as tensors and
            arrays that stay where they are.
    """

    def __init__(self, problem):
        self._problem = problem
        sizes = np.diff(problem.offsets)
        kinds = sorted({kind_of(s) for s in problem.structures})
        # longest first, so that the threads end together
        self._models = sorted(
            problem.own, key=lambda i: (kinds.index(kind_of(problem.structures[i])), -sizes[i])
        )
        self._alive = []  # what only the records point to
        self._sums = None  # of the data, made when a model wants them
        self._records = np.zeros(len(self._models), RUN)
        if self._models:
            self._fill()
        self._tasks = self._cut()

    def _fill(self):
        """Write the records: what all models share, what is each one's own, what its structure is.

        By columns: a record at a time took longer than a short run.
        """
        p, records, models = self._problem, self._records, np.array(self._models, np.int64)
        item, n_rows = p.x.element_size(), len(p.x)
        records["x"], records["y"] = p.x.data_ptr(), p.y.data_ptr()
        records["n_rows"] = n_rows
        records["n_in"], records["n_out"] = p.x[0].numel(), p.y[0].numel()
        records["batch_rows"] = p.batch_rows
        records["shuffle"], records["patience"] = p.shuffle, p.patience or 0
        records["optimizer"] = OPTIMIZERS.index(p.optimizer)
        records["loss"] = LOSSES.index(p.loss)
        if p.weight is not None:
            rows = models if len(p.weight) > 1 else 0
            records["weight"] = p.weight.data_ptr() + rows * n_rows * item
        if p.val_x is not None:
            records["val_x"], records["val_y"] = p.val_x.data_ptr(), p.val_y.data_ptr()
            records["n_val_rows"] = len(p.val_x)
        for name in ("states", "train_loss", "val_loss", "grad_norm"):
            array = getattr(p, name)
            if array is not None:
                field = "state" if name == "states" else name
                records[field] = array.ctypes.data + models * array.strides[0]
        for name in ("theta", "moment1", "moment2", "best"):
            buffer = getattr(p, name)
            if buffer is not None:
                records[name] = buffer.data_ptr() + p.offsets[models] * item
        records["n_parameters"] = (p.offsets[1:] - p.offsets[:-1])[models]
        records["seed"], records["stream"] = p.seeds[models], p.streams[models]
        for name, values in p.hyper.items():
            if name != "lr":  # each launch brings its own
                records[name] = values[models]
        places = {}
        for place, i in enumerate(self._models):
            places.setdefault(p.structures[i], []).append(place)
        for structure, group in places.items():
            for name, value in self._of_structure(structure, group[0]).items():
                records[name][group] = value

    def _of_structure(self, structure, place):
        """The fields that the structure of the model in that place decides."""
        p, record, verbs = self._problem, self._records[place], VERBS[kind_of(structure)]
        fields = {}
        for name, values, dtype in (
            ("segments", p.segments[self._models[place]], np.int64),
            ("sizes", structure.sizes, np.int64),
            ("constants", structure.constants, np.float64),
        ):
            values = np.ascontiguousarray(values, dtype).reshape(-1)
            self._alive.append(values)
            fields[name] = values.ctypes.data
            fields["n_" + name] = len(values) // (2 if name == "segments" else 1)
        n_in = int(record["n_in"])
        rows = verbs.block_rows(structure.sizes, n_in)
        fields["block_rows"] = min(rows, max(p.batch_rows, int(record["n_val_rows"])))
        fields["n_kept"] = verbs.n_kept(structure.sizes, n_in)
        fields["draws"] = structure.draws
        return fields | self._sums_of(self._models[place])

    def _sums_of(self, i):
        """Fields that have the steps take sums of all rows, where model and settings allow it."""
        p, net = self._problem, self._problem.univariate[i]
        whole = p.batch_rows == len(p.x) and p.loss == "mse" and p.weight is None
        if net is None or not whole or not full_batch.applies(p.x.numel(), net.widths):
            return {}
        if self._sums is None:
            if not bool(p.x.isfinite().all() & p.y.isfinite().all()):
                return {}
            self._sums = full_batch.FullBatch(p.x, p.y)
        widths = np.array(net.widths, np.int64)
        self._alive.append(widths)
        return {
            "sums": self._sums.data.data_ptr(),
            "widths": widths.ctypes.data,
            "n_widths": len(widths),
            "has_bias": net.has_bias,
            "alpha": net.negative_slope,
        }

    def _cut(self):
        """Tasks (kernel, first, last), each of one kind of model, the heaviest first."""
        if not self._models:
            return []
        n_in, batch = self._records["n_in"], self._records["batch_rows"]
        # relative cost of a step: what does not depend on the model is that of some 64 parameters
        costs = 64 + self._records["n_parameters"] * np.minimum(n_in * batch, 1 << 20)
        share = costs.sum() / TASKS
        compute = self._problem.x.dtype
        kinds = [kind_of(self._problem.structures[i]) for i in self._models]
        tasks, first = [], 0
        for last in range(1, len(self._models) + 1):
            full = costs[first:last].sum() >= share
            if full or last == len(kinds) or kinds[last] != kinds[first]:
                kernel = trainer_of(kinds[first])[compute]
                tasks.append((costs[first:last].sum(), kernel, first, last))
                first = last
        tasks.sort(key=lambda task: -task[0])
        return [task[1:] for task in tasks]

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[models, epochs of this launch]``.
        """
        rates = np.ascontiguousarray(rates)
        self._records["stop_step"], self._records["first_epoch"] = stop_step, first_epoch
        self._records["rates"] = rates.ctypes.data + rates.strides[0] * np.array(
            self._models, np.int64
        )
        at, tasks = self._records.ctypes.data, self._tasks

        def run(task):
            kernel, first, last = tasks[task]
            kernel(at, first, last)

        pool.run_pieces(run, len(tasks))
