"""Fit sines by their frequencies: SineNet, y = mean_i sin(π w_i x), and its sweep over widths.

The input is fed as x/π, so that w is an angular frequency. Training points are π·[−4, −1) ∪
π·[1, 4) in steps of 0.1π, 60 in all; validation π·[−1, 1) in the same steps; the truth is shown on
π·[−10, 10), far out of both. Targets: sin(x), learned with width 1; (sin(x/2) + sin(x))/2 with
width 2; a mean of eight sines with frequencies from U(0, 2).

The sweep is on the eight sines: widths 1, 2, 4, …, 1024, 20 random starts each, AdamW with rate
0.001 for 100 epochs of batch 1 in order, 1.32 million optimizer steps in one call of `fastmlp.fit`;
of each width the start with the lowest training loss is kept. What it shows at width 8 depends on
the eight frequencies that were drawn, so it runs for 12 draws and gives median and range. Beside it
`fastmlp.LevenbergMarquardt` from as many starts. The plain PyTorch loop is timed on a few steps of
every width and extrapolated.

A gradient finds a frequency only from a start near it: the loss over w has a valley about 1/4 wide
around each frequency and ripples elsewhere. That is why restarts matter.

Plots go to --out.
"""

import argparse
import itertools
import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from tqdm import tqdm

import fastmlp
from fastmlp.plotting import COLOURS

STEP = 0.1
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LARGEST_DIFFERENCE = 1e-3
WIDEST_SQUARES = 32
SOLVED = 1e-24
"""A training loss of Levenberg–Marquardt below this is that of the right frequencies."""


def grid(low, high):
    """Points from low to high, the latter excluded, in units of π; exact tenths."""
    return torch.arange(round(low / STEP), round(high / STEP)) * STEP


TRAIN = torch.cat([grid(-4, -1), grid(1, 4)])
VALIDATION = grid(-1, 1)
SHOWN = torch.arange(-10, 10, 0.02)

TARGETS = {
    "sin(x)": (1.0,),
    "(sin(x/2) + sin(x))/2": (0.5, 1.0),
}


def truth(frequencies, x):
    """mean_i sin(π w_i x), summed in float64; in the dtype of x."""
    angles = math.pi * x.double()[:, None] * torch.as_tensor(frequencies, dtype=torch.float64)
    return angles.sin().mean(1).to(x.dtype)


def eight_sines(draw):
    """Eight frequencies from U(0, 2), float64."""
    # a seed that no start has: the same numbers would be drawn
    generator = torch.Generator().manual_seed(1000 + draw)
    return 2 * torch.rand(8, generator=generator, dtype=torch.float64)


