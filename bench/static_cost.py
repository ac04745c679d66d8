"""What each Triton kernel costs per element, read from its machine code: no GPU is needed.

    python bench/static_cost.py [--target sm_90] [--update] [--json FILE]

Every kernel is compiled for each target and disassembled with the tools that Triton ships; reported
are instructions per element of the hot loop (per sine for sine_sum), registers, instructions that
touch local memory (spills) and fp64 instructions. For gfx942: registers and spills alone.

Method. A loop is a backward branch and the instructions from its target to itself. The hot loop is
the first one in program order that has no loop inside and at least the arithmetic that the formula
needs for one iteration (`Hot.math`). The rare forms, for values that are infinite or NaN and angles
that are huge, are loops of their own, later in the program behind a branch on the data: they are
compiled and searched for spills, but not counted as hot. A thread's elements per iteration are
those of the tile over the threads, times the tiles that the kernel's loop takes at once; were the
compiler to unroll a loop, the count would rise by that factor and the comparison fail.

Every kernel is compiled in float32 for every target; variants, with a comma in their label, for
sm_90 alone, unless their case says everywhere.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

FIGURES = Path(__file__).with_suffix(".json")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
VARIANT_TARGET = "sm_90"

MATH = re.compile(r"^(FFMA|FADD|FMUL|FMNMX|FSET|FSETP|DFMA|DADD|DMUL|DSETP|DMNMX)")
FP64 = re.compile(r"^(D(FMA|ADD|MUL|SETP|MNMX|MMA)|(F2F|F2I|I2F|FRND)\S*F64|MUFU\.\w+64H)")


class Hot(NamedTuple):
    """What one iteration of the hot loop does.

    Args:
        math: Arithmetic instructions per element without which a loop cannot be the hot one.
        tiles: Tiles per iteration.
        iterations: Iterations until an element is done: units, where the loop is over units.
        per: Parts an element's work is divided into: waves, for a count per sine.
        whole: One tile and its units unrolled: no loop is hot, the whole program is counted.
    """

    math: int
    tiles: int = 1
    iterations: int = 1
    per: int = 1
    whole: bool = False


class Case(NamedTuple):
    """A kernel's module and constants; ``hot`` is None where only spills and fp64 matter."""

    module: str
    constants: dict
    hot: Hot | None = None
    dtype: str = "fp32"
    everywhere: bool = False


def cases():
    """The kernels by label. Tiles, units and waves of a program are added when compiled."""
    h = 14
    elementwise, additive, backward, sine = (
        partial(Case, module)
        for module in ("elementwise_mlp", "additive_mlp", "additive_mlp_bwd", "sine_sum")
    )
    hidden = {"N_HIDDEN": h}
    one_out = {"n_out": 1, "dy_row_stride": 1, "ONE_OUT": True, "BLOCK_IN": 64, "BLOCK_OUT": 1}
    one_out = {**hidden, **one_out}
    fwd = {**one_out, "EVEN_IN": True, "BLOCK_IN": 16}
    many_out = {**hidden, "ONE_OUT": False, "EVEN_IN": False, "BLOCK_IN": 16, "BLOCK_OUT": 8}
    waves = {"FACTOR": 1 / 64, "SCALE": 3.1415, "TURNS": 0.5}
    plain = {**waves, "amplitude_ptr": None, "phase_ptr": None}
    search = Case("piecewise_linear", {"STEPS": 10})
    table = {
        "elementwise_mlp_fwd": elementwise(hidden, Hot(2 * h)),
        "elementwise_mlp_bwd_x": elementwise(hidden, Hot(2, iterations=h)),
        "elementwise_mlp_bwd_params": elementwise(hidden, Hot(3 * h, tiles=2)),
        "additive_mlp_fwd": additive(fwd, Hot(2 * h)),
        "additive_mlp_bwd_x": backward(one_out, Hot(2, iterations=h)),
        "additive_mlp_bwd_params": backward(one_out, Hot(3 * h, tiles=2)),
        "additive_mlp_bwd_readout": backward(many_out),
        "sine_sum_fwd": sine(plain, Hot(9)),
        "sine_sum_bwd_x": sine(plain, Hot(9)),
        "sine_sum_bwd_params": sine(plain, Hot(9 * 8, per=8)),
        "piecewise_linear_fwd": search,
        "piecewise_linear_bwd_x": search,
        "piecewise_linear_bwd_tables": search,
        "sum_pieces": Case("pieces", {}),
    }
    # other branches of the same kernels
    variants = {
        ("elementwise_mlp_fwd", "100 units"): {"N_HIDDEN": 100},
        ("elementwise_mlp_fwd", "fp64"): {},
        ("elementwise_mlp_bwd_params", "fp64"): {},
        ("additive_mlp_fwd", "32 units"): {"N_HIDDEN": 32},
        ("additive_mlp_fwd", "many outputs"): many_out,
        ("additive_mlp_fwd", "bf16"): {},
        ("additive_mlp_fwd", "fp64"): {},
        ("additive_mlp_bwd_params", "16 units"): {"N_HIDDEN": 16},
        ("additive_mlp_bwd_params", "many outputs"): {**many_out, "BLOCK_IN": 64},
        ("additive_mlp_bwd_params", "bf16"): {},
        ("additive_mlp_bwd_params", "fp64"): {},
        ("sine_sum_fwd", "amplitude, phase"): waves,
        ("sine_sum_bwd_params", "amplitude, phase"): waves,
        ("sine_sum_bwd_params", "amplitude, phase, fp64"): waves,
    }
    for (label, what), changes in variants.items():
        constants = changes if label.startswith("sine") else {**table[label].constants, **changes}
        dtype = next((t for t in ("bf16", "fp64") if t in what), "fp32")
        if "many" in what:
            constants = changes
        table[f"{label}, {what}"] = table[label]._replace(
            hot=None, constants=constants, dtype=dtype
        )
    return {**table, **_dense_cases(hidden, one_out, many_out)}


