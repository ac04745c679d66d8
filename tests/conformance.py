"""A pytest plugin that writes docs/conformance.md: op × property × backend, as tests found it.

    python -m pytest -p conformance --conformance docs/conformance.md tests/ops

A property is a test of the contract (`op_contract.py` and what inherits from it) or of the programs
that modules run in; a cell counts its passed cases, or says why none applies.
"""

from collections import defaultdict
from pathlib import Path

import pytest

BACKENDS = ("numba", "triton", "torch")
NOT_OF_A_BACKEND = "any"
FILES = ("test_library.py", "test_programs.py", "test_dropout.py")


def pytest_addoption(parser):
    parser.addoption("--conformance", metavar="FILE", help="write the table of properties here")


def pytest_configure(config):
    if config.getoption("--conformance"):
        config.pluginmanager.register(_Report(config), "conformance-report")


def _subject(item):
    """What a test is about: an op, or a module or op named in its parameters."""
    if getattr(item.cls, "name", None):
        return item.cls.name
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for key in ("module", "op", "net", "name"):
        if isinstance(parameters.get(key), str):
            return parameters[key]
    return "all"


def _backend(item):
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for key in ("backend", "kernel_backend", "fast_backend"):
        if key in parameters:
            return parameters[key]
    return NOT_OF_A_BACKEND


class _Report:
    def __init__(self, config):
        self.config = config
        self.counts = defaultdict(lambda: defaultdict(int))
        self.reasons = {}
        self.about = {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            if getattr(item.cls, "name", None) or Path(item.path).name in FILES:
                name = item.function.__name__.removeprefix("test_").replace("_", " ")
                table = "ops" if getattr(item.cls, "name", None) else Path(item.path).stem
                self.about[item.nodeid] = (table, name, _subject(item), _backend(item))

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report):
        about = self.about.get(report.nodeid)
        if about is None or (report.when != "call" and report.outcome == "passed"):
            return
        self.counts[about][report.outcome] += 1
        if report.outcome == "skipped":
            self.reasons[about] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_sessionfinish(self):
        Path(self.config.getoption("--conformance")).write_text(self.text(), "utf-8")

    def cell(self, about):
        counts = self.counts.get(about)
        if counts is None:
            return ""
        if counts["failed"]:
            return f"**{counts['failed']} of {sum(counts.values())} fail**"
        if counts["passed"]:
            return f"pass ({counts['passed']})"
        return f"not applicable: {self.reasons[about]}"

    def text(self):
        lines = [
            "# Conformance",
            "",
            "Which property of which op holds on which backend, as the tests found it. Generated",
            "by `make conformance`; the number of cases in brackets. Triton kernels ran "
            + ("on a CUDA device." if _on_cuda() else "in Triton's interpreter."),
        ]
        tables = sorted({table for table, *_ in self.counts})
        for table in sorted(tables, key=lambda name: name != "ops"):
            title = {"ops": "Every op"}.get(table, table.removeprefix("test_").capitalize())
            rows = sorted({about[:3] for about in self.counts if about[0] == table})
            used = [
                backend
                for backend in (*BACKENDS, NOT_OF_A_BACKEND)
                if any((*row, backend) in self.counts for row in rows)
            ]
            lines += ["", f"## {title}", ""]
            lines += [
                "| property | of | " + " | ".join(used) + " |",
                "|---" * (len(used) + 2) + "|",
            ]
            for row in rows:
                cells = [self.cell((*row, backend)) for backend in used]
                lines.append(f"| {row[1]} | {row[2]} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def _on_cuda():
    import torch

    return torch.cuda.is_available()
