"""Fixtures of the whole suite; must set the environment before anything imports a kernel."""

import os
import signal
import sys
from typing import NamedTuple

import pytest
import torch
from torch.utils._device import _device_constructors

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.register_assert_rewrite(
    "closeness", "general_cases", "mlp_cases", "op_contract", "subnet_cases"
)

import interpreter  # noqa: E402

import fastmlp  # noqa: E402

# what a shell runs in the background ignores Ctrl-C, and so would what tests start and interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False

# PyTorch keeps this list from its first use on: it must hold `torch.empty`, not what a fixture
# below puts in its place, or no default device would reach that
_device_constructors()

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


if INTERPRETED and fastmlp.backends.is_installed("triton"):
    interpreter.hasten()


def pytest_addoption(parser):
    parser.addoption("--program-seed", default=0, help="seed of the order of interpreted programs")


def pytest_configure(config):
    if INTERPRETED and fastmlp.backends.is_installed("triton"):
        from sanitizer.plugin import Sanitizer

        config.pluginmanager.register(Sanitizer(config.getoption("--program-seed")))


class Backend(NamedTuple):
    """A backend and the device of the tensors that it gets in the tests."""

    name: str
    device: str

    @property
    def interpreted(self):
        """Whether kernels run in Triton's interpreter, thousands of times slower."""
        return self.name == "triton" and INTERPRETED

    @property
    def compiled(self):
        """Whether kernels of ours run at full speed; plain PyTorch has none."""
        return self.name != "torch" and not self.interpreted


BACKENDS = {
    "torch": Backend("torch", DEVICE),
    "numba": Backend("numba", "cpu"),
    "triton": Backend("triton", "cpu" if INTERPRETED else "cuda"),
}


@pytest.fixture
def device():
    """The device of a test that does not choose a backend."""
    return DEVICE


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend in turn; every op in the test runs on it."""
    name = request.param
    if not fastmlp.backends.is_installed(name):
        pytest.skip(f"{name} is not installed")
    with fastmlp.backend(name):
        yield BACKENDS[name]


@pytest.fixture(params=["numba", "triton"])
def kernel_backend(request):
    """Each backend that has kernels of ours."""
    name = request.param
    if not fastmlp.backends.is_installed(name):
        pytest.skip(f"{name} is not installed")
    with fastmlp.backend(name):
        yield BACKENDS[name]


@pytest.fixture
def draw():
    """Function that draws normal numbers on the CPU in float64; tests cast and move them.

    The numbers of a test are thus the same on every device and, up to rounding, in every dtype.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return draw


@pytest.fixture(autouse=True, scope="session")
def _no_lanes_in_the_interpreter():
    """There a thread takes an item at a time, a hundred times slower than a tile of them: whole
    runs of small models on the GPU have a program each, but in `training/test_lanes_triton.py`."""
    if INTERPRETED and fastmlp.backends.is_installed("triton"):
        from fastmlp.kernels.gpu import runs

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "are_small", lambda _, models: models < 0)
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nan_filled_allocations(monkeypatch):
    """Memory that the package allocates holds NaN, so that a forgotten element shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _nan_filled(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", _nan_filled(torch.Tensor.new_empty))


def _nan_filled(allocate):
    def allocate_nan(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] == "fastmlp" and tensor.is_floating_point():
            tensor.fill_(float("nan"))
        return tensor

    return allocate_nan


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "every_second_column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every_second_row": lambda x: x.repeat_interleave(2, 0)[::2],
    "expanded_rows": lambda x: x[:1].expand(x.shape),
    "expanded_columns": lambda x: x[..., :1].expand(x.shape),
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "three_dimensions_permuted": lambda x: x.expand(3, *x.shape).contiguous().transpose(0, 1),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    """Function that gives a matrix other strides, or repeats some of it."""
    return LAYOUTS[request.param]


def pytest_generate_tests(metafunc):
    """Tests that take a `case` run over the cases that their class lists."""
    cases = getattr(metafunc.cls, "CASES", None)
    if cases is not None and "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases.values(), ids=cases)
