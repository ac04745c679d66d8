"""Time every op against plain PyTorch, in one run, and print one table.

Each provider must first agree with float64 as well as plain PyTorch does; one that fails is listed
with its message instead of a time. CPU: providers take turns, median with 20 % and 80 %. CUDA:
`triton.testing.do_bench`, call by call and replayed as a CUDA graph. Peak extra memory of one call
counts its results; on the CPU it is the rise of the resident set (VmHWM), which sees what compiled
kernels allocate. The floor is the bytes that must move over the bandwidth measured in the same run,
or the arithmetic of matrix products over the rate of one measured there, whichever takes longer.
Energy of a call is reported where the device counts it.

    python bench/run.py                  all cases
    python bench/run.py --quick          the main cases, under three minutes on two cores
    python bench/run.py sine_sum --json sine.json --providers torch,jax,fastmlp
    python bench/run.py --quick --compare bench/results/FILE.json

Where ten minutes in one go are too many, each suite, or `--case`, makes a file of its own, and
`merge.py` one of them all.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import bench_additive_mlp
import bench_curves
import bench_elementwise_mlp
import bench_mlp
import bench_piecewise_linear
import bench_sine_sum
import common
import torch
from compare import compare
from providers import BASELINE, DEFAULT, PROVIDERS

SUITES = {
    suite.name or suite.op: suite
    for suite in (
        bench_additive_mlp.SUITE,
        bench_elementwise_mlp.SUITE,
        bench_mlp.SUITE,
        bench_sine_sum.SUITE,
        bench_piecewise_linear.SUITE,
        bench_curves.BATCH,
        bench_curves.WIDTH,
    )
}


def first_line(error):
    """The message of an error, short enough for a table's footnote."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def set_up(suite, case, device):
    """Input, output gradient, plain module and gate of a case."""
    torch.manual_seed(1)
    x = suite.draw(case).to(device).requires_grad_(case.x_grad)
    plain = suite.reference(case).to(device)
    with torch.no_grad():
        dy = torch.randn(len(x), *plain(x[:1]).shape[1:]).to(device)
    return x, dy, plain, common.Gate(suite, plain, x, dy)


def admit(suite, case, mode, names, x, dy, plain, gate):
    """The functions to time, and the messages of the providers that have none."""
    steps, errors = {}, {}
    for name in names:
        # whatever goes wrong with one provider is recorded, and the others are timed
        try:
            module = PROVIDERS[name](suite, case, plain)
            # a training step changes the weights that it is judged by
            judged = "forward_backward" if mode == "training_step" else mode
            if name != BASELINE:  # which the others are compared with
                gate.check(common.make_step(module, x, dy, judged)())
            steps[name] = common.make_step(module, x, dy, mode)
        except Exception as error:
            errors[name] = first_line(error)
    return steps, errors


def measure(suite, case, mode, steps, errors, device, about, seconds):
    """One record per provider (and, on CUDA, per way to launch) of one case in one mode."""
    bandwidth, rate = about["bandwidth_gb_per_s"], about["arithmetic_gflop_per_s"]
    n_bytes, flops = suite.bytes_moved(case, mode), suite.flops(case, mode)
    fixed = {
        "op": suite.op,
        "case": case.name,
        "mode": mode,
        "input_bytes": 4 * math.prod(case.shape),
        "bytes_moved": n_bytes,
        "flops": flops,
        "floor_us": max(n_bytes / max(bandwidth.values()), flops / rate) / 1e3,
    }
    energy = {name: common.energy_per_call(step, device) for name, step in steps.items()}
    memory = {name: common.peak_extra_bytes(step, device) for name, step in steps.items()}
    records = []
    if device.type == "cuda":
        for graph in (False, True):
            for name, step in steps.items():
                try:
                    times = common.time_cuda(step, graph=graph)
                except Exception as error:
                    errors[name, graph] = first_line(error)
                    continue
                records.append({**fixed, "provider": name, "graph": graph, **times})
    else:
        for name, times in common.time_interleaved(steps, seconds=seconds).items():
            records.append({**fixed, "provider": name, "graph": False, **times})
    for record in records:
        record["peak_extra_bytes"] = memory[record["provider"]]
        record["energy_uj"] = energy[record["provider"]]
        record["gb_per_s"] = record["bytes_moved"] / record["median_us"] / 1e3
        record["error"] = None
    for key, message in errors.items():
        name, graph = key if isinstance(key, tuple) else (key, False)
        records.append({**fixed, "provider": name, "graph": graph, "error": message})
    return records


