"""The example `x2_sum.py`, run for a few steps."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "x2_sum.py"


@pytest.fixture(scope="module")
def x2_sum():
    spec = importlib.util.spec_from_file_location("x2_sum", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["x2_sum"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["x2_sum"]


def test_loss_falls_and_the_curves_agree(x2_sum, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results = x2_sum.main(["--steps", "20", "--batch-size", "100", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    for name, (fused, plain) in results.items():
        difference, common = x2_sum.largest_difference(fused, plain)
        assert common == len(plain.losses) > 0
        # 20 steps of two float32 programs; a wrong gradient is off by more in the second step
        assert difference < 1e-3
        assert len(fused.losses) == 20
        assert fused.mse < fused.validation_mse[0]
        assert f"{name}: over the {common} common steps" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "function.png",
        "loss.png",
        "predictions.png",
    ]


def test_hinge_start_is_the_one_of_the_experiment(x2_sum):
    x, y = x2_sum.make_data(0, torch.device("cpu"))
    net = x2_sum.hinge_start()
    with torch.no_grad():
        mse = torch.nn.functional.mse_loss(net(x[:20000]), y[:20000]).item()
    # of 20 000 of the rows; the constant in the digits that it is given with
    assert mse == pytest.approx(208, rel=0.02)
    assert pytest.approx(0.20059, abs=1e-5) == x2_sum.MSE_STAR


def test_an_interrupt_keeps_what_is_there(x2_sum, tmp_path, capsys, monkeypatch):
    rates = []

    def interrupt(step, n_steps, peak):
        rates.append(step)
        if len(rates) == 5:
            raise KeyboardInterrupt
        return peak

    monkeypatch.setattr(x2_sum, "learning_rate", interrupt)
    results = x2_sum.main(["--steps", "8", "--batch-size", "50", "--out", str(tmp_path)])
    fused, _ = results["hinge"]
    assert fused.interrupted
    assert len(fused.losses) == 4
    assert math.isfinite(fused.mse)
    assert not results["random"][0].interrupted
    assert "interrupted" in capsys.readouterr().out
    assert (tmp_path / "loss.png").exists()


def test_curves_that_differ_end_the_script_with_a_message(x2_sum, tmp_path, monkeypatch):
    class Wrong(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.fc1, self.fc2, self.fc3 = net.fc1, net.fc2, net.fc3

        def forward(self, x):
            return self.net(x) * 1.01

    to_plain = x2_sum.to_plain
    monkeypatch.setattr(x2_sum, "to_plain", lambda net: Wrong(to_plain(net)))
    with pytest.raises(SystemExit, match="disagree"):
        x2_sum.main(["--steps", "3", "--batch-size", "50", "--out", str(tmp_path)])


def test_help_explains_the_options(x2_sum, capsys):
    with pytest.raises(SystemExit) as ended:
        x2_sum.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--epochs", "--batch-size", "--lr", "--device", "--out", "--steps", "--seed"):
        assert option in text


@pytest.mark.parametrize("argv", [["--epochs", "0"], ["--lr", "-1"], ["--batch-size", "100000"]])
def test_values_out_of_range_are_refused(x2_sum, capsys, argv):
    with pytest.raises(SystemExit):
        x2_sum.main(argv)
    assert argv[0] in capsys.readouterr().err