def _dense_cases(hidden, one_out, many_out):
    """The dense subnets, as they differ by activation, dropout and one subnet a feature."""
    h = hidden["N_HIDDEN"]
    fwd, bwd = (partial(Case, module, everywhere=True) for module in ("dense_fwd", "dense_bwd"))
    off = {"STACKED": False, "DROPOUT": (-1, 1.0) * 3, "seed_ptr": None, "FIRST_MASK": 0}
    tanh = {**off, "ACT": "tanh"}
    stacked = {**off, "ACT": "relu", "STACKED": True}
    dropout = {"ACT": "relu", "STACKED": False, "DROPOUT": (13107, 1.25) * 3, "FIRST_MASK": 2}
    narrow = {**one_out, "BLOCK_IN": 16}
    elementwise = {"n_in": 1, "x_row_stride": 1, "fc3_weight_ptr": None, "fc3_bias_ptr": None}
    elementwise = {**one_out, **tanh, **elementwise, "BLOCK_IN": 1}
    # values and slopes: a loop over units, unrolled with dropout; sums of all units in one loop
    return {
        "dense_fwd": fwd({**narrow, **tanh}, Hot(18, iterations=h)),
        "dense_fwd, relu, stacked": fwd({**narrow, **stacked}, Hot(3, iterations=h)),
        "dense_fwd, relu, dropout": fwd({**narrow, **dropout}, Hot(4 * h)),
        "dense_fwd, elementwise": Case("dense_fwd", {**elementwise, "BLOCK_ROWS": 1024}),
        "dense_bwd_x": bwd({**one_out, **tanh}, Hot(18, iterations=h)),
        "dense_bwd_x, relu, stacked": bwd({**one_out, **stacked}, Hot(3, iterations=h)),
        "dense_bwd_x, relu, dropout": bwd({**one_out, **dropout}, Hot(4 * h, whole=True)),
        "dense_bwd_params": bwd({**one_out, **tanh}, Hot(20 * h)),
        "dense_bwd_params, relu, stacked": bwd({**one_out, **stacked}, Hot(6 * h)),
        "dense_bwd_params, relu, dropout": bwd({**one_out, **dropout}, Hot(6 * h)),
        "dense_bwd_params, elementwise": Case("dense_bwd", {**elementwise, "BLOCK_ROWS": 256}),
        "dense_bwd_params, fp64": Case("dense_bwd", {**one_out, **tanh}, dtype="fp64"),
        "dense_bwd_readout": Case("dense_bwd", {**many_out, **dropout}),
    }


def compile_case(label, case, target):
    """Triton's compiled kernel, its elements per tile and its threads.

    Pointers, sizes and strides are as they are for aligned tensors.
    """
    from importlib import import_module

    import triton
    import triton.language as tl
    from fastmlp.kernels.gpu import activations, launch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name = label.split(",")[0]
    config = f"{name}_many_out" if label == "additive_mlp_fwd, many outputs" else name
    compute = tl.float64 if case.dtype == "fp64" else tl.float32
    config = launch.config_for(config, compute)
    units = case.constants.get("N_HIDDEN", 1)
    constants = {
        "COMPUTE": compute,
        "BLOCK": config.cols,
        "BLOCK_ROWS": config.rows,
        "BLOCK_COLS": config.cols,
        "BLOCK_WAVES": launch.BLOCK_WAVES,
        "SUM_BLOCK": launch.SUM_BLOCK,
        "UNITS": triton.cdiv(units, triton.cdiv(units, launch.MAX_UNITS_PER_PROGRAM[compute])),
        "CANONICAL": units <= launch.MAX_CANONICAL_UNITS[compute],
        "WAVES": launch.MAX_WAVES_PER_PROGRAM[compute],
        **case.constants,
    }
    kernel = getattr(import_module(f"fastmlp.kernels.gpu.{case.module}"), f"{name}_kernel")
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    if "ACT" in constants:
        constants["ACT"] = activations.ACTIVATIONS[constants["ACT"]]
    accumulated = "fp64" if case.dtype == "fp64" else "fp32"
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = accumulated if "partial" in name else "i64" if name == "seed_ptr" else case.dtype
        signature[name] = f"*{kind}" if name.endswith("_ptr") else "i32"
        # torch aligns every allocation; the second matrix of partial sums is anywhere in one
        if name != "readout_partial_ptr":
            attributes[(index,)] = [["tt.divisibility", 16]]
    arch = ("hip", target, 64) if target.startswith("gfx") else ("cuda", int(target[3:]), 32)
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget(*arch),
        options={"num_warps": config.warps},
    )
    cols = constants.get("BLOCK_IN", config.cols)
    return compiled, config.rows * cols, 32 * config.warps


