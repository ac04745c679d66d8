"""The example `sinenet.py`, with few starts and narrow nets."""

import math
from statistics import median

import pytest
import torch


@pytest.fixture(scope="module")
def sinenet(as_script):
    return as_script("sinenet")


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
    arguments = ["--epochs", "4", "--max-width", "16", "--draws", "2", "--quiet"]
    small, sweeps = sinenet.main([*arguments, "--out", str(tmp_path)])
    for fitted, _ in small.values():
        # a fit that misses a sine leaves a tenth
        assert fitted.val_loss[fitted.best, -1] < 1e-6
    assert len(sweeps) == 2
    for found in sweeps:
        assert len(found.widths) == 100
        assert found.result.steps == 100 * 60 * 4
        losses = found.result.train_loss
        assert (losses[:, -1] < losses[:, 0]).float().mean() > 0.9
    # the sweep is on eight sines, another eight each draw
    assert not torch.equal(sweeps[0].frequencies, sweeps[1].frequencies)
    assert "extrapolated" in capsys.readouterr().out
    names = ["extrapolation.png", "sweep.png", "traces.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_the_best_loss_drops_at_the_targets_width(sinenet):
    """The original's finding: a large drop at width 8, in the median of 12 draws."""
    pytest.importorskip("numba")
    options = sinenet.parse(["--quiet"])
    sweeps = [sinenet.sweep(draw, options, [4, 8]) for draw in range(1, 13)]
    assert median(sinenet.ratios(sweeps, 8)) >= 10


def test_bad_options_are_refused(sinenet, capsys):
    with pytest.raises(SystemExit):
        sinenet.parse(["--restarts", "0"])
    assert "--restarts must be at least 1" in capsys.readouterr().err
