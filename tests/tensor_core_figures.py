"""What MLP kernels for tensor cores cost as compiled, and what they may; and a program that asks.

    python tests/tensor_core_figures.py sample

Compiles the kernels of a grid for cards that are not there and prints the figures of
`bench/tensor_cores.py` as JSON, by kernel. Triton must not be in interpreter mode; the argument is
"sample" or a share of the thorough grid, "0/2".
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench"

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
WIDE, WIDEST, SMALL = (64, 64, 64, 16), (128, 128, 128), (16, 16, 16)

SAMPLE = [
    *(((target, "bf16", SMALL, "relu")) for target in TARGETS),
    ("sm_80", "fp64", SMALL, "relu"),
    ("sm_80", "fp32", WIDE, "relu"),
    ("sm_89", "fp16", WIDE, "relu"),
    ("sm_90", "bf16", WIDE, "relu"),
    ("sm_90", "tf32", WIDE, "relu"),
    ("sm_100", "fp32", WIDE, "relu"),
    ("sm_120", "bf16", WIDE, "tanh"),
    ("sm_86", "bf16", WIDEST, "relu"),
]
"""Target, way, widths and activation: every card and product, and where registers are few."""

DEEP = [(16,) * 10, (32,) * 9, (64,) * 5, (100, 33, 5), (1, 10, 10, 10, 1)]

MOST_TENSOR_MEMORY = 512
MOST_SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}


def thorough():
    """All nets of the grid."""
    widths = [(16,) * 4, (32, 32, 32, 16), WIDE, WIDEST]
    ways = ("bf16", "fp16", "tf32", "fp32")
    yield from itertools.product(TARGETS, ways, widths, ("relu", "tanh", "gelu"))
    yield from itertools.product(TARGETS, ways, DEEP, ("relu", "tanh"))
    yield from itertools.product(TARGETS, ["fp64"], [SMALL], ["relu"])


def problems(where, row):
    """What a kernel's figures have that they must not, one sentence each."""
    target, way, _, _, direction, *_ = where.split()
    on_cores, forward = "cores" in where, direction == "forward"
    found = []
    if row["shared_kb"] > MOST_SHARED[target]:
        found.append(f"{row['shared_kb']} KB of shared memory")
    if row["tensor_memory"] > MOST_TENSOR_MEMORY:
        found.append(f"{row['tensor_memory']} columns of tensor memory")
    if on_cores and not row["tensor_core"]:
        found.append("no products on tensor cores")
    if row["fp64"] and way != "fp64":
        found.append(f"{row['fp64']} fp64 instructions, unasked")
    if on_cores and row["stored_per_row"] > row["written_per_row"]:
        found.append(f"{row['stored_per_row']} bytes stored for a row of a tile")
    # float32 backward may have more: docs/performance.md has it beside the alternative
    judged = on_cores and (forward or way in ("bf16", "fp16"))
    if judged and row["stack"] > (0 if forward else 64):
        found.append(f"{row['stack']} bytes of stack")
    return found


def figures_of(grid, cache):
    """The figures of a grid, as a process of its own finds them with Triton's cache in a folder."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, grid]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def _compiled(nets):
    """Figures by target, way, widths, activation, direction, number and name of the kernel."""
    sys.path.insert(0, str(BENCH))
    import tensor_cores

    for target, way, widths, activation in nets:
        both = tensor_cores.launches(widths, way, target, activation=activation)
        for direction, kernels in zip(("forward", "backward"), both, strict=True):
            for number, kernel in enumerate(kernels):
                if direction == "backward" and kernel.name.endswith("fwd"):
                    continue
                net = "-".join(map(str, widths))
                where = target, way, net, activation, direction, number, kernel.name
                yield " ".join(map(str, where)), tensor_cores.figures(kernel, target)


if __name__ == "__main__":
    share, _, shares = sys.argv[1].partition("/")
    nets = SAMPLE if share == "sample" else list(thorough())[int(share) :: int(shares)]
    print(json.dumps(dict(_compiled(nets))))
