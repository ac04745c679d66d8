"""`bench/bench_fit.py` on a tiny case: its providers, its gate, the JSON and the tables."""

import json

import pytest
import torch

import fastmlp


@pytest.fixture
def bench(monkeypatch, of_bench):
    """The module bench/bench_fit.py, with one tiny case and without JAX."""
    module = of_bench("bench_fit")
    options = {"batch_size": 30, "epochs": 3, "lr": 1e-3, "weight_decay": 0.01}
    case = (lambda: [module.sine_models(width, 2) for width in (1, 2)], module.sweep_data, options)
    monkeypatch.setattr(module, "CASES", {"tiny": case})
    monkeypatch.setattr(module, "COUNTS", (1, 2))
    monkeypatch.setattr(module, "COUNT_EPOCHS", 2)
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.02)
    monkeypatch.setattr(module, "why_no_jax", lambda device: "not run")
    return module


def test_a_report_has_every_provider_and_count(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with fastmlp.backend("torch"):
        bench.main(["--rounds", "1", "--json", str(tmp_path / "fit.json")])
    report = json.loads((tmp_path / "fit.json").read_text("utf-8"))
    (record,) = report["results"]
    assert record["steps"] == 4 * 3 * 2
    assert record["jax"] == "not run"
    assert record["torch"]["extrapolated"]
    assert record["vmap"]["extrapolated"]
    assert record["fastmlp"]["us_per_step"] > 0
    assert [row["models"] for row in report["steps_per_second"]] == [1, 2]
    assert all(row["steps_per_second"] > 0 for row in report["steps_per_second"])
    text = capsys.readouterr().out
    assert "extrapolated from a timed part" in text
    assert "2 models" in text


def test_losses_that_differ_are_not_timed(bench, monkeypatch):
    loop = bench.plain_loop
    monkeypatch.setattr(bench, "plain_loop", lambda *a: ([2 * loss for loss in loop(*a)[0]], 1e-3))
    with fastmlp.backend("torch"), pytest.raises(AssertionError, match="fit"):
        bench.measure("tiny", 1, torch.device("cpu"))


def test_all_models_at_once_take_the_steps_of_each(bench):
    torch.manual_seed(0)
    models, (x, y) = bench.sine_models(3, 4), bench.sweep_data()
    options = {"batch_size": 20, "epochs": 5, "lr": 1e-2, "weight_decay": 0.01}
    alone, _ = bench.plain_loop(models[0], x, y, options, 60)
    together, _ = bench.vmap_loop(models, x, y, options, 60)
    # 60 steps of two float32 loops, neither of them ours
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda"])
    assert "PyTorch finds none on this machine" in capsys.readouterr().err
