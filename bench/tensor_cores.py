"""What the MLP kernels for tensor cores cost, and the time that each card should take: no GPU.

    python bench/tensor_cores.py [--target sm_90] [--case LABEL] [--json FILE] [--triton DIR]

The launches of a net, as `kernels/gpu/mlp.py` makes them for a target, are compiled and
disassembled as by `static_cost.py`. Of each are reported the tensor cores' instructions,
registers, bytes of stack, shared memory, fp64 instructions, and the instructions of the loop over
tiles for a row.

A time is predicted from three floors: bytes over the bandwidth, products over the tensor cores'
rate, and the loop's instructions over what the multiprocessors issue. The largest is what no
program of this form beats; it is no measurement. Chained products in Triton reach a third to a half
of the tensor cores' rate.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import machine_code
import roofline
import static_cost

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
"""KB of shared memory that a block may have: CUDA programming guide, technical specifications."""

TENSOR_CORE = re.compile(r"^(HMMA|HGMMA|UTC\w*MMA|DMMA|QGMMA)")


class Card(NamedTuple):
    """What :mod:`roofline` knows of a card, and dense Tflop/s of bf16 and tf32, summed in fp32."""

    gpu: roofline.Gpu
    bf16: float
    tf32: float


# NVIDIA's data sheets and architecture papers; the 4090 and 5090 at their boost clocks
CARDS = {
    "A100": Card(roofline.GPUS["A100"], 312, 156),
    "RTX 3090": Card(roofline.Gpu(936, 82, 1.70, "sm_86"), 71, 36),
    "RTX 4090": Card(roofline.Gpu(1008, 128, 2.52, "sm_89"), 165, 83),
    "H100": Card(roofline.GPUS["H100"], 989, 495),
    "H200": Card(roofline.GPUS["H200"], 989, 495),
    "B200": Card(roofline.GPUS["B200"], 2250, 1125),
    "RTX 5090": Card(roofline.Gpu(1792, 170, 2.41, "sm_120"), 210, 105),
}

ROWS = 1 << 20

GOALS = {
    ("64-64-64-16", "bf16"): (0.308 / 3, 1.076 / 3),
    ("64-64-64-16", "tf32"): (0.599 / 3, 2.12 / 2.5),
    ("64-64-64-16", "fp32"): (0.932 / 2.5, 2.70 / 1.4),
}
"""Milliseconds on an H200 for 1 M rows, forward, and forward with backward: the times of plain
PyTorch that were measured there, over the wanted speed-ups."""

NETS = ((64, 64, 64, 16), (128, 128, 128), (16, 16, 16))
WAYS = {
    "bf16": ("bf16", False),
    "fp16": ("fp16", False),
    "tf32": ("fp32", True),
    "fp32": ("fp32", False),
}


class Launch(NamedTuple):
    """One kernel of a net.

    Args:
        case: As `static_cost.job` takes it.
        name: Of the kernel, forward or backward.
        net: What the kernel is told.
        tile: Its tile.
    """

    case: object
    name: str
    net: object
    tile: object


def launches(widths, way, target, *, dx=True):
    """The launches of forward and of backward for a net; ``None`` if not on tensor cores."""
    import torch
    from fastmlp.kernels.gpu.layers import choices, cores
    from fastmlp.kernels.gpu.machine.launch import Config
    from fastmlp.kernels.gpu.numbers.activations import ACTIVATIONS
    from static_cases import Case

    dtype, tf32 = WAYS[way]
    number = int(target[3:])
    torchs = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    products = choices.products_of(widths, torchs, number, tf32)
    if products is None:
        return None
    functions = ACTIVATIONS["relu"], ACTIVATIONS["identity"]
    dropout = (-1, 1.0) * len(widths)
    whole = cores.Net(widths, 0, len(widths) - 1, *functions, dropout, *products)

    def launch(name, first, last, tile):
        dense = {"seed_ptr": None, "x_row_stride": None, "dy_row_stride": None}
        if name == "mlp_cores_bwd" and first == 0 and not dx:
            dense["dx_ptr"] = None
        net = whole._replace(first=first, last=last)
        config, stages = Config(tile.rows, 1, tile.warps), {"num_stages": tile.stages}
        constants = {**dense, "NET": net}
        case = Case("layers.cores", constants, dtype=dtype, config=config, options=stages)
        return Launch(case, name, net, tile)

    forward = choices.tile_of("mlp_fwd", widths, products, number)
    backward = choices.tile_of("mlp_bwd", widths, products, number)
    cuts = choices.segments(widths, backward)
    back = [launch("mlp_cores_fwd", *cut, forward) for cut in cuts[:-1]]
    back += [launch("mlp_cores_bwd", *cut, backward) for cut in reversed(cuts)]
    ahead = choices.segments(widths, forward)
    return [launch("mlp_cores_fwd", *cut, forward) for cut in ahead], back


def figures(launch, target):
    """What one compiled kernel costs."""
    compiled = static_cost.job(launch.name, launch.case, target).compiled()
    instructions, labels, registers = machine_code.disassemble(compiled.asm["cubin"])
    loops = machine_code.innermost_loops(instructions, labels)
    start, end = max(loops, key=lambda loop: loop[1] - loop[0])
    loop = instructions[start : end + 1]
    return {
        "tensor_core": dict(Counter(m[1] for i in loop if (m := TENSOR_CORE.match(i)))),
        "registers": registers,
        "stack": _stack(compiled.asm["cubin"]),
        "spills_in_loop": sum(i.startswith(("LDL", "STL")) for i in loop),
        "shared_kb": round(compiled.metadata.shared / 1024, 1),
        "fp64": sum(bool(machine_code.FP64.match(i)) for i in instructions),
        "stores_in_loop": sum(i.startswith("STG") for i in loop),
        "per_row": round(len(loop) * launch.tile.warps / launch.tile.rows, 1),
    }


def _stack(cubin):
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [str(tool), "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1])


def floors(launch, per_row, card):
    """Milliseconds for ROWS rows by bytes, by the tensor cores and by instructions."""
    from fastmlp.kernels.gpu.layers.rows import padded

    net, size = launch.net, launch.net.operand.primitive_bitwidth // 8
    widths = net.widths[net.first : net.last + 1]
    products = sum(2 * padded(a) * padded(b) for a, b in pairwise(widths))
    numbers = widths[0] + widths[-1]
    if launch.name == "mlp_cores_bwd":
        products, numbers = 3 * products, numbers + widths[0]
    terms = 6 if net.terms == 3 else 1
    rate = card.tf32 if size == 4 and net.terms == 1 else card.bf16
    gpu = card.gpu
    return (
        ROWS * numbers * size / gpu.bandwidth * 1e-6,
        ROWS * products * terms / rate * 1e-9,
        ROWS * per_row / (gpu.sms * 4 * gpu.clock) * 1e-6,
    )


def measure(targets, wanted):
    """Figures of the launches, by target and label."""
    found = {}
    for target in targets:
        for widths in NETS:
            for way in WAYS:
                label = f"{'-'.join(map(str, widths))}, {way}"
                if wanted and label not in wanted:
                    continue
                both = launches(widths, way, target)
                if both is None:
                    continue
                for direction, kernels in zip(("forward", "backward"), both, strict=True):
                    rows = [{"name": k.name, **figures(k, target)} for k in kernels]
                    found.setdefault(target, {})[f"{label}, {direction}"] = rows
    return found


def table(found):
    """The figures for a reader."""
    lines = [
        f"{'launch':<32}{'target':>8}{'regs':>6}{'stack':>7}{'shared KB':>11}{'fp64':>6}"
        f"{'instr/row':>11}  tensor cores in the loop"
    ]
    for target, labels in found.items():
        for label, rows in labels.items():
            for row in rows:
                shared = f"{row['shared_kb']:.0f}/{SHARED[target]}"
                lines.append(
                    f"{label:<32}{target:>8}{row['registers']:>6}{row['stack']:>7}{shared:>11}"
                    f"{row['fp64']:>6}{row['per_row']:>11}  {row['tensor_core']}"
                )
    return "\n".join(lines)


def predictions(found):
    """Predicted times for a reader, beside the goals."""
    lines = [f"predicted ms for {ROWS} rows: bytes, tensor cores, instructions; their largest"]
    for card_name, card in CARDS.items():
        for widths in NETS:
            net = "-".join(map(str, widths))
            for way in WAYS:
                labels = found.get(card.gpu.target, {})
                both = launches(widths, way, card.gpu.target)
                sums = []
                for direction, kernels in zip(("forward", "backward"), both or (), strict=False):
                    rows = labels.get(f"{net}, {way}, {direction}")
                    if rows is None:
                        break
                    each = [
                        floors(k, r["per_row"], card) for k, r in zip(kernels, rows, strict=True)
                    ]
                    sums.append(([sum(f) for f in zip(*each, strict=True)], sum(map(max, each))))
                if len(sums) < 2:
                    continue
                goal = GOALS.get((net, way)) if card_name == "H200" else None
                (ahead, forward), (back, backward) = sums
                for what, parts, time, at in (
                    ("forward", ahead, forward, 0),
                    (
                        "f+b",
                        [a + b for a, b in zip(ahead, back, strict=True)],
                        forward + backward,
                        1,
                    ),
                ):
                    aim = f"  goal {goal[at]:.3f}" if goal else ""
                    three = " ".join(f"{p:7.3f}" for p in parts)
                    lines.append(
                        f"{card_name:<9}{net:<14}{way:<5}{what:<8}{three}   {time:7.3f}{aim}"
                    )
    return "\n".join(lines)


def main(arguments=None):
    """Print figures and predictions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--case", action="append", metavar="LABEL", help='such as "16-16-16, bf16"')
    parser.add_argument("--triton", type=Path, metavar="DIR", help="use the Triton in this folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args(arguments)
    if options.triton:
        sys.path.insert(0, str(options.triton.resolve()))
    found = measure(options.target or TARGETS, options.case)
    print(table(found))
    print("\n" + predictions(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
