"""The driver of SGD, Adam and AdamW: launches of a fraction of a second, on any backend."""

import importlib
import time

import numpy as np

from fastmlp import backends
from fastmlp.kernels.runs import FINISHED, RUNNING, NoVerb, pick

_RUNS = {
    "torch": "fastmlp.training.loop",
    "numba": "fastmlp.kernels.cpu.runs",
    "triton": "fastmlp.kernels.gpu.runs",
}

LAUNCH_SECONDS = 0.1
"""What a launch should take: soon enough for Ctrl-C and a progress bar, long beside its cost."""

FIRST_STEPS = 1
"""Steps of the first launch, whose time is not known yet."""


def run(problem, report):
    """Train the models of a problem; a model that stops by itself leaves the others alone.

    Args:
        problem: A :class:`fastmlp.training.problem.Problem`; its buffers are written.
        report: Function without arguments, called after every launch.
    """
    backend = backends.choose(problem.data.x.device.type)
    runs = importlib.import_module(_RUNS[backend]).Runs
    # PyTorch calls the modules themselves
    job = problem if backend == "torch" else problem.job()
    # models of one structure and size together, the largest first
    sizes = np.diff(problem.members.offsets)[problem.here]
    order = np.lexsort((problem.members.kinds[problem.here], -sizes))
    stride, here = FIRST_STEPS, problem.here[order]
    at_once = runs.at_once or max(len(here), 1)
    for first in range(0, len(here), at_once):
        models = np.sort(here[first : first + at_once])
        try:
            some = runs(job, models)
        except NoVerb as error:
            members, i = problem.members, error.model
            raise ValueError(
                f"{members.label(i)}, {members.module(i)}, has no training kernel on the backend "
                f'"{backend}": {error}; fastmlp.backend("numba") trains it on the CPU'
            ) from None
        stride = _run_some(problem, some, models, stride, report)


def _run_some(problem, runs, models, stride, report):
    """Train some models to their ends; returns how many steps a launch took."""
    states = problem.states
    per_epoch = np.broadcast_to(pick(problem.steps_per_epoch, models), len(models))
    while True:
        running = states["status"][models] == RUNNING
        steps = np.where(running, states["step"][models], 0)
        running &= steps < problem.epochs * per_epoch
        if not running.any():
            break
        start = int(steps[running].min())
        stop = start + stride
        last = np.minimum(np.maximum(stop - 1, steps), problem.epochs * per_epoch - 1)
        first_epoch = int((steps // per_epoch)[running].min())
        last_epoch = int((last // per_epoch)[running].max())
        rates = problem.rates(models, first_epoch, last_epoch + 1)
        began = time.perf_counter()
        runs.advance(stop, first_epoch, rates)
        seconds = time.perf_counter() - began
        report()
        factor = LAUNCH_SECONDS / max(seconds, 1e-6)
        stride = max(1, int(stride * min(max(factor, 0.25), 16.0)))
    done = states["status"][models] == RUNNING
    states["status"][models[done]] = FINISHED
    return stride
