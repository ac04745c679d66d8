"""`bench/bench_overhead.py` on a few calls."""

import re


def test_every_name_is_timed(monkeypatch, capsys, of_bench):
    module = of_bench("bench_overhead")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    samples = module.main(["--rounds", "2", "--rows", "2"])
    assert list(samples) == ["nothing", "fastmlp", "torch"]
    assert all(len(values) == 2 and min(values) > 0 for values in samples.values())
    out = capsys.readouterr().out
    assert "1.00 × a Function that does nothing" in out
    assert "µs a call" in out
    for what in ("AdditiveMLP", "8 tensors"):
        assert re.search(rf"Adam +[\d.]+ µs, min .* on {what}; torch [\d.]+ µs, fused [\d.]+", out)
