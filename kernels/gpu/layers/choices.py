"""Which nets go to tensor cores, what their products take, and how they are cut for a card.

A net goes to :mod:`.cores` if its widest layer, its input among them, has MIN_WIDTH numbers or
more, and the card has the instructions; all others stay with :mod:`.rows`, which multiplies by
plain FMA, and float64 by its own tensor cores. What products take:

=====================  ==========================================================================
bfloat16, float16      their own type
float32, tf32 allowed  tf32; widths beyond 64 only where a block has 227 KB of shared memory
float32, else          six products of bfloat16 terms, up to a width of 64, on cards of a data
                       centre. Beyond, the terms do not fit into the registers; and other cards
                       are faster with FMA: an sm_89 has 82 Tflop/s of it, and a sixth of the 165
                       of bfloat16 is 28
=====================  ==========================================================================

Whether tf32 is allowed is what PyTorch's own products ask at every call:
``torch.backends.cuda.matmul.fp32_precision``, which ``torch.set_float32_matmul_precision`` and
``allow_tf32`` set too.

Tiles are chosen by registers, stack and shared memory as compiled: see `bench/tensor_cores.py`.
"""

import functools
from typing import NamedTuple

import torch
import triton.language as tl

from .rows import padded

MIN_WIDTH = 16

NARROW = 64

MAX_LAYERS = 8
"""Layers of a segment: more take long to compile, and their activations many registers."""

PIECES = 256
"""Programs that sum gradients, two a multiprocessor: 97 % of what an H100 with 132 takes. The same
number on every card, for it decides the order of the sum."""

PROGRAMS_PER_SM = 2
"""Of forward; each loads the weights once."""

# capabilities by the shared memory of a block: 227 KB, 163 KB, 99 KB
HUGE = (90, 100, 103)
LARGE = (*HUGE, 80)
SMALL = (86, 89, 120, 121)


class Products(NamedTuple):
    """Type of numbers between layers, and terms of a number in products."""

    operand: tl.dtype
    terms: int


class Tile(NamedTuple):
    """Tile of one program, and what a segment may have.

    Args:
        rows: Rows that it takes at a time.
        warps: Warps that share them.
        stages: Tiles of which the loads are under way.
        weights: Weights of a segment, at most, by shared memory and, in backward, by registers.
    """

    rows: int
    warps: int
    stages: int
    weights: int


_SIXTEEN_BITS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _allows_tf32():
    return torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32"


@functools.cache
def _capability(index):
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def target_of(x):
    """Capability of the device of ``x``, 90 for 9.0; of none, that; of one not NVIDIA's 0."""
    if not x.is_cuda:
        return 90
    return 0 if torch.version.hip else _capability(x.device.index)


def products_of(widths, dtype, target, tf32):
    """How a net is multiplied on tensor cores; ``None`` where it is not.

    Args:
        widths: Inputs, then outputs of each layer.
        dtype: Dtype of the result.
        target: Capability of the device.
        tf32: Whether products of float32 may take tf32.
    """
    widest = max(widths)
    if widest < MIN_WIDTH or target not in LARGE + SMALL:
        return None
    if dtype in _SIXTEEN_BITS:
        return Products(_SIXTEEN_BITS[dtype], 1)
    if dtype == torch.float32 and tf32 and (widest <= NARROW or target in HUGE):
        return Products(tl.float32, 1)
    if dtype == torch.float32 and not tf32 and widest <= NARROW and target in LARGE:
        return Products(tl.float32, 3)
    return None


def products_here(x, widths, dtype):
    """:func:`products_of` on the device of ``x``, as PyTorch is set now."""
    return products_of(widths, dtype, target_of(x), _allows_tf32())


def tile_of(name, widths, products, target):
    """The tile of ``"mlp_fwd"`` or ``"mlp_bwd"`` for a net."""
    forward, small, wide = name == "mlp_fwd", target in SMALL, max(widths) > NARROW
    layer = 64 * 64
    if wide:
        # one layer, or two: 64 KB of 16 bits
        two = forward and not small and products.operand != tl.float32
        stages = 3 if products.operand != tl.float32 and not small else 1
        return Tile(64, 4 if forward else 8, stages, 4 * layer * (1 + two))
    if target not in HUGE and not forward and products.terms == 1:
        # operands of these cards' tensor cores are all in registers
        return Tile(64, 4, 3, layer + layer // 4)
    if products.terms == 3:
        # backward splits inputs, weights and gradients of a layer: no registers are left
        return Tile(64, 4, 3, 4 * layer if forward else layer + layer // 2)
    if forward:
        return Tile(64, 4, 3, 2 * layer + layer // 4 if small else 4 * layer)
    # three layers of 64, the last of them with 16 outputs
    return Tile(64, 4, 3, 2 * layer + layer // 4)


def segments(widths, tile):
    """First layer, and the one behind the last, of each segment of a net, in order."""
    found, first, used = [], 0, 0
    for layer in range(len(widths) - 1):
        weights = padded(widths[layer]) * padded(widths[layer + 1])
        if layer > first and (used + weights > tile.weights or layer - first == MAX_LAYERS):
            found.append((first, layer))
            first, used = layer, 0
        used += weights
    return [*found, (first, len(widths) - 1)]
