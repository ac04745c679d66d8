"""The page that is read: what failed, what was measured beside the goals, what was cut."""

import re
from collections import defaultdict

from device.goals import GOALS, value

MODES = {"inference": "inference", "forward_backward": "f + b"}
MIN_GAIN = 1.02
"""From here on a configuration is worth its line."""


def write(files, driver):
    """The text of `summary.md`."""
    dry, figures = files.about["dry"], files.figures
    sections = (
        lambda: _head(files, dry),
        lambda: _steps(driver),
        lambda: _tests(files.lines),
        lambda: _goals(figures, dry),
        lambda: _ops(figures["ops.json"], dry),
        lambda: _host(figures["host.json"], dry),
        lambda: _fit(figures["fit.json"], dry),
        lambda: _tuning(files, dry),
    )
    return "\n\n".join(map(_safely, sections)) + "\n"


def _safely(section):
    """A section, or why there is none: one strange figure must not cost the page."""
    try:
        return section()
    except Exception as error:
        return f"(A section could not be written: {error!r}. The files hold its figures.)"


def _table(title, columns, rows, note=""):
    """A table of Markdown; a line where there is nothing."""
    if not rows:
        return f"## {title}\n\nNothing."
    lines = [f"## {title}", "", *([note, ""] if note else [])]
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(value):
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def _clock(dry):
    """Heading of figures that a device would give."""
    return " (dry run: the interpreter's time, not a device's)" * dry


def _head(files, dry):
    about = files.machine
    title = "# DRY RUN: no figure on this page is of a device" if dry else "# A run on a device"
    versions = ", ".join(f"{k} {v or 'missing'}" for k, v in about.get("versions", {}).items())
    lines = [
        title,
        "",
        f"Device: {about.get('device', 'not known')}. {versions}. {about.get('os', '')}, "
        f"{about.get('cores')} cores, load {_cell(about.get('load'))} at the start.",
        "",
        f"Commit {about.get('metadata', {}).get('commit', 'not known')}, sources "
        f"{about.get('sources', 'not known')}, "
        f"{about.get('metadata', {}).get('date', '')}. "
        + " ".join(
            f"{key.replace('_', ' ')}: {about[key]}." for key in sorted(about) if "clocks_" in key
        ),
    ]
    if "install" in about:
        lines += ["", f"Not installed: {about['install']}"]
    return "\n".join(lines)


def _steps(driver):
    rows = [
        (o.name, o.seconds, f"{o.share:.0f}", o.figures, o.status) for o in driver.outcomes
    ]  # fmt: skip
    text = _table("Steps", ("step", "seconds", "share", "figures", "end"), rows)
    cuts = "\n".join(f"- {cut}" for cut in driver.cuts) or "Nothing."
    return f"{text}\n\n## What was cut\n\n{cuts}"


def kind(line):
    """What failing tests have in common: exception and message, with any numbers."""
    cells = [*line.split("\t"), "", "", ""]
    text = re.sub(r"[-+]?\d[\d.]*(e[-+]?\d+)?", "#", cells[3])
    return f"{cells[2]}: {text[:120]}"


def _tests(lines):
    alone = {}
    kinds = defaultdict(list)
    ended = [line.split("\t", 1)[1] for line in lines if line.startswith("ENDED")]
    for line in lines:
        if line.startswith("ALONE"):
            _, test, verdict = line.split("\t", 2)
            alone[test] = verdict
        elif line.startswith("FAILED"):
            kinds[kind(line)].append(line.split("\t")[1])
    parts = ["## Failing tests", "", *(f"{line}." for line in ended or ["The tests have no end"])]
    for name, tests in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        parts += ["", f"{len(tests)} × `{name}`", ""]
        for test in dict.fromkeys(tests):
            verdict = alone.get(test, "not run alone")
            if verdict.startswith("fails alone too"):
                verdict = "fails alone too"  # the message is in tests.txt
            parts.append(f"- `{test}` ({verdict})")
    return "\n".join(parts)


def _goals(figures, dry):
    rows = []
    for goal in GOALS:
        now = value(figures, goal)
        met = now is not None and (now >= goal.bound if goal.least else now <= goal.bound)
        verdict = "not measured" if now is None else "reached" if met else "**missed**"
        sign = "≥" if goal.least else "≤"
        rows.append((goal.work, goal.unit, goal.before, f"{sign} {goal.bound:g}", now,
                     "dry run" if dry else verdict))  # fmt: skip
    columns = ("work", "unit", "H200, 2026-11-28", "goal", "now", "")
    return _table(
        "Goals", columns, rows, "Goals are for an H200; an H100 reads at 0.7 of its rate."
    )


