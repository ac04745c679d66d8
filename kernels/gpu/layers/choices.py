"""Which nets go to tensor cores, what their products take, and how they are cut for a card.

A net goes to :mod:`.cores` if its widest layer, its input among them, is as wide as CROSSOVERS has
it, and the card has the instructions; all others stay with :mod:`.rows`, which multiplies by plain
FMA, and float64 by its own tensor cores on sm_80 and sm_90. What products take:

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
import itertools
from typing import NamedTuple

import torch
import triton.language as tl

from .cores import is_straight
from .rows import padded

NARROW = 64

MAX_LAYERS = 8
"""Layers of a segment: more take long to compile, and their activations many registers."""

PIECES = 256
"""Programs that sum gradients, two a multiprocessor: 97 % of what an H100 with 132 takes. The same
number on every card, for it decides the order of the sum."""

PROGRAMS_PER_SM = {16: 8, 32: 4, 64: 2, 128: 2}
"""Of forward by the widest layer, as many as registers take: a thread has 56, 94 or 177 in bfloat16
up to a width of 64. Each program loads the weights once."""

# capabilities by the shared memory of a block: 227 KB, 163 KB, 99 KB
HUGE = (90, 100, 103)
LARGE = (*HUGE, 80)
SMALL = (86, 89, 120, 121)

TENSOR_MEMORY = (100, 103)
"""Their sums of 64 rows or more are in a memory of 512 columns, which a kernel shares out once: the
products of split numbers would take 672 and more."""


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
        registers: The most that a thread may have, where ptxas has to be told.
    """

    rows: int
    warps: int
    stages: int
    weights: int
    registers: int | None = None

    @property
    def options(self):
        """Of the compilation, but for the warps."""
        return {"num_stages": self.stages} | ({"maxnreg": self.registers} if self.registers else {})


CROSSOVERS = {1: 1, 3: 17}
"""Widest layer from which on products of so many terms are faster than FMA, which is padded to 16
like they are. Counted are the instructions of 16-16-16 for a row, forward and backward:

=======  ============  ============  ============  ============
target   FMA           16 bits       tf32          three terms
=======  ============  ============  ============  ============
sm_80    23.2, 85.8    5.4, 12.7     8.5, 30.1     18.6, 81.8
sm_86    23.5, 89.9    5.4, 12.6     8.5, 29.4
sm_90    23.8, 84.5    6.5, 11.9     9.0, 29.5     18.1, 81.0
sm_100   26.5, 87.2    8.8, 19.8     10.2, 33.8    39.2, 114.5
=======  ============  ============  ============  ============
"""

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
    widest, products = max(widths), None
    if target not in LARGE + SMALL:
        return None
    if dtype in _SIXTEEN_BITS:
        products = Products(_SIXTEEN_BITS[dtype], 1)
    elif dtype == torch.float32 and tf32 and (widest <= NARROW or target in HUGE):
        products = Products(tl.float32, 1)
    elif dtype == torch.float32 and not tf32 and widest <= NARROW and target in LARGE:
        products = Products(tl.float32, 3)
    return None if products is None or widest < CROSSOVERS[products.terms] else products


def products_here(x, widths, dtype):
    """:func:`products_of` on the device of ``x``, as PyTorch is set now."""
    return products_of(widths, dtype, target_of(x), _allows_tf32())


def tile_of(name, net, target):
    """The tile of ``"mlp_fwd"`` or ``"mlp_bwd"`` for a :class:`.cores.Net`."""
    choose = _forward_tile if name == "mlp_fwd" else _backward_tile
    return choose(net, padded(max(net.widths)), net.operand != tl.float32, target)


# weights of a layer of 64, and of three of which the last has 16 outputs
_SQUARE = 64 * 64
_THREE = 2 * _SQUARE + _SQUARE // 4
# of four layers of 16, three of 32, and those three
_FEW = {16: 4 * 16 * 16, 32: 3 * 32 * 32, NARROW: _THREE}


def _forward_tile(net, widest, short, target):
    # what tensor memory holds is in registers for the activation, of all of a row's columns at once
    crowded = target in TENSOR_MEMORY and widest >= NARROW and not is_straight(net.hidden)
    warps = 8 if crowded else 4
    if widest > NARROW:
        two = short and target not in SMALL
        return Tile(64, warps, 3 if two else 1, 4 * _SQUARE * (1 + two))
    weights = 4 * _SQUARE
    if target in SMALL:
        weights = _THREE
    elif net.terms == 3 and target in TENSOR_MEMORY:
        weights = _FEW[widest]
    elif net.terms == 3:
        weights = (2 if target == 80 else 3) * _SQUARE
    # or ptxas spills to have more warps on a multiprocessor
    few = target not in HUGE and widest < NARROW and _weights(net.widths) <= _FEW[32]
    registers = 255 if crowded else 128 if few else None
    # four layers of 64 in tf32 take all registers
    stages = 2 if target == 80 and widest == NARROW and net.terms == 1 and not short else 3
    return Tile(64, warps, stages, weights, registers)


def _backward_tile(net, widest, short, target):
    straight = is_straight(net.hidden)
    if widest > NARROW:
        large = target in HUGE
        # slopes of a smooth activation are kept beside the values: 64 rows take all registers
        crowded = short and target == 90 and not straight
        rows = 64 if large and not crowded else 32
        return Tile(rows, 8, 3 if short and large else 1, 4 * _SQUARE)
    if net.terms == 3:
        # inputs, weights and gradients of a layer are split: no registers are left
        weights = _SQUARE + _SQUARE // 2 if widest == NARROW else _FEW[widest]
        return Tile(32 if target in TENSOR_MEMORY else 64, 4, 3 if target == 80 else 1, weights)
    if widest < NARROW:
        # slopes are kept beside the values: the last of three layers of 32 may have 16 outputs
        half = 32 * 16 if widest == 32 and not straight and target not in HUGE else 0
        return Tile(64, 4, 3, _FEW[widest] - half)
    if target in HUGE:
        return Tile(*(128, 8, 2) if short and straight else (32, 4, 3), _THREE)
    # slopes of a smooth activation are kept beside the values
    crowded = not straight or (not short and target >= 120)
    return Tile(32, 8 if crowded else 4, 3, _THREE)


def _weights(widths):
    """Of all layers, as they are padded."""
    return sum(padded(n) * padded(m) for n, m in itertools.pairwise(widths))


def segments(widths, tile):
    """First layer, and the one behind the last, of each segment of a net, in order."""
    found, first, used = [], 0, 0
    for layer in range(len(widths) - 1):
        weights = _weights(widths[layer : layer + 2])
        if layer > first and (used + weights > tile.weights or layer - first == MAX_LAYERS):
            found.append((first, layer))
            first, used = layer, 0
        used += weights
    return [*found, (first, len(widths) - 1)]
