"""The runs of many models: small ones a model a lane of vectors, the others a model at a time."""

import numpy as np

from ..runs import different, pick
from .lanes.models import is_small
from .lanes.runs import LaneRuns
from .machine import pool
from .training.runs import RowRuns, takes_sums


def _are_small(job, models):
    """Which models are trained a model a lane: by the structure and its rows alone.

    A model's numbers must not depend on how many there are.
    """
    small = np.zeros(len(models), bool)
    rows = np.empty((len(models), 2), np.int64)
    rows[:, 0], rows[:, 1] = pick(job.data.count, models), pick(job.batch_rows, models)
    kinds, n_in = job.kinds[models], job.data.x[0].numel()
    for kind in np.unique(kinds).tolist():
        places = np.flatnonzero(kinds == kind)
        known, which = different(*rows[places].T)
        fit = [is_small(job.structures[kind], n_in, *counts) for counts in known.tolist()]
        sums = takes_sums(job, job.structures[kind], models[places])
        small[places] = np.array(fit)[which] & ~sums
    return small


class Runs:
    """The runs of some models, side by side.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64.
    """

    at_once = 1 << 14
    """Models that are trained side by side; then come the next. All data that they need stays near,
    and the records of a launch are a few megabytes."""

    def __init__(self, job, models):
        small = _are_small(job, models)
        self._parts = []
        for runs, places in ((LaneRuns, small.nonzero()[0]), (RowRuns, (~small).nonzero()[0])):
            if len(places):
                self._parts.append((runs(job, models[places]), places))

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[1 or models, epochs of this launch]``.
        """
        tasks, kept = [], []
        for part, places in self._parts:
            chosen = np.ascontiguousarray(rates[places] if len(rates) > 1 else rates)
            kept.append(chosen)  # the tasks have addresses alone
            tasks += part.tasks(stop_step, first_epoch, chosen)
        pool.run_pieces(lambda task: tasks[task](), len(tasks))
