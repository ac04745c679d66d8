"""The files of a run on a device: whole and readable at every moment, whatever happens.

A file is written beside itself and then put in its place, so that a reader, or whoever comes after
a kill, finds the last whole one. What could not be written (a full disk) stays in memory and goes
with the next attempt.
"""

import contextlib
import json
import os
from pathlib import Path

MAX_BYTES = 15 << 20
"""Where a file stops to grow: files come back from a device only below 16 MiB."""

FIGURES = ("ops.json", "host.json", "fit.json", "tuning.json")
"""Files that hold a list of figures."""

NAMES = ("machine.json", "tests.txt", *FIGURES, "summary.md")
"""Every file of a run; all exist from its first second on."""


class Files:
    """The files of one folder.

    Args:
        folder: Where they are, made if need be.
        about: What each JSON file says of the run, ``"dry"`` among it: whether no figure is of a
            device.
        say: Function of a line, told what cannot be written.
    """

    def __init__(self, folder, about, say):
        self.folder, self.about, self.say = Path(folder), about, say
        self.machine = dict(about)
        self.figures = {name: [] for name in FIGURES}
        mark = "DRY RUN, nothing here is of a device. " * about["dry"]
        self.lines = [f"# {mark}Tab-separated: what, test, exception, message, figures, place."]
        self.summary = f"# {mark}The run has not ended: no summary yet.\n"
        self.unwritten = set()
        self._sizes = dict.fromkeys(NAMES, 0)
        self._complained = set()
        for name in NAMES:
            self._write(name)

    def add(self, name, figure):
        """Take one figure: a line of ``tests.txt``, fields of ``machine.json``, else a record."""
        if self._sizes[name] > MAX_BYTES:
            self._complain(name, f"is full at {MAX_BYTES >> 20} MiB; further figures are left out")
            return
        if name == "tests.txt":
            self.lines.append("\t".join(" ".join(str(cell).split()) for cell in figure["line"]))
        elif name == "machine.json":
            self.machine.update(figure)
        else:
            # each figure by itself says whether it is one of a device
            self.figures[name].append({**figure, "dry": self.about["dry"]})
        self._write(name)

    def end(self, summary):
        """Write the summary and whatever is not written yet."""
        self.summary = summary
        for name in NAMES:
            if name == "summary.md" or name in self.unwritten:
                self._write(name)

    def _text(self, name):
        if name == "summary.md":
            return self.summary
        if name == "tests.txt":
            return "\n".join(self.lines) + "\n"
        if name == "machine.json":
            return json.dumps(self.machine, indent=1) + "\n"
        head = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in self.about.items())
        # a line a figure
        body = ",\n".join(json.dumps(figure) for figure in self.figures[name])
        return f'{{\n{head},\n"figures": [\n{body}\n]}}\n'

    def _write(self, name):
        path, part = self.folder / name, self.folder / f".{name}.part"
        data = self._text(name).encode("utf-8")
        self._sizes[name] = len(data)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            put(part, data)
            os.replace(part, path)
        except OSError as error:
            self.unwritten.add(name)
            with contextlib.suppress(OSError):
                part.unlink()  # what is written of it takes room
            self._complain(name, f"cannot be written: {error.strerror}; the run goes on")
        else:
            self.unwritten.discard(name)

    def _complain(self, name, what):
        if (name, what) not in self._complained:
            self._complained.add((name, what))
            self.say(f"{name} {what}")


def put(path, data):
    """Write bytes to a new file."""
    path.write_bytes(data)
