"""Numbers of another dtype than the arithmetic's reach kernels some rows at a time."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from fastmlp.kernels.cpu import sine_sum
from fastmlp.kernels.cpu.machine import launch, team

import fastmlp

NETS = {
    "sine_sum": lambda: fastmlp.SineSum(5, learn_amplitude=True),
    "elementwise_mlp": lambda: fastmlp.ElementwiseMLP(14),
    "wide": lambda: fastmlp.ElementwiseMLP(256),
    "additive_mlp": lambda: fastmlp.AdditiveMLP(8, 14),
    "dropout": lambda: fastmlp.AdditiveMLP(8, 14, dropout=0.2),
    "stacked": lambda: fastmlp.AdditiveMLP(8, 14, shared=False),
    "mlp": lambda: fastmlp.MLP(8, 14, 2),
}


def results(net, x):
    """Output and all gradients of one call."""
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    with fastmlp.backend("numba"):
        y = net(x)
        return y, *torch.autograd.grad(y.float().square().sum(), [x, *net.parameters()])


@pytest.mark.parametrize("threads", ["PyTorch's", "ours"])
@pytest.mark.parametrize("net", NETS)
def test_how_many_rows_at_a_time_does_not_matter(net, threads, monkeypatch):
    if threads == "ours":
        monkeypatch.setattr(team, "_runtime", lambda: None)
    torch.manual_seed(0)
    net = NETS[net]()
    x = torch.randn(20_001, 8).bfloat16()
    monkeypatch.setattr(launch, "PIECE", 1 << 16)  # a few dozen pieces
    launch.cut.cache_clear()
    try:
        whole = results(net.bfloat16(), x)
        for n in (1, 3):
            monkeypatch.setattr(launch, "PIECES_AT_ONCE", n)
            for ours, expected in zip(results(net, x), whole, strict=True):
                assert ours.dtype == torch.bfloat16
                torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    finally:
        launch.cut.cache_clear()
    # and they are those of the same numbers in float32
    assert torch.equal(results(net.float(), x.float())[0].bfloat16(), whole[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc tells a peak that was reset")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_large_tensors_are_not_copied_whole(direction):
    x = torch.full((3 << 24,), 0.5, dtype=torch.bfloat16)
    w = torch.ones(4)

    def call(x):
        if direction == "forward":
            return sine_sum.sine_sum_fwd(x, w.bfloat16(), None, None, 3.0, True)
        needs = True, True, False, False
        return sine_sum.sine_sum_bwd(x, x, w.bfloat16(), None, None, 3.0, True, needs=needs)

    def memory(what):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))

    call(x[: 1 << 18])  # compiles, what deals several pieces too
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not reset the peak of memory")
    before = memory("VmRSS")
    call(x)
    # the result, and less than that again: a copy alone would be twice of it
    assert memory("VmHWM") - before < 2 * 2 * x.numel()
