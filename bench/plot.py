"""Draw results files: speed-ups, position to the floor, time over batch and width, over models.

    python bench/plot.py bench/results/FILE.json bench/results/FILE-fit.json [--out docs/figures]

Reads what `run.py` and `bench_fit.py` wrote, and measures nothing.
"""

import argparse
import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from cells import MODES, PEERS, TITLES
from PIL import Image
from report import times_by_case

# Okabe and Ito's colours; markers too, for print in grey
STYLES = {
    "torch": {"color": "#000000", "marker": "o", "label": "PyTorch"},
    "torch_compile": {"color": "#E69F00", "marker": "s", "label": "torch.compile"},
    "max_autotune": {"color": "#D55E00", "marker": "D", "label": "torch.compile, max-autotune"},
    "jax": {"color": "#009E73", "marker": "^", "label": "JAX"},
    "fastmlp": {"color": "#0072B2", "marker": "*", "label": "fastmlp"},
}


def _crossing(xs, ours, theirs):
    """Batch at which the order of two curves changes, log–log between two measurements."""
    for i in range(len(xs) - 1):
        low, high = ours[i] / theirs[i], ours[i + 1] / theirs[i + 1]
        if (low < 1) != (high < 1):
            share = -math.log(low) / (math.log(high) - math.log(low))
            return xs[i] * (xs[i + 1] / xs[i]) ** share
    return None


def _curves(results, ax, pattern, what):
    """AdditiveMLP's forward and backward over the number in a case's name, with the floor."""
    curves, floor = {}, {}
    for (op, case, mode, graph), by in times_by_case(results).items():
        match = re.match(pattern, case)
        if op != "additive_mlp" or mode != "forward_backward" or graph or match is None:
            continue
        x = int(match[1])
        for provider, record in by.items():
            curves.setdefault(provider, {})[x] = record["median_us"]
            floor[x] = record["floor_us"]
    for provider, points in curves.items():
        xs = sorted(points)
        ax.plot(xs, [points[x] for x in xs], **STYLES[provider])
    xs = sorted(floor)
    ax.plot(xs, [floor[x] for x in xs], color="0.5", linestyle=":", label="floor: bytes moved")
    ours = curves.get("fastmlp", {})
    for provider, points in curves.items():
        shared = sorted(ours.keys() & points.keys())
        at = _crossing(shared, [ours[x] for x in shared], [points[x] for x in shared])
        if provider != "fastmlp" and at is not None:
            ax.axvline(at, color=STYLES[provider]["color"], linewidth=0.8, linestyle="--")
            ax.annotate(
                f"{STYLES[provider]['label']}: {at:.0f} {what}", (at, 1), rotation=90,
                xycoords=("data", "axes fraction"), va="top", ha="right", fontsize=8,
            )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=what, ylabel="forward + backward, µs")
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)


def time_over_batch(results, ax):
    """From one row to a million."""
    _curves(results, ax, r"\[(\d+), 64\], H = 14$", "rows")
    ax.set_title("AdditiveMLP(64, 14)")


def time_over_width(results, ax):
    """From one hidden unit to a thousand: wide ReLU subnets are evaluated by their segments."""
    _curves(results, ax, r"\[1000, 64\], H = (\d+)$", "hidden units")
    ax.set_title("AdditiveMLP(64, H) on 1000 rows")


def steps_over_models(records, ax):
    """Steps per second of `fit`, all models together."""
    xs, ys = [r["models"] for r in records], [r["steps_per_second"] for r in records]
    ax.plot(xs, ys, **STYLES["fastmlp"])
    ax.set(xscale="log", yscale="log", xlabel="models", ylabel="steps per second, all models")
    ax.set_ylim(10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys))))
    ax.set_title("fit: SineSum(8), full batch of 60, AdamW")
    ax.grid(alpha=0.3, which="both")


def _dots(results, ax, names, value):
    """A line a case, a dot a provider at ``value(records by provider, provider)``."""
    cases = [
        (key, by)
        for key, by in times_by_case(results).items()
        if "fastmlp" in by and key[2] in ("inference", "forward_backward") and not key[3]
    ]
    labels = [f"{TITLES[op]} {case}, {MODES[mode]}" for (op, case, mode, _), _ in cases]
    for name in names:
        points = [(value(by, name), -i) for i, (_, by) in enumerate(cases) if name in by]
        if points:
            ax.plot(*zip(*points, strict=True), linestyle="", **STYLES[name])
    ax.axvline(1, color="0.4", linewidth=1)
    ax.set_xscale("log")
    ax.set_yticks([-i for i in range(len(labels))], labels, fontsize=8)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=8)


def speed_ups(results, ax):
    """How many times slower each peer is, case by case; left of the line it is faster."""
    _dots(results, ax, PEERS, lambda by, name: by[name]["median_us"] / by["fastmlp"]["median_us"])
    ax.set_xlabel("time over fastmlp's (right of the line fastmlp is faster)")


def over_floor(results, ax):
    """The floor over each provider's time."""
    names = ("fastmlp", *PEERS)
    _dots(results, ax, names, lambda by, name: by[name]["floor_us"] / by[name]["median_us"])
    ax.set_xlabel("floor over time (1: measured bandwidth or arithmetic used up)")


# function, what of the report it draws, height in inches
FIGURES = {
    "speed_ups": (speed_ups, "results", 7),
    "over_floor": (over_floor, "results", 7),
    "time_over_batch": (time_over_batch, "results", 5),
    "time_over_width": (time_over_width, "results", 5),
}
FIT_FIGURES = {"steps_over_models": (steps_over_models, "steps_per_second", 4)}


def draw(report, out):
    """Write one PNG a figure; return their paths."""
    about = report["metadata"]
    device = about["cpu"] if about["device"] == "cpu" else about["device"]
    threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    figures = FIT_FIGURES if "steps_per_second" in report else FIGURES
    for name, (function, part, height) in figures.items():
        figure, ax = plt.subplots(figsize=(8, height), layout="constrained")
        function(report[part], ax)
        figure.suptitle(f"{device}{threads}, {about['date'][:10]}", x=0.99, ha="right", fontsize=7)
        paths.append(out / f"bench_{name}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
        with Image.open(paths[-1]) as image:  # a third of the bytes, for the repository
            small = image.convert("RGB").quantize(64)
        small.save(paths[-1], optimize=True)
    return paths


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", type=Path, nargs="+", help="what run.py --json or bench_fit.py --json wrote"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder")
    options = parser.parse_args(argv)
    for results in options.results:
        for path in draw(json.loads(results.read_text("utf-8")), options.out):
            print(path)


if __name__ == "__main__":
    main()
