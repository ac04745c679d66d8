"""The jobs of a step one after the other, so that one which dies or hangs costs itself alone.

They run in a fork of the step, which itself stays away from the device: after an illegal access,
say, a process can do nothing more there, and another fork goes on behind the job that made it.
"""

import contextlib
import os
import select
import signal
import time

from device.report import first_line

BROKEN = 3
"""Exit status of a fork whose device is of no use any more."""


def each(report, jobs, limit=60.0):
    """Run all jobs.

    Args:
        report: The step's report.
        jobs: Dictionary from name to function; in its order.
        limit: Seconds after which a job is killed.
    """
    names = list(jobs)
    begin = 0
    while begin < len(names):
        if report.over():
            report.cut(f"no seconds left for {'; '.join(names[begin:])}")
            return
        last, end = _fork(report, {name: jobs[name] for name in names[begin:]}, limit)
        if end:
            report.cut(f"{names[begin + last]}: {end}")
        begin += last + 1


def _fork(report, jobs, limit):
    """Run jobs in a fork; the number of the last one begun, and what went wrong with it."""
    theirs, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        _run(report, jobs, ours)
    os.close(ours)
    last, wrong = -1, None
    began = time.monotonic()
    end = began + min(limit, report.left())
    while wrong is None:
        if not select.select([theirs], [], [], max(end - time.monotonic(), 0))[0]:
            wrong = f"killed after {time.monotonic() - began:.0f} s" if last >= 0 else "not begun"
            os.kill(pid, signal.SIGKILL)
        elif os.read(theirs, 1):
            last, began = last + 1, time.monotonic()
            end = began + min(limit, report.left())
        else:
            break
    os.close(theirs)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if wrong is None and code:
        wrong = f"its process ended with status {code}"
        if code < 0:
            wrong = f"its process died by {signal.Signals(-code).name}"
        elif code == BROKEN:
            wrong = "afterwards the device was of no use to its process"
    # nothing wrong and nothing begun: the seconds were over
    return max(last, 0) if wrong else last, wrong


def _run(report, jobs, fd):
    """The fork's side: a byte before each job; does not return."""
    status = 1
    try:
        for name, job in jobs.items():
            if report.over():
                break
            os.write(fd, b".")
            try:
                job()
            except Exception as error:
                report.cut(f"{name}: {first_line(error)}")
            if not report.dry and not _usable():
                status = BROKEN
                return
        status = 0
    finally:
        os._exit(status)


def _usable():
    import torch

    with contextlib.suppress(RuntimeError):
        torch.cuda.synchronize()
        return True
    return False
