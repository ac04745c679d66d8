"""How much a small ReLU net can learn, seen through its exact linear segments.

Nets 1 → H → … → H → 1 learn one function from 10 000 evenly spaced points: batches of 1280, Adam at
0.01, then 0.001, MSE. What they learn is piecewise linear, and `fastmlp.piecewise` gives its
segments exactly, where finite differences with a threshold would glitch. Questions, each with a
table and a picture under --out:

- where are the segments of the learned function (functions.png), and how do they move, are born
  and die during training (births_and_deaths.png; segments.gif with --gif)?
- when is the net exhausted (exhaustion.png)? The RMS error of the best of --restarts beside the
  floor, the best that so many pieces can do: K⁻² (∫|f''|^{2/5} dx)^{5/2} / √720, over √range.
- does a net recover after the target moves (recovery.png)? ReLU units die, LeakyReLU units move.
- what changes if all first-layer breakpoints start inside the domain?

All restarts of a setting train at once: their weights are stacked, and Adam treats each number by
itself, so that every net takes the steps it would take alone.

    python examples/exhaustion.py              # some minutes on two CPU cores
    python examples/exhaustion.py --steps 40   # a trial
"""

import argparse
import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from fastmlp import piecewise

POINTS, BATCH = 10_000, 1280
RATES = (0.01, 0.001)
SNAPSHOTS = 60
# a change of slope below this part of the largest slope is no bend to the eye
STRAIGHT = 1e-3


class Target(NamedTuple):
    """A function, where it is learned, and where it has poles (they cut the floor's integral)."""

    name: str
    f: object
    lo: float
    hi: float
    poles: tuple = ()

    def data(self):
        """x, y [N, 1]: evenly spaced, with both ends; with a pole, so that it is missed."""
        if self.poles:
            x = self.lo + (self.hi - self.lo) * (torch.arange(POINTS + 1) + 0.5) / (POINTS + 1)
            if self.lo < 0:  # 10 001 points from lo, without hi
                x = self.lo + (self.hi - self.lo) * torch.arange(POINTS + 1) / (POINTS + 1)
        else:
            x = torch.linspace(self.lo, self.hi, POINTS)
        x = x.unsqueeze(1)
        return x, self.f(x)

    def rms_floor(self, pieces):
        """RMS of the best fit with so many pieces; 0 where the formula sees no bend."""
        x, _ = self.data()
        x = x.squeeze(1).double()
        total = 0.0
        ends = [float(x[0]), *self.poles, float(x[-1])]
        for lo, hi in itertools.pairwise(ends):
            inside = x[(x >= lo) & (x <= hi) & ~torch.isin(x, torch.tensor(self.poles).double())]
            if len(inside) < 2:
                continue
            for a, b in itertools.pairwise(self._graded(float(inside[0]), float(inside[-1]))):
                # the fifth roots of the parts' squares add up
                total += piecewise.error_floor(self.f, a, b, 1) ** 0.4
        return total**2.5 / pieces**2 / math.sqrt(self.hi - self.lo)

    def _graded(self, lo, hi):
        """Ends of parts that shrink towards a pole, for the sake of the quadrature."""
        for pole in self.poles:
            near, far = sorted((abs(lo - pole), abs(hi - pole)))
            if near * 10 < far:
                n = math.ceil(math.log10(far / near))
                sizes = [near * (far / near) ** (i / n) for i in range(n + 1)]
                side = 1.0 if lo >= pole else -1.0
                return sorted([lo, *(pole + side * s for s in sizes[1:-1]), hi])
        return [lo, hi]


TARGETS = (
    Target("exp(x), [-5, 5]", torch.exp, -5, 5),
    Target("exp(x), [-5, 7]", torch.exp, -5, 7),
    Target("exp(-x), [-5, 5]", lambda x: torch.exp(-x), -5, 5),
    Target("1/x, [-5, 5]", lambda x: 1 / x, -5, 5, (0.0,)),
    Target("1/(x-2), [-5, 5]", lambda x: 1 / (x - 2), -5, 5, (2.0,)),
    Target("sin, [-5, 5]", torch.sin, -5, 5),
    Target("sin, [-10, 10]", torch.sin, -10, 10),
    Target("sin, [5, 15]", torch.sin, 5, 15),
    Target("x > 0, [-5, 5]", lambda x: (x > 0).to(x), -5, 5),
    Target("x > 2, [-5, 5]", lambda x: (x > 2).to(x), -5, 5),
    Target("log, [0, 5]", torch.log, 0, 5, (0.0,)),
    Target("2x + 8, [-5, 5]", lambda x: 2 * x + 8, -5, 5),
)
BY_NAME = {target.name.split(",")[0]: target for target in reversed(TARGETS)}
MOVES = (("exp(x)", "exp(-x)"), ("1/x", "1/(x-2)"), ("x > 0", "x > 2"))


