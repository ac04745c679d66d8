"""Write the tables of measured speed from a results file.

    python bench/report.py bench/results/FILE.json bench/results/FILE-fit.json

Of what `run.py` wrote, the README gets the main cases, those of `--quick`, and all in which a peer
is faster; the performance guide gets every case. Of what `bench_fit.py` wrote, the README gets all.
A table lies between two marks; what is around them stays.
"""

import argparse
import json
from pathlib import Path

from providers import BASELINE
from run import SUITES

MAIN = {(suite.op, case.name) for suite in SUITES.values() for case in suite.cases if case.quick}

SPEED, TRAINING = "measured speed", "measured training"
PEERS = {BASELINE: "PyTorch", "torch_compile": "torch.compile", "jax": "JAX"}
TITLES = {
    "additive_mlp": "AdditiveMLP",
    "elementwise_mlp": "ElementwiseMLP",
    "mlp": "MLP",
    "sine_sum": "SineSum",
}
MODES = {
    "inference": "inference",
    "forward": "forward",
    "forward_backward": "forward + backward",
    "training_step": "training step with Adam",
}


def times_by_case(results):
    """Median time by provider of each (op, case, mode, graph), in the order of the file."""
    times = {}
    for record in results:
        key = record["op"], record["case"], record["mode"], record["graph"]
        by_provider = times.setdefault(key, {})
        if not record["error"]:
            by_provider[record["provider"]] = record
    return times


def _cell(times, provider):
    if provider not in times:
        return "–"
    records = times[provider], times["fastmlp"]
    unsteady = any(record["high_us"] > 3 * record["low_us"] for record in records)
    return _ratio(records[0]["median_us"] / records[1]["median_us"]) + "?" * unsteady


def _ratio(ratio):
    text = f"{ratio:.2g}×" if ratio < 10 else f"{ratio:.0f}×"
    return text if ratio >= 1 else f"**{text}**"


def _shown(key, by):
    """Whether the README has a row for a case and mode."""
    ours = by["fastmlp"]["median_us"]
    return key[:2] in MAIN or any(by[peer]["median_us"] < ours for peer in by.keys() & PEERS.keys())


def section(report, source, every=False):
    """The text between the marks.

    Args:
        report: What `run.py` wrote.
        source: Path of the file, for the reader.
        every: Whether to show all cases.
    """
    about = report["metadata"]
    times = {
        key: by
        for key, by in times_by_case(report["results"]).items()
        if {BASELINE, "fastmlp"} <= by.keys() and key[2] != "forward" and (every or _shown(key, by))
    }
    peers = [name for name in PEERS if any(name in by for by in times.values())]
    device = about["cpu"] if about["device"] == "cpu" else about["device"]
    where = f"{device}, {about['threads']} threads" if about["device"] == "cpu" else device
    lines = [
        f"Each peer's time over fastmlp's, float32, medians of interleaved runs ({where}; "
        f"torch {about['torch']}, {about['date'][:10]}; `{source}`). Bold: the peer is faster; "
        "a question mark: the middle 60 % of the times differ more than threefold. "
        "The floor is the bytes that must move over the bandwidth measured in the same run, or the "
        "matrix products over the rate of one, whichever takes longer. Adam "
        "is `fastmlp.optim.Adam` with ours, `torch.optim.Adam` as it comes with PyTorch's.",
        "",
        f"| case | fastmlp | × floor | {' | '.join(PEERS[name] for name in peers)} |",
        f"|---|---:|---:|{'---:|' * len(peers)}",
    ]
    for (op, case, mode, graph), by in times.items():
        ours = by["fastmlp"]
        name = f"{TITLES[op]} {case}, {MODES[mode]}{', CUDA graph' if graph else ''}"
        cells = [_duration(ours["median_us"]), f"{ours['median_us'] / ours['floor_us']:.1f}"]
        cells += [_cell(by, peer) for peer in peers]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def training_section(report, source):
    """The text between the marks, of whole training runs: as :func:`section`."""
    about = report["metadata"]
    lines = [
        "Whole training runs with `fit` beside the usual PyTorch loop, `torch.func` (all models at "
        "once by `vmap`) and a compiled JAX program (`jit` of `scan`, `vmap` over models; "
        f"compiling not counted): `{source}`. PyTorch's are timed on a part and extrapolated.",
        "",
        f"| {about['date'][:10]}, as above | fastmlp | a step of a model | PyTorch "
        "| torch.func | JAX |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for record in report["results"]:
        ours = record["fastmlp"]
        cells = [_duration(ours["median_seconds"] * 1e6), _duration(ours["us_per_step"])]
        for peer in ("torch", "vmap", "jax"):
            if isinstance(record.get(peer), dict):
                cells.append(_ratio(record[peer]["median_seconds"] / ours["median_seconds"]))
            else:
                cells.append("–")
        lines.append(f"| {record['case']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _duration(us):
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} µs"


def rewrite(text, new, what=SPEED):
    """A file's text with a new section between the marks."""
    begin, end = f"<!-- {what}: bench/report.py writes this -->", f"<!-- end of {what} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the file has no lines {begin!r} and {end!r}")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def main(argv=None):
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results", type=Path, nargs="+", help="what run.py --json or bench_fit.py --json wrote"
    )
    for name, default in (("--readme", "README.md"), ("--guide", "docs/performance.md")):
        text = f"file to rewrite (default {default})"
        parser.add_argument(name, type=Path, default=Path(default), metavar="FILE", help=text)
    options = parser.parse_args(argv)
    for results in options.results:
        report, source = json.loads(results.read_text("utf-8")), results.as_posix()
        if "steps_per_second" in report:
            sections = [(options.readme, TRAINING, training_section(report, source))]
        else:
            sections = [
                (path, SPEED, section(report, source, every))
                for path, every in ((options.readme, False), (options.guide, True))
            ]
        for path, what, new in sections:
            path.write_text(rewrite(path.read_text("utf-8"), new, what), "utf-8")


if __name__ == "__main__":
    main()
