"""Tables of a run on a device for the README and the performance guide, from its folder."""

import json

import cells
from cells import MODES, PEERS, TITLES
from run import SUITES

from device.cases import CASES

NOTE = (
    "Kernels alone, replayed as a CUDA graph, / a call from Python; medians of interleaved runs on "
    "the same tensors, so that inputs below the second level cache's size are read from it. Beside "
    "fastmlp's times each peer's over them. Bold: the peer is faster. The floor is the bytes that "
    "must move over the bandwidth measured in the same run, or the matrix products over the rate "
    "of one in the case's precision, whichever takes longer."
)
NOTHING = "No CUDA device has been measured yet."
YARDSTICKS = {**PEERS, "gelu": "GELU"}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float64": 8}
PRODUCTS = {"float32": "fp32 products", "bfloat16": "bf16 products"}
CLOCKS = ("graph_us", "eager_us")


def joined(sections):
    """The text between the marks, of the runs that there are."""
    return "\n\n".join([NOTE, *sections]) if sections else NOTHING


def section(folder, source, every=False):
    """One run's part of it.

    Args:
        folder: What `on_device.py` filled.
        source: Its path, for the reader.
        every: Whether to show all cases, and what a call costs besides its kernels.

    Raises:
        ValueError: It was a dry run, whose figures are none of a device.
    """
    files = {
        name: json.loads((folder / f"{name}.json").read_text("utf-8"))
        for name in ("machine", "ops", "fit", "host")
    }
    figures = {name: files[name]["figures"] for name in ("ops", "fit", "host")}
    if any(part["dry"] for part in (*files.values(), *(f for fs in figures.values() for f in fs))):
        raise ValueError(f"{source} is of a dry run: its figures are none of a device")
    parts = [
        _machine(files["machine"], folder, source),
        _ops(figures["ops"], every),
        _wrong(figures["ops"], every),
        _training(figures["fit"]),
        _host(figures["host"]) if every else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _machine(about, folder, source):
    """The line above the tables, with how the tests ended there."""
    versions, date = about["versions"], about.get("metadata", {}).get("date", "")[:10]
    lines = (folder / "tests.txt").read_text("utf-8").splitlines()
    ended = [line.partition("\t")[2] for line in lines if line.startswith("ENDED")]
    tests = ended[0] if ended else "without an end"
    return (
        f"**{about['device']}**, driver {about.get('driver_version', 'unknown')}; "
        f"torch {versions['torch']}, triton {versions['triton']}, {date}; tests that touch the "
        f"device: {tests}; `{source}`"
    )


def times_by_case(records):
    """By (op, case, mode) and provider: its figure, and ours of the turns that it took part in."""
    times = {}
    for r in records:
        if r["what"] == "op" and "mode" in r and "error" not in r:
            by = times.setdefault((r["op"], r["case"], r["mode"]), {})
            # of two the later one took turns with other peers
            ours = r if r["provider"] == "fastmlp" else by.get("beside")
            by["beside"] = ours
            by.setdefault(r["provider"], (r, ours))
    return times


def _floor(case, mode, rates):
    """Microseconds below which no implementation can be; ``None`` where no rate says so."""
    suite, scale = SUITES[case.op], ITEM_BYTES[case.dtype] / 4
    product = "tf32 products" if case.precision != "highest" else PRODUCTS.get(case.dtype)
    moving, flops = suite.bytes_moved(case, mode) * scale, suite.flops(case, mode)
    bandwidth = max((rates[name] for name in ("read", "copy") if rates.get(name)), default=None)
    if bandwidth is None or (flops and not rates.get(product)):
        return None
    return max(moving / bandwidth, flops / rates[product] if flops else 0) / 1e3


def _ops(records, every):
    rates = {r["name"]: r["rate"] for r in records if r["what"] == "floor"}
    cases = {(case.op, case.name): case for case in CASES}
    times = {key: by for key, by in times_by_case(records).items() if "fastmlp" in by}
    peers = [name for name in YARDSTICKS if any(name in by for by in times.values())]
    rows = []
    for (op, name, mode), by in times.items():
        case = cases.get((op, name))
        ratios = {peer: _ratios(by, peer) for peer in peers}
        beaten = any(r < 1 for peer in PEERS for r in ratios.get(peer, {}).values())
        if not (every or beaten or (case is not None and case.quick)):
            continue
        (ours, _), floor = by["fastmlp"], case and _floor(case, mode, rates)
        us = ours.get(CLOCKS[0])
        row = [f"{TITLES[op]} {name}, {MODES[mode]}"]
        row.append(" / ".join(cells.duration(ours[c]) if c in ours else "failed" for c in CLOCKS))
        row.append(f"{us / floor:.1f}" if us and floor else "–")
        for peer in peers:
            texts = [cells.ratio(ratios[peer][c]) if c in ratios[peer] else "–" for c in CLOCKS]
            row.append(" / ".join(texts) if ratios[peer] else "–")
        rows.append(row)
    names = [YARDSTICKS[peer] for peer in peers]
    return cells.table(["case", "fastmlp", "× floor", *names], rows) if rows else ""


def _ratios(by, peer):
    """A peer's times over ours by clock."""
    theirs, ours = by.get(peer, ({}, {}))
    return {c: theirs[c] / ours[c] for c in CLOCKS if c in theirs and c in (ours or {})}


def _wrong(records, every):
    """What has no time, and why: all of ours, of others in the guide."""
    lines = [
        f"- {TITLES[r['op']]} {r['case']} {MODES.get(r.get('mode'), '')}, {r['provider']}: {text}"
        for r in records
        if r["what"] == "op" and (every or r["provider"] == "fastmlp")
        for text in (r.get("error"), r.get("graph_error"), r.get("eager_error"))
        if text
    ]
    return "\n".join(["Failed:", "", *lines]) if lines else ""


def _training(records):
    """Whole runs beside JAX, then Levenberg–Marquardt."""
    runs = {}
    for r in records:
        runs.setdefault(r["case"], {})[r.get("provider", "fastmlp")] = r
    rows = []
    for case, by in runs.items():
        ours, jax = (by.get(name, {}) for name in ("fastmlp", "jax"))
        seconds, row = ours.get("seconds"), [case]
        mark = " (extrapolated)" if ours.get("extrapolated") else ""
        row.append(f"{cells.duration(seconds * 1e6)}{mark}" if seconds else "failed")
        row.append(cells.duration(ours["us_per_step"]) if "us_per_step" in ours else "–")
        both = seconds and jax.get("seconds")
        row.append(cells.ratio(jax["seconds"] / seconds) if both else "–")
        rows.append(row)
    return cells.table(["run", "fastmlp", "a step of a model", "JAX"], rows) if rows else ""


def _host(records):
    """What a call costs on few rows, beside a Function that does nothing."""
    modules = {}
    for r in records:
        if "module" in r and "eager_us" in r and r.get("threaded", True):
            modules.setdefault(r["module"], {})[r["what"], r["name"]] = r["eager_us"]
    wanted = [("inference", "fastmlp"), ("inference", "torch"), ("forward_backward", "nothing"),
              ("forward_backward", "fastmlp"), ("forward_backward", "torch")]  # fmt: skip
    rows = [
        [module, *(cells.duration(by[key]) if key in by else "–" for key in wanted)]
        for module, by in modules.items()
    ]
    columns = ["a call on 100 rows", "inference", "PyTorch's", "f + b of a Function that does "
               "nothing", "forward + backward", "PyTorch's"]  # fmt: skip
    return cells.table(columns, rows) if rows else ""
