"""A program: plants changes in kernels and prints which ones the digest of their case shows.

Triton must not be in interpreter mode; the first argument is the folder of static_cost.py.
"""

import importlib
import json
import pkgutil
import re
import sys

sys.path.insert(0, sys.argv[1])

import machine_code
import static_cost
import triton.language as tl
from fastmlp.kernels import gpu
from fastmlp.kernels.gpu.machine import launch
from static_cases import cases
from triton.runtime.jit import JITFunction

TARGET = "sm_90"
BARRIER = "tl.debug_barrier()"
CASES = cases()
FUNCTIONS = {
    name: value
    for module in pkgutil.walk_packages(gpu.__path__, f"{gpu.__name__}.")
    for name, value in vars(importlib.import_module(module.name)).items()
    if isinstance(value, JITFunction)
}


def digest(label, **changes):
    return static_cost.job(label, CASES[label]._replace(**changes), TARGET).digest()


def planted(label, function, line):
    """The case's digest when ``line`` is the first of a function's body."""
    function = FUNCTIONS[function]
    source = function.src
    signature = re.compile(r"^(?:def .*)?\):.*$", re.MULTILINE)
    changed, count = signature.subn(rf"\g<0>\n    {line}", source, count=1)
    assert count == 1
    function._unsafe_update_src(changed)
    try:
        return digest(label)
    finally:
        function._unsafe_update_src(source)


def problems_of_one_warp(label):
    """What is found of a kernel whose tile is too large for its threads."""
    config = launch.config_for(label, tl.float32)._replace(warps=1)
    work = static_cost.job(label, CASES[label]._replace(config=config), TARGET)
    found = machine_code.figures(work.compiled(), None, work.elements)
    kept = {"spills": 0, "fp64": 0}
    return static_cost.worse({TARGET: {label: found}}, {TARGET: {label: kept}})


def changes():
    """For each change, whether it shows in the digest."""
    subnet, run = "general_fwd", "train, 2-5-1, sigmoid"
    kept = {label: digest(label) for label in (subnet, run)}
    case = CASES[subnet]
    config = launch.config_for(subnet, tl.float32)
    yield "nothing", digest(subnet) != kept[subnet]
    yield "comment", planted(subnet, "tanh", "# why") != kept[subnet]
    yield "kernel", planted(subnet, "general_fwd_kernel", BARRIER) != kept[subnet]
    yield "activation given as a constant", planted(subnet, "tanh", BARRIER) != kept[subnet]
    yield "what the activation calls", planted(subnet, "exponential", BARRIER) != kept[subnet]
    yield "activation within a table", planted(run, "sigmoid", BARRIER) != kept[run]
    yield "model given as a constant", planted(run, "mlp", BARRIER) != kept[run]
    units = {**case.constants, "N_HIDDEN": 13}
    yield "constant", digest(subnet, constants=units) != kept[subnet]
    yield "type", digest(subnet, dtype="bf16") != kept[subnet]
    yield "warps", digest(subnet, config=config._replace(warps=8)) != kept[subnet]
    yield "counted loop", digest(subnet, hot=case.hot._replace(math=1)) != kept[subnet]


if __name__ == "__main__":
    print(json.dumps([dict(changes()), problems_of_one_warp("elementwise_mlp_bwd_params")]))
