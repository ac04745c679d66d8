"""What a step of a run on a device is given: whether it is a dry run, its seconds, a way to report.

A step is a function ``run(report)`` of a module; it runs in a process of its own.
"""

import json
import os
import time

MARGIN = 2.0
"""Seconds in which one more figure may be had, if a step has many."""


class Report:
    """A step's side of the run.

    Args:
        fd: Where figures go, a line of JSON each.
        request: ``"step"``, ``"seconds"``, ``"dry"``, and what else the driver says.
    """

    def __init__(self, fd, request):
        self._fd = fd
        self.request = request
        self.dry = request["dry"]
        self.device = "cpu" if self.dry else "cuda"
        self._end = time.monotonic() + request["seconds"]
        self._margin = min(MARGIN, request["seconds"] / 5)

    def left(self):
        """Seconds until this step is killed."""
        return self._end - time.monotonic()

    def over(self):
        """Whether too little is left to begin anything."""
        return self.left() < self._margin

    def send(self, message):
        """Give one message to the driver, which has it before this returns."""
        data = ("\n" + json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(self._fd, data) :]

    def figure(self, file, **figure):
        """Report one figure at once, into one of the run's files."""
        self.send({"file": file, "figure": figure})

    def cut(self, what):
        """Say what is left out for want of seconds, or because it cannot be had here."""
        self.send({"cut": what})


def first_line(error, length=300):
    """Type and message of an exception, short enough for a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:length]
