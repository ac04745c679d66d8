"""The driver of SGD, Adam and AdamW: launches of a fraction of a second, on any backend."""

import importlib
import time

import numpy as np

from fastmlp import backends
from fastmlp.kernels.runs import FINISHED, RUNNING

_RUNS = {
    "torch": "fastmlp.training.loop",
    "numba": "fastmlp.kernels.cpu.training.runs",
    "triton": "fastmlp.kernels.gpu.training.runs",
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
    backend = backends.choose(problem.x.device.type)
    runs = importlib.import_module(_RUNS[backend]).Runs(problem)
    states, per_epoch = problem.states, problem.steps_per_epoch
    own = np.array(problem.own, np.int64)
    stride = max(1, min(FIRST_STEPS, per_epoch))
    while True:
        steps = states["step"][own[states["status"][own] == RUNNING]]
        steps = steps[steps < problem.n_steps]
        if len(steps) == 0:
            break
        start = int(steps.min())
        stop = min(problem.n_steps, start + stride)
        first_epoch, last_epoch = start // per_epoch, int(max(stop - 1, steps.max())) // per_epoch
        began = time.perf_counter()
        runs.advance(stop, first_epoch, problem.rates(first_epoch, last_epoch + 1))
        seconds = time.perf_counter() - began
        report()
        factor = LAUNCH_SECONDS / max(seconds, 1e-6)
        stride = max(1, int(stride * min(max(factor, 0.25), 16.0)))
    done = (states["status"] == RUNNING) & (states["step"] >= problem.n_steps)
    states["status"][done] = FINISHED
