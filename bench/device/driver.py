"""Runs steps one after another within a number of seconds, whatever they do.

A step gets its share of what is left, so that what one does not use goes to those after it. One
that overruns its share is killed with all that it started; one that dies is reported; the rest goes
on. Standard library alone: nothing here may fail or hang for what a device does.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

SERVER = Path(__file__).with_name("server.py")
GRACE = 0.3
"""Seconds that a hanging step has to say where it hangs, and then to be gone."""


class Step(NamedTuple):
    """One step.

    Args:
        name: On the command line and in the summary.
        module: The one whose ``run(report)`` it is; or ``"module:function"``.
        share: Of the seconds that are left, beside the shares of the steps after it.
        about: What it tells, in a line.
        dry: Its share in a dry run; the same if it is 0.
    """

    name: str
    module: str
    share: float
    about: str
    dry: float = 0

    def weight(self, dry):
        """Its share of a kind of run."""
        return self.dry or self.share if dry else self.share


IMPORTS = Step("imports", "device.server", 0, "what every step needs, once for all of them")


class Outcome(NamedTuple):
    """How a step ended."""

    name: str
    status: str  # "done", or what went wrong
    seconds: float
    share: float
    figures: int


class Driver:
    """Runs steps; hands their figures on as they come.

    Args:
        dry: Whether to use no device: Triton's interpreter, CPU tensors.
        files: Where figures go, a :class:`device.files.Files`.
        say: Function of a line of progress.
    """

    def __init__(self, dry, files, say):
        self.dry, self.files, self.say = dry, files, say
        self.outcomes, self.cuts, self.failed = [], [], []
        self.no_device = None
        self._server = None

    def run(self, steps, end):
        """Run steps until all are done or the clock of :func:`time.monotonic` shows ``end``."""
        for i, step in enumerate(steps):
            if self._server is None and not self.no_device:
                # half of what is left, for a busy machine with cold disks
                self._watch(IMPORTS, (end - time.monotonic()) / 2)
            left = end - time.monotonic()
            weights = [later.weight(self.dry) for later in steps[i:]]
            share = left * weights[0] / sum(weights)
            why_not = self.no_device or (left < 0.5 and "no seconds left")
            why_not = why_not or (self._server is None and "the imports had no end")
            if why_not:
                self.cuts.append(f"{step.name}: not begun, {why_not}")
                self.say(self.cuts[-1])
                continue
            self._watch(step, share)

    def _watch(self, step, share):
        """Run one step, or the imports that all steps have in common."""
        began = time.monotonic()
        self.say(f"{step.name}: {step.about} (0/{share:.0f} s)")
        run = _Run(self, step, began, share)
        try:
            if self._server is None:
                self._server = _Server(self.dry)
            else:
                self._server.ask(step, share, self.dry, self.failed)
            status = run.watch(self._server, began + share)
        except OSError as error:  # the server is gone
            status = f"could not be started: {error.strerror}"
        except KeyboardInterrupt:
            run.ended("interrupted", time.monotonic() - began)
            raise
        run.ended(status, time.monotonic() - began)
        if run.exit is None and not run.killed(self._server):
            self.stop()

    def stop(self):
        """End what is still running."""
        if self._server is not None:
            self._server.kill()
            self._server = None


class _Server:
    """The process of `server.py`, its requests, its figures and its output."""

    def __init__(self, dry):
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if dry:
            environment.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
        self.figures, theirs = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs],
            env=environment,
            start_new_session=True,  # Ctrl-C is for the driver
        )
        os.close(theirs)
        self.log = self.process.stdout.fileno()
        self.pid = None

    def ask(self, step, share, dry, failed):
        """Have a step run; it stops by itself a little before it would be stopped."""
        seconds = share - min(1.0, share / 10)
        request = {
            "step": step.name, "module": step.module, "seconds": seconds, "dry": dry,
            "failed": failed,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def kill(self):
        """Kill the step with all that it started, and the server."""
        for group in (self.pid, self.process.pid):
            if group is not None:
                with contextlib.suppress(OSError):
                    os.killpg(group, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)  # one that is stuck in a device's driver does not go
        os.close(self.figures)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


class _Run:
    """One step while it runs."""

    def __init__(self, driver, step, began, share):
        self.driver, self.step, self.began, self.share = driver, step, began, share
        self.pid = self.exit = self.error = None
        self.n_figures, self.last, self.logging = 0, "", True
        self.said, self.shown = began, ""
        self.rest, self.log, self.tail = b"", b"", deque(maxlen=200)

    def watch(self, server, end):
        """Read what a step says until it ends or its time does; how it ended."""
        while self.exit is None:
            left = end - time.monotonic()
            if left <= 0:
                self._read(server, 0)
                return self._overrun(server)
            if not self._read(server, min(left, 1.0)):
                return f"its process is gone: {self._last_words()}"
            self._progress()
        # what it printed last
        while self.logging and select.select([server.log], [], [], 0)[0]:
            self._read(server, 0)
        return self._verdict()

    def _read(self, server, seconds):
        """Take what has come; ``False`` when nothing can come any more."""
        streams = [server.figures, server.log] if self.logging else [server.figures]
        ready = select.select(streams, [], [], max(seconds, 0))[0]
        if server.log in ready:
            data = os.read(server.log, 1 << 16)
            self.logging = bool(data)
            *lines, self.log = (self.log + data).split(b"\n")
            self.tail.extend(line.decode("utf-8", "replace") for line in lines if line.strip())
        if server.figures in ready:
            data = os.read(server.figures, 1 << 16)
            if not data:
                return False
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                if line:
                    self._message(line, server)
        return True

    def _message(self, line, server):
        try:
            message = json.loads(line)
        except ValueError:  # the rest of what a killed step was writing
            return
        driver = self.driver
        if "pid" in message:
            self.pid = server.pid = message["pid"]
        elif "exit" in message:
            self.exit, server.pid = message["exit"], None
        elif "error" in message:
            self.error = message["error"]
        elif "cut" in message:
            driver.cuts.append(f"{self.step.name}: {message['cut']}")
        elif "failed" in message:
            driver.failed.append(message["failed"])
        elif "no_device" in message:
            driver.no_device = message["no_device"]
        else:
            self.n_figures += 1
            driver.files.add(message["file"], message["figure"])
            self.last = json.dumps(message["figure"], ensure_ascii=False)

    def _progress(self):
        now = time.monotonic()
        if self.last != self.shown and now - self.said >= 2:
            self.said, self.shown = now, self.last
            self._say(now - self.began, self.last)

    def _say(self, seconds, what):
        self.driver.say(f"{self.step.name} {seconds:.1f}/{self.share:.0f} s: {what[:300]}")

    def killed(self, server):
        """Kill the step with all that it started; whether the server says that it is gone."""
        if self.pid is None or server is None:
            return False
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        end = time.monotonic() + GRACE
        while self.exit is None and (left := end - time.monotonic()) > 0:
            if not self._read(server, left):
                return False
        return self.exit is not None

    def _overrun(self, server):
        """Where the step is, as its process says; it is killed afterwards."""
        if self.pid is None:
            return f"killed after {self.share:.0f} s; {self._last_words()}"
        self.tail.clear()
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGUSR1)
        end = time.monotonic() + GRACE
        while (left := end - time.monotonic()) > 0:
            self._read(server, left)
        return f"killed after {self.share:.0f} s at {self._place()}"

    def _verdict(self):
        if self.exit == 0:
            return "done"
        if self.exit < 0:
            with contextlib.suppress(ValueError):
                return f"died by {signal.Signals(-self.exit).name} at {self._place()}"
            return f"died by signal {-self.exit} at {self._place()}"
        return f"failed: {self.error or self._last_words()}"

    def _place(self):
        """The innermost line of the stack that `faulthandler` printed."""
        frames = [line.strip() for line in self.tail if line.lstrip().startswith("File ")]
        return frames[0] if frames else f"an unknown place; {self._last_words()}"

    def _last_words(self):
        return f"last output {self.tail[-1][:200]!r}" if self.tail else "no output"

    def ended(self, status, seconds):
        if self.pid is not None and self.step is not IMPORTS:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)  # what the step left running
        outcome = Outcome(self.step.name, status, seconds, self.share, self.n_figures)
        self.driver.outcomes.append(outcome)
        self._say(seconds, f"{status}; {self.n_figures} figures; last: {self.last or '–'}")
