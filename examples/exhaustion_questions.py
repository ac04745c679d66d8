"""The open questions of the second experiment, with figures, beside its walk (`exhaustion.py`).

- When is a net exhausted? Its error beside the floor, the best that so many linear pieces can do:
  K⁻² (∫|f''|^{2/5} dx)^{5/2} / √720, over √range (exhaustion.png).
- How can freezing in the 1/x case be resolved? Adam in order and shuffled, first breakpoints spread
  over the domain, Levenberg–Marquardt from starts that lay the knots by the data.
- L2 against dropout: dead units, and the error after exp(x) → exp(-x), at one rate, with four times
  as many nets.
- Is LeakyReLU's jitter overfitting, do fewer hidden units tell? Error on the points and between
  them, and how much more the net bends than its target has to, over the width.
- How do segments spread out? Where breakpoints are at the start, after some epochs, at the end.
- How many operations and joules does a fit take? Joules where the machine counts them.

    python examples/exhaustion_questions.py    # about a minute on two idle cores
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
from _curves import (
    BATCH,
    BY_NAME,
    POINTS,
    STRAIGHT,
    dead_in,
    draw_nets,
    errors,
    segments,
    show,
    table_of,
)
from tqdm import tqdm

import fastmlp

SIZES = ((5, 3), (10, 3), (20, 3), (30, 3), (30, 5))
"""Widths and hidden layers of the nets beside the floor."""
EXP, MIRRORED = BY_NAME["exp(x), [-5, 5]"], BY_NAME["exp(-x), [-5, 5]"]
POLE, SIN_5, SIN_10 = BY_NAME["1/x, [-5, 5]"], BY_NAME["sin, [-5, 5]"], BY_NAME["sin, [-10, 10]"]
DECAYS, RATES = (0.0, 1e-4, 1e-3, 1e-2), (0.02, 0.1)
LM_DRAWS = 12
"""Draws of ten starts of Levenberg–Marquardt."""
METER = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def adam(nets, target, options, *, shuffle="shared", epochs=None):
    """Half of the epochs at the rate 0.01, half at 0.001; all nets see the batches alike."""
    x, y = target.data()
    epochs = epochs or options.epochs
    return fastmlp.fit(
        nets, x, y, epochs=epochs, batch_size=BATCH, shuffle=shuffle, seed=options.seed,
        optimizer=fastmlp.Adam(lr=0.01),
        scheduler=fastmlp.StepLR(max(1, epochs // 2), 0.1), progress=False,
    )  # fmt: skip


def middle(values):
    """Median of numbers."""
    return float(torch.as_tensor(values, dtype=torch.float64).quantile(0.5))


def percent(values):
    return f"{middle(values):.1%}"


def count(width, depth, seconds, joules, options):
    """A line of what fits of nets of one size took: operations, seconds and joules of one."""
    n = options.restarts
    weights = 2 * width + (depth - 1) * width**2
    # a product and a sum for each weight: forward, for the weights, and for all but the first
    # layer's inputs
    operations = 2 * (3 * weights - width) * POINTS * options.epochs
    return (
        f"{depth} × {width}", f"{operations / 1e9:.2g}", f"{seconds / n:.2g}",
        f"{operations * n / seconds / 1e9:.2g}",
        "not counted here" if joules is None else f"{joules / n:.2g}",
    )  # fmt: skip


def compare_with_the_floor(options):
    """sin on [-10, 10] with nets of several sizes, shuffled; and what their fits take."""
    rows, costs, points = [], [], {}
    # compiles, or loads what was compiled
    adam(draw_nets(1, [5] * 3), SIN_10, options, epochs=1)
    for width, depth in SIZES:
        nets = draw_nets(options.restarts, [width] * depth, seed=options.seed)
        before, began = _joules(), time.perf_counter()
        adam(nets, SIN_10, options)
        seconds, after = time.perf_counter() - began, _joules()
        # the meter starts anew now and then
        counted = before is not None and after is not None and after >= before
        costs.append(count(width, depth, seconds, after - before if counted else None, options))
        error = errors(nets, SIN_10)
        best = int(error.nan_to_num(nan=torch.inf).argmin())
        rms = float(error[best] * SIN_10.data()[1].std())
        pieces = segments(table_of(nets[best], SIN_10))
        points[width, depth] = pieces, rms
        rows.append((
            f"{depth} × {width}", f"{error[best]:.1%}", percent(error), pieces,
            f"{rms / (SIN_10.rms_floor() / pieces**2):.1f}",
            f"{dead_in(nets[best], SIN_10)} of {width * depth}",
        ))  # fmt: skip
        options.bar.update()
    heads = ("net", "best", "median", "segments", "× floor", "dead units")
    title = f"Exhausted? sin on [-10, 10], shuffled, the best of {options.restarts} nets"
    show(title, heads, rows)
    heads = ("net", "1e9 operations a fit", "seconds", "1e9 operations a second", "joules")
    show(f"What a fit of {options.epochs} epochs takes, {options.restarts} at once", heads, costs)
    return points


def unfreeze(options):
    """1/x: what does learn it."""
    n, wide = options.restarts, [30]
    rows = []

    def tell(name, nets):
        rows.append((name, f"{errors(nets, POLE).min():.1%}", percent(errors(nets, POLE))))
        options.bar.update()

    for name, hidden, shuffle, knots in (
        ("Adam in order, 10-10-10", [10] * 3, False, None),
        ("Adam shuffled, 10-10-10", [10] * 3, "shared", None),
        ("Adam shuffled, 30", wide, "shared", None),
        ("… first breakpoints spread over the domain", wide, "shared", (POLE.lo, POLE.hi)),
    ):
        nets = draw_nets(n, hidden, seed=options.seed, knots_in=knots)
        adam(nets, POLE, options, shuffle=shuffle)
        tell(name, nets)
    x, y = (t.double() for t in POLE.data())
    found = {}
    for starts, draws in ((10, LM_DRAWS), (300, 1)):
        nets = [fastmlp.ElementwiseMLP(30).double() for _ in range(draws)]
        for draw, net in enumerate(nets):
            fastmlp.fit(
                net, x, y, epochs=options.steps, seed=options.seed + draw, progress=False,
                optimizer=fastmlp.LevenbergMarquardt(restarts=starts),
            )  # fmt: skip
        with torch.no_grad():
            found[starts] = [float((net(x) - y).square().mean().sqrt() / y.std()) for net in nets]
        rows.append((
            f"Levenberg–Marquardt, knots by the data, 30, {starts} starts",
            f"{min(found[starts]):.1%}",
            f"{percent(found[starts])} of {draws} draws" if draws > 1 else "one draw",
        ))  # fmt: skip
        options.bar.update()
    show("Freezing at 1/x: RMS error over the standard deviation", ("", "best", "median"), rows)
    return found


def regularise(options):
    """Weight decay and dropout as exp(x) becomes exp(-x), the rate as given."""
    n, rows, found = 4 * options.restarts, [], {}
    settings = [("L2", value) for value in DECAYS] + [("dropout", p) for p in RATES]
    decayed = [draw_nets(n, [10] * 3, seed=options.seed) for _ in DECAYS]
    masked = [draw_nets(n, [10] * 3, dropout=p, seed=options.seed) for p in RATES]
    decays = [value for value in DECAYS for _ in range(n)]
    # masks are drawn by a key of each net, with its own order of the batches
    calls = [([net for nets in decayed for net in nets], "shared", decays)]
    calls += [(nets, True, 0.0) for nets in masked]
    before = {}
    for target in (EXP, MIRRORED):
        x, y = target.data()
        for nets, shuffle, decay in calls:
            fastmlp.fit(
                nets, x, y, epochs=options.epochs, batch_size=BATCH, shuffle=shuffle,
                optimizer=fastmlp.Adam(lr=0.01, weight_decay=decay), seed=options.seed,
                progress=False,
            )  # fmt: skip
        if target is EXP:
            before = {id(nets): percent(errors(nets, EXP)) for nets in (*decayed, *masked)}
        options.bar.update()
    for (what, value), nets in zip(settings, (*decayed, *masked), strict=True):
        after = errors(nets, MIRRORED)
        dead = sum(dead_in(net, MIRRORED) for net in nets) / n
        quarter, half, rest = after.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        found[what, value] = dead, half
        rows.append((
            f"{what} {value:g}", before[id(nets)], f"{half:.1%}",
            f"{quarter:.1%} to {rest:.1%}", f"{dead:.1f} of 30",
        ))  # fmt: skip
    heads = ("", "median on exp(x)", "after the move", "half of them", "dead units after it")
    show(f"L2 against dropout, shuffled, {n} nets each", heads, rows)
    return found


def jitter(options):
    """Leaky and plain ReLU over the width: errors on and between points, superfluous bends."""
    rows = []
    x, _ = SIN_5.data()
    between = (x[1:] + x[:-1]) / 2
    # the slope of sin goes up and down by ∫|f''| = ∫|sin|
    needed = float(SIN_5.f(x).abs().mean()) * (SIN_5.hi - SIN_5.lo)
    for activation in ("relu", "leaky_relu"):
        for width in (3, 10, 30):
            nets = draw_nets(options.restarts, [width] * 3, activation=activation,
                             seed=options.seed)  # fmt: skip
            adam(nets, SIN_5, options)
            with torch.no_grad():
                gaps = [(net.eval()(between) - SIN_5.f(between)).square().mean().sqrt()
                        for net in nets]  # fmt: skip
            off = torch.stack(gaps) / SIN_5.data()[1].std()
            bends = [float(table_of(net, SIN_5).slopes.diff(dim=0).abs().sum()) for net in nets]
            rows.append((
                activation, width, percent(errors(nets, SIN_5)), percent(off),
                f"{middle(bends) / needed:.2f}",
                f"{middle([segments(table_of(net, SIN_5)) for net in nets]):.0f}",
            ))  # fmt: skip
            options.bar.update()
    heads = ("", "width", "error on the points", "between them", "bends / needed", "segments")
    show(f"Jitter: sin on [-5, 5], medians of {options.restarts} nets", heads, rows)


def spread(options):
    """Where the breakpoints are, as the training goes on."""
    rows = []
    for target in (SIN_10, BY_NAME["sin, [5, 15]"]):
        nets = draw_nets(options.restarts, [10] * 3, seed=options.seed)
        x, y = target.data()
        result = None
        for epoch in (0, max(1, options.epochs // 20), max(2, options.epochs // 4), options.epochs):
            if epoch > 0:
                result = fastmlp.fit(
                    nets, x, y, epochs=epoch, batch_size=BATCH, shuffle="shared", seed=options.seed,
                    resume=result, optimizer=fastmlp.Adam(lr=0.01), progress=False,
                )  # fmt: skip
            counts, outer = [], []
            for net in nets:
                table = table_of(net, target)
                t = table.breakpoints[table.bends(STRAIGHT)]
                centre, reach = (target.hi + target.lo) / 2, (target.hi - target.lo) / 2
                counts.append(len(t))
                outer.append(float(((t - centre).abs() > reach / 2).double().mean()))
            rows.append((
                target.name, epoch, f"{sum(counts) / len(counts):.1f}",
                percent(torch.tensor(outer).nan_to_num()), percent(errors(nets, target)),
            ))  # fmt: skip
        options.bar.update()
    heads = ("", "epoch", "breakpoints, mean", "of them in the outer half", "error")
    show("Spreading: breakpoints in the domain, shuffled, medians", heads, rows)


def _joules():
    """What the processor's meter shows, or None where there is none that may be read."""
    try:
        return int(METER.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def draw(points, out):
    """Errors over segments, and the floor."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    figure, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for (width, depth), at in points.items():
        (dots,) = ax.loglog(*at, "o", color="C0")
        below = (width, depth) == (20, 3)  # its neighbour is near
        place = {"xytext": (7, -14 if below else 4), "textcoords": "offset points"}
        ax.annotate(f"{depth} × {width}", at, **place)
    dots.set_label("best net of a size: hidden layers × width")
    low, high = (f(pieces for pieces, _ in points.values()) for f in (min, max))
    line = torch.logspace(math.log10(low / 1.5), math.log10(high * 1.5), 20)
    ax.loglog(line, SIN_10.rms_floor() / line.square(), "k-", label="the best that so many can do")
    ax.set(xlabel="linear segments in the domain", ylabel="RMS error", title="sin on [-10, 10]")
    ax.legend()
    figure.savefig(out / "exhaustion.png", dpi=110)
    plt.close(figure)
    print(f"\npicture in {out}")


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--restarts", type=int, default=4, help="nets of a setting (default 4)")
    add("--epochs", type=int, default=100, help="of 8 steps, both rates (default 100)")
    add("--steps", type=int, default=300, help="of Levenberg–Marquardt (default 300)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("out/exhaustion_questions"), help="folder of the picture")
    options = parser.parse_args(arguments)
    for name in ("restarts", "epochs", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(arguments=None):
    """Answer all; return errors of 1/x by starts, and what the regularisations left."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(SIZES) + 6 + 2 + 6 + 2, disable=None) as options.bar:
        points = compare_with_the_floor(options)
        pole = unfreeze(options)
        regularised = regularise(options)
        jitter(options)
        spread(options)
    draw(points, options.out)
    return pole, regularised


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
