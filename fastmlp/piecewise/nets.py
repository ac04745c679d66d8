"""Tables and counts from modules."""

import torch

from fastmlp.piecewise.layers import steps_of
from fastmlp.piecewise.table import PiecewiseLinear, check_interval
from fastmlp.piecewise.trace import Trace


def from_module(
    module: torch.nn.Module, *, interval: tuple[float, float] | None = None
) -> PiecewiseLinear:
    """The exact table of a univariate net of Linear, ReLU and LeakyReLU layers, of any depth.

    A breakpoint is where the activation pattern changes: where a hidden unit's pre-activation
    changes sign. So a unit with outgoing weight 0, or kinks that cancel, leave a breakpoint at
    which the function does not bend; :meth:`PiecewiseLinear.merged` drops those. Breakpoints that
    float64 cannot tell apart are one.

    Args:
        module: :class:`fastmlp.ElementwiseMLP`, :class:`fastmlp.MLP` with one input, or an
            ``nn.Sequential`` of Linear, ReLU, LeakyReLU, Identity and Dropout layers (in eval
            mode), nested or not; one input, any number of outputs. Dtype and device do not matter.
        interval: ``(lo, hi)``, where alone the function is wanted; default: the whole line.

    Returns:
        :class:`PiecewiseLinear`, computed in float64; it shares nothing with the module.

    Raises:
        TypeError: No module, or a layer that is not piecewise linear.
        ValueError: Several inputs, a parameter that is NaN or infinite, ``lo`` ≥ ``hi``, dropout in
            training mode, hooks.

    Source: the segments of a layer are those of the layer before, cut where its units change sign;
    Montufar et al. 2014, arXiv:1402.1869, section 2.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1))
        >>> _ = [torch.nn.init.ones_(p) for p in net.parameters()]
        >>> table = from_module(net)
        >>> table.breakpoints, table.slopes
        (tensor([-1.], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))
    """
    lo, hi = check_interval(interval)
    trace = Trace(lo, hi).run(steps_of(module))
    breakpoints, slopes, values = (torch.from_numpy(part.copy()) for part in trace.table())
    if slopes.shape[1] == 1:
        slopes, values = slopes.squeeze(1), values.squeeze(1)
    return PiecewiseLinear(breakpoints, slopes, values, interval=(lo, hi))


def dead_units(module: torch.nn.Module, lo: float, hi: float) -> list[torch.Tensor]:
    """Which hidden units put out 0 on a whole interval.

    Args:
        module: As for :func:`from_module`.
        lo: Lower end of the interval.
        hi: Upper end, above ``lo``.

    Returns:
        A list with one bool tensor per ReLU or LeakyReLU layer, in order: True for a unit whose
        pre-activation is nowhere positive on [lo, hi]. A unit of LeakyReLU is never dead, unless
        its negative slope is 0.

    Raises:
        TypeError, ValueError: As for :func:`from_module`.

    Example:
        >>> import torch, fastmlp
        >>> net = fastmlp.ElementwiseMLP(3)
        >>> with torch.no_grad():
        ...     _ = net.fc1.weight.fill_(1.0), net.fc1.bias.copy_(torch.tensor([0.0, -5.0, 5.0]))
        >>> dead_units(net, -1, 1)
        [tensor([False,  True, False])]
    """
    lo, hi = check_interval((lo, hi))
    trace = Trace(lo, hi).run(steps_of(module))
    return [torch.from_numpy(~alive) for alive in trace.alive]
