"""The Triton training loop compiles for every target, for the shapes of the experiments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import static_cost
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastmlp.kernels.gpu import models, runs, training

ARGUMENTS = {
    "theta": "T", "moment1": "T", "moment2": "T", "best": "T", "grad": "T", "trained": "i8",
    "starts": "i64", "models": "i64", "x": "T", "y": "T", "weight": None, "val_x": "T",
    "val_y": "T", "seeds": "i64", "streams": "i64",
}
# kind, sizes, constants, optimizer, loss, shuffled, dtype
CASES = {
    "SineSum(1), AdamW, in order": (
        "sine_sum", (1, 0, 0), (0.5, 1.0), "adamw", "mse", False, "fp32"),
    "SineSum(8), AdamW, shuffled": (
        "sine_sum", (8, 0, 0), (0.5, 1 / 8), "adamw", "mse", True, "fp32"),
    "SineSum(1024), AdamW, in order": (
        "sine_sum", (1024, 0, 0), (0.5, 1 / 1024), "adamw", "mse", False, "fp32"),
    "SineSum(64), all learned, huber": (
        "sine_sum", (64, 1, 1), (0.3, 1.0), "adam", "huber", True, "fp32"),
    "SineSum(8), fp64": ("sine_sum", (8, 0, 0), (0.5, 1 / 8), "adam", "mse", False, "fp64"),
    "AdditiveMLP(64, 14), Adam, shuffled": (
        "additive_mlp", (14, 1, 64, 1), (), "adam", "mse", True, "fp32"),
    "ElementwiseMLP(14), SGD, bce": (
        "elementwise_mlp", (14, 1), (), "sgd", "bce_with_logits", True, "fp32"),
}

def compile_case(kind, sizes, constants, optimizer, loss, shuffled, dtype, capability):
    kernel = training.train_kernel
    verb, with_tile = models.VERBS[kind]
    sizes = with_tile(sizes)
    given = {
        "MODEL": verb, "UPDATE": training.OPTIMIZERS[optimizer], "ROWS_OF": models.rows_of,
        "LOSS": loss, "SHUFFLE": shuffled, "SIZES": sizes, "CONSTANTS": constants,
        "COMPUTE": tl.float32 if dtype == "fp32" else tl.float64, "BLOCK": 128,
    }
    signature = {}
    for name in kernel.arg_names:
        stem = name.removesuffix("_ptr")
        if name in given:
            signature[name] = "constexpr"
        elif name.endswith("_ptr") and ARGUMENTS.get(stem, "fp64") is None:
            signature[name], given[name] = "constexpr", None
        elif name.endswith("_ptr"):
            signature[name] = "*" + ARGUMENTS.get(stem, "fp64").replace("T", dtype)
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature=signature, constexprs=given)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32),
        options={"num_warps": runs.warps_for(sizes)},
    )
    instructions, _, registers = static_cost.disassemble(compiled.asm["cubin"])
    spills = sum(i.startswith(("LDL", "STL")) for i in instructions)
    return {"registers": registers, "spills": spills, "instructions": len(instructions)}

print(json.dumps({
    label: compile_case(*case, int(sys.argv[2])) for label, case in CASES.items()
}))
"""


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_no_spills(capability, tmp_path):
    script = tmp_path / "compile_training.py"
    script.write_text(SCRIPT, "utf-8")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    bench = Path(__file__).parents[3] / "bench"
    result = subprocess.run(
        [sys.executable, str(script), str(bench), str(capability)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads(result.stdout)
    assert len(figures) == 7
    print(figures)
    assert all(row["spills"] == 0 for row in figures.values()), figures
