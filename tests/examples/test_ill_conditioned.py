"""The example ill_conditioned: runs, ends at rounding, marks what diverged."""

import importlib.util
import math
from pathlib import Path

import pytest

pytest.importorskip("numba")
pytest.importorskip("matplotlib")

PATH = Path(__file__).resolve().parents[2] / "examples" / "ill_conditioned.py"
spec = importlib.util.spec_from_file_location("ill_conditioned", PATH)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


@pytest.fixture(autouse=True)
def _few_fixed_steps(monkeypatch):
    """14 ms each."""
    monkeypatch.setattr(example, "FIXED_STEPS", 30)


def test_it_runs_and_saves_its_plot(tmp_path, capsys):
    assert example.main(["--steps", "5", "--draws", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "diverged" in printed
    assert "2 draws: relative loss ≤ 1e-28 after" in printed
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_twenty_draws_end_at_rounding():
    """The original's figure: a relative loss of 1e-28 within 30 accepted steps of each."""
    for seed in range(20):
        curve, *_ = example.second_order(*example.make_problem(seed))
        steps = example.steps_to_goal(curve.loss)
        assert 1 < steps <= 30, seed
        assert curve.loss[steps] <= 1e-28, seed


def test_it_fails_when_the_goal_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "GOAL", 1e-40)
    assert example.main(["--steps", "1", "--draws", "1", "--out", str(tmp_path)]) == 1


def test_the_least_loss_is_zero():
    net, x, y = example.make_problem(0)
    matrix = (x.pinverse() @ y).T
    # ε times the condition number of x, a random matrix of many rows: some ten
    assert (x @ matrix.T - y).norm() < 1e-12 * y.norm()
    assert net(x).shape == y.shape


def test_steps_to_goal():
    assert example.steps_to_goal([1.0, 1e-20, 1e-29, 1e-30]) == 2
    assert example.steps_to_goal([1.0, math.nan]) == math.inf
