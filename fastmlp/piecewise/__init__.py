"""The exact piecewise-linear view of a univariate ReLU net, whatever its depth.

A subnet R → R of Linear, ReLU and LeakyReLU layers is a continuous piecewise-linear function. Here
its segments are found exactly, not by sampling, and used: to look at what was learned, to count
what is used, and to evaluate a wide or deep net at the cost of a search.
"""

from fastmlp.piecewise.floor import error_floor
from fastmlp.piecewise.frozen import FrozenPiecewiseLinear, freeze
from fastmlp.piecewise.nets import dead_units, from_module
from fastmlp.piecewise.table import PiecewiseLinear, Segment

__all__ = [
    "FrozenPiecewiseLinear",
    "PiecewiseLinear",
    "Segment",
    "dead_units",
    "error_floor",
    "freeze",
    "from_module",
]
