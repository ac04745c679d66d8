"""Where to start a SineSum: frequencies from a matrix pencil."""

import math
import warnings
from typing import NamedTuple

import torch

from fastmlp.arguments import integer, number
from fastmlp.training.levenberg_marquardt import finite

__all__ = ["SpectralStart", "frequencies"]

_NOISE = 1e-13
"""Singular values below this fraction of the largest are taken for rounding."""
_EXPLAINED = 0.1
"""Relative error up to which an estimate counts as one: Levenberg–Marquardt then finds the rest."""


class SpectralStart(NamedTuple):
    """Frequencies of a mean of sines, and what was found on the way.

    Args:
        w: One frequency a sine, ``[width]``, float64, ascending by magnitude; negative where the
            sine enters with a minus sign.
        order: Distinct frequencies that the data show.
        resolved: Whether they are ``width`` and explain the data.
        residual: Root of the mean squared error that w leaves, relative to y's.
    """

    w: torch.Tensor
    order: int
    resolved: bool
    residual: float


def frequencies(
    x: torch.Tensor,
    y: torch.Tensor,
    width: int,
    *,
    scale: float = math.pi,
    max_frequency: float = 2.0,
) -> SpectralStart:
    """Estimate the frequencies of y = mean_i sin(scale·w_i·x), to start a :class:`SineSum`.

    y is odd, so each sample counts on both sides of 0. Where x is not uniform, or has a gap, y is
    first resampled: the least-squares sum of sines with frequencies up to ``max_frequency`` is
    evaluated on a uniform grid. For samples s_n of odd sines with angles θ_i a step,

    .. math:: M_{nm} = (s_{n+m} + s_{n-m}) / 2 = \\sum_i a_i \\sin(θ_i n) \\cos(θ_i m),

    and the mean of its neighbours in m is the same with a_i·cos θ_i: the angles come out of a
    pencil of two matrices, their number out of the singular values. The amplitudes, by least
    squares, are rounded to multiples of 1/width: how often a frequency occurs, and with which sign.
    Continue with :class:`fastmlp.LevenbergMarquardt`, which takes the estimate to rounding.

    Args:
        x: Inputs, any shape, floating point.
        y: Targets, shape of x.
        width: Number of sines.
        scale: As in :class:`SineSum`.
        max_frequency: Bound on \\|w\\|; SineSum draws its w below 2.

    Returns:
        A :class:`SpectralStart`. A warning says so when the window does not resolve the
        frequencies: when fewer than ``width`` are seen, or they do not explain the data.

    Raises:
        TypeError: An argument of another type.
        ValueError: NaN or infinity, shapes that differ, too few samples, y zero everywhere.

    Source: matrix pencil, Hua and Sarkar 1990, IEEE Trans. ASSP 38(5), in the form for odd signals.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-4, 4, 60, dtype=torch.float64)
        >>> y = ((0.5 * torch.pi * x).sin() + (1.25 * torch.pi * x).sin()) / 2
        >>> fastmlp.spectral.frequencies(x, y, 2).w
        tensor([0.5000, 1.2500], dtype=torch.float64)
    """
    width = integer("width", width, 1)
    scale, max_frequency = number("scale", scale), number("max_frequency", max_frequency)
    if scale == 0 or max_frequency <= 0:
        raise ValueError(
            "scale must not be 0 and max_frequency positive, "
            f"got scale = {scale} and max_frequency = {max_frequency}"
        )
    x, y = finite("x", x), finite("y", y)
    if x.shape != y.shape:
        raise ValueError(f"y must have the shape of x, {list(x.shape)}, got {list(y.shape)}")
    x, y = (t.double().cpu().reshape(-1) for t in (x, y))
    if len(x.abs().unique()) < width:
        raise ValueError(f"{width} frequencies need as many distinct |x|, got {len(x)} samples")
    if not bool(y.any()):
        raise ValueError("y must not be zero everywhere")
    best = None
    values, pencil, step = _pencil(x, y, width, abs(scale) * max_frequency)
    seen = int((values > 1e3 * _NOISE * values[0]).sum())
    for order in range(1, min(width, int((values > _NOISE * values[0]).sum())) + 1):
        angles = pencil(order)
        w, residual = _to_width(x, y, angles / (step * scale), width, scale)
        if best is None or residual < 0.99 * best[1]:
            best = w, residual, order
    assert best is not None  # y is not zero: one order at least
    w, residual, order = best
    w = w[w.abs().argsort()]
    resolved = order == width and residual < _EXPLAINED
    if not resolved:
        reach = float(x.abs().max())
        warnings.warn(
            f"the window |x| ≤ {reach:g} does not resolve {width} frequencies: "
            f"{min(seen, order)} are seen, frequencies closer than about "
            f"{math.pi / (abs(scale) * reach):.2g} merge, and the estimate leaves "
            f"{residual:.1e} of y",
            stacklevel=2,
        )
    return SpectralStart(w, order, resolved, residual)


