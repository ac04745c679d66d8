"""How much a small ReLU net can learn, seen through its exact linear segments.

Nets 1 → H → … → H → 1 learn one function from 10 000 evenly spaced points: batches of 1280, Adam at
0.01, then 0.001, MSE; all restarts at once by `fastmlp.fit`. They are piecewise linear, and
`fastmlp.piecewise` gives their segments exactly. Questions, each with a table and a picture:

- where are the segments of the learned function (functions.png), and how do they move, are born
  and die during training (births_and_deaths.png; segments.gif with --gif)?
- when is the net exhausted (exhaustion.png)? The RMS error of the best restart beside the floor,
  the best that so many pieces can do: K⁻² (∫|f''|^{2/5} dx)^{5/2} / √720, over √range.
- what changes if all breakpoints of the first layer start inside the domain?
- does a net recover after the target moves (recovery.png)? ReLU units die, LeakyReLU units move.

    python examples/exhaustion.py                             # under a minute on two CPU cores
    python examples/exhaustion.py --restarts 20 --epochs 250  # what the documentation quotes
"""

import argparse
import copy
import functools
import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

import fastmlp
from fastmlp import piecewise

POINTS, BATCH = 10_000, 1280
RATE, DROP = 0.01, 0.1  # the second half of a run has the rate 0.001
SNAPSHOTS = 50
# a change of slope below this part of the largest slope is no bend to the eye
STRAIGHT = 1e-3
SIZES = ((5, 3), (10, 3), (20, 3), (30, 3), (30, 5))  # width, hidden layers


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
FIRST = {target.name.split(",")[0]: target for target in reversed(TARGETS)}
MOVES = (("exp(x)", "exp(-x)"), ("1/x", "1/(x-2)"), ("x > 0", "x > 2"))
STARTS = ("exp(x), [-5, 7]", "sin, [-10, 10]", "sin, [5, 15]")


def table_of(net, target):
    """The exact function of a net on the target's domain."""
    return piecewise.from_module(net.eval(), interval=(target.lo, target.hi))


def segments(table):
    """How many segments a function has, told apart by eye."""
    return 1 + int(table.bends(STRAIGHT).sum())


class Run(NamedTuple):
    """What became of a set of restarts: RMS of each at the end, tables of the best over time."""

    target: Target
    rms: torch.Tensor
    best: nn.Module
    epochs: list
    tables: list

    def row(self):
        """RMS of the best, over the target's standard deviation and the floor; median; counts."""
        target, rms = self.target, float(self.rms.min())
        pieces = segments(self.tables[-1])
        floor = target.rms_floor() / pieces**2
        dead = torch.cat(piecewise.dead_units(self.best, target.lo, target.hi))
        return (
            f"{rms:.3g}", f"{rms / float(target.data()[1].std()):.1%}",
            f"{float(self.rms.median()):.3g}", f"{rms / floor:.1f}" if floor > 0 else "-",
            pieces, f"{int(dead.sum())} of {len(dead)}",
        )  # fmt: skip


QUANTITIES = ("median RMS, % of std", "dead units", "segments")
HEADS = ("best RMS", "of std", "median", "× floor", "segments", "dead units")


def draw_nets(options, width=None, depth=None, *, activation="relu", knots_in=None):
    """The restarts, as PyTorch draws them, or with the first layer's breakpoints in a domain."""
    torch.manual_seed(options.seed)
    hidden = [width or options.hidden] * (depth or options.depth)
    nets = [
        fastmlp.MLP(1, hidden, 1, activation=activation, dropout=options.dropout)
        for _ in range(options.restarts)
    ]
    for net in nets if knots_in else ():
        first = net.get_submodule("0")
        with torch.no_grad():
            at = torch.empty_like(first.bias).uniform_(*knots_in)
            first.bias.copy_(-first.weight[:, 0] * at)
    return nets


def trainer(nets, x, y, options):
    """A function that goes on with the training until so many epochs are done."""
    half = max(1, options.epochs // 2)
    if options.dropout == 0:
        result = None

        def go_on(epochs):
            nonlocal result
            result = fastmlp.fit(
                nets, x, y, epochs=epochs, batch_size=BATCH, seed=options.seed, resume=result,
                optimizer=fastmlp.Adam(lr=RATE), scheduler=fastmlp.StepLR(half, DROP),
                progress=False,
            )  # fmt: skip

        return go_on
    # `fit` has no dropout in nets of several layers: the same by a loop
    optimizers = [torch.optim.Adam(net.parameters(), lr=RATE) for net in nets]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, half, DROP) for o in optimizers]

    def go_on(epochs):
        for i, (net, optimizer, rate) in enumerate(zip(nets, optimizers, schedulers, strict=True)):
            net.train()
            for epoch in range(rate.last_epoch, epochs):
                key = {"epoch": epoch, "model": i, "seed": options.seed}
                for rows in fastmlp.training.batch_order(len(x), **key).split(BATCH):
                    optimizer.zero_grad()
                    nn.functional.mse_loss(net(x[rows]), y[rows]).backward()
                    optimizer.step()
                rate.step()
            net.eval()

    return go_on


