"""Compact MLPs for PyTorch at the speed of the hardware."""

try:
    import fastmlp.kernels  # noqa: F401
except ModuleNotFoundError as err:
    if err.name != "fastmlp.kernels":
        raise
    raise ImportError("this checkout is not installed: run `pip install -e .` in it") from err

from fastmlp import convert, functional, optim, piecewise, plotting, reference, spectral, training
from fastmlp.backends import backend
from fastmlp.convert import fuse, unfuse
from fastmlp.diagnostics import dropout_report
from fastmlp.explanation import explain
from fastmlp.modules.additive_mlp import AdditiveMLP
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sine_sum import SineSum
from fastmlp.training import (
    SGD,
    Adam,
    AdamW,
    CosineAnnealingLR,
    FitResult,
    LevenbergMarquardt,
    StepLR,
    fit,
)

__all__ = [
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "AdditiveMLP",
    "CosineAnnealingLR",
    "ElementwiseMLP",
    "FitResult",
    "LevenbergMarquardt",
    "SineSum",
    "StepLR",
    "backend",
    "convert",
    "dropout_report",
    "explain",
    "fit",
    "functional",
    "fuse",
    "optim",
    "piecewise",
    "plotting",
    "reference",
    "spectral",
    "training",
    "unfuse",
]
__version__ = "0.1.0"
