"""What each Triton kernel costs per element, read from its machine code: no GPU is needed.

    python bench/static_cost.py [--target sm_90] [--afresh LABEL | --all] [--update] [--triton DIR]

Every kernel is compiled for each target and disassembled (`machine_code.py` says how); reported
are instructions per element of the hot loop (per sine for sine_sum), registers, instructions that
touch local memory (spills) and fp64 instructions. For gfx942: registers and spills alone.

Every kernel is compiled in float32 for every target; variants, with a comma in their label, for
sm_90 alone, or on cards of a data centre if their case says everywhere. `static_cases.py` lists
them.

The figures are kept in `static_cost.json`, for each minor version of Triton. Each row has a digest
of what the compiler was given: the program in Triton's intermediate representation, before any
pass, in which every constant, type and function that the kernel uses is spelled out. A kernel whose
digest is the kept one is not compiled again, unless --afresh names it or --all is given.

Figures of another Triton, from a folder of its own:

    pip install --no-deps --target build/triton-3.6 triton==3.6.0
    python bench/static_cost.py --triton build/triton-3.6 --update
"""

import argparse
import hashlib
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import machine_code
import roofline
from static_cases import cases

FIGURES = Path(__file__).with_suffix(".json")
DATA_CENTRE = ("sm_80", "sm_90", "sm_100", "gfx942")
TARGETS = (*DATA_CENTRE, "sm_86", "sm_89", "sm_120")
VARIANT_TARGET = "sm_90"


class Job(NamedTuple):
    """What the compiler is given for a case on a target.

    Args:
        source: The kernel with the types and values of its arguments.
        target: The target as Triton names it.
        options: Options of the compilation.
        hot: The hot loop, of the case.
        elements: Elements of a tile for each thread.
    """

    source: object
    target: object
    options: dict
    hot: object
    elements: float

    def compiled(self):
        """Triton's compiled kernel."""
        import triton

        return triton.compile(self.source, target=self.target, options=self.options)

    def digest(self):
        """A digest of all that decides the figures: of what is compiled, and how it is counted."""
        import triton

        how = self.target, self.options, self.hot, self.elements, triton.__version__
        counting = Path(machine_code.__file__).read_text("utf-8")
        text = f"{self._intermediate()}{how}{counting}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _intermediate(self):
        """The program before any pass; names of functions, which moves change, are numbers."""
        from triton._C.libtriton import ir
        from triton.compiler import make_backend

        backend = make_backend(self.target)
        options = backend.parse_options(dict(self.options))
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        functions = backend.get_codegen_implementation(options), backend.get_module_map()
        module = self.source.make_ir(self.target, options, *functions, context)
        numbers = {}
        return re.sub(
            r'@"[^"]*"|@[\w.$]+',
            lambda name: f"@{numbers.setdefault(name[0], len(numbers))}",
            module.str_nodebug(),
        )


def job(label, case, target):
    """The job of a case. Pointers, sizes and strides are as they are for aligned tensors."""
    import triton
    import triton.language as tl
    from fastmlp.kernels.gpu.machine import launch
    from fastmlp.kernels.gpu.numbers import activations
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
        "FOLDED": case.of_many,
        "WAVES": launch.MAX_WAVES_PER_PROGRAM[compute],
        **case.constants,
    }
    kernel = getattr(import_module(f"fastmlp.kernels.gpu.{case.module}"), f"{name}_kernel")
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    for name in {"ACT", "HIDDEN", "OUTPUT"} & constants.keys():
        if constants[name] is not None:
            constants[name] = activations.ACTIVATIONS[constants[name]]
    accumulated = "fp64" if case.dtype == "fp64" else "fp32"
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        kind = accumulated if "partial" in name else "i64" if name == "seed_ptr" else case.dtype
        kind = case.types.get(name, kind)
        if name == "parameters":  # of all layers, a weight and a bias each
            net = constants.get("NET")
            n = 2 * len(constants["WIDTHS"] if net is None else net.widths) - 2
            signature[name] = (f"*{kind}",) * n
            attributes |= {(index, i): [["tt.divisibility", 16]] for i in range(n)}
            continue
        signature[name] = f"*{kind}" if name.endswith("_ptr") else "i32"
        # torch aligns every allocation; the second matrix of partial sums is anywhere in one
        if name != "readout_partial_ptr":
            attributes[(index,)] = [["tt.divisibility", 16]]
    arch = ("hip", target, 64) if target.startswith("gfx") else ("cuda", int(target[3:]), 32)
    cols = constants.get("BLOCK_IN", config.cols)
    of_one = kernel, signature, constants, attributes
    return Job(
        ASTSource(*(_of_many(*of_one) if case.of_many else of_one)),
        GPUTarget(*arch),
        {"num_warps": config.warps, **case.options},
        case.hot,
        config.rows * cols / (32 * config.warps),
    )


