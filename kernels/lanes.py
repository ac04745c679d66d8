"""How stacked subnets are laid out on the CPU: what launchers and training runs must agree on."""

import math

MIN_LANES = 512
"""A loop over fewer numbers costs more than their arithmetic."""


def lanes_of(n_in):
    """Columns of a tile: whole rows, and a whole number of vectors where rows are short."""
    row = math.lcm(n_in, 16) if n_in < 64 else n_in
    return row * -(-MIN_LANES // row)
