"""A table of lines."""

import torch

from fastmlp.reference.functions import promote


def piecewise_linear(
    x: torch.Tensor,
    breakpoints: torch.Tensor,
    anchors: torch.Tensor,
    values: torch.Tensor,
    slopes: torch.Tensor,
) -> torch.Tensor:
    """Evaluate a table of lines: the segment of every element, then its line.

    .. math:: y = v_s + p_s (x - a_s), \\quad t_{s-1} < x \\le t_s

    Args:
        x: Input. Any shape, floating point.
        breakpoints: The ``t``, increasing. Shape ``[K]``.
        anchors: The ``a``. Shape ``[K + 1]``.
        values: The ``v``. Shape ``[K + 1]``, or ``[K + 1, M]`` for M outputs.
        slopes: The ``p``. Shape of ``values``.

    Returns:
        Output. Shape of ``x``, or ``[*, M]``; the promoted dtype of all arguments.
    """
    x, breakpoints, anchors, values, slopes = promote(x, breakpoints, anchors, values, slopes)
    segment = torch.searchsorted(breakpoints, x.detach().contiguous())
    distance = x - anchors[segment]
    if values.dim() == 2:
        distance = distance.unsqueeze(-1)
    return values[segment] + slopes[segment] * distance