def _pencil(x, y, width, largest):
    """Singular values of M, the angles for a given order, and the grid's step.

    ``largest`` is the highest angular frequency, radians per unit of x.
    """
    reach = float(x.abs().max())
    # M and its neighbours need n + m up to 2·(width + 3); an angle a step stays below 0.9 π
    rows = width + 3
    n_grid = max(2 * rows + 1, math.ceil(reach * largest / (0.9 * math.pi)))
    rows = (n_grid - 1) // 2
    step = reach / n_grid
    # sines denser than the window tells apart represent every odd signal of this band
    n_basis = math.ceil(4 * reach * largest / math.pi) + 8
    basis = torch.linspace(0, 1.05 * largest, n_basis + 1, dtype=torch.float64, device="cpu")[1:]
    matrix = torch.sin(x[:, None] * basis)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    keep = values > _NOISE * values[0]
    weights = v[keep].T @ ((u[:, keep].T @ y) / values[keep])
    n = torch.arange(-n_grid, n_grid + 1, dtype=torch.float64, device="cpu")
    samples = torch.sin(step * n[:, None] * basis) @ weights
    column = torch.arange(rows, device="cpu")[None]
    row = 1 + column.T

    def at(m):
        return (samples[n_grid + row + m] + samples[n_grid + row - m]) / 2

    u, values, v = torch.linalg.svd(at(column))
    shifted = (at(column + 1) + at(column - 1)) / 2

    def angles(order):
        root = values[:order].sqrt()
        small = (u[:, :order].T @ shifted @ v[:order].T) / (root[:, None] * root)
        return torch.linalg.eigvals(small).real.clamp(-1, 1).arccos()

    return values, angles, step


def _to_width(x, y, found, width, scale):
    """Repeat or drop frequencies so that a plain mean of ``width`` sines fits best."""
    matrix = torch.sin(scale * x[:, None] * found)
    amplitudes = torch.linalg.lstsq(matrix, y[:, None], driver="gelsd").solution[:, 0]
    share = amplitudes * width
    times = share.abs().round()
    # as many sines as there are: the frequencies whose rounding costs least give way
    while times.sum() > width:
        excess = torch.where(times > 0, times - share.abs(), -math.inf)
        times[excess.argmax()] -= 1
    w = []
    # two equal frequencies would stay equal: they start apart by a part of the resolution
    apart = 0.1 * math.pi / (abs(scale) * float(x.abs().max()))
    for frequency, sign, count in zip(
        found.tolist(), share.sign().tolist(), times.int().tolist(), strict=True
    ):
        for i in range(count):
            w.append(sign * abs(frequency + apart * (i - (count - 1) / 2)))
    # sines that nothing asks for: a frequency near 0 adds next to nothing
    w += [apart * 0.1 * (i + 1) for i in range(width - len(w))]
    w = torch.tensor(w, dtype=torch.float64, device="cpu")
    error = torch.sin(scale * x[:, None] * w).mean(1) - y
    return w, float(error.norm() / y.norm())
