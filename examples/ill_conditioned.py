"""A two-layer linear net that gradient descent cannot fit and Levenberg–Marquardt fits exactly.

The problem: minimise ‖W₁·W₂·X − A·X‖² over W₁ [10, 6] and W₂ [6, 6], both standard normal at first;
X [6, 1000] standard normal, A = diag(linspace(1, 1e-5, 10))·U(0, 1)^{10×6}. W₁·W₂ can be any
10 × 6 matrix, so the least loss is 0. But the rows of A differ by 1e5 in size and the loss by its
square, and with two layers the gradient of one depends on the other.

Four methods from the same weights, in float64: gradient descent and Adam with four learning rates
each, 3 000 steps on the sum of squares, all rates in one call of `fastmlp.fit`; the steps of Gauss
and Newton, of least norm and a twentieth of their length, as the original takes them; and
`fastmlp.LevenbergMarquardt`, whose steps are accepted or not. Then Levenberg–Marquardt from 20
draws of data and weights: the script fails unless each reaches a relative loss of 1e-28 within 30
steps. At last the best first-order run with ten times the data, which does not help.
"""

import argparse
import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

import fastmlp

RATES = {
    "gradient descent": (1e-6, 1e-5, 1e-4, 1e-3),
    "Adam": (1e-5, 1e-4, 1e-3, 1e-2),
}
OPTIMIZERS = {"gradient descent": fastmlp.SGD, "Adam": fastmlp.Adam}
FIXED_STEP, FIXED_STEPS = 0.05, 700
DRAWS, MOST_STEPS, GOAL = 20, 30, 1e-28
DIVERGED = 1e12
"""A relative loss above this ends a run."""


LM = "Levenberg–Marquardt"
GAUSS_NEWTON = f"Gauss–Newton × {FIXED_STEP}"


@dataclass
class Curve:
    """Relative loss and norm of its gradient, before every step and after the last."""

    loss: list
    gradient: list
    seconds: float
    diverged: bool = False


def make_problem(seed, rows=1000):
    """The net at its first weights, inputs [rows, 6] and targets [rows, 10]."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(1, 1e-5, 10, dtype=torch.float64)[:, None]
    matrix = sizes * torch.rand(10, 6, generator=generator, dtype=torch.float64)
    net = fastmlp.MLP(6, [6], 10, activation="identity", bias=False).double()
    for weight in net.parameters():
        nn.init.normal_(weight, generator=generator)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return net, x, x @ matrix.T


def first_order(method, rates, net, x, y, n_steps, progress=True):
    """Train copies, one a rate, with one optimizer on the sum of squares; a curve for each."""
    nets = [copy.deepcopy(net) for _ in rates]
    result = fastmlp.fit(
        nets, x, y, epochs=n_steps, loss="sse", optimizer=OPTIMIZERS[method](lr=list(rates)),
        validation=(x, y), track=("grad_norm",), progress=progress,
    )  # fmt: skip
    size = y.square().sum()
    losses = torch.cat([result.train_loss[:, :1], result.val_loss], 1) / size
    norms = torch.cat([torch.full((len(rates), 1), math.nan), result.grad_norm / size], 1)
    curves = []
    for loss, norm in zip(losses, norms, strict=True):
        above = (~(loss < DIVERGED)).nonzero()
        end = int(above[0]) + 1 if len(above) else n_steps + 1
        seconds = result.seconds / len(rates)
        curves.append(Curve(loss[:end].tolist(), norm[:end].tolist(), seconds, len(above) > 0))
    return curves


def second_order(net, x, y, n_steps=MOST_STEPS, **settings):
    """Train a copy with `fastmlp.LevenbergMarquardt`."""
    optimizer = fastmlp.LevenbergMarquardt(**settings)
    net = copy.deepcopy(net)
    result = fastmlp.fit(net, x, y, epochs=n_steps, optimizer=optimizer, progress=False)
    outcome = result.runs[0]
    size = y.square().sum()
    count = outcome.steps[0] + 1
    curve = Curve(
        (outcome.sse[0, :count] / size).tolist(),
        (outcome.gradient_norm[0, :count] / size).tolist(),
        outcome.seconds,
    )
    return curve, outcome, net


def steps_to_goal(losses):
    """The first step with a loss of at most the goal, or infinity."""
    return next((step for step, loss in enumerate(losses) if loss <= GOAL), math.inf)


def table(curves):
    """One line a run."""
    lines = [
        f"{'method':<22}{'rate':>8}{'steps':>7}{'relative loss':>15}{'‖gradient‖':>13}{'s':>7}"
    ]
    for (method, rate), curve in curves.items():
        gradients = [value for value in curve.gradient if not math.isnan(value)]
        lines.append(
            f"{method:<22}{'' if rate is None else f'{rate:.0e}':>8}{len(curve.loss) - 1:>7}"
            + (
                f"{'diverged':>15}{'':>13}"
                if curve.diverged
                else f"{curve.loss[-1]:>15.1e}{gradients[-1]:>13.1e}"
            )
            + f"{curve.seconds:>7.2f}"
        )
    return "\n".join(lines)


def draw(curves, folder):
    """Save the plot: loss and gradient norm over steps."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 6), layout="constrained", sharex=True)
    shades = {"gradient descent": plt.cm.Blues, "Adam": plt.cm.Oranges}
    for axis, name, title in (
        (axes[0], "loss", "‖W₁W₂X − AX‖² / ‖AX‖²"),
        (axes[1], "gradient", "norm of its gradient"),
    ):
        for (method, rate), curve in curves.items():
            values = getattr(curve, name)
            steps = range(1, len(values) + 1)
            if rate is None:
                style = "k.-" if method == LM else "C2-"
                axis.plot(steps, values, style, lw=1.5, label=method)
                continue
            shade = shades[method](0.35 + 0.2 * RATES[method].index(rate))
            label = f"{method}, rate {rate:.0e}" + (" (diverged)" if curve.diverged else "")
            axis.plot(steps, values, color=shade, lw=1.3, label=label)
            if curve.diverged:
                axis.plot(len(values), min(values[-1], 1e6), "x", color=shade, ms=9, mew=2)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("step + 1")
        axis.set_title(title)
    axes[0].axhline(GOAL, color="0.5", ls=":", lw=1, label=f"goal {GOAL:.0e}")
    axes[0].set_ylim(1e-33, 1e8)
    axes[1].set_ylim(1e-17, 1e8)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=9, loc="outside lower center", ncols=3)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "curves.png", dpi=130)
    plt.close(figure)
    print(f"plot: {folder / 'curves.png'}")


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.split("Expected output")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=3000, help="first-order steps (default 3000)")
    add("--draws", type=int, default=DRAWS, help=f"draws for the library (default {DRAWS})")
    add("--seed", type=int, default=0, help="of the first draw (default 0)")
    add("--out", type=Path, default=Path("out/ill_conditioned"), help="folder of the plot")
    options = parser.parse_args(argv)
    if options.steps < 1 or options.draws < 1:
        parser.error("--steps and --draws must be at least 1")
    return options


