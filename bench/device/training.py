"""Whole training runs by `fit` beside JAX, and steps of Levenberg–Marquardt."""

import os
import statistics
import time
import warnings
from functools import partial

import bench_fit
import torch
from torch import nn

import fastmlp
from device import jobs, timing
from device.report import first_line
from fastmlp.training.levenberg_marquardt import train

LONGEST = 20.0
"""Seconds of a run; one that would take longer is extrapolated from its first epochs."""

XOR_NET = {"activation": "sigmoid", "output_activation": "sigmoid"}


def _full_batch(n_rows, epochs, **options):
    return {"batch_size": n_rows, "epochs": epochs, "lr": 1e-3, "weight_decay": 0.0, **options}


# as those of bench_fit.py: name to (groups of models, data, options of fit)
MORE = {
    "SineSum(8) × 10 000, full batch of 60, 1000 epochs, AdamW": (
        lambda: [bench_fit.sine_models(8, 10_000)],
        bench_fit.sweep_data,
        _full_batch(60, 1000, weight_decay=0.01),
    ),
    "MLP(2, 5, 1) × 4096, sigmoid, XOR, full batch of 4, 5000 epochs, SGD": (
        lambda: [[fastmlp.MLP(2, [5], 1, **XOR_NET) for _ in range(4096)]],
        bench_fit.xor,
        _full_batch(4, 5000, lr=0.1, optimizer="sgd"),
    ),
    "AdditiveMLP(64, 14) × 1024, batch 100, 1 epoch of 9000 rows, Adam": (
        lambda: [[fastmlp.AdditiveMLP(64, 14) for _ in range(1024)]],
        bench_fit.squares,
        {**_full_batch(100, 1), "lr": 1e-4},
    ),
    "MLP(1, 3 × 10, 1) × 256, batch 1280, 20 epochs of 12 800 rows, Adam": (
        lambda: [[fastmlp.MLP(1, [10, 10, 10], 1) for _ in range(256)]],
        lambda: tuple(t[:, None] for t in bench_fit.wave(12_800)),
        _full_batch(1280, 20),
    ),
}
DRY = {
    "SineSum(2) × 2, batch 30, 2 epochs, AdamW": (
        lambda: [bench_fit.sine_models(2, 2)],
        bench_fit.sweep_data,
        _full_batch(30, 2, weight_decay=0.01),
    )
}


