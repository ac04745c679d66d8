"""What the first call in a new process takes, with an empty cache of kernels and with a filled one.

    python bench/bench_first_call.py [--at-once 8] [--python PYTHON] [CALL …]

Every figure is that of a process of its own, without the import of PyTorch and fastmlp: seconds by
the clock and seconds of processor time, cold, warm, and warm where the cache may not be written.
``--at-once N`` starts N processes together on one empty cache and prints what they take together
beside one alone: by the clock with all imports, and in processor time without that of as many
processes that only import PyTorch. ``--python`` measures the package of another environment.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# root may write what nobody may, but without this capability
POWERLESS = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")

CALLS = {
    "SineSum": "step(fastmlp.SineSum(8), torch.randn(100, 1))",
    "ElementwiseMLP": "step(fastmlp.ElementwiseMLP(14), torch.randn(100, 1))",
    "AdditiveMLP": "step(fastmlp.AdditiveMLP(64, 14), torch.randn(100, 64))",
    "MLP": "step(fastmlp.MLP(2, [5], 1), torch.randn(100, 2))",
    "fit SineSum": "fit(fastmlp.SineSum(8), 1)",
    "fit AdditiveMLP": "fit(fastmlp.AdditiveMLP(64, 14), 64)",
    "fit MLP": "fit(fastmlp.MLP(2, [5], 1), 2)",
    "LM SineSum": "fit(fastmlp.SineSum(8), 1, optimizer=fastmlp.LevenbergMarquardt())",
    "LM MLP": "fit(fastmlp.MLP(2, [5], 1), 2, optimizer=fastmlp.LevenbergMarquardt())",
}

PROGRAM = """
import json, sys, time
import torch, fastmlp
torch.manual_seed(0)

def step(module, x):
    module(x).sum().backward()

def fit(module, n_in, **settings):
    x = torch.rand(50, n_in)
    y = x.sum(1, keepdim=True)
    fastmlp.fit([module], x, y, epochs=3, progress=False, **settings)

wall, cpu = time.perf_counter(), time.process_time()
exec(sys.argv[1])
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


IMPORT = "import torch; print([0, 0])"


def start(call, cache, python, before=()):
    """A process of a call, or with ``None`` one that only imports PyTorch."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_WAIT_POLICY": "passive"}
    program = [IMPORT] if call is None else [PROGRAM, CALLS[call]]
    command = [*before, python, "-c", *program]
    pipe = subprocess.PIPE
    # not in a checkout: an import takes what is installed
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd="/")


def seconds(process):
    """Those by the clock and those of the processor, as the process has printed them."""
    out, err = process.communicate()
    if process.returncode:
        sys.exit(err or f"a process ended with status {process.returncode}")
    return json.loads(out.splitlines()[-1])


def first_calls(call, python):
    """Cold, warm, and warm from a cache that may not be written."""
    with tempfile.TemporaryDirectory() as cache:
        yield "cold", seconds(start(call, cache, python))
        yield "warm", min(seconds(start(call, cache, python)) for _ in range(2))
        before = POWERLESS if os.geteuid() == 0 else ()
        if before and shutil.which(before[0]) is None:
            return
        places = [Path(cache), *Path(cache).rglob("*")]
        for place in places:
            place.chmod(0o555)
        try:
            again = min(seconds(start(call, cache, python, before)) for _ in range(2))
            yield "warm, read only", again
        finally:
            for place in places:
                place.chmod(0o755)


def together(call, n, python):
    """Processor time and time by the clock of n processes at once on one empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        before, began = os.times(), time.perf_counter()
        for process in [start(call, cache, python) for _ in range(n)]:
            seconds(process)
        after, wall = os.times(), time.perf_counter() - began
    return wall, sum(after[2:4]) - sum(before[2:4])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calls", nargs="*", metavar="CALL", help=f"of: {', '.join(CALLS)}; all")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="processes; 1")
    parser.add_argument("--python", default=sys.executable, help="interpreter; this one")
    arguments = parser.parse_args()
    if unknown := set(arguments.calls) - set(CALLS):
        parser.error(f"no such call: {', '.join(sorted(unknown))}; known are {', '.join(CALLS)}")
    if arguments.at_once < 1:
        parser.error(f"--at-once must be at least 1, got {arguments.at_once}")
    n = arguments.at_once
    _, importing = together(None, n, arguments.python) if n > 1 else (0, 0)
    for call in arguments.calls or CALLS:
        if n == 1:
            for name, (wall, cpu) in first_calls(call, arguments.python):
                print(f"{call:16s} {name:16s} {wall:7.2f} s, {cpu:7.2f} s of processor", flush=True)
            continue
        (one_wall, one), (all_wall, all_) = (together(call, m, arguments.python) for m in (1, n))
        one, all_ = one - importing / n, all_ - importing
        print(
            f"{call:16s} one {one_wall:.1f} s, {one:.1f} s of processor; "
            f"{n} at once {all_wall:.1f} s ({all_wall / one_wall:.2f} x), "
            f"{all_:.1f} s of processor ({all_ / one:.2f} x); "
            f"not counted: {importing / n:.1f} s each to import PyTorch",
            flush=True,
        )


if __name__ == "__main__":
    main()
