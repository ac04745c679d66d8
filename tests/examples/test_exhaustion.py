"""The example `exhaustion.py`, run for a few steps."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

import fastmlp

FILE = Path(__file__).parents[2] / "examples" / "exhaustion.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("exhaustion", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["exhaustion"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["exhaustion"]


def test_it_runs(example, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs, sizes, histories = example.main(
        ["--epochs", "2", "--restarts", "2", "--out", str(tmp_path), "--gif"]
    )
    assert list(runs) == [target.name for target in example.TARGETS]
    assert list(sizes) == list(example.SIZES)
    assert [len(history) for history in histories.values()] == [5] * 6
    text = capsys.readouterr().out
    assert all(target.name in text for target in example.TARGETS)
    names = {"functions.png", "births_and_deaths.png", "exhaustion.png", "recovery.png"}
    assert {p.name for p in tmp_path.iterdir()} == {*names, "segments.gif"}


def test_the_loop_for_dropout_takes_the_steps_of_fit(example, monkeypatch):
    monkeypatch.setattr(example, "POINTS", 60)
    monkeypatch.setattr(example, "BATCH", 25)
    x, y = (t.double() for t in example.FIRST["sin"].data())
    trained = []
    for dropout in (0.0, 1e-30):  # so small that no unit is ever dropped
        options = example.parse(["--restarts", "2", "--epochs", "4", "--dropout", str(dropout)])
        nets = [net.double() for net in example.draw_nets(options)]
        go_on = example.trainer(nets, x, y, options)
        go_on(1)
        go_on(4)
        with torch.no_grad():
            trained.append(torch.stack([net(x) for net in nets]))
    # a dozen float64 steps of two loops; another step would differ in the third digit
    torch.testing.assert_close(*trained, rtol=1e-9, atol=1e-9)


def test_poles_are_missed_and_floors_are_finite(example):
    for target in example.TARGETS:
        _, y = target.data()
        assert y.isfinite().all(), target.name
        floor = target.rms_floor()
        assert math.isfinite(floor)
        straight = target.name.startswith(("x >", "2x"))
        assert (floor == 0) == straight


def test_the_floor_of_a_parabola_is_exact(example):
    # pieces of width h: h² / √180
    target = example.Target("x²", torch.square, -5, 8)
    # an integral over parts, each refined numerically
    assert target.rms_floor() == pytest.approx(13**2 / math.sqrt(180), rel=1e-6)


def test_knots_start_in_the_domain(example):
    options = example.parse(["--hidden", "20", "--restarts", "4"])
    for net in example.draw_nets(options, knots_in=(5.0, 15.0)):
        assert isinstance(net, fastmlp.MLP)
        first = net.get_submodule("0")
        t = -first.bias / first.weight[:, 0]
        # quotients of float32 numbers
        assert ((t > 5 - 1e-3) & (t < 15 + 1e-3)).all()
