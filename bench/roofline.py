"""Predict each Triton kernel's time on a GPU from counted instructions and bytes; no GPU is needed.

    python bench/roofline.py

A kernel takes at least as long as its bytes need at the memory's bandwidth, and as its instructions
need to be issued: four warps' worth of 32 a clock and SM. The larger of the two is the prediction;
launches, tails and latencies come on top. Instructions are those of `static_cost.json`, for the
newest Triton there.
"""

import json
from pathlib import Path
from typing import NamedTuple

FIGURES = Path(__file__).with_name("static_cost.json")

ISSUED_PER_CLOCK = 4 * 32
"""Instructions of threads that one SM starts a clock, since Volta."""


class Gpu(NamedTuple):
    """A device: bandwidth in GB/s, SMs, boost clock in GHz, and the target it runs."""

    bandwidth: float
    sms: int
    clock: float
    target: str


# NVIDIA's data sheets of A100 80 GB SXM, H100 SXM and H200; B200: hmc-tech.com/gpus, read 2026-11
GPUS = {
    "A100": Gpu(2039, 108, 1.41, "sm_80"),
    "H100": Gpu(3350, 132, 1.98, "sm_90"),
    "H200": Gpu(4800, 132, 1.98, "sm_90"),
    "B200": Gpu(7700, 148, 1.98, "sm_100"),
}

ROW = 64
"""Features of a row of AdditiveMLP, and sines of SineSum, in the cases that are counted."""

BYTES = {
    "elementwise_mlp_fwd": 8,
    "elementwise_mlp_bwd_x": 12,
    "elementwise_mlp_bwd_params": 8,
    "additive_mlp_fwd": 4 + 4 / ROW,
    "additive_mlp_bwd_x": 8 + 4 / ROW,
    "additive_mlp_bwd_params": 4 + 4 / ROW,
    # an element is a sine of a number
    "sine_sum_fwd": 8 / ROW,
    "sine_sum_bwd_x": 12 / ROW,
    "sine_sum_bwd_params": 8 / ROW,
}
"""Bytes in float32 that an element of a kernel must read and write."""


class Prediction(NamedTuple):
    """Elements a second, in units of 1e9, and what bounds them."""

    rate: float
    bound: str


def predict(instructions, n_bytes, gpu):
    """The rate of a kernel with so many instructions and bytes an element."""
    by_bytes = gpu.bandwidth / n_bytes
    by_instructions = gpu.sms * ISSUED_PER_CLOCK * gpu.clock / instructions
    bound = "bytes" if by_bytes <= by_instructions else "instructions"
    return Prediction(min(by_bytes, by_instructions), bound)


def newest_figures():
    """The kept figures of the newest Triton, by target and kernel."""
    by_version = json.loads(FIGURES.read_text("utf-8"))
    return by_version[max(by_version, key=lambda version: [int(n) for n in version.split(".")])]


def table(figures):
    """The predictions for a reader; ``figures`` by target and kernel, as `static_cost.py` keeps."""
    lines = [f"{'predicted, 1e9 elements a second':<34}" + "".join(f"{g:>22}" for g in GPUS)]
    for label, n_bytes in BYTES.items():
        cells = []
        for gpu in GPUS.values():
            row = figures.get(gpu.target, {}).get(label)
            if row is None:
                cells.append(f"{'-':>22}")
                continue
            rate, bound = predict(row["per_element"], n_bytes, gpu)
            cells.append(f"{f'{rate:.0f} ({bound})':>22}")
        lines.append(f"{label:<34}{''.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(newest_figures()))
