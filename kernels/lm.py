"""What both wings of Levenberg–Marquardt share: codes and constants of the solver."""

from typing import NamedTuple


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
"""Choices of the solver; the code is the position."""

ACCEPT = ("descent", "always")
"""Which trials are taken; the code is the position."""

REASONS = ("", "zero", "ftol", "xtol", "gtol", "max_steps", "no_descent", "not_finite")
"""Why a run stopped; the code is the position."""

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