def _ops(records, dry):
    clocks = ("dry_us",) if dry else ("graph_us", "eager_us")
    tests = [(r["op"], r["ok"], r.get("error", "")) for r in records if r["what"] == "self-test"]
    rates = [(r["name"], r["rate"], r["unit"]) for r in records if r["what"] == "floor"]
    ops = [r for r in records if r["what"] == "op"]
    providers = list(dict.fromkeys(r["provider"] for r in ops if "mode" in r))
    cells = defaultdict(dict)
    for r in ops:
        if "mode" in r and "error" not in r:
            texts = [_cell(r[c] / 1e3) if c in r else "failed" for c in clocks]
            # of two the later one took turns with other peers: the first is kept
            cells[r["op"], r["case"], r["mode"]].setdefault(r["provider"], " / ".join(texts))
    rows = [
        (op, case, MODES[mode], *(by.get(p) for p in providers))
        for (op, case, mode), by in cells.items()
    ]
    wrong = [
        f"- {r['op']} {r['case']} {r.get('mode', '')} {r['provider']}: {text}"
        for r in ops
        for text in (r.get("error"), r.get("graph_error"), r.get("eager_error"))
        if text
    ]
    unit = "ms, kernels by CUDA graph / call by call; medians; the second level cache is warm"
    parts = [
        _table("Self-test", ("op", "right", "error"), tests),
        _table(f"Floors{_clock(dry)}", ("what", "rate", "unit"), rates),
        _table(
            f"Ops{_clock(dry)}", ("op", "case", "mode", *providers), rows, "ms" if dry else unit
        ),
        "\n".join(["Failed:", "", *wrong]) if wrong else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _host(records, dry):
    clock = "dry_us" if dry else "eager_us"
    rows = [
        (
            r["what"],
            r.get("module"),
            {True: "yes", False: "no"}.get(r.get("threaded")),
            r["name"],
            r.get(clock) if "error" not in r else r["error"],
        )
        for r in records
    ]
    columns = ("what", "module", "autograd's own thread", "who", "µs")
    return _table(f"Host time{_clock(dry)}", columns, rows, "On 100 rows or fewer, call by call.")


def _fit(records, dry):
    rows = [
        (
            r["case"],
            r.get("provider", "fastmlp"),
            r.get("error") or r["seconds"],
            r.get("us_per_step"),
            r.get("one_epoch_seconds"),
            "extrapolated" if r.get("extrapolated") else r.get("solved"),
        )
        for r in records
    ]
    columns = ("case", "who", "seconds", "µs a step of a model", "s of one epoch", "")
    return _table(f"Training{_clock(dry)}", columns, rows)


def _tuning(files, dry):
    """The best configuration of each kernel, as lines to paste."""
    records = files.figures["tuning.json"]
    clock = "dry_us" if dry else "graph_us"
    best = {}
    for r in records:
        if r.get("gain") and r["gain"] > best.get(r["kernel"], {"gain": 0.0})["gain"]:
            best[r["kernel"]] = r
    lines = [f"## CONFIGS{_clock(dry)}", ""]
    failed = sum("error" in r for r in records)
    lines += [f"{len(records)} configurations of {len({r['kernel'] for r in records})} kernels "
              f"tried, {failed} failed.", "", "```python"]  # fmt: skip
    device, date = (
        files.machine.get("device", ""),
        files.machine.get("metadata", {}).get("date", ""),
    )
    for kernel, r in best.items():
        was = "x".join(map(str, r["was"].values()))
        if r["gain"] < MIN_GAIN:
            lines.append(f"# {kernel}: none of its neighbours beats {was}")
            continue
        mode = MODES[r["mode"]]
        where = "dry run, not a device" if dry else f"{device}, {date[:10]}"
        fields = ", ".join(f"{k}={v}" for k, v in r["config"].items())
        lines += [
            f"# {r['gain']:.2f} x {was}: {r[clock]:.3g} µs, {r['case']}, {mode} ({where})",
            f'"{kernel}": Config({fields}),',
        ]
    return "\n".join([*lines, "```"])
