"""`bench/bench_ensemble.py` on few models."""

import pytest


def test_every_name_is_timed(monkeypatch, capsys, of_bench):
    pytest.importorskip("numba")
    module = of_bench("bench_ensemble")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    few = {name: case._replace(n=3, rows=case.rows[-1:]) for name, case in module.CASES.items()}
    small = {name: case for name, case in few.items() if "x 10000" not in name}
    monkeypatch.setattr(module, "CASES", small)
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(module.starts, "__defaults__", (2, 3))
    medians = module.main(["--rounds", "1"])
    assert list(medians) == [*small, "fit"]
    for name in small:
        for of_mode in medians[name].values():
            assert list(of_mode) == ["ensemble", "vmap", "vmap of nothing", "loop"]
            assert min(of_mode.values()) > 0
    out = capsys.readouterr().out
    assert out.count("x the ensemble") == 2 * len(small)
    assert "us a model of SineSum(2): list" in out
