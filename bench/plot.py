"""Draw a results file: speed-ups, position to the floor, time over the batch.

    python bench/plot.py bench/results/FILE.json [--out docs/figures]

Reads JSON alone and measures nothing.
"""

import argparse
import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from report import MODES, PEERS, TITLES, times_by_case

# Okabe and Ito's colours; markers too, for print in grey
STYLES = {
    "torch": {"color": "#000000", "marker": "o", "label": "PyTorch"},
    "torch_compile": {"color": "#E69F00", "marker": "s", "label": "torch.compile"},
    "max_autotune": {"color": "#D55E00", "marker": "D", "label": "torch.compile, max-autotune"},
    "jax": {"color": "#009E73", "marker": "^", "label": "JAX"},
    "fastmlp": {"color": "#0072B2", "marker": "*", "label": "fastmlp"},
}


def _rows(case):
    match = re.match(r"\[(\d+), 64\], H = 14$", case)
    return int(match.group(1)) if match else None


def _crossing(xs, ours, theirs):
    """Batch at which the order of two curves changes, log–log between two measurements."""
    for i in range(len(xs) - 1):
        low, high = ours[i] / theirs[i], ours[i + 1] / theirs[i + 1]
        if (low < 1) != (high < 1):
            share = -math.log(low) / (math.log(high) - math.log(low))
            return xs[i] * (xs[i + 1] / xs[i]) ** share
    return None


def time_over_batch(results, ax):
    """AdditiveMLP's forward and backward from one row to a million, with the floor."""
    curves, floor = {}, {}
    for (op, case, mode, graph), by in times_by_case(results).items():
        rows = _rows(case)
        if op != "additive_mlp" or mode != "forward_backward" or graph or rows is None:
            continue
        for provider, record in by.items():
            curves.setdefault(provider, {})[rows] = record["median_us"]
            floor[rows] = record["floor_us"]
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
                f"{STYLES[provider]['label']}: {at:.0f} rows", (at, 1), rotation=90,
                xycoords=("data", "axes fraction"), va="top", ha="right", fontsize=8,
            )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="rows", ylabel="forward + backward, µs")
    ax.set_title("AdditiveMLP(64, 14)")
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)


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
    """Share of the bandwidth that each provider's time leaves: 1 is the floor."""
    names = ("fastmlp", *PEERS)
    _dots(results, ax, names, lambda by, name: by[name]["floor_us"] / by[name]["median_us"])
    ax.set_xlabel("floor (bytes over measured bandwidth) over time: 1 is the limit")


FIGURES = {"speed_ups": speed_ups, "over_floor": over_floor, "time_over_batch": time_over_batch}


def draw(report, out):
    """Write one PNG a figure; return their paths."""
    about = report["metadata"]
    device = about["cpu"] if about["device"] == "cpu" else about["device"]
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, function in FIGURES.items():
        figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
        function(report["results"], ax)
        threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
        figure.suptitle(f"{device}{threads}, {about['date'][:10]}", x=0.99, ha="right", fontsize=7)
        paths.append(out / f"bench_{name}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="what run.py --json wrote")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder")
    options = parser.parse_args(argv)
    for path in draw(json.loads(options.results.read_text("utf-8")), options.out):
        print(path)


if __name__ == "__main__":
    main()
