"""Whole training runs: fastmlp.fit against PyTorch and the JAX program of `peers/`.

PyTorch comes as the usual loop over one model and, where there are several, as `torch.func` on all
at once; both are timed on a part and extrapolated, the others run whole. A provider is timed only
after its losses have agreed with the plain loop's, over the part's first epoch, to 1e-3 relative.
Then steps per second of `fit` by the number of models. JAX runs where its own backend is that of
the device: `jax[cpu]`, the extra `bench`, on the CPU alone. `merge.py` makes one file of those of
single cases.
"""

import argparse
import copy
import importlib.util
import math
import statistics
import sys
import time
from pathlib import Path

import common
import torch

import fastmlp

sys.path.insert(0, str(Path(__file__).resolve().parent))

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LARGEST_DIFFERENCE = 1e-3
PLAIN_SECONDS = 3.0
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 10_000)
COUNT_EPOCHS = 1000
COUNTS_NAME = "SineSum(8), by the number of models"


def sweep_data():
    """SineNet's 60 points: x in units of π, and sin(πx)."""
    k = torch.cat([torch.arange(-40, -10), torch.arange(10, 40)])
    x = k * 0.1
    return x, torch.sin(math.pi * x.double()).float()


def sine_models(width, restarts):
    return [fastmlp.SineSum(width) for _ in range(restarts)]


def squares(n_rows=9_000):
    x = -5 + 13 * torch.rand(n_rows, 64)
    return x, x.double().square().sum(1, keepdim=True).float()


def wave(n_rows):
    x = torch.linspace(-5, 5, n_rows)
    return x, x.sin()


def xor():
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return x, x.sum(1, keepdim=True) % 2


def full_batch(n_rows):
    """Steps by sums over segments: 4 000 points and 400 000 should cost the same."""
    return (
        lambda: [[fastmlp.ElementwiseMLP([10, 10, 10])]],
        lambda: wave(n_rows),
        {"batch_size": n_rows, "epochs": 5000, "lr": 1e-3, "weight_decay": 0.0},
    )


def xor_models(n_models, epochs):
    def build():
        net = {"activation": "sigmoid", "output_activation": "sigmoid"}
        return [[fastmlp.MLP(2, [5], 1, **net) for _ in range(n_models)]]

    options = {"batch_size": 4, "epochs": epochs, "lr": 0.1, "weight_decay": 0.0}
    return build, xor, {**options, "optimizer": "sgd"}


JAX_OPS = {
    fastmlp.SineSum: "sine_sum",
    fastmlp.AdditiveMLP: "additive_mlp",
    fastmlp.MLP: "mlp",
}
"""Models that have a JAX program, to the names of their ops."""

# name to (groups of models, data, options of fit); models of a group have one structure
CASES = {
    "SineNet sweep, 11 widths × 20 restarts, 100 epochs, batch 1, AdamW": (
        lambda: [sine_models(width, 20) for width in WIDTHS],
        sweep_data,
        {"batch_size": 1, "epochs": 100, "lr": 1e-3, "weight_decay": 0.01},
    ),
    "AdditiveMLP(64, 14), batch 100, 5 epochs of 9000 rows, Adam": (
        lambda: [[fastmlp.AdditiveMLP(64, 14)]],
        squares,
        {"batch_size": 100, "epochs": 5, "lr": 1e-4, "weight_decay": 0.0},
    ),
    "AdditiveMLP(64, 14) × 20, batch 100, 1 epoch of 9000 rows, Adam": (
        lambda: [[fastmlp.AdditiveMLP(64, 14) for _ in range(20)]],
        squares,
        {"batch_size": 100, "epochs": 1, "lr": 1e-4, "weight_decay": 0.0},
    ),
    "SineSum(8) × 1000, full batch of 60, 100 epochs, AdamW": (
        lambda: [sine_models(8, 1000)],
        sweep_data,
        {"batch_size": 60, "epochs": 100, "lr": 1e-3, "weight_decay": 0.01},
    ),
    "MLP(1, 3 × 10, 1), batch 1280, 20 epochs of 12 800 rows, Adam": (
        lambda: [[fastmlp.MLP(1, [10, 10, 10], 1)]],
        lambda: tuple(t[:, None] for t in wave(12_800)),
        {"batch_size": 1280, "epochs": 20, "lr": 1e-3, "weight_decay": 0.0},
    ),
    "MLP(1, 10, 1) × 1000, full batch of 60, 200 epochs, Adam": (
        lambda: [[fastmlp.MLP(1, [10], 1) for _ in range(1000)]],
        lambda: tuple(t[:, None] for t in wave(60)),
        {"batch_size": 60, "epochs": 200, "lr": 1e-3, "weight_decay": 0.0},
    ),
    "MLP(2, 5, 1) × 64, sigmoid, XOR, full batch of 4, 5000 epochs, SGD": xor_models(64, 5000),
    "MLP(2, 5, 1) × 4096, sigmoid, XOR, full batch of 4, 500 epochs, SGD": xor_models(4096, 500),
    "ElementwiseMLP(3 × 10), full batch of 4 000, 5000 epochs, Adam": full_batch(4_000),
    "ElementwiseMLP(3 × 10), full batch of 400 000, 5000 epochs, Adam": full_batch(400_000),
}


