"""PiecewiseLinear: an exact table of a function, segment by segment."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from fastmlp import functional, plotting
from fastmlp.arguments import real, sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMAT = "fastmlp.piecewise"
_VERSION = 1
# a joint is one when both sides agree to this, of the largest value
_JOINT_TOLERANCE = 1e-9
_STRAIGHT = 8 * torch.finfo(torch.float64).eps


class Segment(NamedTuple):
    """One line of a table: y = intercept + slope·x from ``lo`` to ``hi``.

    Args:
        lo: Where it begins.
        hi: Where it ends.
        slope: A float for one output, a tuple of floats for several.
        intercept: Likewise.
    """

    lo: float
    hi: float
    slope: float | tuple[float, ...]
    intercept: float | tuple[float, ...]


class PiecewiseLinear:
    """A continuous piecewise-linear function of one variable, in float64.

    .. math:: f(x) = v_s + p_s (x - a_s), \\quad t_{s-1} < x \\le t_s

    The anchor ``a_s`` is the point of segment ``s`` nearest to 0, so that no digits are lost far
    from the breakpoints. At a breakpoint the derivative is that of the segment on its left.

    Args:
        breakpoints: The ``t``, strictly increasing. Shape ``[K]``, K ≥ 0.
        slopes: The ``p``. Shape ``[K + 1]``, or ``[K + 1, M]`` for M outputs.
        values: The ``v``: of f at :attr:`anchors`. Shape of ``slopes``.
        interval: ``(lo, hi)`` where f is known; outside, its value is NaN. Default: everywhere.

    Raises:
        TypeError: An argument that is no tensor or sequence of numbers.
        ValueError: Wrong shapes, numbers that are not finite, breakpoints that do not increase or
            lie outside the interval, lines that do not meet.

    Example:
        >>> f = PiecewiseLinear([0.0], [0.0, 2.0], [0.0, 0.0])
        >>> f(torch.tensor([-1.0, 1.5]))
        tensor([0., 3.])
        >>> f.segments_in(-1, 1)
        [Segment(lo=-1.0, hi=0.0, slope=0.0, intercept=0.0), Segment(lo=0.0, hi=1.0, slope=2.0, \
intercept=0.0)]
    """

    def __init__(
        self,
        breakpoints: torch.Tensor,
        slopes: torch.Tensor,
        values: torch.Tensor,
        *,
        interval: tuple[float, float] | None = None,
    ):
        self.interval = check_interval(interval)
        self.breakpoints = _numbers("breakpoints", breakpoints)
        self.slopes = _numbers("slopes", slopes)
        self.values = _numbers("values", values)
        k = len(self.breakpoints) if self.breakpoints.dim() == 1 else -1
        if k < 0:
            raise ValueError(f"breakpoints must have shape [K], got {list(self.breakpoints.shape)}")
        shape = self.slopes.shape
        if len(shape) not in (1, 2) or shape[0] != k + 1 or 0 in shape:
            raise ValueError(
                f"slopes must have shape [{k + 1}] or [{k + 1}, M] for {k} breakpoints, "
                f"got {list(shape)}"
            )
        if self.values.shape != shape:
            raise ValueError(
                f"values must have the shape of slopes, {list(shape)}, "
                f"got {list(self.values.shape)}"
            )
        if not (self.breakpoints[1:] > self.breakpoints[:-1]).all():
            raise ValueError("breakpoints must be strictly increasing")
        lo, hi = self.interval
        if k and not (self.breakpoints[0] > lo and self.breakpoints[-1] < hi):
            raise ValueError(f"breakpoints must lie inside the interval ({lo}, {hi})")
        self._check_joints()

    def _check_joints(self):
        anchors, t = self.anchors, self.breakpoints
        reach = (t - anchors[:-1], t - anchors[1:])
        if self.values.dim() == 2:
            reach = tuple(r.unsqueeze(1) for r in reach)
        left = self.values[:-1] + self.slopes[:-1] * reach[0]
        right = self.values[1:] + self.slopes[1:] * reach[1]
        size = self.values.abs().max()
        if (left - right).abs().gt(_JOINT_TOLERANCE * size.clamp(min=1e-300)).any():
            raise ValueError("the lines of neighbouring segments must meet at the breakpoint")

    @property
    def anchors(self) -> torch.Tensor:
        """The point of each segment nearest to 0. Shape ``[K + 1]``."""
        lo, hi = (self.breakpoints.new_tensor([end]) for end in self.interval)
        edges = torch.cat([lo, self.breakpoints, hi])
        return torch.minimum(torch.maximum(edges.new_zeros(1), edges[:-1]), edges[1:])

    @property
    def intercepts(self) -> torch.Tensor:
        """Where the line of each segment meets x = 0. Shape of :attr:`slopes`."""
        anchors = self.anchors if self.slopes.dim() == 1 else self.anchors.unsqueeze(1)
        return self.values - self.slopes * anchors

    @property
    def knot_values(self) -> torch.Tensor:
        """f at the breakpoints. Shape ``[K]`` or ``[K, M]``."""
        anchors, t = self.anchors, self.breakpoints
        # one of the two neighbours has its anchor there
        at_left = anchors[:-1] == t
        at_left = at_left if self.slopes.dim() == 1 else at_left.unsqueeze(1)
        return torch.where(at_left, self.values[:-1], self.values[1:])

    @property
    def n_outputs(self) -> int:
        """How many functions of the same x the table holds."""
        return 1 if self.slopes.dim() == 1 else self.slopes.shape[1]

    def __len__(self) -> int:
        """The number of segments."""
        return len(self.slopes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate f; differentiable in x.

        Args:
            x: Any shape, floating point, on any device.

        Returns:
            f(x), computed in float64, in the dtype of ``x``. Shape of ``x``, with a last dimension
            of M added for several outputs.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"x must be a Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {str(x.dtype).removeprefix('torch.')}")
        tables = (self.breakpoints, self.anchors, self.values, self.slopes)
        exact = x.double()
        y = functional.piecewise_linear(exact, *(t.to(x.device) for t in tables))
        lo, hi = self.interval
        if lo > -math.inf or hi < math.inf:
            outside = (exact < lo) | (exact > hi)
            outside = outside if self.slopes.dim() == 1 else outside.unsqueeze(-1)
            y = y.masked_fill(outside, math.nan)
        return y.to(x.dtype)

    def segments_in(self, lo: float, hi: float) -> list[Segment]:
        """The segments that meet the open interval (lo, hi), cut to it, from left to right.

        Args:
            lo: Lower end.
            hi: Upper end, above ``lo``.

        Returns:
            List of :class:`Segment`; its length is how many pieces f has there.

        Raises:
            ValueError: ``lo`` ≥ ``hi``, or beyond :attr:`interval`.
        """
        lo, hi = self._inside(lo, hi)
        edges = [-math.inf, *self.breakpoints.tolist(), math.inf]
        lines = zip(self.slopes.tolist(), self.intercepts.tolist(), strict=True)
        single = self.slopes.dim() == 1
        return [
            Segment(
                max(left, lo),
                min(right, hi),
                slope if single else tuple(slope),
                intercept if single else tuple(intercept),
            )
            for left, right, (slope, intercept) in zip(edges[:-1], edges[1:], lines, strict=True)
            if left < hi and right > lo
        ]

    def bends(self, tolerance: float = _STRAIGHT) -> torch.Tensor:
        """At which breakpoints the function bends.

        Args:
            tolerance: Largest change of slope, as a part of the largest slope, that is no bend;
                default: what float64 rounds.

        Returns:
            Bool tensor. Shape ``[K]``.
        """
        slopes = self.slopes.reshape(len(self), -1)
        return ((slopes[1:] - slopes[:-1]).abs() > tolerance * slopes.abs().max()).any(1)

    def merged(self) -> PiecewiseLinear:
        """The same function without the breakpoints at which it does not bend.

        A net's activation pattern can change where its function goes straight on: a unit with
        outgoing weight 0, or kinks that cancel.

        Returns:
            :class:`PiecewiseLinear` with fewer or as many segments.
        """
        bends = self.bends()
        breakpoints = self.breakpoints[bends]
        # of the segments that become one, the one with the anchor nearest to 0 holds for all
        group = torch.cat([bends.new_zeros(1), bends]).cumsum(0)
        order = torch.argsort(self.anchors.abs(), stable=True, descending=True)
        chosen = torch.empty(len(breakpoints) + 1, dtype=torch.long, device="cpu")
        for s in order.tolist():
            chosen[group[s]] = s
        return PiecewiseLinear(
            breakpoints, self.slopes[chosen], self.values[chosen], interval=self.interval
        )

    def to_module(self) -> torch.nn.Sequential:
        """The same function as a net 1 → H → M with ReLU, at most two units more than breakpoints.

        Returns:
            ``nn.Sequential(Linear(1, H), ReLU(), Linear(H, M))`` in float64, in eval mode. Beyond
            :attr:`interval` it goes straight on.
        """
        slopes = self.slopes.reshape(len(self), -1)
        values = self.values.reshape(len(self), -1)
        jumps, t = slopes[1:] - slopes[:-1], self.breakpoints
        # units open outwards from the middle segment, whose own line takes two
        middle = int(self.anchors.abs().argmin())
        origin = self.anchors[middle]
        side = torch.where(torch.arange(len(t), device="cpu") < middle, -1.0, 1.0).double()
        w1, b1, w2 = side, -side * t, jumps
        line = slopes[middle].unsqueeze(0)
        if bool(line.any()) or len(t) == 0:
            both = line.new_tensor([1.0, -1.0])
            w1, b1 = torch.cat([w1, both]), torch.cat([b1, -both * origin])
            w2 = torch.cat([w2, line, -line])
        first = nn.Linear(1, len(w1), dtype=torch.float64, device="cpu")
        last = nn.Linear(len(w1), w2.shape[1], dtype=torch.float64, device="cpu")
        with torch.no_grad():
            first.weight.copy_(w1.unsqueeze(1))
            first.bias.copy_(b1)
            last.weight.copy_(w2.T)
            last.bias.copy_(values[middle])
        return nn.Sequential(first, nn.ReLU(), last).eval()

    def to_json(self) -> str:
        """The table as JSON text; every number comes back bit for bit."""
        interval = [None if math.isinf(end) else end for end in self.interval]
        return json.dumps(
            {
                "format": _FORMAT,
                "version": _VERSION,
                "interval": interval,
                "breakpoints": self.breakpoints.tolist(),
                "slopes": self.slopes.tolist(),
                "values": self.values.tolist(),
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> PiecewiseLinear:
        """Read what :meth:`to_json` wrote.

        Args:
            text: JSON text.

        Raises:
            TypeError: ``text`` is no string.
            ValueError: No JSON, not such a table, or one that is damaged; the message says where.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        try:
            data = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as err:
            raise ValueError(f"text must be JSON: {err}") from err
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError(f'text must be an object with "format": "{_FORMAT}"')
        if data.get("version") != _VERSION:
            raise ValueError(f'"version" must be {_VERSION}, got {data.get("version")!r}')
        for name in ("breakpoints", "slopes", "values"):
            if not isinstance(data.get(name), list):
                raise ValueError(f'"{name}" must be a list of numbers')
        interval = data.get("interval")
        if not isinstance(interval, list) or len(interval) != 2:
            raise ValueError('"interval" must be a list of two numbers or nulls')
        lo, hi = interval
        try:
            ends = (-math.inf if lo is None else lo, math.inf if hi is None else hi)
            tables = data["breakpoints"], data["slopes"], data["values"]
            return cls(*tables, interval=ends)
        except (TypeError, ValueError) as err:
            raise ValueError(f"a damaged table: {err}") from err

    def plot(
        self, lo: float | None = None, hi: float | None = None, *, ax: Axes | None = None
    ) -> Axes:
        """Draw f by its segments: :func:`fastmlp.plotting.plot_segments`.

        Args:
            lo: Left end of the picture; default: the interval's, or left of the first breakpoint.
            hi: Right end, likewise.
            ax: Matplotlib axes to draw into; default: those of a new figure.

        Returns:
            The axes.
        """
        return plotting.plot_segments(self, lo, hi, ax=ax)

    def _inside(self, lo, hi):
        lo, hi = check_interval((lo, hi), finite=True)
        if lo < self.interval[0] or hi > self.interval[1]:
            raise ValueError(f"({lo}, {hi}) reaches beyond the table's interval {self.interval}")
        return lo, hi

    def __repr__(self) -> str:
        lo, hi = self.interval
        return f"PiecewiseLinear({len(self)} segments, {self.n_outputs} outputs on ({lo}, {hi}))"


def check_interval(interval, finite=False):
    """``(lo, hi)`` as floats; raises unless lo < hi. ``None`` is the whole line."""
    if interval is None:
        return -math.inf, math.inf
    ends = sequence(interval)
    if ends is None or len(ends) != 2:
        raise TypeError(f"interval must be a pair (lo, hi), got {interval!r}")
    lo, hi = (float(real(name, end)) for name, end in zip(("lo", "hi"), ends, strict=True))
    for name, end in (("lo", lo), ("hi", hi)):
        if math.isnan(end) or (finite and math.isinf(end)):
            raise ValueError(f"{name} must be finite, got {end}")
    if lo >= hi:
        raise ValueError(f"lo must be below hi, got lo = {lo}, hi = {hi}")
    return lo, hi


def _numbers(name, values):
    try:
        tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError, OverflowError) as err:
        raise TypeError(f"{name} must be a tensor or a list of numbers: {err}") from err
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return tensor


def _no_constant(name):
    raise ValueError(f"{name} is no JSON number")
