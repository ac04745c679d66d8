"""What the first call in a new process takes, with an empty cache of kernels and with a filled one.

    python bench/bench_first_call.py [--at-once 8] [--python PYTHON] [CALL …]

Every figure is that of a process of its own, without the import of PyTorch and fastmlp: seconds by
the clock and seconds of processor time, cold, warm, and warm where the cache may not be written.
Importing Numba is part of a first call, and told beside it. ``everything`` makes all calls in one
process. ``--at-once N`` starts N processes together on one empty cache and prints what their first
calls take together beside that of one alone, with the import of Numba and without, for every
process imports it and no kernel is compiled by that. ``--python`` measures the package of another
environment.
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
CALLS["everything"] = "; ".join(CALLS.values())

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
import numba
numba_cpu = time.process_time() - cpu
exec(sys.argv[1])
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, numba_cpu]))
"""


def start(call, cache, python, before=()):
    """A process that makes a call."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_WAIT_POLICY": "passive"}
    command = [*before, python, "-c", PROGRAM, CALLS[call]]
    pipe = subprocess.PIPE
    # not in a checkout: an import takes what is installed
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd="/")


def seconds(process):
    """Those by the clock, those of the processor, and of the latter those to import Numba."""
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
    """What n processes at once on one empty cache take together, as :func:`seconds` says."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        processes = [start(call, cache, python) for _ in range(n)]
        _, all_, numba = zip(*map(seconds, processes), strict=True)
        return time.perf_counter() - began, sum(all_), sum(numba)


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
    for call in arguments.calls or CALLS:
        if n == 1:
            for name, (wall, cpu, numba) in first_calls(call, arguments.python):
                print(
                    f"{call:16s} {name:16s} {wall:7.2f} s, {cpu:7.2f} s of processor, "
                    f"{numba:.2f} of them to import Numba",
                    flush=True,
                )
            continue
        (_, one, one_numba), (wall, all_, numba) = (
            together(call, m, arguments.python) for m in (1, n)
        )
        print(
            f"{call:16s} one {one:.2f} s of processor; {n} at once {all_:.2f} s "
            f"({all_ / one:.2f} x), {wall:.1f} s by the clock with all imports; without that of "
            f"Numba {one - one_numba:.2f} s and {all_ - numba:.2f} s "
            f"({(all_ - numba) / (one - one_numba):.2f} x)",
            flush=True,
        )


if __name__ == "__main__":
    main()