def starts(width, n, seed, dtype=torch.float32):
    """Models as SineSum draws them: w from U(0, 2)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [fastmlp.SineSum(width, dtype=dtype) for _ in range(n)]


def fit(models, frequencies, **options):
    """Train on the 60 points; validate on the 20."""
    y, y_val = truth(frequencies, TRAIN), truth(frequencies, VALIDATION)
    return fastmlp.fit(models, TRAIN, y, validation=(VALIDATION, y_val), **options)


def small_targets(options):
    """Both small targets with nets of their own width; ``{name: (result, model)}``."""
    results = {}
    for name, frequencies in TARGETS.items():
        models = starts(len(frequencies), options.restarts, options.seed)
        result = fit(
            models,
            frequencies,
            epochs=options.small_epochs,
            batch_size=1,
            shuffle=False,
            optimizer=fastmlp.Adam(lr=0.01),
            scheduler=fastmlp.CosineAnnealingLR(options.small_epochs),
            progress=not options.quiet,
        )
        results[name] = result, result.best_model
    return results


class Sweep(NamedTuple):
    """All widths and restarts on one draw of eight sines."""

    frequencies: torch.Tensor
    widths: torch.Tensor
    result: object

    def best(self, width):
        """The place of the start with the lowest training loss."""
        chosen = (self.widths == width).nonzero()[:, 0]
        return int(chosen[self.result.train_loss[chosen, -1].argmin()])

    def losses(self, width):
        """Training and validation loss of that start."""
        i = self.best(width)
        return self.result.train_loss[i, -1].item(), self.result.val_loss[i, -1].item()


def sweep(draw, options, widths):
    """Train all starts of all widths at once."""
    seed = options.seed + 10_000 * draw
    models = [m for w in widths for m in starts(w, options.restarts, seed + w)]
    frequencies = eight_sines(draw)
    result = fit(
        models, frequencies, epochs=options.epochs, batch_size=1, shuffle=False,
        optimizer=fastmlp.AdamW(lr=1e-3), progress=not options.quiet,
    )  # fmt: skip
    return Sweep(frequencies, torch.tensor([m.width for m in models]), result)


def least_squares(draw, options, width):
    """Training loss of Levenberg–Marquardt from as many starts, in float64."""
    (net,) = starts(width, 1, options.seed, torch.float64)
    x = TRAIN.double()
    settings = fastmlp.LevenbergMarquardt(restarts=options.restarts)
    result = fastmlp.fit(
        net, x, truth(eight_sines(draw), x), epochs=200, optimizer=settings, seed=draw,
        progress=False,
    )  # fmt: skip
    return result.final_loss[0].item()


def plain_seconds(options, found):
    """Seconds that the plain loop would take, from some steps of every width; checks the losses.

    The first model of each width takes the steps of its first epoch; their mean loss must be that
    of the fused run.
    """
    y, total = truth(found.frequencies, TRAIN), 0.0
    for width in found.widths.unique().tolist():
        model = starts(width, 1, options.seed + 10_000 * options.first_draw + width)[0]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses, began = [], time.perf_counter()
        with fastmlp.backend("torch"):
            for i in range(len(TRAIN)):
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(TRAIN[i : i + 1]), y[i : i + 1])
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        chosen = found.widths == width
        total += (time.perf_counter() - began) * options.epochs * int(chosen.sum())
        mine = found.result.train_loss[chosen][0, 0].item()
        theirs = sum(losses) / len(losses)
        if abs(mine - theirs) > LARGEST_DIFFERENCE * theirs:
            sys.exit(f"width {width}: the first epoch's loss is {mine}, in plain PyTorch {theirs}")
    return total


def ratios(sweeps, width):
    """Best training loss at half of a width over that at the width, for every draw."""
    return [s.losses(width // 2)[0] / s.losses(width)[0] for s in sweeps]


def small_table(small):
    """What each small net reached."""
    lines = [f"{'target':<24}{'width':>6}{'training MSE':>15}{'validation MSE':>16}  w, sorted"]
    for name, (fitted, model) in small.items():
        w = ", ".join(f"{v:.6f}" for v in model.w.detach().sort().values)
        lines.append(
            f"{name:<24}{model.width:>6}{fitted.train_loss[fitted.best, -1].item():>15.1e}"
            f"{fitted.val_loss[fitted.best, -1].item():>16.1e}  {w}"
        )
    return "\n".join(lines)


def sweep_table(sweeps, squares):
    """Medians and ranges over the draws, width by width."""
    n = len(sweeps)
    lines = [
        f"eight sines, {n} draws: the best start of each width, and Levenberg–Marquardt's (LM)",
        f"{'width':>6}{'training MSE':>14}{'least':>10}{'most':>10}{'validation':>12}"
        f"{'gain over half the width':>26}{'LM, first draw':>16}",
    ]
    for width in sweeps[0].widths.unique().tolist():
        training, validation = zip(*(s.losses(width) for s in sweeps), strict=True)
        gain = f"{median(ratios(sweeps, width)):.1f} ×" if width > 1 else ""
        lm = f"{squares[width]:.1e}" if width in squares else ""
        lines.append(
            f"{width:>6}{median(training):>14.1e}{min(training):>10.1e}{max(training):>10.1e}"
            f"{median(validation):>12.1e}{gain:>26}{lm:>16}"
        )
    return "\n".join(lines)


def conclusions(sweeps, at_eight):
    """The questions in figures."""
    n, widths = len(sweeps), set(sweeps[0].widths.tolist())
    lines = []
    for width in (8, 16):
        if width in widths:
            gains = ratios(sweeps, width)
            lines.append(
                f"width {width} over {width // 2}: median {median(gains):.1f} ×, from "
                f"{min(gains):.2g} × to {max(gains):.3g} ×, 10 × or more in "
                f"{sum(g >= 10 for g in gains)} of {n} draws"
            )
    if 1024 in widths:
        falls = median(s.losses(16)[0] / s.losses(1024)[0] for s in sweeps)
        outer = median(s.losses(16)[1] / s.losses(1024)[1] for s in sweeps)
        lines.append(
            f"from width 16 to 1024 the training loss falls {falls:.1f} ×, the validation loss "
            f"{outer:.1f} × (medians)"
        )
        rises = sum(
            s.losses(b)[1] > 2 * s.losses(a)[1]
            for s in sweeps for a, b in itertools.pairwise(sorted(widths))
        )  # fmt: skip
        lines.append(
            f"validation more than doubles at {rises} of {n * (len(widths) - 1)} steps to twice "
            "the width"
        )
    solved = sum(loss < SOLVED for loss in at_eight)
    lines.append(
        f"Levenberg–Marquardt at width 8, as many starts: median {median(at_eight):.1e}, below "
        f"{SOLVED:.0e} in {solved} of {n} draws"
    )
    return "\n".join(lines)


def draw(small, sweeps, squares, folder):
    """Save the plots."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "extrapolation": draw_small(plt, small),
        "sweep": draw_sweep(plt, sweeps, squares),
        "traces": draw_traces(plt, sweeps[0]),
    }
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=110)
            plt.close(figure)
    print(f"plots in {folder}")