def train(nets, target, options, *, snapshots=1):
    """Train all nets on one target, in place, looking at them now and then."""
    x, y = target.data()
    go_on = trainer(nets, x, y, options)
    at = sorted({math.ceil(options.epochs * i / snapshots) for i in range(1, snapshots + 1)})
    seen = [copy.deepcopy(nets)]
    for epochs in at:
        go_on(epochs)
        seen.append(copy.deepcopy(nets))
    with torch.no_grad():
        rms = torch.stack([(net.eval()(x) - y).square().mean().sqrt() for net in nets])
    best = int(rms.nan_to_num(nan=torch.inf).argmin())
    tables = [table_of(of[best], target) for of in seen]
    options.bar.update()
    return Run(target, rms, seen[-1][best], [0, *at], tables)


def show(title, heads, rows):
    """Print a table."""
    rows = [tuple(map(str, row)) for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    tqdm.write(f"\n{title}")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        tqdm.write("  ".join(cells).rstrip())


def learn_all(options):
    """Every target with the default net."""
    runs = {
        target.name: train(draw_nets(options), target, options, snapshots=SNAPSHOTS)
        for target in TARGETS
    }
    show(
        f"{options.depth} hidden layers of {options.hidden}, ReLU, best of {options.restarts}",
        ("function", *HEADS, "at the start"),
        [(name, *run.row(), segments(run.tables[0])) for name, run in runs.items()],
    )
    return runs


def exhaust(options):
    """sin on [-10, 10] with nets of several sizes."""
    runs = {size: train(draw_nets(options, *size), TARGETS[6], options) for size in SIZES}
    show(
        "sin on [-10, 10]: when is a net exhausted?",
        ("net", *HEADS),
        [(f"{depth} × {width}", *run.row()) for (width, depth), run in runs.items()],
    )
    return runs


def compare_starts(runs, options):
    """The first layer's breakpoints where PyTorch puts them, and spread over the domain."""
    rows = []
    for name in STARTS:
        target = runs[name].target
        spread = train(draw_nets(options, knots_in=(target.lo, target.hi)), target, options)
        for what, run in (("PyTorch's", runs[name]), ("in the domain", spread)):
            rows.append((name, what, segments(run.tables[0]), *run.row()))
    show("Does the start matter?", ("function", "first knots", "at the start", *HEADS), rows)


def recover(options):
    """Nets whose target moves several times, with ReLU and LeakyReLU; and nets without a past."""
    histories, rows = {}, []
    for (first, second), activation in itertools.product(MOVES, ("relu", "leaky_relu")):
        nets = draw_nets(options, activation=activation)
        history = []
        for name in (first, second, first, second, "fresh"):
            if name == "fresh":
                nets, name = draw_nets(options, activation=activation), second
            target = FIRST[name]
            run = train(nets, target, options)
            dead = [torch.cat(piecewise.dead_units(net, target.lo, target.hi)) for net in nets]
            pieces = [segments(table_of(net, target)) for net in nets]
            history.append((
                100 * float(run.rms.median() / target.data()[1].std()),
                float(torch.stack(dead).sum(1).double().mean()), sum(pieces) / len(pieces),
            ))  # fmt: skip
        histories[first, second, activation] = history
        for q, what in enumerate(QUANTITIES):
            values = (f"{h[q]:.3g}" for h in history)
            rows.append((f"{first} ↔ {second}", activation, what, *values))
    phases = ("1st", "2nd", "1st again", "2nd again", "fresh: 2nd")
    show("The target moves (units and segments: mean)", ("functions", "", "", *phases), rows)
    return histories


def draw(runs, sizes, histories, options):
    """Save the pictures."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        print("no pictures: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    grids = [plt.subplots(3, 4, figsize=(16, 10), layout="constrained") for _ in range(2)]
    (functions, axes), (births, axes_over_time) = grids
    for run, ax, over_time in zip(runs.values(), axes.flat, axes_over_time.flat, strict=True):
        draw_function(run, -1, ax)
        ax.set_title(f"{run.target.name}: {segments(run.tables[-1])} segments")
        for epoch, table in zip(run.epochs, run.tables, strict=True):
            t = table.breakpoints[table.bends(STRAIGHT)]
            over_time.plot([epoch] * len(t), t, ".", color="C0", markersize=3)
        over_time.axvline(options.epochs / 2, color="0.7", linewidth=1)
        over_time.set(title=run.target.name, ylim=(run.target.lo, run.target.hi))
    functions.suptitle("Learned functions, coloured by their exact segments; the truth in grey")
    functions.savefig(options.out / "functions.png", dpi=100)
    births.supxlabel("epoch (grey line: the rate falls to 0.001)")
    births.supylabel("breakpoints in the domain")
    births.savefig(options.out / "births_and_deaths.png", dpi=100)

    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    for (width, depth), run in sizes.items():
        at = segments(run.tables[-1]), float(run.rms.min())
        ax.loglog(*at, "o", color="C0")
        where = {"xytext": (6, -12 if width == 30 else 4), "textcoords": "offset points"}
        ax.annotate(f"{depth} × {width}", at, **where)
    line, floor = torch.logspace(0.8, 2.5, 20), TARGETS[6].rms_floor()
    ax.loglog(line, floor / line.square(), "k-", label="floor of so many segments")
    ax.set(xlabel="segments in the domain", ylabel="RMS error, best restart", title=TARGETS[6].name)
    ax.legend()
    figure.savefig(options.out / "exhaustion.png", dpi=100)

    figure, axes = plt.subplots(3, 3, figsize=(13, 9), layout="constrained")
    for column, (first, second) in zip(axes.T, MOVES, strict=True):
        for (q, what), (activation, style) in itertools.product(
            enumerate(QUANTITIES), (("relu", "C0o-"), ("leaky_relu", "C1s--"))
        ):
            *values, fresh = (h[q] for h in histories[first, second, activation])
            column[q].plot(range(1, 5), values, style, label=activation)
            column[q].plot(2, fresh, style[:3], markersize=10, fillstyle="none",
                           label=f"{activation}, fresh")  # fmt: skip
            column[q].set_xticks(range(1, 5), [first, second, first, second])
            top = max(h[q] for a in ("relu", "leaky_relu") for h in histories[first, second, a])
            column[q].set(ylabel=what, ylim=(0, 1.1 * top))
        column[0].legend()
    figure.suptitle("After the target has moved; hollow: nets that never saw another")
    figure.savefig(options.out / "recovery.png", dpi=100)
    if options.gif:
        animate(plt, runs["sin, [-5, 5]"], options.out)
    plt.close("all")
    print(f"\npictures in {options.out}")


def draw_function(run, i, ax):
    """The function of snapshot i by its segments, and the truth."""
    x, y = run.target.data()
    ax.plot(x, y, color="0.8", linewidth=4)
    run.tables[i].merged().plot(ax=ax)
    learned = run.tables[-1](x.squeeze(1))
    low, high = map(float, learned.aminmax())
    if run.target.pole is not None:  # the truth leaves the picture
        low, high = max(low, -20.0), min(high, 20.0)
    margin = 0.1 * (high - low) + 1e-3
    ax.set_ylim(low - margin, high + margin)


def animate(plt, run, out):
    """Save the segments of one run over time as an animated GIF."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, ax = plt.subplots(figsize=(6, 4))

    def frame(i):
        ax.clear()
        draw_function(run, i, ax)
        ax.set_title(f"{run.target.name}, epoch {run.epochs[i]}")

    film = FuncAnimation(figure, frame, frames=len(run.tables))
    film.save(out / "segments.gif", writer=PillowWriter(fps=8))


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--hidden", type=int, default=10, help="units of a layer (default 10)")
    add("--depth", type=int, default=3, help="hidden layers (default 3)")
    add("--dropout", type=float, default=0.0, help="of hidden units (default 0)")
    add("--restarts", type=int, default=6, help="nets of a setting (default 6)")
    add("--epochs", type=int, default=100, help="of 8 steps, both rates (default 100)")
    add("--seed", type=int, default=0)
    add("--gif", action="store_true", help="segments.gif, too")
    add("--out", type=Path, default=Path("out/exhaustion"), help="folder of the pictures")
    options = parser.parse_args(arguments)
    for name in ("hidden", "depth", "restarts", "epochs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(arguments=None):
    """Run all parts; return their results."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    trainings = len(TARGETS) + len(SIZES) + len(STARTS) + 10 * len(MOVES)
    with tqdm(total=trainings, disable=None) as options.bar:
        runs = learn_all(options)
        sizes = exhaust(options)
        compare_starts(runs, options)
        histories = recover(options)
    draw(runs, sizes, histories, options)
    return runs, sizes, histories


if __name__ == "__main__":
    main()
