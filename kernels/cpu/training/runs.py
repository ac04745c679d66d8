"""The runs of many models: their records, and the tasks that the threads are dealt."""

import itertools
from functools import cache, partial

import numpy as np

from ...runs import LOSSES, OPTIMIZERS, pick
from ..models import VERBS, kind_of, univariate_of
from . import full_batch
from .loop import RUN, trainer

TASKS = 64
"""Tasks of a launch, about: enough to balance a few threads, few enough to deal in no time."""


def takes_sums(job, structure, models):
    """Of which models of one structure the steps can take sums of all rows: see `full_batch.py`.

    Args:
        job: A :class:`.runs.Job`.
        structure: Theirs.
        models: Their indices.
    """
    data, net = job.data, univariate_of(structure)
    counts = np.broadcast_to(pick(data.count, models), len(models))
    whole = pick(job.batch_rows, models) == counts
    if net is None or job.loss != "mse" or data.weight is not None:
        return np.zeros(len(models), bool)
    different, which = np.unique(counts, return_inverse=True)
    n_in = data.x[0].numel()
    pay = [full_batch.applies(n * n_in, net.widths) for n in different.tolist()]
    return whole & np.array(pay)[which]


@cache
def trainer_of(kind):
    """Compute dtype to the compiled trainer of one kind of model."""
    verbs = VERBS[kind]
    return trainer(verbs.forward, verbs.backward, verbs.has_sums)


