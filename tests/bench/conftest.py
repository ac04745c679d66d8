"""Modules of bench/, which is no package: each test imports them anew, on a path of its own."""

import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def of_bench(monkeypatch):
    """Function that imports a module of bench/."""
    monkeypatch.syspath_prepend(str(BENCH))
    # append to a copy: bench/common.py adds tests/ to the path
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return importlib.import_module
