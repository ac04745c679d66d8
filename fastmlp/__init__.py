"""Compact MLPs for PyTorch at the speed of the hardware."""

try:
    import fastmlp.kernels  # noqa: F401
except ModuleNotFoundError as err:
    if err.name != "fastmlp.kernels":
        raise
    from importlib.util import find_spec
    from pathlib import Path

    if find_spec("torch") is None:
        raise ImportError("this checkout is not installed: run `pip install -e .` in it") from err
    # a checkout that hides an installed package, as for `python -m fastmlp` in it: kernels/ lies
    # beside this folder
    __path__.append(str(Path(__file__).parents[1]))

from fastmlp import convert, functional, optim, piecewise, plotting, reference, spectral, training
from fastmlp.ahead import warm_up
from fastmlp.backends import backend
from fastmlp.convert import fuse, unfuse
from fastmlp.diagnostics import dropout_report
from fastmlp.ensemble import Ensemble
from fastmlp.explanation import explain
from fastmlp.graphs import graphed
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
    "Ensemble",
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
    "graphed",
    "optim",
    "piecewise",
    "plotting",
    "reference",
    "spectral",
    "training",
    "unfuse",
    "warm_up",
]
__version__ = "0.1.0"