class Nets(nn.Module):
    """Many nets 1 → H → … → 1 of one shape, their weights stacked; drawn as nn.Linear draws."""

    def __init__(self, n_nets, hidden, *, negative_slope=0.0, dropout=0.0, knots_in=None):
        super().__init__()
        self.negative_slope = negative_slope
        self.dropout = dropout
        sizes = [1, *hidden, 1]
        nets = [
            [nn.Linear(n_in, n_out) for n_in, n_out in itertools.pairwise(sizes)]
            for _ in range(n_nets)
        ]
        if knots_in is not None:
            lo, hi = knots_in
            for first, *_ in nets:
                with torch.no_grad():
                    at = torch.empty(hidden[0]).uniform_(lo, hi)
                    first.bias.copy_(-first.weight[:, 0] * at)
        layers = list(zip(*nets, strict=True))
        self.weights = nn.ParameterList(torch.stack([m.weight for m in of]) for of in layers)
        self.biases = nn.ParameterList(torch.stack([m.bias for m in of]) for of in layers)

    def forward(self, x):
        """[nets, N, 1] from x [N, 1]."""
        h = x.expand(len(self.weights[0]), *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if i:
                h = nn.functional.leaky_relu(h, self.negative_slope)
                h = nn.functional.dropout(h, self.dropout, self.training)
            h = torch.baddbmm(bias.unsqueeze(1), h, weight.mT)
        return h

    def net(self, i):
        """Net number i as a plain module, in eval mode."""
        layers = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            linear = nn.Linear(weight.shape[2], weight.shape[1])
            with torch.no_grad():
                linear.weight.copy_(weight[i])
                linear.bias.copy_(bias[i])
            layers += [linear, nn.LeakyReLU(self.negative_slope)]
        return nn.Sequential(*layers[:-1]).eval()


class Run(NamedTuple):
    """What became of a set of restarts: RMS of each at the end, snapshots of the best one."""

    target: Target
    rms: torch.Tensor
    best: nn.Module
    steps: list
    tables: list

    def row(self):
        """Name, RMS, its multiple of the floor, segments in the domain, dead units."""
        target = self.target
        pieces = domain_segments(self.best, target)
        floor = target.rms_floor(pieces)
        rms = float(self.rms.min())
        multiple = f"{rms / floor:.2f}" if floor > 1e-9 else "-"
        dead = piecewise.dead_units(self.best, target.lo, target.hi)
        n_dead, n_units = sum(int(d.sum()) for d in dead), sum(map(len, dead))
        return (
            f"{rms:.3g}", f"{float(self.rms.median()):.3g}", multiple, str(pieces),
            f"{n_dead} of {n_units}",
        )  # fmt: skip


def domain_segments(net, target):
    """How many segments a net's function has in the target's domain, told apart by eye."""
    table = piecewise.from_module(net, interval=(target.lo, target.hi))
    return 1 + int(table.bends(STRAIGHT).sum())


def train(nets, target, steps, title):
    """Train all nets on one target, in place; return the :class:`Run`."""
    x, y = target.data()
    optimizer = torch.optim.Adam(nets.parameters(), lr=RATES[0])
    generator = torch.Generator().manual_seed(0)
    every = max(1, steps // SNAPSHOTS)
    states, at = [], []
    batches = iter(())
    nets.train()
    for step in tqdm(range(steps), desc=f"{title:<38}", leave=False, disable=None):
        if step == steps // 2:
            for group in optimizer.param_groups:
                group["lr"] = RATES[1]
        if step % every == 0:
            states.append([p.detach().clone() for p in nets.parameters()])
            at.append(step)
        batch = next(batches, None)
        if batch is None:
            batches = iter(torch.randperm(len(x), generator=generator).split(BATCH))
            batch = next(batches)
        optimizer.zero_grad()
        # the sum over nets: each net's gradient is its own
        (nets(x[batch]) - y[batch]).square().mean((1, 2)).sum().backward()
        optimizer.step()
    states.append([p.detach().clone() for p in nets.parameters()])
    at.append(steps)
    nets.eval()
    with torch.no_grad():
        rms = (nets(x) - y).square().mean((1, 2)).sqrt()
    best = int(rms.nan_to_num(nan=torch.inf).argmin())
    final, tables = states[-1], []
    for state in states:
        restore(nets, state)
        net = nets.net(best)
        tables.append(piecewise.from_module(net, interval=(target.lo, target.hi)))
    restore(nets, final)
    return Run(target, rms, nets.net(best), at, tables)


def restore(nets, state):
    """Put a snapshot of all parameters back."""
    with torch.no_grad():
        for parameter, value in zip(nets.parameters(), state, strict=True):
            parameter.copy_(value)


def show(title, heads, rows):
    """Print a table."""
    rows = [tuple(map(str, row)) for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


HEADS = ("best RMS", "median", "× floor", "segments", "dead units")


def learn_all(options):
    """Every target with the default net."""
    runs = []
    for target in TARGETS:
        torch.manual_seed(options.seed)
        nets = Nets(options.restarts, [options.hidden] * options.depth, dropout=options.dropout)
        runs.append(train(nets, target, options.steps, target.name))
    show(
        f"{options.depth} hidden layers of {options.hidden}, ReLU, best of {options.restarts}",
        ("function", *HEADS),
        [(run.target.name, *run.row()) for run in runs],
    )
    return runs


def exhaust(options):
    """sin on [-10, 10] with nets of several sizes; and the start with all knots in the domain."""
    target = next(t for t in TARGETS if t.name == "sin, [-10, 10]")
    runs, rows = {}, []
    for hidden, depth in ((5, 3), (10, 3), (20, 3), (30, 3), (30, 5)):
        for knots in (None, (target.lo, target.hi)):
            torch.manual_seed(options.seed)
            nets = Nets(options.restarts, [hidden] * depth, knots_in=knots)
            start = domain_segments(nets.net(0), target)
            what = "in the domain" if knots else "PyTorch's"
            run = train(nets, target, options.steps, f"{target.name}, {depth} x {hidden}, {what}")
            runs[hidden, depth, what] = run
            rows.append((f"{depth} x {hidden}", what, start, *run.row()))
    heads = ("net", "first knots", "segments at the start", *HEADS)
    show("sin on [-10, 10]: when is a net exhausted, and does the start matter?", heads, rows)
    return runs


def recover(options):
    """Nets whose target moves several times, with ReLU and LeakyReLU."""
    histories, rows = {}, []
    for (first, second), (name, slope) in itertools.product(
        MOVES, (("ReLU", 0.0), ("LeakyReLU", 0.01))
    ):
        torch.manual_seed(options.seed)
        hidden = [options.hidden] * options.depth
        nets = Nets(options.restarts, hidden, negative_slope=slope)
        history = []
        for phase in range(4):
            target = BY_NAME[(first, second)[phase % 2]]
            run = train(nets, target, options.steps, f"{first} to {second}, {name}")
            inactive, pieces = [], []
            for i in range(options.restarts):
                # a unit is stuck where ReLU would be dead: nowhere active
                relu = nn.Sequential(*(nn.ReLU() if not hasattr(m, "weight") else m
                                       for m in nets.net(i)))  # fmt: skip
                dead = piecewise.dead_units(
                    relu if not slope else nets.net(i), target.lo, target.hi
                )
                inactive.append(sum(int(d.sum()) for d in dead))
                pieces.append(domain_segments(nets.net(i), target))
            history.append((run.rms.median().item(), sum(inactive) / len(inactive),
                            sum(pieces) / len(pieces)))  # fmt: skip
        histories[first, second, name] = history
        for q, what in enumerate(("median RMS", "dead units", "segments")):
            rows.append((f"{first} ↔ {second}", name, what, *(f"{h[q]:.3g}" for h in history)))
    heads = ("functions", "activation", "per net", "1st", "2nd", "1st again", "2nd again")
    show("The target moves (dead units and segments: mean over the restarts)", heads, rows)
    return histories


def draw(runs, sizes, histories, out, gif):
    """Save the pictures."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 4, figsize=(16, 10), layout="constrained")
    for run, ax in zip(runs, axes.flat, strict=True):
        target = run.target
        x, y = target.data()
        ax.plot(x, y, color="0.8", linewidth=4)
        run.tables[-1].merged().plot(ax=ax)
        learned = run.tables[-1](x.squeeze(1))
        low, high = float(learned.min()), float(learned.max())
        if target.poles:  # the truth leaves the picture
            low, high = max(low, -20.0), min(high, 20.0)
        margin = 0.1 * (high - low) + 1e-3
        ax.set_ylim(low - margin, high + margin)
        ax.set_title(f"{target.name}: {domain_segments(run.best, target)} segments")
    figure.suptitle("Learned functions, coloured by their exact segments; the truth in grey")
    figure.savefig(out / "functions.png", dpi=100)

    figure, axes = plt.subplots(3, 4, figsize=(16, 10), layout="constrained")
    for run, ax in zip(runs, axes.flat, strict=True):
        for step, table in zip(run.steps, run.tables, strict=True):
            t = table.breakpoints[table.bends(STRAIGHT)]
            ax.plot([step] * len(t), t, ".", color="C0", markersize=3)
        ax.axvline(run.steps[-1] / 2, color="0.7", linewidth=1)
        ax.set_title(run.target.name)
        ax.set_ylim(run.target.lo, run.target.hi)
    figure.supxlabel("step (grey line: the rate falls to 0.001)")
    figure.supylabel("breakpoints in the domain")
    figure.savefig(out / "births_and_deaths.png", dpi=100)

    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    target = next(iter(sizes.values())).target
    for what in ("PyTorch's", "in the domain"):
        chosen = [run for (_, _, start), run in sizes.items() if start == what]
        pieces = [domain_segments(run.best, target) for run in chosen]
        ax.loglog(
            pieces, [float(run.rms.min()) for run in chosen], "o", label=f"first knots {what}"
        )
    line = torch.logspace(0.8, 2.2, 20)
    ax.loglog(line, [target.rms_floor(1) / float(k) ** 2 for k in line], "k-", label="floor")
    ax.set_xlabel("segments in the domain")
    ax.set_ylabel("RMS error, best restart")
    ax.set_title(target.name)
    ax.legend()
    figure.savefig(out / "exhaustion.png", dpi=100)

    figure, axes = plt.subplots(3, 3, figsize=(13, 9), layout="constrained")
    for column, (first, second) in zip(axes.T, MOVES, strict=True):
        for q, what in enumerate(("median RMS error", "dead units a net", "segments a net")):
            for name in ("ReLU", "LeakyReLU"):
                values = [h[q] for h in histories[first, second, name]]
                column[q].plot(range(1, 5), values, "o-", label=name)
            column[q].set_ylabel(what)
            column[q].set_xticks(range(1, 5), [first, second, first, second])
        column[0].set_yscale("log")
        column[0].legend()
    figure.suptitle("What is left after the target has moved")
    figure.savefig(out / "recovery.png", dpi=100)
    plt.close("all")
    if gif:
        animate(next(run for run in runs if run.target.name == "sin, [-5, 5]"), out)


def animate(run, out):
    """Save the segments of one run over time as an animated GIF."""
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, ax = plt.subplots(figsize=(6, 4))
    x, y = run.target.data()

    def frame(i):
        ax.clear()
        ax.plot(x, y, color="0.8", linewidth=4)
        run.tables[i].merged().plot(ax=ax)
        ax.set_ylim(float(y.min()) - 0.5, float(y.max()) + 0.5)
        ax.set_title(f"{run.target.name}, step {run.steps[i]}")

    animation = FuncAnimation(figure, frame, frames=len(run.tables))
    animation.save(out / "segments.gif", writer=PillowWriter(fps=8))
    plt.close(figure)


def main(arguments=None):
    """Run all parts; return their results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--hidden", type=int, default=10, help="units of a layer")
    parser.add_argument("--depth", type=int, default=3, help="hidden layers")
    parser.add_argument("--dropout", type=float, default=0.0, help="for the first part")
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000, help="per training, both rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gif", action="store_true", help="segments.gif, too")
    parser.add_argument("--out", type=Path, default=Path("out/exhaustion"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = learn_all(options)
    sizes = exhaust(options)
    histories = recover(options)
    draw(runs, sizes, histories, options.out, options.gif)
    print(f"\npictures in {options.out}")
    return runs, sizes, histories


if __name__ == "__main__":
    main()
