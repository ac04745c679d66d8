"""Whole training runs: :func:`fastmlp.fit`, its settings and its results."""

from fastmlp.training.fit import fit
from fastmlp.training.levenberg_marquardt import LevenbergMarquardt
from fastmlp.training.order import batch_order
from fastmlp.training.result import FitResult
from fastmlp.training.settings import SGD, Adam, AdamW, CosineAnnealingLR, StepLR

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "FitResult",
    "LevenbergMarquardt",
    "StepLR",
    "batch_order",
    "fit",
]