def draw_small(plt, small):
    """The two small nets far outside of their data."""
    figure, axes = plt.subplots(len(small), 1, figsize=(10, 6.4), layout="constrained", sharex=True)
    for axis, (name, (fitted, model)) in zip(axes, small.items(), strict=True):
        y, y_train, y_val = (truth(TARGETS[name], x) for x in (SHOWN, TRAIN, VALIDATION))
        fastmlp.plotting.plot_prediction(model, SHOWN, y, training=(TRAIN, y_train), ax=axis)
        axis.plot(VALIDATION, y_val, "x", color=COLOURS["blue"], ms=5, label="validation points")
        loss = fitted.val_loss[fitted.best, -1].item()
        axis.set_title(f"{name}, width {model.width}: validation MSE {loss:.1e}")
        axis.set(xlabel="", ylim=(-1.2, 1.2))
        axis.get_legend().remove()
    axes[-1].set_xlabel("x / π")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_sweep(plt, sweeps, squares):
    """Losses over the width: median and range of the draws."""
    figure, (axis, lm) = plt.subplots(
        1, 2, figsize=(10, 4.4), layout="constrained", width_ratios=(3, 2)
    )
    widths = sweeps[0].widths.unique().tolist()
    for place, (name, colour) in enumerate((("training", "black"), ("validation", "vermilion"))):
        values = torch.tensor([[s.losses(w)[place] for w in widths] for s in sweeps])
        colour = COLOURS.get(colour, "k")
        low, high = values.amin(0), values.amax(0)
        axis.fill_between(widths, low, high, color=colour, alpha=0.12, lw=0)
        axis.plot(widths, values.quantile(0.5, 0), "o-", color=colour, label=f"{name}, best start")
    axis.fill_between([], [], color="0.8", label=f"range of {len(sweeps)} draws")
    axis.set_title(f"AdamW: best of each width's starts, {len(sweeps)} draws", fontsize=10)
    lm.plot(squares.keys(), squares.values(), "^:", color=COLOURS["blue"])
    lm.set_title("Levenberg–Marquardt: training, first draw", fontsize=10)
    for one, shown in ((axis, widths), (lm, list(squares))):
        one.set_xscale("log", base=2)
        one.set_xticks(shown, map(str, shown))
        one.set_yscale("log")
        one.set_xlabel("width: number of sines")
    axis.set_ylabel("MSE")
    axis.legend()
    return figure


def draw_traces(plt, found):
    """The best nets of widths 8 and more over the truth."""
    widths = [w for w in found.widths.unique().tolist() if w >= 8]
    if not widths:
        return None
    figure, axes = plt.subplots(
        len(widths), 1, figsize=(10, 1.3 * len(widths) + 0.7), layout="constrained", sharex=True,
        squeeze=False,
    )  # fmt: skip
    y, y_train = truth(found.frequencies, SHOWN), truth(found.frequencies, TRAIN)
    for axis, width in zip(axes[:, 0], widths, strict=True):
        model = found.result.models[found.best(width)]
        fastmlp.plotting.plot_prediction(model, SHOWN, y, training=(TRAIN, y_train), ax=axis)
        axis.get_legend().remove()
        axis.set(xlabel="", ylim=(-1, 1), yticks=(-0.5, 0, 0.5))
        axis.text(0.01, 0.08, f"width {width}", transform=axis.transAxes, fontsize=10)
    axes[-1, 0].set_xlabel("x / π")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    figure.suptitle("The first draw: best of the starts of each width, trained on 1 ≤ |x/π| < 4")
    return figure


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=int, default=100, help="of the sweep (default 100)")
    add("--small-epochs", type=int, default=300, help="of the small targets (default 300)")
    add("--restarts", type=int, default=20, help="random starts of each net (default 20)")
    add("--draws", type=int, default=12, help="draws of eight frequencies (default 12)")
    add("--first-draw", type=int, default=1, help="number of the first of them (default 1)")
    add("--max-width", type=int, default=1024, help="widest net of the sweep (default 1024)")
    add("--seed", type=int, default=0, help="of the random starts (default 0)")
    add("--quiet", action="store_true", help="no progress bars")
    add("--out", type=Path, default=Path("out/sinenet"), help="folder for the plots")
    options = parser.parse_args(argv)
    for name in ("epochs", "small_epochs", "restarts", "draws", "max_width"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def main(argv=None):
    """Train, compare, print the tables, draw; return (small results, sweeps)."""
    options = parse(argv)
    widths = [w for w in WIDTHS if w <= options.max_width]
    small = small_targets(options)
    print(small_table(small))
    draws = range(options.first_draw, options.first_draw + options.draws)
    bar = tqdm(draws, desc="draws", disable=options.quiet)
    sweeps = [sweep(draw, options, widths) for draw in bar]
    squares = {
        w: least_squares(options.first_draw, options, w) for w in widths if w <= WIDEST_SQUARES
    }
    at_eight = [least_squares(draw, options, 8) for draw in draws]
    print("\n" + sweep_table(sweeps, squares))
    print("\n" + conclusions(sweeps, at_eight))
    result = sweeps[-1].result
    plain = plain_seconds(options, sweeps[0])
    print(
        f"\none sweep: {result.steps} steps in {result.seconds:.3g} s, "
        f"{result.seconds / result.steps * 1e6:.2g} µs a step, validation every epoch included; "
        f"plain PyTorch {plain:.0f} s, extrapolated from one epoch of one net a width: "
        f"{plain / result.seconds:.0f} ×"
    )
    draw(small, sweeps, squares, options.out)
    return small, sweeps


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
