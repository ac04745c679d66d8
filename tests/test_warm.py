"""`python -m fastmlp warm`."""

import os
import subprocess
import sys

import pytest

from fastmlp import warm


class TestWarm:
    def test_command_line(self):
        pytest.importorskip("numba")
        command = [sys.executable, "-m", "fastmlp", "warm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("Compiled kernels are in ")
        n = len(warm.jobs(False))
        assert f"{n}/{n}" in result.stderr

    def test_warming_up_is_refused(self):
        result = subprocess.run(
            [sys.executable, "-m", "fastmlp", "warm"], capture_output=True, text=True, check=False,
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        )  # fmt: skip
        assert result.returncode == 1
        assert "NUMBA_DISABLE_JIT switches off" in result.stderr

    def test_help(self):
        command = [sys.executable, "-m", "fastmlp", "warm", "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "XDG_CACHE_HOME" in result.stdout
        assert "--all" in result.stdout