def main(argv=None):
    options = parse(argv)
    net, x, y = make_problem(options.seed)
    curves = {}
    for method, rates in RATES.items():
        found = first_order(method, rates, net, x, y, options.steps)
        curves.update({(method, rate): c for rate, c in zip(rates, found, strict=True)})
    best = min(curves, key=lambda key: (curves[key].diverged, curves[key].loss[-1]))
    wide = make_problem(options.seed, rows=10_000)
    (more,) = first_order(best[0], best[1:], *wide, options.steps)
    second_order(net, x, y)  # compiles, or loads what was compiled
    fixed, *_ = second_order(net, x, y, FIXED_STEPS, damping=0.0, step=FIXED_STEP, accept="always")
    curves[GAUSS_NEWTON, None] = fixed
    curves[LM, None], outcome, _ = second_order(net, x, y)
    print(table(curves))
    print(
        f"\nten times the data, {best[0]}, rate {best[1]:.0e}: relative loss {more.loss[-1]:.1e}, "
        f"with 1000 rows {curves[best].loss[-1]:.1e}"
    )
    print(
        f"{LM} ended by {outcome.stopped[0]} after {outcome.jacobians[0]} Jacobians "
        f"of rank {outcome.rank[0]}: 96 parameters, of which W₁·M, M⁻¹·W₂ leaves 36 free"
    )
    half = second_order(net, x, y, 20, damping=0.0, step=FIXED_STEP, accept="always")[2]
    errors = half(x).detach() - y
    print(
        f"after 20 steps of {GAUSS_NEWTON}: Σe² = {errors.square().sum():.2e}, "
        f"(Σe)² = {errors.sum().square():.2e}, which is no loss"
    )
    reached = []
    for seed in range(options.seed, options.seed + options.draws):
        curve, *_ = second_order(*make_problem(seed))
        reached.append(steps_to_goal(curve.loss))
    print(
        f"{options.draws} draws: relative loss ≤ {GOAL:.0e} after {min(reached)} to "
        f"{max(reached)} accepted steps, median {median(reached):g} (allowed {MOST_STEPS})"
    )
    draw(curves, options.out)
    return 0 if max(reached) <= MOST_STEPS else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
