"""Which backend runs, and how to choose one.

``"triton"`` serves CUDA tensors, ``"numba"`` serves CPU tensors, ``"torch"`` (plain PyTorch, the
reference) serves every device. The default is the fastest one that is installed.
"""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec

BACKENDS = ("triton", "numba", "torch")
_COMPILERS = {"cuda": "triton", "cpu": "numba"}
"""What compiles the kernels of a kind of device."""
_WINGS = {"triton": "fastmlp.kernels.gpu", "numba": "fastmlp.kernels.cpu"}

_forced: ContextVar[str | None] = ContextVar("fastmlp_backend", default=None)


def _check_name(name, source):
    if name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@cache
def _is_switched_off():
    """Whether Numba is told not to compile: then its kernels, made of addresses, cannot run."""
    if "numba" in sys.modules:
        return bool(sys.modules["numba"].config.DISABLE_JIT)
    try:
        return int(os.environ.get("NUMBA_DISABLE_JIT") or 0) != 0
    except ValueError:  # Numba warns of it, and compiles
        return False


def _absence(name):
    """Why a backend is absent, as the end of a sentence."""
    if name == "numba" and _is_switched_off():
        return f"the package {name} with its compiler on, which NUMBA_DISABLE_JIT switches off"
    return f"the package {name}, which is not installed"


@cache
def is_installed(name: str) -> bool:
    """Tell whether a backend's compiler can be imported and compiles, without importing it."""
    if name == "numba" and _is_switched_off():
        return False
    try:
        return name == "torch" or find_spec(name) is not None
    except (ImportError, ValueError):  # hidden by an import hook or by None in sys.modules
        return False


@cache
def _default(device_type):
    """The backend for a kind of device when nobody asks for another one."""
    preferred = _COMPILERS.get(device_type, "torch")
    if is_installed(preferred):
        return preferred
    if preferred == "numba" and _is_switched_off():
        warnings.warn(
            "NUMBA_DISABLE_JIT is set: fastmlp runs plain PyTorch on the CPU, many times slower",
            RuntimeWarning,
            stacklevel=2,
        )
    return "torch"


@cache
def _interpreted():
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _serves(name, device_type):
    if name == "triton":
        return device_type == "cuda" or (device_type == "cpu" and _interpreted())
    return name == "torch" or device_type == "cpu"


_environment = os.environ.get("FASTMLP_BACKEND") or None
if _environment is not None:
    _check_name(_environment, "the environment variable FASTMLP_BACKEND")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every fastmlp op in this context, in this thread, on one backend.

    The environment variable ``FASTMLP_BACKEND`` sets the same choice for a whole process.

    Args:
        name: ``"triton"``, ``"numba"`` or ``"torch"``.

    Raises:
        ValueError: ``name`` is none of these, or its compiler is not installed. An op called in
            the context raises one when the backend does not serve the tensors' device.

    Example:
        >>> import torch, fastmlp
        >>> with fastmlp.backend("torch"):
        ...     y = fastmlp.ElementwiseMLP(14)(torch.zeros(3))
    """
    _check_name(name, "backend")
    if not is_installed(name):
        raise ValueError(f"backend {name!r} needs {_absence(name)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(device_type: str) -> str:
    """The name of the backend for a kind of device (``"cpu"``, ``"cuda"``, …)."""
    name = _forced.get() or _environment
    if name is None:
        return _default(device_type)
    if not _serves(name, device_type):
        wanted = "CUDA" if name == "triton" else "CPU"
        raise ValueError(f"backend {name!r} needs {wanted} tensors, got tensors on {device_type!r}")
    return name


# torch.compile takes the answer as a constant, as torch.compiler.assume_constant_result does;
# that decorator would import torch._dynamo, a second of every program's start
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def reason_for_torch(device_type):
    """Say in words why :func:`choose` takes plain PyTorch for a kind of device."""
    if (_forced.get() or _environment) == "torch":
        return "backend 'torch' was chosen"
    compiler = _COMPILERS.get(device_type)
    if compiler is None:
        return f"there are no kernels for tensors on {device_type!r}"
    return f"kernels need {_absence(compiler)}"


def choose_compiled(device_type):
    """The name of the backend that runs a registered op: never plain PyTorch."""
    name = choose(device_type)
    if name != "torch":
        return name
    name = _COMPILERS.get(device_type)
    if name is None or not is_installed(name):
        raise RuntimeError(
            f"fastmlp's registered ops need a kernel, and none is installed for {device_type!r}"
        )
    return name


@cache
def launchers(name, op):
    """The kernel module of one op in one wing, imported on first use.

    Args:
        name: ``"triton"`` or ``"numba"``.
        op: The op's file name, or a dotted path of one in a folder.

    Raises:
        ModuleNotFoundError: The wing's compiler is not installed.
    """
    if not is_installed(name):
        raise ModuleNotFoundError(
            f"the kernels of {op.partition('.')[0]}.py need {_absence(name)}",
            name=name,
        )
    return importlib.import_module(f"{_WINGS[name]}.{op}")