class RowRuns:
    """The runs of some models, side by side, a model at a time.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64.
    """

    def __init__(self, job, models):
        self._job = job
        sizes, kinds = np.diff(job.offsets)[models], job.kinds[models]
        names = [kind_of(s) for s in job.structures]
        order = {name: place for place, name in enumerate(sorted({*names}))}
        self._verbs = np.array([order[name] for name in names])[kinds]
        # longest first, so that the threads end together
        places = np.lexsort((models, kinds, -sizes, self._verbs))
        self._models, self._places, self._verbs = models[places], places, self._verbs[places]
        self._alive = []  # what only the records point to
        self._sums = {}  # of the rows at an address, made when a model wants them
        self._records = np.zeros(len(models), RUN)
        self._fill()
        self._tasks = self._cut(list(order))

    def _fill(self):
        """Write the records: what all models share, what is each one's own, what its structure is.

        By columns: a record at a time took longer than a short run.
        """
        job, records, models = self._job, self._records, self._models
        self._fill_rows(job.data, "", "n_rows")
        if job.validation is not None:
            self._fill_rows(job.validation, "val_", "n_val_rows")
        item = job.data.x.element_size()
        records["n_in"], records["n_out"] = job.data.x[0].numel(), job.data.y[0].numel()
        records["batch_rows"] = pick(job.batch_rows, models)
        records["shuffle"], records["patience"] = pick(job.shuffle, models), job.patience or 0
        records["optimizer"] = OPTIMIZERS.index(job.optimizer)
        records["loss"] = LOSSES.index(job.loss)
        records["every"] = job.every
        for name in ("states", "train_loss", "val_loss", "grad_norm"):
            array = getattr(job, name)
            if array is not None:
                field = "state" if name == "states" else name
                records[field] = array.ctypes.data + models * array.strides[0]
        offsets = job.offsets
        for name in ("theta", "moment1", "moment2", "best"):
            buffer = getattr(job, name)
            if buffer is not None:
                records[name] = buffer.data_ptr() + offsets[models] * item
        records["n_parameters"] = (offsets[1:] - offsets[:-1])[models]
        records["seed"], records["stream"] = job.seeds[models], job.streams[models]
        for name, values in job.hyper.items():
            if name != "lr":  # each launch brings its own
                records[name] = values[models]
        kinds = job.kinds[models]
        for kind in np.unique(kinds):
            self._fill_structure(int(kind), np.flatnonzero(kinds == kind))

    def _fill_rows(self, rows, prefix, n_rows):
        """Where the rows of each model lie."""
        records, models = self._records, self._models
        first = pick(rows.first, models)
        for name, tensor in (("x", rows.x), ("y", rows.y)):
            row_bytes = tensor[0].numel() * tensor.element_size()
            records[prefix + name] = tensor.data_ptr() + first * row_bytes
        if rows.weight is not None:
            at = pick(rows.first_weight, models) * rows.weight.element_size()
            records[prefix + "weight"] = rows.weight.data_ptr() + at
        records[n_rows] = pick(rows.count, models)

    def _fill_structure(self, kind, places):
        """The fields that the structure of the models in some places decides."""
        structure, records = self._job.structures[kind], self._records
        record = records[places[0]]
        verbs = VERBS[kind_of(structure)]
        for name, values, dtype in (
            ("trained", structure.trained_parts, np.int64),
            ("sizes", structure.sizes, np.int64),
            ("constants", structure.constants, np.float64),
        ):
            values = np.ascontiguousarray(values, dtype).reshape(-1)
            self._alive.append(values)
            records[name][places] = values.ctypes.data
            records["n_" + name][places] = len(values) // (2 if name == "trained" else 1)
        n_in = int(record["n_in"])
        rows = np.maximum(records["batch_rows"][places], records["n_val_rows"][places])
        records["block_rows"][places] = np.minimum(verbs.block_rows(structure.sizes, n_in), rows)
        records["n_kept"][places] = verbs.n_kept(structure.sizes, n_in)
        records["draws"][places] = structure.draws
        self._fill_sums(structure, places)

    def _fill_sums(self, structure, places):
        """Fields that have the steps take sums of all rows, where model and settings allow it."""
        job, records = self._job, self._records
        places = places[takes_sums(job, structure, self._models[places])]
        if len(places) == 0:
            return
        net = univariate_of(structure)
        widths = np.array(net.widths, np.int64)
        self._alive.append(widths)
        for name, value in (
            ("widths", widths.ctypes.data),
            ("n_widths", len(widths)),
            ("has_bias", net.has_bias),
            ("alpha", net.negative_slope),
        ):
            records[name][places] = value
        for place in places.tolist():
            rows = int(records["x"][place]), int(records["n_rows"][place])
            if rows not in self._sums:
                x, y, _ = job.data.of(self._models[place])
                finite = bool(x.isfinite().all() & y.isfinite().all())
                self._sums[rows] = full_batch.FullBatch(x, y) if finite else None
            if self._sums[rows] is not None:
                records["sums"][place] = self._sums[rows].data.data_ptr()

    def _cut(self, kinds):
        """Tasks (kernel, first, last), each of one kind of model, the heaviest first."""
        n_in, batch = self._records["n_in"], self._records["batch_rows"]
        # relative cost of a step: what does not depend on the model is that of some 64 parameters
        costs = 64 + self._records["n_parameters"] * np.minimum(n_in * batch, 1 << 20)
        total = np.cumsum(costs)
        share, compute = -(-int(total[-1]) // TASKS), self._job.data.x.dtype
        # where a kind ends, and inside of one where the sum passes another share
        parts = (total - 1) // share
        ends = np.flatnonzero((np.diff(self._verbs) != 0) | (np.diff(parts) != 0)) + 1
        edges = [0, *ends.tolist(), len(costs)]
        tasks = []
        for first, last in itertools.pairwise(edges):
            kernel = trainer_of(kinds[self._verbs[first]])[compute]
            tasks.append((costs[first:last].sum(), kernel, first, last))
        tasks.sort(key=lambda task: -task[0])
        return [task[1:] for task in tasks]

    def tasks(self, stop_step, first_epoch, rates):
        """Functions that advance all that still run to ``stop_step``, to be called once each.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[1 or models, epochs of this launch]``, contiguous.
        """
        self._records["stop_step"] = np.minimum(stop_step, pick(self._job.n_steps, self._models))
        self._records["first_epoch"] = first_epoch
        places = self._places if len(rates) > 1 else 0
        self._records["rates"] = rates.ctypes.data + rates.strides[0] * places
        at = self._records.ctypes.data
        return [partial(kernel, at, first, last) for kernel, first, last in self._tasks]
