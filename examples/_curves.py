"""Functions of one variable that experiment 2 learns, and what its two examples have in common."""

import functools
import itertools
import math
from typing import NamedTuple

import torch
from tqdm import tqdm

import fastmlp
from fastmlp import piecewise

POINTS, BATCH = 10_000, 1280
# a change of slope below this part of the largest slope is no bend to the eye
STRAIGHT = 1e-3


class Target(NamedTuple):
    """A function, where it is learned, and where it has a pole (it cuts the floor's integral)."""

    name: str
    f: object
    lo: float
    hi: float
    pole: float | None = None

    def data(self):
        """x, y [N, 1]: evenly spaced, with both ends; with a pole, so that it is missed."""
        x = torch.linspace(self.lo, self.hi, POINTS).unsqueeze(1)
        if self.pole is not None:
            first = 0.0 if self.pole > self.lo else 0.5
            at = torch.arange(POINTS + 1).unsqueeze(1) + first
            x = self.lo + (self.hi - self.lo) * at / (POINTS + 1)
        return x, self.f(x)

    @functools.cache  # noqa: B019
    def rms_floor(self):
        """RMS of the best fit with one piece, by the formula; K pieces have 1/K² of it."""
        x = self.data()[0].double()
        sides = [x] if self.pole is None else [x[x < self.pole], x[x > self.pole]]
        # the fifth roots of the parts' squares add up
        total = sum(
            piecewise.error_floor(self.f, a, b, 1) ** 0.4
            for side in sides
            if len(side) > 1
            for a, b in itertools.pairwise(self._graded(float(side[0]), float(side[-1])))
        )
        return total**2.5 / math.sqrt(self.hi - self.lo)

    def _graded(self, lo, hi):
        """Ends of parts that shrink towards the pole, for the sake of the quadrature."""
        if self.pole is None:
            return [lo, hi]
        near, far = sorted((abs(lo - self.pole), abs(hi - self.pole)))
        n = math.ceil(math.log10(far / near))
        inner = [near * (far / near) ** (i / n) for i in range(1, n)]
        side = 1 if lo > self.pole else -1
        return sorted([lo, *(self.pole + side * d for d in inner), hi])


TARGETS = (
    Target("exp(x), [-5, 5]", torch.exp, -5, 5),
    Target("exp(x), [-5, 7]", torch.exp, -5, 7),
    Target("exp(-x), [-5, 5]", lambda x: torch.exp(-x), -5, 5),
    Target("1/x, [-5, 5]", lambda x: 1 / x, -5, 5, 0.0),
    Target("1/(x-2), [-5, 5]", lambda x: 1 / (x - 2), -5, 5, 2.0),
    Target("sin, [-5, 5]", torch.sin, -5, 5),
    Target("sin, [-10, 10]", torch.sin, -10, 10),
    Target("sin, [5, 15]", torch.sin, 5, 15),
    Target("x > 0, [-5, 5]", lambda x: (x > 0).to(x), -5, 5),
    Target("x > 2, [-5, 5]", lambda x: (x > 2).to(x), -5, 5),
    Target("log, [0, 5]", torch.log, 0, 5, 0.0),
    Target("2x + 8, [-5, 5]", lambda x: 2 * x + 8, -5, 5),
)
BY_NAME = {target.name: target for target in TARGETS}


def table_of(net, target):
    """The exact function of a net on the target's domain."""
    return piecewise.from_module(net.eval(), interval=(target.lo, target.hi))


def segments(table):
    """How many segments a function has, told apart by eye."""
    return 1 + int(table.bends(STRAIGHT).sum())


def dead_in(net, target):
    """How many units never change the function on the target's domain."""
    return int(torch.cat(piecewise.dead_units(net.eval(), target.lo, target.hi)).sum())


@torch.no_grad()
def errors(nets, target):
    """RMS error of each net over the target's standard deviation."""
    x, y = target.data()
    return torch.stack([(net.eval()(x) - y).square().mean().sqrt() for net in nets]) / y.std()


def draw_nets(n, hidden, *, activation="relu", dropout=0.0, seed=0, knots_in=None):
    """Nets as PyTorch draws them, or with the first layer's breakpoints in a domain."""
    torch.manual_seed(seed)
    nets = [fastmlp.MLP(1, hidden, 1, activation=activation, dropout=dropout) for _ in range(n)]
    for net in nets if knots_in else ():
        first = net.get_submodule("0")
        with torch.no_grad():
            at = torch.empty_like(first.bias).uniform_(*knots_in)
            first.bias.copy_(-first.weight[:, 0] * at)
    return nets


def show(title, heads, rows):
    """Print a table."""
    rows = [tuple(map(str, row)) for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    tqdm.write(f"\n{title}")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        tqdm.write("  ".join(cells).rstrip())