def _of_many(kernel, signature, constants, attributes):
    """The like of :func:`fastmlp.kernels.gpu.machine.models.each_kernel` of a kernel."""
    import triton.language as tl
    from fastmlp.kernels.gpu.machine.models import each_kernel

    given = [p.name for p in kernel.params if not p.is_constexpr]
    values = tuple(tl.constexpr(constants[p.name]) for p in kernel.params if p.is_constexpr)
    at = next((i for i, name in enumerate(given) if isinstance(signature[name], tuple)), len(given))
    values = {"TUPLES": int(at < len(given)), "KERNEL": kernel, "CONSTANTS": values}
    aligned = {}

    def paired(place, i, path, name, kind):
        """The types of an argument and of its step."""
        is_pointer = kind.startswith("*")
        if name in constants:
            values[place, i, 0] = constants[name]
        if not is_pointer:
            values[place, i, 1] = None
        elif "partial" not in name:  # of which each model has as many as there are
            aligned[place, i, 1] = [["tt.divisibility", 16]]
        if path in attributes:
            aligned[place, i, 0] = attributes[path]
        return kind, "i32" if is_pointer else "constexpr"

    def part(place, names):
        index = kernel.arg_names.index
        return tuple(paired(place, i, (index(n),), n, signature[n]) for i, n in enumerate(names))

    before, after = part(0, given[:at]), part(2, given[at + 1 :])
    inner = ()
    if at < len(given):
        name = given[at]
        index = kernel.arg_names.index(name)
        inner = tuple(
            paired(1, i, (index, i), name, kind) for i, kind in enumerate(signature[name])
        )
    types = {"before": before, "pointers": inner, "after": after, "first": "i32"}
    types |= dict.fromkeys(("TUPLES", "KERNEL", "CONSTANTS"), "constexpr")
    return each_kernel, types, values, aligned


def waits(compiled):
    """Instructions in a kernel's loops that use local or shared memory, or wait for others."""
    instructions, labels, *_ = machine_code.disassemble(compiled.asm["cubin"])
    inside = set()
    for end, instruction in enumerate(instructions):
        label = re.search(r"^BRA.*`\((\.L_\w+)\)", instruction)
        if label and labels[label[1]] < end:
            inside.update(range(labels[label[1]], end))
    names = "LDL", "STL", "LDS", "STS", "ATOMS", "BAR"
    return sum(instructions[i].startswith(names) for i in inside)


def version():
    """The minor version of Triton, under which figures are kept."""
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def measure(targets, kept, afresh=()):
    """Figures by target and label, and which were measured; the others are the kept ones.

    Args:
        targets: Names of targets.
        kept: The figures that are kept for this version of Triton.
        afresh: Labels of cases that are measured though their digest is the kept one.
    """
    results, measured = {}, []
    for target in targets:
        results[target] = {}
        for label, case in cases().items():
            everywhere = case.everywhere and target in DATA_CENTRE
            if "," in label and not everywhere and target != VARIANT_TARGET:
                continue
            work = job(label, case, target)
            row = kept.get(target, {}).get(label)
            digest = work.digest()
            if label in afresh or row is None or row["source"] != digest:
                measured.append(f"{label} on {target}")
                try:
                    compiled = work.compiled()
                    found = machine_code.figures(compiled, work.hot, work.elements)
                    if label.startswith("train_lanes") and "cubin" in compiled.asm:
                        found["waits"] = waits(compiled)
                except Exception as error:
                    raise RuntimeError(f"{label} on {target}: {error}") from error
                row = {**found, "source": digest}
            results[target][label] = row
    return results, measured


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
            if row.get("waits", 0) > allowed.get("waits", 0):
                problems.append(f"{where}: {row['waits']} uses of memory in a step, or barriers")
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
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument(
        "--afresh", action="append", default=[], metavar="LABEL", help="compile it if unchanged too"
    )
    parser.add_argument("--all", action="store_true", help="compile all unchanged kernels too")
    parser.add_argument("--triton", type=Path, metavar="DIR", help="use the Triton in this folder")
    parser.add_argument("--update", action="store_true", help=f"keep the figures in {FIGURES.name}")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    if options.triton:
        sys.path.insert(0, str(options.triton.resolve()))
    unknown = set(options.afresh) - cases().keys()
    if unknown:
        parser.error(f"no case has the label {', '.join(sorted(unknown))}")
    every = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}
    kept = every.get(version(), {})
    afresh = cases() if options.all else options.afresh
    results, measured = measure(options.target or TARGETS, kept, afresh)
    print(table(results))
    if options.json:
        written = {"results": results, "measured": measured}
        options.json.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    print("\n" + roofline.table({**kept, **results}))
    print(f"\n{len(measured)} compiled with Triton {version()}, the others unchanged")
    problems = worse(results, kept)
    print("\n".join(problems) or "nothing is worse than the kept figures", file=sys.stderr)
    if options.update:
        every = dict(sorted({**every, version(): {**kept, **results}}.items()))
        FIGURES.write_text(json.dumps(every, indent=1) + "\n", "utf-8")
        return 0
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
