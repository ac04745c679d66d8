"""The best that a piecewise-linear function with K pieces can do."""

import math
from collections.abc import Callable

import numpy as np
import torch

from fastmlp.arguments import integer
from fastmlp.piecewise.table import check_interval

_PANELS = 1 << 14
# quadrature on half the panels must agree to this, or the integral is taken to diverge
_QUADRATURE_TOLERANCE = 1e-3


@torch.inference_mode(False)
def error_floor(
    f: Callable[[torch.Tensor], torch.Tensor], lo: float, hi: float, pieces: int
) -> float:
    """The smallest L2 error of a continuous piecewise-linear fit with K pieces, asymptotically.

    .. math:: \\min_g \\Big(\\int_{lo}^{hi} (f - g)^2 dx\\Big)^{1/2}
        \\approx \\frac{1}{\\sqrt{720}\\,K^2} \\Big(\\int_{lo}^{hi} |f''|^{2/5} dx\\Big)^{5/2}

    The knots are where they are best. Exact for x² and every K; otherwise the limit of large K.
    Divide by √(hi − lo) for the root mean square.

    Args:
        f: Function of a float64 tensor, elementwise and twice differentiable by autograd.
        lo: Lower end of the interval.
        hi: Upper end, above ``lo``.
        pieces: K, at least 1.

    Returns:
        The error, a float, in units of f·√x.

    Raises:
        TypeError: ``pieces`` is no int.
        ValueError: ``lo`` ≥ ``hi``, ``pieces`` below 1, or an integral that does not converge, as
            for 1/x across 0.

    Source: de Boor, A Practical Guide to Splines, chapter III, on knots by the curvature; the
    constant from the best line on one piece of x², whose error has the variance h⁴/180.

    Example:
        >>> round(error_floor(torch.square, -5.0, 8.0, 15) ** 2 / 13, 7)  # h⁴/180, h = 13/15
        0.0031343
    """
    lo, hi = check_interval((lo, hi), finite=True)
    pieces = integer("pieces", pieces, 1)
    coarse, fine = (_curvature_integral(f, lo, hi, n) for n in (_PANELS // 2, _PANELS))
    if not (math.isfinite(fine) and abs(fine - coarse) <= _QUADRATURE_TOLERANCE * abs(fine)):
        raise ValueError(
            f"the integral of |f''|^(2/5) does not converge on ({lo}, {hi}): is f smooth there?"
        )
    return fine**2.5 / (math.sqrt(720) * pieces**2)


def _curvature_integral(f, lo, hi, panels):
    """∫ |f''|^(2/5) dx by Gauss' rule with four points a panel."""
    points, weights = np.polynomial.legendre.leggauss(4)
    edges = np.linspace(lo, hi, panels + 1)
    half = 0.5 * np.diff(edges)[:, None]
    x = torch.from_numpy((edges[:-1, None] + half * (1 + points)).ravel()).requires_grad_()
    with torch.enable_grad():
        y = f(x)
        slope = _derivative(y, x)
        curvature = _derivative(slope, x)
    density = curvature.detach().abs().pow(0.4).numpy().reshape(panels, -1)
    return float((density * weights * half).sum())


def _derivative(y, x):
    if not y.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(
        y.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient
