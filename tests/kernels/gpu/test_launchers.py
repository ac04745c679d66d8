"""What CUDA graphs and several devices ask of the launchers, checked without a device.

A captured launcher may neither wait for the device nor move numbers to or from it, and must take
its memory from torch; kernels must be launched while the tensors' own device is the current one.
Tensors hold nothing, and kernels are replaced by one that only looks.
"""

import importlib
import pkgutil
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fastmlp.kernels import gpu
from fastmlp.kernels.gpu.machine import launch
from triton.runtime.autotuner import Autotuner, Heuristics

from fastmlp import LevenbergMarquardt
from fastmlp.training import batched

DEVICE = torch.device("meta")
MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(gpu.__path__, f"{gpu.__name__}.")
]

SUBNET = [(14, 1), (14,), (1, 14), (1,)]
STACKED = [(5, 14, 1), (5, 14), (5, 1, 14), (5, 1)]
# op, shapes of x and the parameters, whether there is a seed, options
CALLS = {
    "elementwise_mlp": ("elementwise_mlp", [(300, 5), *SUBNET], "relu"),
    "elementwise_mlp_dropout": ("elementwise_mlp", [(300, 5), *SUBNET], "tanh", 0.2, 0.1, 0.3),
    "additive_mlp": ("additive_mlp", [(300, 5), *SUBNET, (1, 5), (1,)], "relu"),
    "additive_mlp_many_out": ("additive_mlp", [(300, 5), *SUBNET, (3, 5), (3,)], "relu"),
    "additive_mlp_dropout": ("additive_mlp", [(300, 5), *SUBNET, (1, 5), (1,)], "relu", 0.2, 0, 0),
    "stacked": ("additive_mlp", [(300, 5), *STACKED, (2, 5), (2,)], "silu"),
    "sine_sum": ("sine_sum", [(300, 5), (8,), (8,), (8,)], 3.0, True),
    "mlp": ("mlp", [(300, 5), (7, 5), (7,), (2, 7), (2,)], "relu", "identity", 0.0),
    "mlp_wide": ("mlp", [(300, 16), (20, 16), (20,), (2, 20), (2,)], "relu", "identity", 0.0),
    "mlp_deep": ("mlp", [(300, 16), *[(16, 16), (16,)] * 10], "relu", "identity", 0.2),
    "mlp_dropout": ("mlp", [(300, 5), (7, 5), (7,), (2, 7), (2,)], "relu", "identity", 0.2),
    "piecewise_linear": ("piecewise_linear", [(300, 5), (7,), (7,), (6,), (7,)]),
    "no_rows": ("additive_mlp", [(0, 5), *SUBNET, (1, 5), (1,)], "relu"),
}


class _Guard:
    """In place of ``launch.device_of``: notes whose device is the current one."""

    current = None

    def __init__(self, x):
        self.device = x.device

    def __enter__(self):
        self.before, _Guard.current = _Guard.current, self.device

    def __exit__(self, *_):
        _Guard.current = self.before


class _Kernel:
    """In place of a kernel: notes its name, holds its launch against the rules."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        assert all(isinstance(n, int) and n > 0 for n in grid)
        return self.launch

    def launch(self, *arguments, **constants):
        assert _Guard.current == DEVICE, f"{self.name} runs on whatever device is current"
        for value in (*arguments, *constants.values()):
            assert not isinstance(value, torch.Tensor) or value.device == DEVICE
        self.launched.append(self.name)


class _OnDevice(TorchDispatchMode):
    """No operation touches a tensor elsewhere: nothing is copied, and nothing waits."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            assert not isinstance(value, torch.Tensor) or value.device == DEVICE, function
        assert function is not torch.ops.aten._local_scalar_dense.default
        return result


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels launched, none of which runs."""
    names = []
    for module in MODULES:
        for name in vars(module):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, _Kernel(name, names))
        if hasattr(module, "device_of"):
            monkeypatch.setattr(module, "device_of", _Guard)
    return names


def _arguments(op, shapes, *options):
    tensors = [torch.empty(shape, device=DEVICE) for shape in shapes]
    if op in ("elementwise_mlp", "additive_mlp"):
        dropout = options[1:]
        seed = torch.empty(1, device=DEVICE, dtype=torch.int64) if dropout else None
        return [*tensors, seed, options[0], *(dropout or (0.0, 0.0, 0.0))]
    if op == "mlp":
        seed = torch.empty(1, device=DEVICE, dtype=torch.int64) if options[-1] else None
        return [*tensors, seed, *options]
    return [*tensors, *options]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_launches_are_captured_on_the_device_of_the_tensors(call, strided, launched):
    op, shapes, *options = CALLS[call]
    kernels = importlib.import_module(f"fastmlp.kernels.gpu.{op}")
    arguments = _arguments(op, shapes, *options)
    if strided:
        arguments[0] = arguments[0].T.contiguous().T
    needs = (True,) * (3 if op == "piecewise_linear" else len(shapes))
    with _OnDevice():
        y = getattr(kernels, f"{op}_fwd")(*arguments)
        n_forward = len(launched)
        gradients = getattr(kernels, f"{op}_bwd")(torch.empty_like(y), *arguments, needs=needs)
    assert all(t is None or t.device == DEVICE for t in (y, *gradients))
    assert bool(n_forward) == bool(len(launched) - n_forward) == (shapes[0][0] > 0)


def test_no_allocation_is_as_large_as_a_hidden_layer(launched, monkeypatch):
    allocated, allocate = [], torch.empty

    def counting(*args, **kwargs):
        allocated.append(allocate(*args, **kwargs))
        return allocated[-1]

    monkeypatch.setattr(torch, "empty", counting)
    # 10 000 rows of one number, through 40 units and through 40 twice
    for op, shapes, options in (
        ("elementwise_mlp", [(40, 1), (40,), (1, 40), (1,)], ("relu",)),
        ("mlp", [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)], ("relu", "identity", 0.0)),
    ):
        kernels = importlib.import_module(f"fastmlp.kernels.gpu.{op}")
        arguments = _arguments(op, [(10_000, 1), *shapes], *options)
        y = getattr(kernels, f"{op}_fwd")(*arguments)
        needs = (True,) * (1 + len(shapes))
        getattr(kernels, f"{op}_bwd")(torch.empty_like(y), *arguments, needs=needs)
    assert allocated
    assert max(t.numel() for t in allocated) < 10_000 * 40


def test_the_guard_makes_the_device_of_the_tensors_the_current_one(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    # a context costs some microseconds: none where nothing is to be changed
    launch.device_of(SimpleNamespace(is_cuda=True, device=first))
    assert entered == []
    launch.device_of(SimpleNamespace(is_cuda=True, device=second))
    assert entered == [second]


def test_no_kernel_is_tuned_when_it_is_called():
    for module in MODULES:
        for name, value in vars(module).items():
            assert not isinstance(value, (Autotuner, Heuristics)), (module.__name__, name)


def test_a_trial_of_levenberg_marquardt_waits_for_nothing(launched):
    kernels = importlib.import_module("fastmlp.kernels.gpu.levenberg_marquardt.sums")
    x, y = torch.empty(300, 1, device=DEVICE), torch.empty(300, 1, device=DEVICE)
    problem = kernels.Sums((2, 1, 8, 1, 0, 0), (0.5, 0.125), 8, x, y, None)
    starts = torch.empty(20, 8, dtype=torch.float64, device=DEVICE)
    with _OnDevice():
        solver = batched._Solver(problem, starts, LevenbergMarquardt(), 5, 0)
        solver._round(solver.state, batched._CHOLESKY)
        assert launched == ["lm_loss_kernel", "lm_jacobian_kernel", "lm_loss_kernel"]
        for tile in problem.tiles(starts):
            assert tile.device == DEVICE
    assert len(launched) == 4
