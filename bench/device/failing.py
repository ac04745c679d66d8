"""The tests that touch the device: each failing one is reported as it fails."""

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DRY_TESTS = (
    "tests/kernels/gpu/test_activations.py::test_value_and_derivative[relu-float32]",
    "tests/kernels/gpu/test_activations.py::test_value_and_derivative[sin-float32]",
)
"""What a dry run runs of the tests, which run whole elsewhere."""


def describe(report):
    """Exception, first line of its message, the assertion's figures, and the place of a failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()] or ["no message"]
    head, colon, message = lines[0].partition(": ")
    if not colon or " " in head:
        # pytest leaves the name of an assertion's exception out
        head, message = "AssertionError" if lines[0].startswith("assert") else "–", lines[0]
    place = ""
    if crash is not None:
        path = Path(crash.path)
        inside = path.is_relative_to(ROOT)
        place = f"{path.relative_to(ROOT) if inside else path.name}:{crash.lineno}"
    return head, message[:500], " / ".join(lines[1:6])[:300], place


class Watch:
    """A plugin of pytest's main process: reports failures as they come, and counts."""

    def __init__(self, on_failure):
        self.on_failure = on_failure
        self.counts = dict.fromkeys(("passed", "failed", "skipped"), 0)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.counts["failed"] += 1
            self.on_failure(report)
        elif report.when == "call" or report.skipped:
            self.counts[report.outcome] += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self.counts["failed"] += 1
            self.on_failure(report)


def arguments(alone=False):
    """How pytest is called, by what is installed; and how many processes it has."""
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    # a file that cannot be imported is one failure, not the end of all
    options += ["--continue-on-collection-errors"]
    workers = 0
    if alone or importlib.util.find_spec("xdist") is None:
        options += ["-p", "no:xdist"] if importlib.util.find_spec("xdist") else []
    else:
        workers = max(1, min(14, (os.cpu_count() or 1) - 2))
        # in the order of the selection
        options += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "4"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        # a hang inside the driver hears no signal: its process ends, and another takes its place
        options += ["--timeout", "60", "--timeout-method", "thread"]
    return options, workers


def run(report, tests=()):
    """The step.

    Args:
        report: The step's report.
        tests: Files of tests instead of all that touch the device.
    """
    import pytest  # late, as in alone.py

    tests = [str(ROOT / test) for test in DRY_TESTS] if report.dry and not tests else list(tests)
    options, workers = arguments(alone=report.dry)
    if not tests:
        options += ["-p", "device.selection", str(ROOT / "tests")]
    for package in ("xdist", "pytest_timeout"):
        if importlib.util.find_spec(package) is None:
            report.cut(f"{package} is not installed: tests run without it")

    def on_failure(result):
        name, message, figures, place = describe(result)
        before = getattr(result, "when", "collection")
        when = f"FAILED ({before})" if before in ("setup", "teardown", "collection") else "FAILED"
        report.figure("tests.txt", line=[when, result.nodeid, name, message, figures, place])
        report.send({"failed": result.nodeid})

    watch = Watch(on_failure)
    os.chdir(ROOT)
    status = pytest.main([*options, *tests], plugins=[watch])
    counts = ", ".join(f"{n} {what}" for what, n in watch.counts.items())
    line = f"{counts}; {workers or 1} processes, pytest's status {int(status)}"
    report.figure("tests.txt", line=["ENDED", line])
