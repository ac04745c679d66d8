"""The process of which each step is a fork: it imports what all need once, and uses no device.

    python bench/device/server.py FD

Requests come on the standard input, a line of JSON each: ``{"module": …, "step": …, …}``. On file
descriptor FD the step reports its process, then its figures, and this process how it ended. The
imports are reported like a step.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import select
import signal
import sys
from pathlib import Path

PRELOADED = ("numpy", "torch", "triton", "numba", "fastmlp")


def preload():
    for name in PRELOADED:
        try:
            importlib.import_module(name)
            if name == "fastmlp" and os.environ.get("TRITON_INTERPRET") == "1":
                preload_kernels()
        except Exception as error:  # a step that needs it says so itself
            print(f"{name} cannot be imported: {error!r}", flush=True)


def preload_kernels():
    """The kernels, for the interpreter: on a device nothing may be near it before the forks."""
    from fastmlp import backends, functional

    for op in functional.__all__:
        backends.launchers("triton", op)


def run_step(fd, request):
    """One step, in a process and a process group of its own; does not return."""
    status = 1
    try:
        os.setsid()
        faulthandler.enable()
        # the driver asks where a step hangs before it kills it
        faulthandler.register(signal.SIGUSR1, all_threads=False)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        from device.report import Report, first_line

        report = Report(fd, request)
        report.send({"pid": os.getpid()})
        try:
            module, _, function = request["module"].partition(":")
            getattr(importlib.import_module(module), function or "run")(report)
            status = 0
        except BaseException as error:
            import traceback

            traceback.print_exc()
            report.send({"error": first_line(error)})
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def wait_for(pid):
    """The exit status of a step, negative for a signal; ``None`` once the driver is gone."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        # nobody asks for anything while a step runs: what can be read is the end
        if select.select([0], [], [], 0.01)[0]:
            for kill, target in ((os.killpg, pid), (os.kill, pid)):
                with contextlib.suppress(OSError):
                    kill(target, signal.SIGKILL)
            return None


def tell(fd, message):
    os.write(fd, ("\n" + json.dumps(message) + "\n").encode())


def main():
    fd = int(sys.argv[1])
    # in place of this folder, whose files are a package's
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    tell(fd, {"pid": os.getpid()})
    preload()
    tell(fd, {"exit": 0})
    rest = b""
    while True:
        # unbuffered: what a buffer holds, select does not see
        data = os.read(0, 1 << 16)
        if not data:
            return
        rest += data
        if not rest.endswith(b"\n"):
            continue
        request, rest = json.loads(rest), b""
        pid = os.fork()
        if pid == 0:
            run_step(fd, request)
        status = wait_for(pid)
        if status is None:
            return
        tell(fd, {"exit": status})


if __name__ == "__main__":
    main()
