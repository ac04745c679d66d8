"""bench_launch.py: the Triton wing's host code whole, Triton's binding of arguments included."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "bench_launch.py"
ROW = re.compile(r"  (.+?) +(inference|forward\+backward) .* x +(\d+) launches +(\d+) allocations")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_module_is_launched_once_each_way():
    # in a process of its own: tests interpret kernels, which binds nothing
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(BENCH), "--rounds", "1"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert re.fullmatch(r"worst: inference \d+\.\d, forward\+backward \d+\.\d", last)
    found = {m.group(1, 2): tuple(map(int, m.group(3, 4))) for m in map(ROW.fullmatch, lines) if m}
    # those of one subnet a feature are laid side by side first
    assert found.pop(("AdditiveMLP(64, 14, shared=False)", "inference")) == (2, 2)
    assert found.pop(("AdditiveMLP(64, 14, shared=False)", "forward+backward")) == (4, 4)
    assert len(found) == 8
    for (_, mode), counts in found.items():
        assert counts == ((1, 1) if mode == "inference" else (2, 2))