def run(suites, names, device, *, quick=False, part="", seconds=4.0, say=print):
    """Measure the suites, or the cases that have ``part`` in their names.

    Returns:
        ``{"metadata": …, "results": […]}``.
    """
    began = time.perf_counter()
    about = common.metadata(device)  # first: its load is that of others
    bandwidth = about["bandwidth_gb_per_s"] = common.measure_bandwidth(device)
    about["arithmetic_gflop_per_s"] = common.measure_arithmetic(device)
    say(
        f"fastmlp {about['commit']}, torch {about['torch']}, {about['device']}, {about['cpu']}, "
        f"{about['threads']} threads; reading {bandwidth['read']:.1f} GB/s, "
        f"copying {bandwidth['copy']:.1f} GB/s, matrix products "
        f"{about['arithmetic_gflop_per_s']:.0f} GFLOP/s"
    )
    if device.type == "cpu" and about["load"] and about["load"] > about["cores"] / 4:
        say(
            f"warning: other programs are running (load {about['load']:.1f} on {about['cores']} "
            "cores); threads that wait for each other suffer most, so ratios are not to be trusted"
        )
    results, measured = [], set()
    for suite in suites:
        for case in suite.cases:
            # suites may share a case
            modes = [
                mode
                for mode in case.modes
                if (suite.op, case.name, mode) not in measured
                and part in case.name
                and not (quick and (mode == "forward" or not case.quick))
            ]
            if not modes:
                continue
            prepared = set_up(suite, case, device)
            for mode in modes:
                measured.add((suite.op, case.name, mode))
                steps, errors = admit(suite, case, mode, names, *prepared)
                results += measure(suite, case, mode, steps, errors, device, about, seconds)
                say(f"  {suite.op} {case.name} {mode}: {time.perf_counter() - began:.0f} s")
    return {"metadata": about, "results": results}


def table(results):
    """The results as text: a block per case and mode, a line per provider."""
    blocks, notes = {}, []
    for record in results:
        key = record["op"], record["case"], record["mode"], record["graph"]
        blocks.setdefault(key, []).append(record)
    lines = []
    for (op, case, mode, graph), records in blocks.items():
        launched = ", CUDA graph" if graph else ""
        floor = records[0]["floor_us"] / 1e3
        lines.append(f"\n{op} {case}, {mode}{launched}; floor {floor:.3g} ms")
        lines.append(
            f"  {'':<14}{'median ms':>10}{'20–80 %':>18}{'speed':>9}"
            f"{'extra memory':>24}{'× floor':>9}"
        )
        base = next((r for r in records if r["provider"] == BASELINE and not r["error"]), None)
        for record in sorted(records, key=lambda r: list(PROVIDERS).index(r["provider"])):
            if record["error"]:
                notes.append(f"{op} {case}, {mode}, {record['provider']}: {record['error']}")
                lines.append(f"  {record['provider']:<14}{'failed':>10}  note {len(notes)}")
            else:
                lines.append(_line(record, base))
    lines += [f"\nnote {i}: {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines)


def _line(record, base):
    low, high = (record[key] / 1e3 for key in ("low_us", "high_us"))
    speed = f"{base['median_us'] / record['median_us']:.2f}×" if base else ""
    memory = "unknown"
    if record["peak_extra_bytes"] is not None:
        extra = record["peak_extra_bytes"]
        memory = f"{extra / 1e6:.1f} MB = {extra / record['input_bytes']:.2f} × x"
    return (
        f"  {record['provider']:<14}{record['median_us'] / 1e3:>10.4g}"
        f"{f'{low:.4g}–{high:.4g}':>18}{speed:>9}{memory:>24}"
        f"{record['median_us'] / record['floor_us']:>9.1f}"
    )


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)} (default: all)")
    add("--quick", action="store_true", help="the main cases only, fewer rounds")
    add("--case", default="", metavar="TEXT", help="only cases whose name contains this")
    add("--device", default="cpu", help="cpu or cuda (default cpu)")
    add("--threads", type=int, default=2, help="CPU threads of every provider (default 2)")
    add(
        "--providers",
        default=",".join(DEFAULT),
        help=f"comma-separated, of {', '.join(PROVIDERS)} (default: {','.join(DEFAULT)})",
    )
    add("--json", "--out", type=Path, metavar="FILE", help="write the results there")
    add(
        "--compare",
        type=Path,
        metavar="FILE",
        help="results of an earlier run: exit with 1 if a speed-up fell by more than 20 %%",
    )
    options = parser.parse_args(argv)
    for kind, given, known in (
        ("suite", options.suites, SUITES),
        ("provider", options.providers.split(","), PROVIDERS),
    ):
        for name in given:
            if name not in known:
                parser.error(f"{kind} must be one of {', '.join(known)}, got {name!r}")
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def main(argv=None):
    """Run from the command line; return what was written as JSON."""
    options = parse(argv)
    # read first: an unreadable file must not cost ten minutes
    earlier = json.loads(options.compare.read_text("utf-8")) if options.compare else None
    torch.set_num_threads(options.threads)
    report = run(
        [SUITES[name] for name in options.suites or SUITES],
        options.providers.split(","),
        torch.device(options.device),
        quick=options.quick,
        part=options.case,
        seconds=2.0 if options.quick else 4.0,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(table(report["results"]))
    common.write_report(options.json, report)
    if options.compare is not None:
        lines, fine = compare(report["results"], earlier["results"])
        print("\n".join([f"\nagainst {options.compare}:", *lines]))
        if not fine:
            sys.exit(1)
    return report


if __name__ == "__main__":
    main()
