"""SineNet's hard target: a mean of 8 sines with random frequencies, which Adam never fits.

y = mean_i sin(π·w_i·x), eight w drawn from U(0, 2), x fed in units of π: 60 training points on
[-4, -1) ∪ [1, 4), 20 validation points on [-1, 1), and the truth on [-10, 10), far outside.

Four ways to the frequencies, from the same data: Adam (rate 0.01, 100 epochs of batch 1 in order),
AdamW (0.001, 200 epochs), Levenberg–Marquardt from 300 random starts, and Levenberg–Marquardt from
one start, the spectral estimate of `fastmlp.spectral.frequencies`. A net whose frequencies are
right extrapolates; one that only passes through 60 points does not. The window resolves about
Δw = 1/4, so the estimate merges some frequencies, and says so; the fit then parts them.
"""

import argparse
import copy
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from sinenet import eight_sines as target
from sinenet import grid as tenths
from sinenet import truth

import fastmlp
from fastmlp.plotting import plot_prediction, plot_spectrum

WIDTH = 8
GOAL = 1e-24


def grid(low, high):
    """Points from low to high, the latter excluded, in units of π, in float64."""
    return (10 * tenths(low, high)).round().double() / 10


TRAIN = torch.cat([grid(-4, -1), grid(1, 4)])
VALIDATION = grid(-1, 1)
SHOWN = torch.arange(-500, 500, dtype=torch.float64) / 50


def first_order(start, y, epochs, optimizer):
    """Batch 1, in order, as the original."""
    net = copy.deepcopy(start)
    fastmlp.fit(
        net, TRAIN, y, epochs=epochs, batch_size=1, shuffle=False, optimizer=optimizer,
        progress=False,
    )  # fmt: skip
    return net


def with_adam(start, y, options):
    return first_order(start, y, options.epochs, fastmlp.Adam(lr=0.01))


def with_adamw(start, y, options):
    return first_order(start, y, 2 * options.epochs, fastmlp.AdamW(lr=0.001))


def with_restarts(start, y, options):
    net = copy.deepcopy(start)
    settings = fastmlp.LevenbergMarquardt(restarts=options.restarts)
    fastmlp.fit(net, TRAIN, y, epochs=200, optimizer=settings, seed=options.seed, progress=False)
    return net


def with_spectral_start(start, y, options):
    net = copy.deepcopy(start)
    with torch.no_grad():
        net.w.copy_(fastmlp.spectral.frequencies(TRAIN, y, WIDTH).w)
    fastmlp.fit(net, TRAIN, y, epochs=500, optimizer=fastmlp.LevenbergMarquardt(), progress=False)
    return net


METHODS = {
    "Adam": with_adam,
    "AdamW": with_adamw,
    "LM, random starts": with_restarts,
    "spectral start, LM": with_spectral_start,
}


@dataclass
class Fit:
    """What one method found."""

    net: fastmlp.SineSum
    seconds: float
    training: float
    validation: float
    outside: float
    frequency_error: float


@torch.no_grad()
def measure(net, w, seconds):
    """Errors of a net against the true frequencies."""
    mse = [
        float((net(x) - truth(w, x)).square().mean())
        for x in (TRAIN, VALIDATION, SHOWN[SHOWN.abs() >= 4])
    ]
    # a sine with −w is the negative: only both signs together are known for a mean of sines
    error = (net.w.sort().values - w.sort().values).abs().max()
    return Fit(net, seconds, *mse, float(error))


def table(fits):
    """One line a method."""
    lines = [
        f"{'method':<20}{'training MSE':>14}{'validation':>12}{'4 ≤ |x| < 10':>14}"
        f"{'worst w':>10}{'s':>7}"
    ]
    for name, fit in fits.items():
        lines.append(
            f"{name:<20}{fit.training:>14.1e}{fit.validation:>12.1e}{fit.outside:>14.1e}"
            f"{fit.frequency_error:>10.0e}{fit.seconds:>7.2f}"
        )
    return "\n".join(lines)


def draw(fits, w, folder):
    """Save the plot: every fit over the truth, and the frequencies."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(fits), 2, figsize=(12, 2.3 * len(fits)), layout="constrained", width_ratios=(4, 1)
    )
    for (axis, side), (name, fit) in zip(axes, fits.items(), strict=True):
        training = TRAIN, truth(w, TRAIN)
        plot_prediction(fit.net, SHOWN, truth(w, SHOWN), training=training, ax=axis)
        axis.set_ylim(-1.05, 1.05)
        axis.set_xlabel("")
        axis.get_legend().remove()
        axis.set_title(
            f"{name}: MSE {fit.training:.0e} in training, {fit.outside:.0e} for 4 ≤ |x| < 10",
            fontsize=10,
        )
        plot_spectrum(fit.net, w, ax=side)
        side.set_xlim(-0.1, 2.3)
        side.set_xlabel("")
        side.get_legend().remove()
    lines, labels = axes[0, 0].get_legend_handles_labels()
    more, names = axes[0, 1].get_legend_handles_labels()
    where = {"loc": "outside lower center", "ncols": 5}
    figure.legend([*lines, *more], [*labels, *(f"{name} (right)" for name in names)], **where)
    axes[-1, 0].set_xlabel("x / π")
    axes[-1, 1].set_xlabel("frequency |w|")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "eight_sines.png", dpi=100)
    plt.close(figure)
    print(f"plot: {folder / 'eight_sines.png'}")


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=int, default=100, help="of Adam; AdamW gets twice as many (default 100)")
    add("--restarts", type=int, default=300, help="random starts (default 300)")
    add("--seed", type=int, default=1, help="of the target and of the starts (default 1)")
    add("--out", type=Path, default=Path("out/sinenet"), help="folder of the plot")
    options = parser.parse_args(argv)
    if min(options.epochs, options.restarts) < 1:
        parser.error("--epochs and --restarts must be at least 1")
    return options


def main(argv=None):
    options = parse(argv)
    w = target(options.seed)
    y = truth(w, TRAIN)
    torch.manual_seed(options.seed)
    start = fastmlp.SineSum(WIDTH, dtype=torch.float64)
    # compiles, or loads what was compiled
    lm = fastmlp.LevenbergMarquardt()
    fastmlp.fit(copy.deepcopy(start), TRAIN, y, epochs=1, optimizer=lm, progress=False)
    fits = {}
    for name, method in METHODS.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            began = time.perf_counter()
            net = method(start, y, options)
        fits[name] = measure(net, w, time.perf_counter() - began)
        for warning in said:
            print(f"{name}: {warning.message}")
    print("true w: " + ", ".join(f"{value:.4f}" for value in w.sort().values))
    print("\n" + table(fits) + "\n")
    draw(fits, w, options.out)
    missed = [name for name, fit in fits.items() if "LM" in name and fit.training > GOAL]
    for name in missed:
        print(f"{name}: missed a training MSE of {GOAL:.0e}")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
