"""`bench/bench_overhead.py` on a few calls."""

import importlib
import re
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_every_name_is_timed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "path", sys.path.copy())  # bench/common.py adds tests/ to the path
    module = importlib.import_module("bench_overhead")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    samples = module.main(["--rounds", "2", "--rows", "2"])
    assert list(samples) == ["nothing", "fastmlp", "torch"]
    assert all(len(values) == 2 and min(values) > 0 for values in samples.values())
    out = capsys.readouterr().out
    assert "1.00 × a Function that does nothing" in out
    assert "µs a call" in out
    for what in ("AdditiveMLP", "8 tensors"):
        assert re.search(rf"Adam +[\d.]+ µs, min .* on {what}; torch [\d.]+ µs, fused [\d.]+", out)
