"""What both wings of Levenberg–Marquardt share: codes and constants of the solver."""

import math
from typing import NamedTuple

import numpy as np

DATA = np.dtype(
    [
        (name, np.int64)
        for name in (
            "x",  # address of the first row; of x sorted, where segments are summed up
            "x_is_double",
            "y",
            "y_is_double",
            "weight",  # address of the roots of the rows' weights, or 0
            "sums",  # address of prefix sums
            "centre",  # address of what x and y are centred at in them
            "n_sorted",  # rows that are summed up; 0 where they are taken one by one
            "n_rows",  # 1 where they are summed up: all are one piece then
            "piece_rows",
        )
    ]
)
"""The rows of a run, as the CPU wing finds them in memory."""


class Limits(NamedTuple):
    """Numbers of a run, as its settings have them; the damping is that of the first trial."""

    ftol: float
    xtol: float
    gtol: float
    damping: float
    scale_floor: float
    step: float


class Choices(NamedTuple):
    """Choices of a run: places in the tables below, and how many parameters to project out."""

    solver: int
    max_steps: int
    max_attempts: int
    n_readout: int
    accept: int


SOLVERS = ("cholesky", "qr", "auto")
CHOLESKY, WITH_QR, AUTO = range(len(SOLVERS))
"""Choices of the solver; the code is the position."""

ACCEPT = ("descent", "always")
"""Which trials are taken; the code is the position."""

REASONS = ("", "zero", "ftol", "xtol", "gtol", "max_steps", "no_descent", "not_finite")
ZERO, FTOL, XTOL, GTOL, MAX_STEPS, NO_DESCENT, NOT_FINITE = range(1, len(REASONS))
"""Why a run stopped; the code is the position, 0 that of a run that goes on."""

MIN_DAMPING = (1e-14, 1e-20)
"""Of Cholesky and of QR: below it rounding has the say in directions that J does not see."""

MIN_GAIN = 1e-4
"""A trial is taken if the loss falls by more than this fraction of what was predicted."""

FASTEST_DECREASE = 1 / 3
"""Of the damping after a step."""

UNSEEN = 1e-10
"""Singular values below, of a matrix with columns of norm 1, count as 0."""

MAX_WIDTH = 128
"""Widest layer that the Triton kernels take: weights are factors of products on chip."""


def verdict(where):
    """What is made of a trial, for one run or for many: both solvers decide by this.

    Args:
        where: ``where(condition, a, b)`` of numbers, or of tensors.

    Returns:
        A function of the sum of squares before and after a trial, the fall that was predicted, the
        scaled length of the step and of the parameters, ftol and xtol. It returns whether the trial
        is taken, whether it shows that the loss is flat, whether the step is short, and what the
        damping of a trial that is taken is multiplied by.
    """

    def judge(sse, new, predicted, moved, size, ftol, xtol):
        gain = where(predicted > 0, (sse - new) / predicted, 0.0)
        taken = gain > MIN_GAIN  # false for NaN
        bound = ftol * sse
        flat = (abs(sse - new) <= bound) & (predicted <= bound) & (gain <= 2)
        short = moved <= xtol * size
        bent = 2.0 * where(gain < 1.0, gain, 1.0) - 1.0
        decrease = 1.0 - bent * bent * bent
        return taken, flat, short, where(decrease > FASTEST_DECREASE, decrease, FASTEST_DECREASE)

    return judge


def ending(where):
    """Why a run is over after a trial, for one run or for many.

    Args:
        where: As :func:`verdict` takes it.

    Returns:
        A function of whether the loss is flat, the step short and the patience at its end, that
        returns the reason's code.
    """

    def end(flat, short, tired):
        return where(flat, FTOL, where(short, XTOL, where(tired, NO_DESCENT, 0)))

    return end


def standing(where):
    """Why a run is over where it stands, before a trial, for one run or for many.

    Args:
        where: As :func:`verdict` takes it.

    Returns:
        A function of the sum of squares, its root, the squared norm of half its gradient, the
        largest cosine of residuals and columns times that root, gtol, the steps taken and the most
        of them, that returns the reason's code.
    """

    def stand(sse, root, size, slope, gtol, steps, max_steps):
        reason = where(slope <= gtol * root, GTOL, where(steps >= max_steps, MAX_STEPS, 0))
        return where(sse + size < math.inf, where(sse == 0, ZERO, reason), NOT_FINITE)

    return stand


def changes(choice, solver):
    """Whether what JᵀJ says of the end, or cannot solve, is for QR to confirm."""
    return (choice == AUTO) & (solver == CHOLESKY)


def refused(damping, growth, attempts):
    """Damping, its growth and the count of attempts after a trial that was not taken."""
    return damping * growth, 2.0 * growth, attempts + 1


def undone(damping, attempts):
    """The damping before so many trials in a row were refused; float64."""
    return damping * 0.5 ** (attempts * (attempts + 1) / 2)
