"""Sizes of the blocks of a batch in a training run."""

BLOCK_NUMBERS = 1 << 15
"""Numbers of x in a block of a model that keeps nothing: a small part of a level-2 cache."""

FEW = 8
"""Numbers in a block, below which the loops run over units whatever their number."""
