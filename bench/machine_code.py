"""What a compiled kernel costs, read from its machine code with the tools that Triton ships.

Method. A loop is a backward branch and the instructions from its target to itself. The hot loop is
the first one in program order that has no loop inside and at least the arithmetic that the formula
needs for one iteration (`Hot.math`). The rare forms, for values that are infinite or NaN and angles
that are huge, are loops of their own, later in the program behind a branch on the data: they are
compiled and searched for spills, but not counted as hot. A thread's elements per iteration are
those of the tile over the threads, times the tiles that the kernel's loop takes at once; were the
compiler to unroll a loop, the count would rise by that factor and the comparison fail.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

MATH = re.compile(r"^(FFMA|FADD|FMUL|FMNMX|FSET|FSETP|DFMA|DADD|DMUL|DSETP|DMNMX)")
FP64 = re.compile(r"^(D(FMA|ADD|MUL|SETP|MNMX|MMA)|(F2F|F2I|I2F|FRND)\S*F64|MUFU\.\w+64H)")


class Code(NamedTuple):
    """Machine code of a kernel.

    Args:
        instructions: In program order, without predicates.
        labels: For each label the index of the instruction that follows it.
        predicated: Indices of the instructions that have a predicate.
        registers: Of a thread.
        stack: Bytes of local memory of a thread.
    """

    instructions: list
    labels: dict
    predicated: set
    registers: int
    stack: int


def disassemble(cubin):
    """The code of a compiled kernel."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _output(tools / "nvdisasm", "-c", "-ndf", file.name)
        usage = _output(tools / "cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return Code(*parse(text), registers, stack)


def parse(text):
    """Instructions, labels, and which instructions are predicated, of a disassembler's text."""
    instructions, labels, predicated = [], {}, set()
    for line in text.splitlines():
        if match := re.match(r"\s*(\.L_\w+):", line):
            labels[match[1]] = len(instructions)
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?(.*?)\s*;", line):
            if match[1]:
                predicated.add(len(instructions))
            instructions.append(match[2])
    return instructions, labels, predicated


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


def cycle(code, at):
    """Indices of the instructions that run between two runs of one of them.

    There are none where it runs once. Blocks behind the program's end belong to it, if a branch
    leads back from them.
    """
    ahead, behind = {}, {}
    for i, instruction in enumerate(code.instructions):
        branch = re.match(r"BRA\S* .*`\((\.L_\w+)\)", instruction)
        ends = re.match(r"BRA `|EXIT|RET", instruction) and i not in code.predicated
        following = [] if ends else [i + 1]
        ahead[i] = following + ([code.labels[branch[1]]] if branch else [])
        for j in ahead[i]:
            behind.setdefault(j, []).append(i)
    return _reached(ahead, at) & _reached(behind, at)


def _reached(graph, start):
    found, new = set(), list(graph.get(start, ()))
    while new:
        if (i := new.pop()) not in found:
            found.add(i)
            new += graph.get(i, ())
    return found


def figures(compiled, hot, elements):
    """Figures of one kernel, by name.

    Args:
        compiled: What `triton.compile` returns.
        hot: What one iteration of the hot loop does, or None for spills and fp64 alone.
        elements: Elements of a tile for each thread.
    """
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        vgpr, spills = (
            int(re.search(rf"\.{name}:\s*(\d+)", text)[1])
            for name in ("vgpr_count", "vgpr_spill_count")
        )
        return {"registers": vgpr, "spills": spills}
    code = disassemble(compiled.asm["cubin"])
    instructions = code.instructions
    found = {
        "registers": code.registers,
        "spills": sum(i.startswith(("LDL", "STL")) for i in instructions),
        "fp64": sum(bool(FP64.match(i)) for i in instructions),
    }
    if hot is None:
        return found
    elements *= hot.tiles
    loops = innermost_loops(instructions, code.labels)
    for start, end in [(0, len(instructions) - 1)] if hot.whole else loops:
        body = instructions[start : end + 1]
        if sum(arithmetic(i) for i in body) >= hot.math * elements:
            per_element = len(body) * hot.iterations / (elements * hot.per)
            return {**found, "per_element": round(per_element, 2)}
    raise RuntimeError("no hot loop found: see the method above")