def timed_steps(step, parameters, x, y, options, max_seconds):
    """Take steps of PyTorch on the batches in turn; the losses, seconds a step.

    ``step(inputs, targets)`` sets the gradients of the parameters and returns the loss.
    """
    cls = torch.optim.SGD if options.get("optimizer") == "sgd" else torch.optim.AdamW
    optimizer = cls(parameters, lr=options["lr"], weight_decay=options["weight_decay"])
    losses, began = [], time.perf_counter()
    batches = list(zip(x.split(options["batch_size"]), y.split(options["batch_size"]), strict=True))
    with fastmlp.backend("torch"):
        for inputs, targets in batches * options["epochs"]:
            optimizer.zero_grad()
            loss = step(inputs, targets)
            optimizer.step()
            losses.append(loss.detach())  # a number of it would wait for the device
            if time.perf_counter() - began > max_seconds:
                break
    if x.is_cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / len(losses)
    return torch.stack(losses).tolist(), seconds


def plain_loop(model, x, y, options, max_seconds):
    """The usual loop in plain PyTorch; losses of its steps, seconds a step."""
    plain = copy.deepcopy(model)

    def step(inputs, targets):
        loss = torch.nn.functional.mse_loss(plain(inputs), targets)
        loss.backward()
        return loss

    return timed_steps(step, plain.parameters(), x, y, options, max_seconds)


def vmap_loop(group, x, y, options, max_seconds):
    """All models of a group at once by `torch.func`: the first one's losses, seconds a step."""
    models = [copy.deepcopy(model) for model in group]
    parameters, buffers = torch.func.stack_module_state(models)

    def loss_of(parameters, buffers, inputs, targets):
        y_hat = torch.func.functional_call(models[0], (parameters, buffers), (inputs,))
        return torch.nn.functional.mse_loss(y_hat, targets)

    gradients_of = torch.func.vmap(torch.func.grad_and_value(loss_of), in_dims=(0, 0, None, None))

    def step(inputs, targets):
        gradients, losses = gradients_of(parameters, buffers, inputs, targets)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        return losses[0]

    losses, seconds = timed_steps(step, parameters.values(), x, y, options, max_seconds)
    return losses, seconds / len(group)


