"""A program: compiles MLP kernels and prints what `bench/tensor_cores.py` finds in each, as JSON.

Triton must not be in interpreter mode; the first argument is the folder of tensor_cores.py.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

import static_cost
import tensor_cores
from static_cases import cases

SMALL, WIDE = (16, 16, 16), (64, 64, 64, 16)
# every kind of tensor core with a net that compiles quickly, and all products where figures count
NETS = [
    *((SMALL, "bf16", target) for target in ("sm_80", "sm_90", "sm_100", "sm_120")),
    (WIDE, "bf16", "sm_90"),
]
FORWARD = [(WIDE, "fp32", "sm_90"), (WIDE, "tf32", "sm_90")]


def found():
    """Figures by net, way, target and kernel."""
    for widths, way, target in NETS + FORWARD:
        ahead, back = tensor_cores.launches(widths, way, target, dx=False)
        for launch in ahead if (widths, way, target) in FORWARD else ahead + back:
            where = widths, way, target, launch.name
            yield " ".join(map(str, where)), tensor_cores.figures(launch, target)


def without_tensor_cores():
    """How many of their instructions are found in the kernel for narrow nets."""
    compiled = static_cost.job("mlp_fwd", cases()["mlp_fwd"], "sm_90").compiled()
    instructions, _, _ = tensor_cores.machine_code.disassemble(compiled.asm["cubin"])
    return sum(bool(tensor_cores.TENSOR_CORE.match(i)) for i in instructions)


if __name__ == "__main__":
    print(json.dumps([dict(found()), without_tensor_cores()]))
