"""The example `sinenet.py`, with few starts and narrow nets."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "sinenet.py"


@pytest.fixture(scope="module")
def sinenet():
    spec = importlib.util.spec_from_file_location("sinenet", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_points_and_truth(sinenet):
    assert len(sinenet.TRAIN) == 60
    assert len(sinenet.VALIDATION) == 20
    assert not set(sinenet.TRAIN.tolist()) & set(sinenet.VALIDATION.tolist())
    x = torch.tensor([0.5])
    # in float32
    assert sinenet.truth((0.5, 1.0), x).item() == pytest.approx((math.sqrt(0.5) + 1) / 2)


def test_small_targets_are_found_and_the_sweep_agrees_with_pytorch(sinenet, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("numba")
    arguments = ["--epochs", "4", "--max-width", "16", "--quiet", "--out", str(tmp_path)]
    small, result, widths = sinenet.main(arguments)
    for fitted, _ in small.values():
        # a fit that misses a sine leaves a tenth
        assert fitted.val_loss[fitted.best, -1] < 1e-6
    assert len(widths) == 100
    assert result.steps == 100 * 60 * 4
    assert (result.train_loss[:, -1] < result.train_loss[:, 0]).float().mean() > 0.9
    assert "extrapolated" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["extrapolation.png", "sweep.png"]


def test_bad_options_are_refused(sinenet, capsys):
    with pytest.raises(SystemExit):
        sinenet.parse(["--restarts", "0"])
    assert "--restarts must be at least 1" in capsys.readouterr().err
