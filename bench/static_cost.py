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
sm_90 alone, unless their case says everywhere. `static_cases.py` lists them.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import roofline
from static_cases import cases

FIGURES = Path(__file__).with_suffix(".json")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
VARIANT_TARGET = "sm_90"

MATH = re.compile(r"^(FFMA|FADD|FMUL|FMNMX|FSET|FSETP|DFMA|DADD|DMUL|DSETP|DMNMX)")
FP64 = re.compile(r"^(D(FMA|ADD|MUL|SETP|MNMX|MMA)|(F2F|F2I|I2F|FRND)\S*F64|MUFU\.\w+64H)")


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
    config = case.config or launch.config_for(config, compute)
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
    for name in {"ACT", "HIDDEN", "OUTPUT"} & constants.keys():
        constants[name] = activations.ACTIVATIONS[constants[name]]
    accumulated = "fp64" if case.dtype == "fp64" else "fp32"
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = accumulated if "partial" in name else "i64" if name == "seed_ptr" else case.dtype
        kind = case.types.get(name, kind)
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
        text = _output(tools / "nvdisasm", "-c", "-ndf", file.name)
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


def allowed_fp64(label, kept):
    """How many fp64 instructions a kernel may have."""
    if label.endswith("fp64"):
        return float("inf")
    # a run keeps its losses, rates and powers of β in float64
    return kept.get("fp64", 0) if label.startswith("train") else 0


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
            if row.get("fp64", 0) > allowed_fp64(label, allowed):
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
    print("\n" + roofline.table({**kept, **results}))
    if options.update:
        FIGURES.write_text(json.dumps({**kept, **results}, indent=1) + "\n", "utf-8")
        return 0
    problems = worse(results, kept)
    print("\n".join(problems) or "nothing is worse than the kept figures", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
