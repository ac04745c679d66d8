"""How a training kernel is launched, and how many items its tiles have."""

from typing import NamedTuple

import triton
import triton.language as tl

TILE = 2048
"""Elements in a tile, about; half of them in float64."""

MAX_TILE = 8192
"""Elements of one item in a tile: units times features, each rounded up to a power of two."""


class Verb(NamedTuple):
    """How to launch the training of one structure.

    Args:
        function: The verb.
        sizes: SIZES of the verb.
        constants: CONSTANTS of the verb.
        warps: Warps of a program.
    """

    function: object
    sizes: tuple
    constants: tuple
    warps: int


def items_of(elements, n_items, compute, per_thread):
    """Items in a tile of ``elements`` each, and warps; no more than a batch has."""
    if elements > MAX_TILE:
        raise ValueError(
            f"its units times features, each rounded up to a power of two, take {elements} places "
            f"in a tile, which has {MAX_TILE}"
        )
    size = TILE // 2 if compute == tl.float64 else TILE
    items = max(1, min(size // elements, triton.next_power_of_2(n_items)))
    return items, max(1, min(16, items * elements // (32 * per_thread)))
