"""Compile side by side what is then timed one after the other: the compilers keep what they made.

Each worker is a fork of a step that has not used the device yet, and takes its turn of the jobs.
What goes wrong in one goes wrong again, and is reported, where it is timed.
"""

import contextlib
import os
import signal
import time

SHARE = 0.3
"""Of a step's seconds, at most."""


def up(report, jobs):
    """Run functions in processes of their own, and wait for them at most a part of the step.

    Args:
        report: The step's report.
        jobs: Function that returns the functions to run, called by each worker.
    """
    n = 1 if report.dry else max(1, min(14, (os.cpu_count() or 1) - 2))
    workers = {_worker(jobs, i, n) for i in range(n)}
    end = time.monotonic() + SHARE * report.left()
    while workers and time.monotonic() < end:
        workers -= {pid for pid in workers if os.waitpid(pid, os.WNOHANG)[0]}
        time.sleep(0.05)
    if workers:
        report.cut(f"{len(workers)} of {n} processes were still compiling ahead")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _worker(jobs, i, n):
    """Fork a worker for the jobs i, i + n, i + 2 n, …; its process."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # else each worker has as many processes of its own
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        for job in jobs()[i::n]:
            with contextlib.suppress(Exception):
                job()
    finally:
        os._exit(0)
