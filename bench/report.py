"""Write the tables of measured speed into README.md and docs/performance.md.

    python bench/report.py

Of every machine whose results lie in bench/results: a file of `run.py`, a file of `bench_fit.py`,
a folder that `on_device.py` filled. Of what `run.py` and `on_device.py` wrote, the README gets the
main cases and all in which a peer is faster; the performance guide gets every case. Of what
`bench_fit.py` wrote, the README gets all. Tables lie between two marks; what is around them stays.
"""

import argparse
import json
from pathlib import Path

import cells
from cells import MODES, PEERS, TITLES
from device import section
from providers import BASELINE
from run import SUITES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

MAIN = {(suite.op, case.name) for suite in SUITES.values() for case in suite.cases if case.quick}

SPEED, TRAINING, DEVICE = "measured speed", "measured training", "measured on a device"


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
    return cells.ratio(records[0]["median_us"] / records[1]["median_us"]) + "?" * unsteady


def _shown(key, by):
    """Whether the README has a row for a case and mode."""
    ours = by["fastmlp"]["median_us"]
    return key[:2] in MAIN or any(by[peer]["median_us"] < ours for peer in by.keys() & PEERS.keys())


SPEED_NOTE = (
    "Each peer's time over fastmlp's, float32, medians of interleaved runs. Bold: the peer is "
    "faster; a question mark: the middle 60 % of the times differ more than threefold. The floor "
    "is the bytes that must move over the bandwidth measured in the same run, or the matrix "
    "products over the rate of one, whichever takes longer. Adam is `fastmlp.optim.Adam` with "
    "ours, `torch.optim.Adam` as it comes with PyTorch's."
)
TRAINING_NOTE = (
    "Whole training runs with `fit` beside the usual PyTorch loop, `torch.func` (all models at "
    "once by `vmap`) and a compiled JAX program (`jit` of `scan`, `vmap` over models; compiling "
    "not counted). PyTorch's are timed on a part and extrapolated."
)


def _machine(about, source):
    """The line above a machine's table."""
    device = about["cpu"] if about["device"] == "cpu" else about["device"]
    threads = f", {about['threads']} threads" if about["device"] == "cpu" else ""
    version = f"torch {about['torch']}, {about['date'][:10]}"
    return f"**{device}**{threads}; {version}; `{source}`"


def speed_table(report, source, every=False):
    """One machine's part of a section.

    Args:
        report: What `run.py` wrote.
        source: Path of the file, for the reader.
        every: Whether to show all cases.
    """
    times = {
        key: by
        for key, by in times_by_case(report["results"]).items()
        if {BASELINE, "fastmlp"} <= by.keys() and key[2] != "forward" and (every or _shown(key, by))
    }
    peers = [name for name in PEERS if any(name in by for by in times.values())]
    rows = []
    for (op, case, mode, graph), by in times.items():
        ours = by["fastmlp"]
        name = f"{TITLES[op]} {case}, {MODES[mode]}{', CUDA graph' if graph else ''}"
        row = [cells.duration(ours["median_us"]), f"{ours['median_us'] / ours['floor_us']:.1f}"]
        rows.append([name, *row, *(_cell(by, peer) for peer in peers)])
    columns = ["case", "fastmlp", "× floor", *(PEERS[name] for name in peers)]
    return f"{_machine(report['metadata'], source)}\n\n{cells.table(columns, rows)}"


def training_table(report, source):
    """One machine's part of the section on whole training runs: as :func:`speed_table`."""
    rows = []
    for record in report["results"]:
        ours = record["fastmlp"]
        row = [cells.duration(ours["median_seconds"] * 1e6), cells.duration(ours["us_per_step"])]
        for peer in ("torch", "vmap", "jax"):
            if isinstance(record.get(peer), dict):
                row.append(cells.ratio(record[peer]["median_seconds"] / ours["median_seconds"]))
            else:
                row.append("–")
        rows.append([record["case"], *row])
    columns = ["run", "fastmlp", "a step of a model", "PyTorch", "torch.func", "JAX"]
    return f"{_machine(report['metadata'], source)}\n\n{cells.table(columns, rows)}"


def sections(results=RESULTS):
    """The new text of every section: dictionaries from its marks, of the README and the guide."""
    speed, speed_of_all, training, devices, devices_in_full = [], [], [], [], []
    for path in sorted(results.iterdir()):
        source = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        if path.is_dir():
            devices.append(section.section(path, source))
            devices_in_full.append(section.section(path, source, every=True))
            continue
        report = json.loads(path.read_text("utf-8"))
        if all("mode" in record for record in report["results"]):
            speed.append(speed_table(report, source))
            speed_of_all.append(speed_table(report, source, every=True))
        else:
            training.append(training_table(report, source))
    return (
        {
            SPEED: "\n\n".join([SPEED_NOTE, *speed]),
            TRAINING: "\n\n".join([TRAINING_NOTE, *training]),
            DEVICE: section.joined(devices),
        },
        {
            SPEED: "\n\n".join([SPEED_NOTE, *speed_of_all]),
            DEVICE: section.joined(devices_in_full),
        },
    )


def rewrite(text, new, what):
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
        "results", type=Path, nargs="?", default=RESULTS, help="folder (default bench/results)"
    )
    paths = ROOT / "README.md", ROOT / "docs" / "performance.md"
    for name, default in zip(("--readme", "--guide"), paths, strict=True):
        text = f"file to rewrite (default {default.relative_to(ROOT)})"
        parser.add_argument(name, type=Path, default=default, metavar="FILE", help=text)
    options = parser.parse_args(argv)
    for path, new in zip((options.readme, options.guide), sections(options.results), strict=True):
        text = path.read_text("utf-8")
        for what, tables in new.items():
            text = rewrite(text, tables, what)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
