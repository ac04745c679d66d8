"""The example `exhaustion.py`, run for a few steps."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

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
        ["--steps", "2", "--restarts", "2", "--out", str(tmp_path), "--gif"]
    )
    assert len(runs) == len(example.TARGETS)
    assert len(sizes) == 10
    assert len(histories) == 6
    text = capsys.readouterr().out
    assert all(target.name in text for target in example.TARGETS)
    names = {"functions.png", "births_and_deaths.png", "exhaustion.png", "recovery.png"}
    assert {p.name for p in tmp_path.iterdir()} == {*names, "segments.gif"}


def test_stacked_nets_take_the_steps_of_single_ones(example):
    target = example.BY_NAME["sin"]
    torch.manual_seed(0)
    nets = example.Nets(3, [10, 10]).double()
    single = nets.net(1).double()
    x, y = target.data()
    x, y = x[::50].double(), y[::50].double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (nets, single)]
    for _ in range(20):
        for optimizer, loss in zip(
            optimizers,
            (
                (nets(x) - y).square().mean((1, 2)).sum(),
                (single(x) - y).square().mean(),
            ),
            strict=True,
        ):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(nets(x)[1], single(x), rtol=1e-9, atol=1e-9)


def test_poles_are_missed_and_floors_are_finite(example):
    for target in example.TARGETS:
        _, y = target.data()
        assert y.isfinite().all(), target.name
        floor = target.rms_floor(20)
        assert math.isfinite(floor)
        straight = target.name.startswith(("x >", "2x"))
        assert (floor == 0) == straight


def test_knots_start_in_the_domain(example):
    nets = example.Nets(4, [20, 20], knots_in=(5.0, 15.0))
    t = -nets.biases[0] / nets.weights[0][..., 0]
    assert ((t > 5 - 1e-3) & (t < 15 + 1e-3)).all()
