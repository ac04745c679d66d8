"""Sizes of the blocks that numbers are worked on in."""

BLOCK_NUMBERS = 1 << 15
"""Numbers of x in a block of a model that keeps nothing: a small part of a level-2 cache."""

FEW = 8
"""Numbers in a block, below which the loops run over units whatever their number."""

LANES = 64
"""Width of a tile of a shared ReLU subnet: a constant, so that addresses are immediate."""

TILE_ROWS = 32
"""Rows of a tile: x, g [32, 64] and the sums of 14 units are 30 KB, in a level-1 cache."""

BLOCK = LANES * TILE_ROWS
"""Numbers in a tile."""