def _prepared(case, device):
    build, data, options = case
    torch.manual_seed(0)
    groups = [[model.to(device) for model in group] for group in build()]
    x, y = (t.to(device) for t in data())
    steps = -(-len(x) // options["batch_size"]) * sum(map(len, groups))
    return groups, x, y, options, steps


def measure_fit(report, case):
    """Seconds of one case: its first call, one epoch, all epochs."""
    groups, x, y, options, steps_per_epoch = _prepared(case, report.device)
    epochs = options["epochs"]

    def seconds(n):
        return bench_fit.run_fastmlp(groups, x, y, {**options, "epochs": n})[0]

    figure = {"first_call_seconds": seconds(1), "one_epoch_seconds": seconds(1)}
    n = max(1, epochs // 20)
    part = seconds(n)
    expected = figure["one_epoch_seconds"] + part / n * epochs
    if extrapolated := not report.dry and expected > min(LONGEST, report.left() / 3):
        runs = [expected]
    else:
        # of many models the copies take longer than the run
        once = report.dry or expected > 1 or sum(map(len, groups)) > 1000
        runs = [seconds(epochs) for _ in range(1 if once else 3)]
    whole = statistics.median(runs)
    steps = steps_per_epoch * epochs
    return {
        **figure, "seconds": whole, "runs": runs, "extrapolated": extrapolated, "steps": steps,
        "us_per_step": whole / steps * 1e6,
        # what a run costs once, not at every step, is in one epoch too
        "seconds_beyond_one_epoch": whole - figure["one_epoch_seconds"],
    }  # fmt: skip


def measure_jax(report, case):
    """The like of the compiled JAX program; ``None`` where it has none."""
    groups, x, y, options, steps_per_epoch = _prepared(case, report.device)
    if type(groups[0][0]) not in bench_fit.JAX_OPS or "optimizer" in options:
        return None
    if reason := bench_fit.why_no_jax(torch.device(report.device)):
        raise RuntimeError(f"JAX: {reason}")
    programs, compiling = bench_fit.jax_programs(groups, x, y, options)
    runs = []
    for _ in range(3):
        began = time.perf_counter()
        for program in programs:
            program()
        runs.append(time.perf_counter() - began)
        if report.left() < runs[-1] + 2:
            break
    whole = statistics.median(runs)
    return {
        "seconds": whole, "runs": runs, "compile_seconds": compiling, "extrapolated": False,
        "us_per_step": whole / (steps_per_epoch * options["epochs"]) * 1e6,
    }  # fmt: skip


def _steps_of_lm(report):
    """Seconds of a step of AdditiveMLP on many rows, by each solver."""
    features, hidden, rows = (2, 2, 9) if report.dry else (64, 14, 90_000)
    x = (13 * torch.rand(rows, features) - 5).to(report.device)
    y = x.square().sum(1, keepdim=True)
    for solver in ("cholesky", "qr"):
        settings = fastmlp.LevenbergMarquardt(solver=solver)
        for steps in (1, 1 if report.dry else 5):  # the first run compiles
            torch.manual_seed(0)
            net = fastmlp.AdditiveMLP(features, hidden).to(report.device)
            outcome = train([net], x, y, settings, max_steps=steps)
        name = f"step of AdditiveMLP({features}, {hidden}), {rows} rows, {solver}"
        yield name, {"seconds": outcome.seconds / float(outcome.jacobians[0])}


def _xor_by_lm(report):
    """Seconds of 200 starts on XOR, and how many get there."""
    x, y = (t.double().to(report.device) for t in bench_fit.xor())
    net = nn.Sequential(nn.Linear(2, 5), nn.Sigmoid(), nn.Linear(5, 1), nn.Sigmoid())
    net = net.double().to(report.device)
    starts, steps = (2, 1) if report.dry else (200, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        train([net], x, y, fastmlp.LevenbergMarquardt(), max_steps=1)
        outcome = train([net], x, y, fastmlp.LevenbergMarquardt(restarts=starts), max_steps=steps)
    yield (
        "XOR 2-5-1, 200 starts",
        {
            "seconds": outcome.seconds,
            "solved": int((outcome.final < 1e-10).sum()),
        },
    )


def _levenberg_marquardt(report, question):
    about = {"what": "levenberg_marquardt"}
    try:
        for name, figure in question(report):
            report.figure("fit.json", **about, case=name, **figure)
    except Exception as error:
        report.figure("fit.json", **about, case=question.__name__, error=first_line(error))


def _fit(report, provider, measure, name, case):
    about = {"what": "fit", "case": name, "provider": provider}
    try:
        if (figure := measure(report, case)) is not None:
            report.figure("fit.json", **about, **figure)
    except Exception as error:
        report.figure("fit.json", **about, error=first_line(error))


def run(report):
    """The step: ours, then Levenberg–Marquardt, then JAX."""
    # the two libraries share the device's memory
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cases = DRY if report.dry else {**MORE, **bench_fit.CASES}
    work = {}
    for provider, measure in (("fastmlp", measure_fit), ("jax", measure_jax)):
        for name, case in cases.items():
            work[f"{provider}: {name}"] = partial(_fit, report, provider, measure, name, case)
        if provider == "fastmlp":
            for question in (_xor_by_lm, _steps_of_lm):
                work[question.__name__] = partial(_levenberg_marquardt, report, question)
    with timing.backend(report):
        jobs.each(report, work)
