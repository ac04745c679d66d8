"""Failing tests again, one at a time, each in a process of its own: does it need company to fail?

The processes are forks of one that has imported PyTorch and not touched the device.
"""

import contextlib
import importlib
import os
import signal
import time
from collections import Counter

from device.failing import ROOT, Watch, arguments, describe

LIMIT = 40.0
"""Seconds of one test, its compilation included."""


def _child(test, fd):
    """Run one test and write its failures; does not return."""
    import pytest

    seen = []
    watch = Watch(lambda result: seen.append(describe(result)))
    status = 1
    try:
        status = int(pytest.main([*arguments(alone=True)[0], test], plugins=[watch]))
    finally:
        text = " – ".join(" ".join(part) for part in seen)[:1000]
        os.write(fd, text.encode("utf-8", "replace"))
        os._exit(status)


def verdict(test, seconds):
    """What became of one test by itself."""
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(test, ours)
    os.close(ours)
    end = time.monotonic() + seconds
    done = 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    if not done:
        os.kill(pid, signal.SIGKILL)  # what it started goes with the step
        os.waitpid(pid, 0)
        os.close(theirs)
        return f"hangs alone too: killed after {seconds:.0f} s"
    text = os.read(theirs, 1 << 12).decode("utf-8", "replace")
    os.close(theirs)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"alone it dies by {signal.Signals(-code).name}"
    if code == 0:
        return "passes alone: it fails only in company"
    return f"fails alone too: {text}" if text else f"alone: pytest's status is {code}"


def in_order(tests):
    """One case of each test first, then the second ones: cases of a test fail alike."""
    counts = Counter()
    ranks = {}
    for test in tests:
        if test not in ranks:
            function = test.partition("[")[0]
            ranks[test] = counts[function]
            counts[function] += 1
    return sorted(ranks, key=ranks.get)


def run(report):
    """The step."""
    tests = in_order(report.request["failed"])
    for name in ("pytest", "hypothesis") if tests else ():  # once, before the forks
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.chdir(ROOT)
    for i, test in enumerate(tests):
        if report.left() < 3:
            report.cut(f"{len(tests) - i} failing tests were not run alone, from {test} on")
            return
        line = ["ALONE", test, verdict(test, min(LIMIT, report.left() - 1))]
        report.figure("tests.txt", line=line)
    report.figure("tests.txt", line=["ENDED", f"{len(tests)} failing tests run alone"])
