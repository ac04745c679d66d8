"""The table of kinds: what tensors, modes, tracers and derivatives do to a call of ours.

Every row does with a module of ours what it does with the plain one, and gets the same numbers, or
an error of the same type where plain PyTorch has one. The rows are in `kinds_tensors.py`,
`kinds_modes.py`, `kinds_tracers.py` and, of whole programs, `kinds_programs.py`; each tells what
came of it before one guard stood at every entrance: most rows did not survive, and those that
``"passed"`` are here to stay so.
"""

import os
import subprocess
import sys
from pathlib import Path

import kinds_worker
import pytest
from kinds import KINDS, MODULES, Kind, both, judge

import fastmlp

CRASHED = [name for name, kind in KINDS.items() if kind.before == "segfault"]
CALM = [(name, net) for name, kind in KINDS.items() if name not in CRASHED for net in kind.nets]
NEEDED = {"exported_to_onnx": ("onnx", "onnxscript", "onnxruntime")}


def needs_numba(row):
    """Whether there is nothing to run without it."""
    return row.startswith("least_squares")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("row", "net"), CALM)
def test_kind(row, net):
    for package in NEEDED.get(row, ()):
        pytest.importorskip(package)
    if needs_numba(row) and not fastmlp.backends.is_installed("numba"):
        pytest.skip("Levenberg–Marquardt needs numba")
    judge(KINDS[row], net)


def run_apart(rows, **environment):
    """The lines of a process that runs some rows, without those that are right."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", kinds_worker.__file__, *rows],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
    )  # fmt: skip
    lines = [line for line in result.stdout.split("\n") if not line.endswith(" right")]
    return [line for line in lines if line.strip()], result


def test_kinds_that_ended_the_process():
    rows = CRASHED
    if not fastmlp.backends.is_installed("numba"):
        rows = [row for row in rows if not needs_numba(row)]
    wrong, result = run_apart(rows)
    assert not wrong, wrong
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.skipif(not fastmlp.backends.is_installed("numba"), reason="numba is not installed")
def test_numba_without_its_compiler():
    wrong, result = run_apart(["profiler", "double_backward"], NUMBA_DISABLE_JIT="1")
    assert not wrong, wrong
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_wrong_value_a_lost_gradient_and_another_error_show():
    def wrong(net, x):
        y, *gradients = both(net, x)
        return y * (1 + 1e-5), *gradients

    def lost(net, x):
        return both(net, x)[:-1]

    def refuses(net, x):
        raise TypeError("no")

    def breaks(net, x):
        raise RuntimeError("no")

    for run in (wrong, lost):
        with pytest.raises(AssertionError):
            judge(Kind(run, both, ""), "additive")
    with pytest.raises(TypeError, match="no"):
        judge(Kind(refuses, both, ""), "additive")
    judge(Kind(refuses, both, "", refused=True), "additive")
    with pytest.raises(RuntimeError, match="no"):
        judge(Kind(breaks, both, "", refused=True), "additive")
    judge(Kind(refuses, breaks, ""), "additive")
    with pytest.raises(AssertionError, match="plain PyTorch raises"):
        judge(Kind(both, breaks, ""), "additive")


def test_the_table_is_as_large_as_it_says():
    by_calls = [kind for kind in KINDS.values() if len(kind.nets) >= len(MODULES) - 1]
    assert len(by_calls) >= 80
    assert sum(kind.before != "passed" for kind in by_calls) >= 40
