"""What the MLP kernels cost on each card, and the time that it should take: no GPU is needed.

    python bench/tensor_cores.py [--target sm_90] [--case LABEL] [--json FILE] [--triton DIR]

The launches of a net, as `kernels/gpu/mlp.py` makes them for a target, are compiled and
disassembled as by `static_cost.py`. Of each are reported the tensor cores' instructions,
registers, bytes of stack, shared memory, fp64 instructions, and the instructions of the loop over
tiles for a row. Beside what `layers/choices.py` takes for float32 stand "fma" and "split", its two
ways in full precision.

A time is predicted from three floors: bytes over the bandwidth, products over their rate, and the
loop's instructions over what the multiprocessors issue. The largest is what no program of this form
beats; it is no measurement. Chained products in Triton reach a third to a half of the tensor cores'
rate.
"""

import argparse
import json
import re
import sys
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
    """What :mod:`roofline` knows of a card, and dense Tflop/s by what is multiplied.

    Args:
        gpu: The card.
        bf16: Of bfloat16 and float16, with sums in float32.
        tf32: Of tf32.
        fp64: Of float64, on tensor cores where Triton takes those.
    """

    gpu: roofline.Gpu
    bf16: float
    tf32: float
    fp64: float


# NVIDIA's data sheets and architecture papers; cards for games at their boost clocks
CARDS = {
    "A100": Card(roofline.GPUS["A100"], 312, 156, 19.5),
    "RTX 3090": Card(roofline.Gpu(936, 82, 1.70, "sm_86"), 71, 36, 0.56),
    "RTX 4090": Card(roofline.Gpu(1008, 128, 2.52, "sm_89"), 165, 83, 1.29),
    "H100": Card(roofline.GPUS["H100"], 989, 495, 67),
    "H200": Card(roofline.GPUS["H200"], 989, 495, 67),
    "B200": Card(roofline.GPUS["B200"], 2250, 1125, 37),
    "RTX 5090": Card(roofline.Gpu(1792, 170, 2.41, "sm_120"), 210, 105, 1.64),
}

ROWS = 1 << 20

GOALS = {
    ("64-64-64-16", "bf16"): (0.308 / 3, 1.076 / 3),
    ("64-64-64-16", "tf32"): (0.599 / 3, 2.12 / 2.5),
    ("64-64-64-16", "fp32"): (0.932 / 2.5, 2.70 / 1.4),
}
"""Milliseconds on an H200 for 1 M rows, forward, and forward with backward: the times of plain
PyTorch that were measured there, over the wanted speed-ups."""

NETS = ((64, 64, 64, 16), (128, 128, 128), (32, 32, 32), (16, 16, 16))
WAYS = ("bf16", "fp16", "tf32", "fp32", "fma", "split", "fp64")


class Launch(NamedTuple):
    """One kernel of a net.

    Args:
        case: As `static_cost.job` takes it.
        name: Of the kernel, forward or backward.
        net: What the kernel is told; without terms, it is one of `layers/rows.py`.
        tile: Its tile.
    """

    case: object
    name: str
    net: object
    tile: object


def launches(widths, way, target, *, dx=True, activation="relu"):
    """The launches of forward and of backward for a net.

    Args:
        widths: Inputs, then outputs of each layer.
        way: One of WAYS.
        target: Such as "sm_90".
        dx: Whether the gradient of x is wanted.
        activation: Of all layers but the last.
    """
    import torch
    import triton.language as tl
    from fastmlp.kernels.gpu.layers import choices, cores
    from fastmlp.kernels.gpu.machine.launch import Config, mlp_config
    from fastmlp.kernels.gpu.numbers.activations import ACTIVATIONS
    from static_cases import Case

    number = int(target[3:])
    dtype = way if way in ("bf16", "fp16", "fp64") else "fp32"
    torchs = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
    products = {"fma": None, "split": choices.Products(tl.float32, 3)}.get(
        way, choices.products_of(widths, torchs.get(dtype, torch.float32), number, way == "tf32")
    )
    dropout = (-1, 1.0) * len(widths)
    compute = tl.float64 if dtype == "fp64" else tl.float32
    functions = ACTIVATIONS[activation], ACTIVATIONS["identity"]
    whole = cores.Net(widths, 0, len(widths) - 1, *functions, dropout, *(products or (compute, 0)))
    absent = {"seed_ptr": None} | ({} if dx else {"dx_ptr": None})

    def plain(name):
        config = mlp_config(name, widths, compute)
        constants = {
            **(absent if name == "mlp_bwd" else {"seed_ptr": None}), "WIDTHS": widths,
            "N_LAYERS": len(widths) - 1, "HIDDEN": activation, "OUTPUT": "identity",
            "DROPOUT": dropout,
        }  # fmt: skip
        case = Case("layers.rows", constants, dtype=dtype, config=config)
        return Launch(case, name, whole, choices.Tile(config.rows, config.warps, 0, 0))

    def launch(name, first, last, tile):
        dense = {"seed_ptr": None, "x_row_stride": None, "dy_row_stride": None}
        if name == "mlp_cores_bwd" and first == 0:
            dense |= absent
        net = whole._replace(first=first, last=last)
        config = Config(tile.rows, 1, tile.warps)
        constants = {**dense, "NET": net}
        case = Case("layers.cores", constants, dtype=dtype, config=config, options=tile.options)
        return Launch(case, name, net, tile)

    if products is None:
        return [plain("mlp_fwd")], [plain("mlp_bwd")]
    forward = choices.tile_of("mlp_fwd", whole, number)
    backward = choices.tile_of("mlp_bwd", whole, number)
    cuts = choices.segments(widths, backward)
    back = [launch("mlp_cores_fwd", *cut, forward) for cut in cuts[:-1]]
    back += [launch("mlp_cores_bwd", *cut, backward) for cut in reversed(cuts)]
    ahead = choices.segments(widths, forward)
    return [launch("mlp_cores_fwd", *cut, forward) for cut in ahead], back