def disassemble(cubin):
    """Instructions in program order, and for each label the index of the one that follows it."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _output(tools / "nvdisasm", "-c", file.name)
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
    instructions, labels = [], {}
    for line in text.splitlines():
        if match := re.match(r"\s*(\.L_\w+):", line):
            labels[match[1]] = len(instructions)
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            instructions.append(match[1])
    return instructions, labels, int(re.search(r"REG:(\d+)", usage)[1])


def _output(*command):
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True
    ).stdout


def arithmetic(instruction):
    """Operations of one instruction; sm_100 has forms for two values or operations at once."""
    if not MATH.match(instruction):
        return 0
    return 2 if re.match(r"F(FMA|ADD|MUL)2|FMNMX3", instruction) else 1


def innermost_loops(instructions, labels):
    """(start, end) of every loop without a loop inside, in program order."""
    loops = []
    for end, instruction in enumerate(instructions):
        match = re.search(r"^BRA.*`\((\.L_\w+)\)", instruction)
        # a branch to itself is the padding after the program's end
        if match and labels[match[1]] < end:
            loops.append((labels[match[1]], end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return sorted(inner)


def measure(label, case, target):
    """Figures of one kernel, by name."""
    compiled, tile, threads = compile_case(label, case, target)
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        vgpr, spills = (
            int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
            for name in ("vgpr_count", "vgpr_spill_count")
        )
        return {"registers": vgpr, "spills": spills}
    instructions, labels, registers = disassemble(compiled.asm["cubin"])
    figures = {
        "registers": registers,
        "spills": sum(i.startswith(("LDL", "STL")) for i in instructions),
        "fp64": sum(bool(FP64.match(i)) for i in instructions),
    }
    if case.hot is None:
        return figures
    elements = case.hot.tiles * tile / threads
    loops = innermost_loops(instructions, labels)
    for start, end in [(0, len(instructions) - 1)] if case.hot.whole else loops:
        body = instructions[start : end + 1]
        if sum(arithmetic(i) for i in body) >= case.hot.math * elements:
            per_element = len(body) * case.hot.iterations / (elements * case.hot.per)
            return {**figures, "per_element": round(per_element, 2)}
    raise RuntimeError(f"no hot loop found in {label} for {target}: see the method above")


def measure_all(targets):
    """Figures by target and label."""
    return {
        target: {
            label: measure(label, case, target)
            for label, case in cases().items()
            if "," not in label or case.everywhere or target == VARIANT_TARGET
        }
        for target in targets
    }


def table(results):
    """The figures for a reader."""
    lines = [f"{'kernel':<48}{'target':>8}{'instr/elem':>12}{'regs':>6}{'spills':>8}{'fp64':>6}"]
    for target, rows in results.items():
        for label, row in rows.items():
            cost = f"{row['per_element']:.2f}" if "per_element" in row else "-"
            lines.append(
                f"{label:<48}{target:>8}{cost:>12}{row['registers']:>6}{row['spills']:>8}"
                f"{row.get('fp64', '-'):>6}"
            )
    return "\n".join(lines)


def worse(results, kept):
    """What got worse than the kept figures, one sentence each; empty if all is well."""
    problems = []
    for target, rows in results.items():
        for label, row in rows.items():
            where = f"{label} on {target}"
            allowed = kept.get(target, {}).get(label)
            if allowed is None:
                problems.append(f"{where}: no figure is kept; run with --update")
                continue
            if row["spills"] > allowed["spills"]:
                problems.append(f"{where}: {row['spills']} spills, kept {allowed['spills']}")
            if row.get("fp64", 0) and not label.endswith("fp64"):
                problems.append(f"{where}: {row['fp64']} fp64 instructions, unasked")
            if row.get("per_element", 0) > allowed.get("per_element", 0):
                problems.append(
                    f"{where}: {row['per_element']} instructions an element, "
                    f"kept {allowed['per_element']}"
                )
    return problems


def main(arguments=None):
    """Print the table; compare with the kept figures, or keep the new ones."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--target", choices=TARGETS, help="this one alone; default: all")
    parser.add_argument("--update", action="store_true", help=f"keep the figures in {FIGURES.name}")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    results = measure_all([options.target] if options.target else TARGETS)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    kept = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    if options.update:
        FIGURES.write_text(json.dumps({**kept, **results}, indent=1) + "\n", "utf-8")
        return 0
    problems = worse(results, kept)
    print("\n".join(problems) or "nothing is worse than the kept figures", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
