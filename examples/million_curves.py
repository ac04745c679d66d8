"""A million curves at once: each data set gets a model of its own, all in one call.

Every curve has 60 noisy points of a mean of four sines, with frequencies of its own. A model a
curve, `SineSum(4)` or `MLP(1, [8], 1)`, is fitted to its 60 points: first by Adam, 100 epochs on
all points, then by Levenberg–Marquardt until it converges, from the same start. Beside it runs a
loop over `scipy.optimize.curve_fit` with the same functions on a part of the curves. A plot of some
fits, of the distribution of errors and of the curves a second goes to --out.

Expected output: see docs/experiments/million_curves.md.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

import fastmlp

POINTS = 60
NOISE = 0.05
SHOWN = 6


def make_curves(n, seed=0):
    """Places ``[n, POINTS]`` and noisy measurements of a mean of four sines, float32."""
    generator = torch.Generator().manual_seed(seed)
    x = (4 * torch.rand(n, POINTS, generator=generator) - 2).sort(1).values
    frequencies = 0.2 + 1.6 * torch.rand(n, 4, generator=generator)
    y = NOISE * torch.randn(n, POINTS, generator=generator)
    for k in range(4):
        y += (torch.pi * frequencies[:, k, None] * x).sin() / 4
    return x, y


def make_models(kind, n, seed=1):
    """One model a curve."""
    if kind == "sines":
        return fastmlp.Ensemble(fastmlp.SineSum(4), n, seed=seed)
    return fastmlp.Ensemble(fastmlp.MLP(1, [8], 1, activation="tanh"), n, seed=seed)


def shaped(kind, x, y):
    """The data as the models take them: an MLP has a column for its one input."""
    return (x, y) if kind == "sines" else (x.unsqueeze(-1), y.unsqueeze(-1))


def scipy_loop(kind, models, x, y, epochs):
    """Seconds a curve and mean squared errors of `scipy.optimize.curve_fit`, curve by curve."""
    from scipy.optimize import curve_fit

    def sines(t, *w):
        return np.sin(np.pi * np.outer(t, w)).mean(1)

    def net(t, *p):
        w, b, v = np.reshape(p[:24], (3, 8))
        return np.tanh(np.outer(t, w) + b) @ v + p[24]

    function = sines if kind == "sines" else net
    errors, began = [], time.perf_counter()
    for i in range(len(x)):
        start = torch.cat([p.detach()[i].reshape(-1) for p in models.parameters()]).double().numpy()
        t, target = x[i].double().numpy(), y[i].double().numpy()
        try:
            best, _ = curve_fit(function, t, target, start, maxfev=epochs * (len(start) + 1))
        except RuntimeError:  # not converged within so many calls
            best = start
        errors.append(np.mean((function(t, *best) - target) ** 2))
    return (time.perf_counter() - began) / len(x), np.array(errors)


def peak_memory():
    """Most memory that the process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def draw(results, scipy_seconds, x, y, kind, out):
    """Some curves with both fits, and the distribution of the errors."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained")
    grid = torch.linspace(-2, 2, 300)
    for i, ax in enumerate([*axes[0, :3], *axes[1, :3]]):
        ax.plot(x[i], y[i], ".", color="0.6", markersize=4)
        for name, (models, _, _) in results.items():
            fitted = models[i](grid if kind == "sines" else grid[:, None]).detach().flatten()
            ax.plot(grid, fitted, label=name, linewidth=1.3)
        ax.set_title(f"curve {i}", fontsize=9)
    axes[0, 0].legend(fontsize=8)
    ax = axes[0, 3]
    for name, (_, losses, _) in results.items():
        roots = losses.sqrt().clamp(1e-3, 10).numpy()
        ax.hist(roots, np.geomspace(1e-2, 3, 80), histtype="step", label=name)
    ax.axvline(NOISE, color="0.7", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="RMS error; grey: the noise")
    ax.set_ylabel("curves")
    ax.legend(fontsize=8)
    ax = axes[1, 3]
    rates = {name: len(x) / seconds for name, (_, _, seconds) in results.items()}
    if scipy_seconds:
        rates["curve_fit"] = 1 / scipy_seconds
    bars = ax.barh(list(rates), list(rates.values()))
    ax.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
    ax.set(xscale="log", xlabel="curves a second", xlim=(10, 20 * max(rates.values())))
    figure.savefig(out / "curves.png", dpi=120)
    print(f"plot: {out / 'curves.png'}")
    plt.close(figure)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--n", type=int, default=1_000_000, help="curves")
    add("--model", choices=("sines", "mlp"), default="sines")
    add("--epochs", type=int, default=100, help="of Adam, and most steps of Levenberg–Marquardt")
    add("--scipy", type=int, default=200, help="curves that scipy fits too")
    add("--quiet", action="store_true", help="no progress bars")
    add("--out", type=Path, default=Path("out/million_curves"), help="folder for the plot")
    args = parser.parse_args(argv)

    began = time.perf_counter()
    x, y = make_curves(args.n)
    starts = make_models(args.model, args.n)
    data = shaped(args.model, x, y)
    weights = sum(p.numel() * p.element_size() for p in starts.parameters())
    needed = x.nbytes + y.nbytes + weights
    before = peak_memory()
    print(
        f"{args.n} curves of {POINTS} points, {starts[0]}: {needed / 1e6:.0f} MB of data and "
        f"weights, made in {time.perf_counter() - began:.1f} s"
    )
    results = {}
    for name, optimizer in (
        ("Adam", fastmlp.Adam(lr=0.05)),
        ("LM", fastmlp.LevenbergMarquardt(ftol=1e-6, xtol=1e-6)),
    ):
        models = starts[:]
        models.load_state_dict({k: v.clone() for k, v in starts.state_dict().items()}, assign=True)
        began = time.perf_counter()
        result = fastmlp.fit(
            models, *data, own=True, epochs=args.epochs, optimizer=optimizer, history="last",
            progress=not args.quiet,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        losses = result.final_loss
        results[name] = models, losses, seconds
        print(
            f"{name}: {seconds:.1f} s, {1e6 * seconds / args.n:.1f} µs a curve; RMS error "
            f"{losses.median().sqrt():.4f} (median), {losses.quantile(0.9).sqrt():.4f} (90 %); "
            f"memory {peak_memory() / needed:.1f} × data and weights ({before / needed:.1f} before)"
        )
    seconds = None
    if args.scipy:
        n = min(args.scipy, args.n)
        seconds, errors = scipy_loop(args.model, starts[:n], x[:n], y[:n], args.epochs)
        ours = results["LM"][2] / args.n
        print(
            f"scipy.optimize.curve_fit on {n}: {1e6 * seconds:.0f} µs a curve, RMS error "
            f"{np.sqrt(np.median(errors)):.4f} (median); Levenberg–Marquardt here is "
            f"{seconds / ours:.0f} × as fast a curve"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    draw(results, seconds, x, y, args.model, args.out)
    return results


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
