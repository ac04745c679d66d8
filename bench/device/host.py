"""What a call costs besides its kernels: launches, autograd, a Function that does nothing.

All on few rows, where the kernels take less than Python does; bench_launch.py measures the same
modules without a device. PyTorch runs the backward of a CUDA tensor on a thread of its own unless
`torch.autograd.set_multithreading_enabled` forbids it: forward and backward are timed with and
without. Beside both the same as CUDA graphs.
"""

from functools import cache

import torch
import triton
from bench_launch import MODULES
from bench_overhead import Nothing, step_of

import fastmlp
from device import timing
from device.report import first_line
from fastmlp import reference


@triton.jit
def _nothing_kernel():
    pass


@triton.jit
def _nothing_of_19_kernel(
    p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, n0, n1, n2, n3, n4, n5, n6, n7,
    BLOCK: triton.language.constexpr,
):  # fmt: skip
    pass


def launches(device):
    """What PyTorch and Triton take to launch something small."""
    x, linear = torch.rand(100, 64, device=device), torch.nn.Linear(64, 1).to(device)
    tensors = [torch.empty(64, device=device) for _ in range(10)]
    return {
        "torch.empty": lambda: torch.empty(100, device=device),
        "torch.relu": lambda: torch.relu(x),
        "nn.Linear(64, 1), inference": lambda: linear(x),
        "Triton launch, no argument": lambda: _nothing_kernel[(1,)](),
        "Triton launch, 10 tensors and 9 numbers": lambda: _nothing_of_19_kernel[(1,)](
            *tensors, *range(2, 10), BLOCK=64
        ),
    }


def calls(build, device, n_rows=100):
    """Inference and forward + backward of one module, of plain PyTorch and of nothing at all."""
    x = torch.randn(n_rows, 64, device=device)
    ours, plain = build(fastmlp).to(device), build(reference).to(device)
    with torch.no_grad():
        dy = torch.randn_like(plain(x))
    parameters = list(ours.parameters())
    inference = {"fastmlp": lambda: ours(x), "torch": lambda: plain(x)}
    backward = {
        "nothing": step_of(lambda: Nothing.apply(x, dy.shape[1:], *parameters), parameters, dy),
        "fastmlp": step_of(lambda: ours(x), parameters, dy),
        "torch": step_of(lambda: plain(x), list(plain.parameters()), dy),
    }
    if device == "cuda":
        # captured at its first call, so that a failure is its own
        graphed = cache(lambda: fastmlp.graphed(ours, x))
        inference["graphed"] = lambda: graphed()(x)
        backward["graphed"] = step_of(lambda: graphed()(x), parameters, dy)
    return inference, backward


def _take(report, steps, about, seconds=0.3):
    """Time some functions in turn; one that fails is recorded."""
    ready = {}
    for name, step in steps.items():
        try:
            step()
            ready[name] = step
        except Exception as error:
            report.figure("host.json", **about, name=name, error=first_line(error))
    for name, times in timing.measure(report, ready, seconds, clocks=("eager",)).items():
        report.figure("host.json", **about, name=name, **times)


def run(report):
    """The step."""
    with timing.backend(report):
        with torch.no_grad():
            _take(report, launches(report.device), {"what": "launch"})
        for module, build in MODULES.items():
            if report.over():
                report.cut(f"{module} and what follows it")
                return
            inference, backward = calls(build, report.device, 3 if report.dry else 100)
            with torch.no_grad():
                _take(report, inference, {"what": "inference", "module": module})
            for threaded in (True, False):
                about = {"what": "forward_backward", "module": module, "threaded": threaded}
                with torch.autograd.set_multithreading_enabled(threaded):
                    _take(report, backward, about)
            if report.dry:
                report.cut("the other modules: dry run")
                return
