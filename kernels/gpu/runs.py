"""The runs of many models: small ones a model a lane, the others a program each."""

import contextlib

import torch

from .lanes.runs import LaneRuns, are_small
from .machine.launch import device_of
from .training.runs import ProgramRuns
from .training.tables import Tables


class Runs:
    """The runs of some models, side by side.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64.
    """

    at_once = None
    """Models that are trained side by side: all."""

    def __init__(self, job, models):
        self._x, self._tables = job.data.x, Tables(job)
        small = are_small(job, models)
        self._parts = [
            runs(job, some, self._tables)
            for runs, some in ((LaneRuns, models[small]), (ProgramRuns, models[~small]))
            if len(some)
        ]

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[1 or models, epochs of this launch]``.
        """
        with device_of(self._x):
            self._tables.bring(rates)
            # what they read stays until all have ended: streams do not know of each other's memory
            launches = [go for part in self._parts for go in part.launches(stop_step, first_epoch)]
            with side_by_side(self._x, len(launches)) as streams:
                for launch, stream in zip(launches, streams, strict=True):
                    with stream:
                        launch()
            self._tables.fetch()


@contextlib.contextmanager
def side_by_side(x, n):
    """Contexts for ``n`` launches that do not wait for each other; what follows waits for all.

    A structure of a few models leaves most of a device idle.
    """
    if not x.is_cuda:
        yield [contextlib.nullcontext()] * n
        return
    current = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in range(n)]
    for stream in streams:
        stream.wait_stream(current)
    yield [torch.cuda.stream(stream) for stream in streams]
    for stream in streams:
        current.wait_stream(stream)