def run_fastmlp(groups, x, y, options):
    models = [copy.deepcopy(model) for group in groups for model in group]
    cls = fastmlp.SGD if options.get("optimizer") == "sgd" else fastmlp.AdamW
    optimizer = cls(lr=options["lr"], weight_decay=options["weight_decay"])
    began = time.perf_counter()
    result = fastmlp.fit(
        models, x, y, epochs=options["epochs"], batch_size=options["batch_size"], shuffle=False,
        optimizer=optimizer, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return seconds, [float(result.train_loss[0, 0]), result.steps]


def jax_programs(groups, x, y, options):
    """Compiled JAX programs, one for each group, and what compiling took."""
    from peers import jax_fit, jax_ops

    programs, compile_seconds = [], 0.0
    for group in groups:
        states = [model.state_dict() for model in group]
        weights = {k: torch.stack([s[k] for s in states]).cpu().numpy() for k in states[0]}
        program, seconds = jax_fit.compiled(
            jax_ops.predictor(JAX_OPS[type(group[0])], group[0]), weights, x.cpu().numpy(),
            y.cpu().numpy(), **options,
        )  # fmt: skip
        programs.append(program)
        compile_seconds += seconds
    return programs, compile_seconds


def why_no_jax(device):
    """Why the JAX program does not run on the device; ``None`` where it does."""
    if importlib.util.find_spec("jax") is None:
        return "not installed"
    import jax

    wanted = {"cpu": "cpu", "cuda": "gpu"}[device.type]
    if jax.default_backend() != wanted:
        return f"its backend is {jax.default_backend()}"
    return None


def measure(name, rounds, device):
    """One case: seconds of every provider, its providers taking turns."""
    build, data, options = CASES[name]
    torch.manual_seed(0)
    groups = [[model.to(device) for model in group] for group in build()]
    x, y = (t.to(device) for t in data())
    n_steps = -(-len(x) // options["batch_size"]) * options["epochs"] * sum(map(len, groups))
    record = {"case": name, "steps": n_steps}
    steps_per_epoch = -(-len(x) // options["batch_size"])
    seconds = math.inf if steps_per_epoch < 100 else 9.0
    losses, _ = plain_loop(groups[0][0], x, y, {**options, "epochs": 1}, seconds)
    first = losses[:steps_per_epoch]
    expected = statistics.fmean(first) if len(first) == steps_per_epoch else None
    run_fastmlp(groups, x, y, {**options, "epochs": 1})  # compiles or loads the kernels
    programs = None
    if type(groups[0][0]) not in JAX_OPS:
        record["jax"] = "no program"
    elif reason := why_no_jax(device):
        record["jax"] = reason
    else:
        programs, record["jax compile seconds"] = jax_programs(groups, x, y, options)
        loss = float(programs[0]()[1][0, 0])
        if expected is not None:
            assert abs(loss - expected) <= LARGEST_DIFFERENCE * expected, ("jax", loss, expected)
    several = any(len(group) > 1 for group in groups)
    samples = {"fastmlp": [], "jax": [], "vmap": [], "torch": []}
    for _ in range(rounds):
        seconds, (loss, _) = run_fastmlp(groups, x, y, options)
        if expected is not None:
            assert abs(loss - expected) <= LARGEST_DIFFERENCE * expected, ("fit", loss, expected)
        samples["fastmlp"].append(seconds)
        if programs is not None:
            began = time.perf_counter()
            for program in programs:
                program()
            samples["jax"].append(time.perf_counter() - began)
        # PyTorch on a part: every structure for a while, weighted alike
        n_models = sum(map(len, groups))
        share = PLAIN_SECONDS / len(groups)
        parts = [plain_loop(group[0], x, y, options, share)[1] * len(group) for group in groups]
        samples["torch"].append(sum(parts) * n_steps / n_models)
        if several:
            runs = [vmap_loop(group, x, y, options, share) for group in groups]
            loss, expected_loss = runs[0][0][0], losses[0]
            assert abs(loss - expected_loss) <= LARGEST_DIFFERENCE * expected_loss, ("vmap", loss)
            parts = [run[1] * len(group) for run, group in zip(runs, groups, strict=True)]
            samples["vmap"].append(sum(parts) * n_steps / n_models)
    for provider, values in samples.items():
        if values:
            record[provider] = {
                "median_seconds": statistics.median(values),
                "min_seconds": min(values),
                "us_per_step": statistics.median(values) / n_steps * 1e6,
                "extrapolated": provider in ("torch", "vmap"),
            }
    return record


def measure_counts(rounds, device):
    """Steps per second of `fit` by the number of models: SineSum(8), full batch of 60, AdamW."""
    options = {"batch_size": 60, "lr": 1e-3, "weight_decay": 0.01}
    x, y = (t.to(device) for t in sweep_data())
    records = []
    for n_models in COUNTS:
        torch.manual_seed(0)
        groups = [[model.to(device) for model in sine_models(8, n_models)]]
        # on a CPU time grows with the models: as many steps in all from 64 on
        epochs = COUNT_EPOCHS
        if device.type == "cpu":
            epochs = max(100, epochs * 64 // max(64, n_models))
        run_fastmlp(groups, x, y, {**options, "epochs": 1})
        seconds = [
            run_fastmlp(groups, x, y, {**options, "epochs": epochs})[0] for _ in range(rounds)
        ]
        median = statistics.median(seconds)
        records.append(
            {
                "models": n_models,
                "steps": n_models * epochs,
                "median_seconds": median,
                "min_seconds": min(seconds),
                "steps_per_second": n_models * epochs / median,
            }
        )
    return records


def counts_table(records):
    """Steps per second by the number of models, as text."""
    lines = [f"\n{COUNTS_NAME}, full batch of 60, AdamW: steps per second, all models together"]
    lines += [f"  {r['models']:>6} models {r['steps_per_second']:>12.4g}" for r in records]
    return "\n".join(lines)


def table(records):
    """The results as text."""
    lines = []
    for record in records:
        ours = record["fastmlp"]["median_seconds"]
        lines.append(f"\n{record['case']}: {record['steps']} steps")
        for provider in ("torch", "vmap", "jax", "fastmlp"):
            numbers = record.get(provider)
            if provider == "vmap" and numbers is None:
                continue  # a single model
            if not isinstance(numbers, dict):
                lines.append(f"  {provider:<10}{numbers or 'not run'}")
                continue
            note = " (extrapolated from a timed part)" if numbers["extrapolated"] else ""
            lines.append(
                f"  {provider:<10}{numbers['median_seconds']:>10.4g} s, "
                f"min {numbers['min_seconds']:.4g} s, {numbers['us_per_step']:.4g} µs a step; "
                f"{numbers['median_seconds'] / ours:.4g} × fastmlp{note}"
            )
        if "jax compile seconds" in record:
            lines.append(f"  jax compiled for {record['jax compile seconds']:.3g} s, not counted")
    return "\n".join(lines)


def main(argv=None):
    """Run from the command line; return what was written as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of every provider (default 5)")
    parser.add_argument(
        "--case", default="", metavar="TEXT",
        help=f"only cases whose name contains this; the last is {COUNTS_NAME!r}",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, and PyTorch finds none on this machine")
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    about = common.metadata(device)
    print(
        f"{about['device']}, {about['cpu']}, {about['threads']} threads, load {about['load']:.1f}",
        flush=True,
    )
    records = []
    for name in CASES:
        if options.case in name:
            records.append(measure(name, options.rounds, device))
            print(table(records[-1:]), flush=True)
    report = {"metadata": about, "results": records}
    if options.case in COUNTS_NAME:
        report["steps_per_second"] = measure_counts(options.rounds, device)
        print(counts_table(report["steps_per_second"]))
    common.write_report(options.json, report)
    return report


if __name__ == "__main__":
    main()
