"""The example `x2_dropout.py`, run for a few steps."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def x2_dropout(monkeypatch):
    """The example, which finds its neighbour `x2_sum` as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("x2_dropout", "x2_sum")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    module = importlib.import_module("x2_dropout")
    monkeypatch.setattr(module, "MEASURED_ROWS", 300)
    yield module
    for name in names:
        del sys.modules[name]
    sys.modules.update(before)


def arguments(folder, *more):
    return ["--steps", "30", "--batch-size", "300", "--passes", "10", "--out", str(folder), *more]


def test_loss_falls_and_predictions_get_worse(x2_dropout, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = x2_dropout.main(arguments(tmp_path))
    text = capsys.readouterr().out
    everywhere, hidden, control = runs
    for run in runs:
        assert [line.step for line in run.lines] == [0, 1, 3, 10, 30]
        assert all(line.agrees for line in run.lines)
        assert run.title in text
        assert run.lines[-1].measured < run.lines[0].measured
        # the start's error on all data, here on some hundred rows of it
        assert run.lines[0].eval_mse == pytest.approx(208, rel=0.3)
    assert everywhere.lines[-1].eval_mse > 10 * everywhere.lines[0].eval_mse
    assert control.lines[-1].eval_mse < 0.5 * control.lines[0].eval_mse
    for line in hidden.lines:
        # hidden masks leave the mean alone: what is left are roundings of float32 outputs
        assert abs(line.shift) < 1e-6 * line.variance
        assert line.variance > 0.5 * line.total
    assert all(line.variance == line.shift == line.measured_error == 0 for line in control.lines)
    assert "without dropout there is nothing to sell" in " ".join(text.split())
    assert [path.name for path in tmp_path.iterdir()] == ["dropout.png"]


def test_a_wrong_variance_ends_the_script(x2_dropout, tmp_path, monkeypatch, capsys):
    report = x2_dropout.fastmlp.dropout_report

    class Wrong:
        def __init__(self, *args):
            right = report(*args)
            self.shift, self.variance = right.shift, 1.2 * right.variance

    monkeypatch.setattr(x2_dropout.fastmlp, "dropout_report", Wrong)
    with pytest.raises(SystemExit, match=r"train-mode MSE is not .*hidden units only.*, 0\)"):
        x2_dropout.main([*arguments(tmp_path, "--steps", "1"), "--passes", "50"])
    assert "does not add up" in capsys.readouterr().out


def test_an_interrupt_keeps_what_is_there(x2_dropout, tmp_path, monkeypatch, capsys):
    examine, calls = x2_dropout.examine, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return examine(*args)

    monkeypatch.setattr(x2_dropout, "examine", interrupt)
    (run,) = x2_dropout.main(arguments(tmp_path))
    assert run.interrupted
    assert len(run.lines) == 3
    assert "interrupted" in capsys.readouterr().out


def test_help_explains_the_options(x2_dropout, capsys):
    with pytest.raises(SystemExit) as ended:
        x2_dropout.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--epochs", "--steps", "--lr", "--p", "--passes", "--device", "--seed", "--out"):
        assert option in text


@pytest.mark.parametrize("argv", [["--epochs", "0"], ["--p", "1"], ["--passes", "1"]])
def test_values_out_of_range_are_refused(x2_dropout, capsys, argv):
    with pytest.raises(SystemExit):
        x2_dropout.main(argv)
    assert argv[0] in capsys.readouterr().err