def figures(launch, target):
    """What one compiled kernel costs."""
    compiled = static_cost.job(launch.name, launch.case, target).compiled()
    code = machine_code.disassemble(compiled.asm["cubin"])
    instructions = code.instructions
    multiplies = re.compile(r"FFMA|DFMA|DMMA") if launch.net.terms == 0 else TENSOR_CORE
    products = [i for i, name in enumerate(instructions) if multiplies.match(name)]
    # what is ahead of the loop may multiply too, as do a pipeline's last tiles; without a loop, all
    cycles = (machine_code.cycle(code, i) for i in products)
    loop = [instructions[i] for i in next(filter(None, cycles), range(len(instructions)))]
    return {
        "tensor_core": dict(Counter(m[1] for i in loop if (m := TENSOR_CORE.match(i)))),
        "registers": code.registers,
        "stack": code.stack,
        "spills_in_loop": sum(i.startswith(("LDL", "STL")) for i in loop),
        "shared_kb": round(compiled.metadata.shared / 1024, 1),
        "tensor_memory": getattr(compiled.metadata, "tmem_size", 0),
        "fp64": sum(bool(machine_code.FP64.match(i)) for i in instructions),
        "stored_per_row": sum(map(_stored, loop)) * 32 * launch.tile.warps / launch.tile.rows,
        "written_per_row": _written(launch),
        "per_row": round(len(loop) * launch.tile.warps / launch.tile.rows, 1),
    }


def _stored(instruction):
    """Bytes that a thread stores in memory."""
    if not instruction.startswith("STG"):
        return 0
    bits = re.search(r"^STG\S*\.U?(8|16|64|128|256)\b", instruction)
    return int(bits[1]) // 8 if bits else 4


def _written(launch):
    """Bytes of a row of dx or of y, as padded: what a loop over tiles stores."""
    from fastmlp.kernels.gpu.layers.rows import padded

    net = launch.net
    width = net.widths[net.first if launch.name.endswith("bwd") else net.last]
    return padded(width) * net.operand.primitive_bitwidth // 8


def floors(launch, per_row, card):
    """Milliseconds for ROWS rows by bytes, by the tensor cores and by instructions."""
    from fastmlp.kernels.gpu.layers.rows import padded

    net, size = launch.net, launch.net.operand.primitive_bitwidth // 8
    widths = net.widths[net.first : net.last + 1]
    products = sum(2 * padded(a) * padded(b) for a, b in pairwise(widths))
    numbers = widths[0] + widths[-1]
    if launch.name.endswith("bwd"):
        products, numbers = 3 * products, numbers + widths[0]
    terms = 6 if net.terms == 3 else 1
    gpu = card.gpu
    rate = card.bf16
    if size == 8:
        rate = card.fp64
    elif net.terms == 0:
        rate = gpu.sms * 256 * gpu.clock * 1e-3
    elif size == 4 and net.terms == 1:
        rate = card.tf32
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
                for direction, kernels in zip(("forward", "backward"), both, strict=True):
                    rows = [{"name": k.name, **figures(k, target)} for k in kernels]
                    found.setdefault(target, {})[f"{label}, {direction}"] = rows
    return found


def table(found):
    """The figures for a reader."""
    lines = [
        f"{'launch':<34}{'target':>8}{'regs':>6}{'stack':>7}{'shared KB':>11}{'fp64':>6}"
        f"{'instr/row':>11}  tensor cores in the loop"
    ]
    for target, labels in found.items():
        for label, rows in labels.items():
            for row in rows:
                shared = f"{row['shared_kb']:.0f}/{SHARED[target]}"
                lines.append(
                    f"{label:<34}{target:>8}{row['registers']:>6}{row['stack']:>7}{shared:>11}"
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
                for direction, kernels in zip(("forward", "backward"), both, strict=True):
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
                        f"{card_name:<9}{net:<14}{way:<6}{what:<8}{three}   {time:7.3f}{aim}"
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
