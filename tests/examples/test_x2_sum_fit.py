"""The example `x2_sum_fit.py`, on few rows."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def x2_sum_fit(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("x2_sum_fit", FOLDER / "x2_sum_fit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("x2_sum", None)


def test_both_runs_and_their_table(x2_sum_fit, capsys):
    pytest.importorskip("numba")
    arguments = ["--epochs", "3", "--rows", "2000", "--plain-steps", "10", "--quiet"]
    result = x2_sum_fit.main(arguments)
    text = capsys.readouterr().out
    assert "extrapolated from 10 timed steps" in text
    assert result.val_loss[0, -1] < 208
    assert result.train_loss[1, 0] > 20 * result.train_loss[0, 0]
    assert result.steps == 120


def test_bad_options_are_refused(x2_sum_fit, capsys):
    with pytest.raises(SystemExit):
        x2_sum_fit.parse(["--rows", "50"])
    assert "--rows must be at least 100" in capsys.readouterr().err
