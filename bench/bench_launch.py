"""What a call on a device costs its host: every module at [100, 64], launches replaced by nothing.

The Triton wing runs on CPU tensors with a driver that launches nothing and a compiler that compiles
nothing; all else is as on a device, Triton's own binding of arguments included. Beside inference
the call of `nn.Linear(64, 1)`, beside forward + backward an `autograd.Function` that does nothing
with the same tensors (that of bench_overhead.py). The last line holds the two largest ratios.
"""

import argparse
import contextlib
import os
import statistics
import time
from types import SimpleNamespace

import common
import torch
from bench_overhead import Nothing, step_of
from fastmlp.kernels.gpu.machine import plans

import fastmlp

MODULES = {
    "AdditiveMLP(64, 14)": lambda of: of.AdditiveMLP(64, 14),
    "AdditiveMLP(64, 14, shared=False)": lambda of: of.AdditiveMLP(64, 14, shared=False),
    "ElementwiseMLP(14)": lambda of: of.ElementwiseMLP(14),
    "SineSum(8)": lambda of: of.SineSum(8),
    "MLP(64, [14], 1)": lambda of: of.MLP(64, [14], 1),
}
"""The modules by name, functions of a library; all take 64 columns. The host step of on_device.py
times the same ones."""


class Compiled:
    """In place of a compiled kernel: its launch is counted."""

    launches = 0
    function, packed_metadata = 0, ()

    def launch_metadata(self, grid, stream, *arguments):
        return None

    def run(self, *arguments):
        Compiled.launches += 1


@contextlib.contextmanager
def no_device():
    """Let the Triton wing take CPU tensors, and launch nothing."""
    import triton
    from triton.backends.compiler import GPUTarget

    driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    compiling, serving = triton.compiler.compile, fastmlp.backends._serves
    config, active = triton.runtime.driver, triton.runtime.driver._active
    config.set_active(driver)
    triton.compiler.compile = lambda *arguments, **options: Compiled()
    fastmlp.backends._serves = lambda name, device_type: True
    try:
        with fastmlp.backend("triton"):
            yield
    finally:
        config._active = active
        triton.compiler.compile = compiling
        fastmlp.backends._serves = serving


def inference(call):
    def step():
        with torch.no_grad():
            call()

    return step


def steps_of(name, x):
    """Inference, and forward + backward, each of ours and of what it is compared with."""
    module, linear = MODULES[name](fastmlp), torch.nn.Linear(64, 1)
    parameters = list(module.parameters())
    y = module(x)
    dy, shape = torch.ones_like(y), y.shape[1:]
    return {
        "inference": (inference(lambda: module(x)), inference(lambda: linear(x))),
        "forward+backward": (
            step_of(lambda: module(x), parameters, dy),
            step_of(lambda: Nothing.apply(x, shape, *parameters), parameters, dy),
        ),
    }


def counted(step):
    """Launches and allocations of one step."""
    step()
    before, of_plans, replay = Compiled.launches, [], plans.Plan.replay

    def noted(*arguments):
        allocated = replay(*arguments)
        of_plans.append(len(allocated or ()))
        return allocated

    plans.Plan.replay = noted
    try:
        with torch.autograd.profiler.profile() as profile:
            step()
    finally:
        plans.Plan.replay = replay
    made = [e for e in profile.function_events if e.name in ("aten::empty", "aten::empty_strided")]
    return Compiled.launches - before, len(made) + sum(of_plans)


def measure(name, rounds, calls=30):
    """By mode: microseconds of a call of ours and of what it is compared with; the ratio; counts.

    The ratio is the median of those of the rounds, in which the two take turns. Time is that of the
    processor: nothing here waits, but for other programs.
    """
    torch.manual_seed(0)
    steps = steps_of(name, torch.randn(100, 64))
    found = {}
    for mode, pair in steps.items():
        counts = counted(pair[0])
        samples = []
        for _ in range(rounds):
            samples.append([])
            for step in pair:
                began = time.process_time()
                for _ in range(calls):
                    step()
                samples[-1].append((time.process_time() - began) / calls * 1e6)
        ours, other = (statistics.median(column) for column in zip(*samples, strict=True))
        ratio = statistics.median(a / b for a, b in samples)
        found[mode] = (ours, other, ratio, *counts)
    return found


def main(argv=None):
    """Run from the command line; return the ratios by module and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="turns of each (default 50)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or the profiler tells of itself
    about = common.metadata(torch.device("cpu"))
    print(f"{about['cpu']}, 1 thread, load {about['load']:.1f}")
    print("µs of ours, of what it is compared with, the ratio; launches and allocations of ours")
    ratios = {}
    with no_device():
        for name in MODULES:
            for mode, (ours, other, ratio, launches, allocations) in measure(
                name, options.rounds
            ).items():
                ratios[name, mode] = ratio
                print(
                    f"  {name:<34}{mode:<17}{ours:>7.1f}{other:>7.1f}{ratio:>7.2f} x"
                    f"{launches:>4} launches{allocations:>4} allocations"
                )
    worst = {mode: max(r for (_, m), r in ratios.items() if m == mode) for _, mode in ratios}
    print("worst: " + ", ".join(f"{mode} {ratio:.1f}" for mode, ratio in worst.items()))
    return ratios


if __name__ == "__main__":
    main()
