"""The examples x2_sum_lm and sinenet_lm on small problems, and the formula of the floor."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Function that imports an example as it is run, with its own folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        return importlib.import_module(name)

    yield load
    for name in ("x2_sum", "x2_sum_lm", "sinenet_lm"):
        sys.modules.pop(name, None)


class TestSumOfSquares:
    def test_floor_is_that_of_the_best_spline(self, example):
        example = example("x2_sum_lm")
        # the digits that are given
        assert example.floor(5) == pytest.approx(1.0142, abs=1e-4)
        assert example.floor(6) == pytest.approx(1.0946, abs=1e-4)
        assert min(example.floor(left) for left in range(15)) == example.floor(5)

    def test_a_mirrored_unit_keeps_its_breakpoint(self, example):
        example = example("x2_sum_lm")
        net = example.hinge_start()
        assert example.facing_left(net) == 6
        turned = example.mirrored(net, 1)
        assert example.facing_left(turned) == 5
        assert torch.equal(
            turned.fc1.bias / turned.fc1.weight[:, 0], net.fc1.bias / net.fc1.weight[:, 0]
        )
        assert example.facing_left(net) == 6

    def test_small_run_says_what_it_missed(self, example, capsys, monkeypatch):
        example = example("x2_sum_lm")
        monkeypatch.setattr(example, "TRAINING_ROWS", 2000)
        arguments = ["--steps", "3", "--final-steps", "1", "--search-rows", "500"]
        assert example.main([*arguments, "--restarts", "2"]) == 1
        printed = capsys.readouterr().out
        assert "best of 2" in printed
        assert "random: missed the goal of 1.3 × MSE*" in printed


def test_sinenet_finds_the_frequencies(example, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    example = example("sinenet_lm")
    assert example.main(["--epochs", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "does not resolve 8 frequencies" in printed
    assert (tmp_path / "eight_sines.png").stat().st_size > 10_000
