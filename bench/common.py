"""What every bench shares: suites, providers, the gate, clocks, memory, bandwidth, metadata.

Convention: times in microseconds, GB/s = 1e9 bytes a second, memory in bytes.
"""

import copy
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

import closeness  # noqa: E402

import fastmlp  # noqa: E402

MODES = ("inference", "forward", "forward_backward", "training_step")
BACKWARD = MODES[2:]


@dataclass(frozen=True)
class Case:
    """One named shape, and what is asked of it."""

    name: str
    shape: tuple
    modes: tuple = MODES
    settings: dict = field(default_factory=dict)  # of the module
    x_grad: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Suite:
    """One op's bench: its cases, its two modules, its input and what it must move.

    Args:
        op: Name of the op.
        cases: Real uses first.
        reference: Function of a case: the plain PyTorch module, with realistic weights.
        fused: Function of a case: fastmlp's module.
        draw: Function of a case: the input, on the CPU.
        bytes_moved: Function of (case, mode): bytes that no implementation can avoid moving.
        flops: Function of (case, mode): arithmetic that none can avoid, where it is known. A ReLU
            subnet needs none a unit: it can be evaluated by its segments.
        terms: Function of ``(dy, x, module)``: sizes of the summed terms by name, for the gate.
        name: Name of the suite on the command line; the op's if it has none of its own.
    """

    op: str
    cases: tuple
    reference: Callable
    fused: Callable
    draw: Callable
    bytes_moved: Callable
    terms: Callable
    flops: Callable = lambda case, mode: 0
    name: str = ""


def make_step(module, x, dy, mode):
    """The function to time: no arguments, returns the output and the gradients by name.

    A program of another framework brings its own ``make_step``.

    ``"training_step"`` is what a user's loop does: mean squared error to ``dy``, backward, Adam
    (:class:`fastmlp.optim.Adam` for a module of fastmlp's, else PyTorch's with its defaults); it
    changes the module, so its values are not to be compared.
    """
    if not isinstance(module, torch.nn.Module):
        return module.make_step(x, dy, mode)
    if mode == "training_step":
        ours = type(module).__module__.startswith("fastmlp.modules.")
        library = fastmlp.optim if ours else torch.optim
        optimizer = library.Adam(module.parameters(), lr=1e-4)

        def step():
            loss = torch.nn.functional.mse_loss(module(x), dy)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss.detach()}

    elif mode == "inference":

        def step():
            with torch.no_grad():
                return {"y": module(x)}

    elif mode == "forward":

        def step():
            return {"y": module(x)}

    else:
        # a compiled module prefixes the names
        wanted = {name.removeprefix("_orig_mod."): p for name, p in module.named_parameters()}
        if x.requires_grad:
            wanted["x"] = x
        names, leaves = list(wanted), list(wanted.values())

        def step():
            y = module(x)
            return {"y": y, **dict(zip(names, torch.autograd.grad(y, leaves, dy), strict=True))}

    return step


