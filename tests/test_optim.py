"""optim.LevenbergMarquardt: single steps on any module, state, ranks."""

import copy
import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from closeness import assert_same_losses
from torch import nn

pytest.importorskip("numba")

import fastmlp
from fastmlp.training.levenberg_marquardt import train

N_PARAMETERS = 38


def problem(draw):
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x = draw(60, 3)
    return net, x, x[:, :2].sin() + 0.1 * draw(60, 2)


@pytest.mark.parametrize("solver", ["cholesky", "qr", "auto"])
def test_steps_are_those_of_a_whole_run(draw, solver):
    net, x, y = problem(draw)
    whole = copy.deepcopy(net)
    settings = fastmlp.LevenbergMarquardt(solver=solver)
    outcome = train([whole], x, y, settings, max_steps=8)
    optimizer = fastmlp.optim.LevenbergMarquardt(net, solver=solver)
    losses = [optimizer.step(x, y) for _ in range(8)]
    assert_same_losses(losses, outcome.sse[0, :8], N_PARAMETERS, 8)
    assert optimizer.stopped is None


def test_rows_in_chunks(draw, monkeypatch):
    from fastmlp.training import generic

    net, x, y = problem(draw)
    other = copy.deepcopy(net)
    weight = draw(60).abs()
    whole = fastmlp.optim.LevenbergMarquardt(net, solver="qr")
    losses = [whole.step(x, y, weight) for _ in range(3)]
    monkeypatch.setattr(generic, "JACOBIAN_BYTES", 10_000)
    chunks = fastmlp.optim.LevenbergMarquardt(other, solver="qr")
    assert_same_losses([chunks.step(x, y, weight) for _ in range(3)], losses, N_PARAMETERS, 3)


def test_minibatches_and_a_convolution(draw):
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1))
    optimizer = fastmlp.optim.LevenbergMarquardt(net)
    x = draw(64, 1, 8).float()
    y = x.sum((1, 2))[:, None]
    first = (net(x) - y).square().sum().item()
    for _ in range(5):
        for rows in torch.arange(64).split(32):
            optimizer.step(x[rows], y[rows])
    assert (net(x) - y).square().sum().item() < 0.1 * first


def test_stops_with_a_reason(draw):
    net, x, _ = problem(draw)
    optimizer = fastmlp.optim.LevenbergMarquardt(net)
    # 120 squares of an ulp or two
    assert optimizer.step(x, net(x).detach()) == pytest.approx(0.0, abs=1e-28)
    assert optimizer.stopped is not None


def test_state_goes_on_after_saving(draw):
    net, x, y = problem(draw)
    optimizer = fastmlp.optim.LevenbergMarquardt(net)
    for _ in range(3):
        optimizer.step(x, y)
    other = copy.deepcopy(net)
    restored = fastmlp.optim.LevenbergMarquardt(other)
    restored.load_state_dict(optimizer.state_dict())
    assert [optimizer.step(x, y) for _ in range(3)] == [restored.step(x, y) for _ in range(3)]


def test_bad_input(draw):
    net, x, y = problem(draw)
    with pytest.raises(TypeError, match="module must be a torch"):
        fastmlp.optim.LevenbergMarquardt([torch.ones(2)])
    with pytest.raises(ValueError, match="no parameters to train"):
        fastmlp.optim.LevenbergMarquardt(nn.ReLU())
    with pytest.raises(ValueError, match="10100 parameters"):
        fastmlp.optim.LevenbergMarquardt(nn.Linear(100, 100))
    optimizer = fastmlp.optim.LevenbergMarquardt(net)
    with pytest.raises(ValueError, match="targets must have the shape of the module's output"):
        optimizer.step(x, y[:, :1])
    with pytest.raises(ValueError, match="inputs must be finite"):
        optimizer.step(x * math.nan, y)
    with pytest.raises(ValueError, match="sample_weight"):
        optimizer.step(x, y, -torch.ones(60))
    with pytest.raises(ValueError, match="active dropout"):
        fastmlp.optim.LevenbergMarquardt(nn.Sequential(net, nn.Dropout(0.1))).step(x, y)


RANK = """
import sys, torch, fastmlp
import torch.distributed as dist
from torch import nn
store, rank, solver, problem, out = sys.argv[1:]
dist.init_process_group("gloo", init_method="file://" + store, rank=int(rank), world_size=2)
state, x, y = torch.load(problem, weights_only=True)
net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
net.load_state_dict(state)
optimizer = fastmlp.optim.LevenbergMarquardt(net, solver=solver)
rows = slice(0, 25) if rank == "0" else slice(25, None)
losses = [optimizer.step(x[rows], y[rows]) for _ in range(4)]
torch.save([losses, net[0].weight.detach()], out)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")
@pytest.mark.parametrize("solver", ["cholesky", "qr"])
def test_ranks_take_the_same_step_on_all_rows(draw, solver, tmp_path):
    net, x, y = problem(draw)
    torch.save([net.state_dict(), x, y], tmp_path / "problem")
    alone = fastmlp.optim.LevenbergMarquardt(net, solver=solver)
    wanted = [alone.step(x, y) for _ in range(4)]
    files = ["meet", "problem", "0", "1"]
    store, given, *out = (str(tmp_path / name) for name in files)
    processes = [
        subprocess.Popen([sys.executable, "-c", RANK, store, str(rank), solver, given, out[rank]])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    (losses, weights), (other_losses, other_weights) = (
        torch.load(path, weights_only=True) for path in out
    )
    assert losses == other_losses
    assert torch.equal(weights, other_weights)
    assert_same_losses(losses, wanted, N_PARAMETERS, 4)