class Gate:
    """The exact values of a case, in float64, and plain PyTorch's own: judge of every provider."""

    CHUNK = 1 << 19  # elements at once: float64 hidden activations of a whole case fill memory

    def __init__(self, suite, plain, x, dy):
        self.torchs = make_step(plain, x, dy, "forward_backward")()
        self.exact, self.terms = {}, {}
        exact_plain = copy.deepcopy(plain).double()
        rows = max(self.CHUNK // max(x[:1].numel(), 1), 1)
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            x64 = x[part].detach().double().requires_grad_(x.requires_grad)
            dy64 = dy[part].double()
            values = make_step(exact_plain, x64, dy64, "forward_backward")()
            with torch.no_grad():
                sizes = suite.terms(dy64, x64, exact_plain)
            for name, value in values.items():
                _accumulate(self.exact, name, value.detach())
                _accumulate(self.terms, name, sizes[_term_name(name, sizes)])
        for store in (self.exact, self.terms):
            for name in {"x", "y"} & store.keys():
                store[name] = torch.cat(store[name])

    def check(self, values):
        """Raise AssertionError unless all values are as good as plain PyTorch's."""
        for name, value in values.items():
            closeness.assert_as_good_as_torch(
                _as_tensor(value),
                self.torchs[name].detach(),
                self.exact[name],
                terms=self.terms[name].reshape(self.exact[name].shape),
                name=name,
            )


def _as_tensor(value):
    return value.detach() if isinstance(value, torch.Tensor) else torch.tensor(np.asarray(value))


def _term_name(name, sizes):
    return name if name in sizes else name.replace(".", "_")


def _accumulate(store, name, value):
    if name in ("x", "y"):
        store.setdefault(name, []).append(value)
    else:
        store[name] = store[name] + value if name in store else value


def summary(samples):
    """Median, 20 % and 80 % of samples in seconds, in microseconds."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        "median_us": statistics.median(ordered) * 1e6,
        "low_us": ordered[round(0.2 * last)] * 1e6,
        "high_us": ordered[round(0.8 * last)] * 1e6,
        "n_samples": len(ordered),
    }


def time_interleaved(
    steps, *, seconds, min_rounds=5, max_rounds=100, block=0.02, wait=lambda: None
):
    """Time functions that have run before in turn: a slow spell of the machine meets them all.

    A sample is the mean over a block of calls that lasts ``block`` seconds, or over one call.

    Args:
        steps: Dictionary from name to function.
        seconds: About how long all rounds may take.
        min_rounds: Rounds done in any case; of rounds so long that these would take thrice
            ``seconds``, no more than three.
        max_rounds: Rounds that are enough.
        block: Seconds of a block.
        wait: Called at the end of each block: waits for a device that runs behind.

    Returns:
        Dictionary from name to :func:`summary`.
    """
    calls = {}
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        wait()
        calls[name] = max(1, min(1000, round(block / (time.perf_counter() - start))))
    samples = {name: [] for name in steps}
    began = time.perf_counter()
    for done in range(max_rounds):
        spent = time.perf_counter() - began
        if (done >= min_rounds and spent > seconds) or (done >= 3 and spent > 3 * seconds):
            break
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                step()
            wait()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {name: summary(values) for name, values in samples.items()}


def time_cuda(step, *, graph):
    """Time one function on the device, launched call by call or replayed as a CUDA graph."""
    from triton import testing

    measure = testing.do_bench_cudagraph if graph else testing.do_bench
    median, low, high = measure(step, quantiles=[0.5, 0.2, 0.8])
    return {"median_us": median * 1e3, "low_us": low * 1e3, "high_us": high * 1e3, "n_samples": 0}


def peak_extra_bytes(step, device):
    """How far one call raises the memory in use, its results included.

    CUDA: the caching allocator's peak. CPU: the kernel's own record of the resident set
    (``VmHWM``, reset through ``/proc/self/clear_refs``), which sees every allocation, compiled
    kernels' among them; resolution a few hundred kB. ``None`` where there is no such record.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        # freed but unreturned heap would hide what the call takes
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    step()
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure_bandwidth(device, n_bytes=1 << 28):
    """Read and copy bandwidth in GB/s, of fp32 sums and copies far above the caches."""
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    steps = {"read": source.sum, "copy": lambda: target.copy_(source)}
    moved = {"read": n_bytes, "copy": 2 * n_bytes}
    return {name: moved[name] / us / 1e3 for name, us in _medians(steps, device).items()}


def measure_arithmetic(device, n=2048):
    """10⁹ operations a second of an fp32 matrix product, a multiply-add taken for two."""
    a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
    product = torch.empty_like(a)
    steps = {"mm": lambda: torch.mm(a, b, out=product)}
    return 2 * n**3 / _medians(steps, device)["mm"] / 1e3


def _medians(steps, device):
    """Median microseconds of some functions that measure the machine itself."""
    if device.type == "cuda":
        times = {name: time_cuda(step, graph=False) for name, step in steps.items()}
    else:
        for step in steps.values():
            step()
        times = time_interleaved(steps, seconds=1.0, min_rounds=7)
    return {name: taken["median_us"] for name, taken in times.items()}


ENERGY = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
"""The processor's own count of the energy it took, in microjoules, where it may be read."""


def energy_per_call(step, device, seconds=0.3):
    """Microjoules of one call, by what the device reports; ``None`` where it reports nothing."""
    meter = _cuda_energy(device) if device.type == "cuda" else _rapl_energy()
    if meter is None:
        return None
    calls, began, before = 0, time.perf_counter(), meter()
    while time.perf_counter() - began < seconds:
        step()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return (meter() - before) / calls


def _rapl_energy():
    try:
        ENERGY.read_text()
    except OSError:
        return None
    return lambda: int(ENERGY.read_text())


def _cuda_energy(device):
    """Total energy since the driver was loaded, of NVIDIA's management library."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        )
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # the library, the device or its driver has none
        return None
    return lambda: 1e3 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


def metadata(device):
    """Where and with what the numbers were measured."""
    about = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "os": platform.platform(),
    }
    if device.type == "cuda":
        about["cuda"] = torch.version.cuda
    for package in ("torch", "triton", "numba", "numpy"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = None
    return about


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # not installed
        return "unknown"
    return git.stdout.strip() or "unknown"


def write_report(path, report):
    """Write a report as JSON, with the folders it needs; nothing where ``path`` is ``None``."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    first = lines[: lines.index("")] if "" in lines else lines
    about = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)
    }
    if "model name" not in about:
        return platform.machine()
    # a virtual machine may name a processor by its maker alone
    family = [f"{key} {about[key]}" for key in ("cpu family", "model") if key in about]
    return ", ".join([about["model name"], *family])
