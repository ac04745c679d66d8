"""Numbers that lie in many places, brought together and back in one call."""

import numpy as np

from .jit import array_at, copy, entry


@entry
def gather(real):
    def gather_parts(places_at, sizes_at, flat_at, first, last):
        """Copy parts of some sizes from their places, one after the other."""
        places, sizes = array_at(places_at, last, np.int64), array_at(sizes_at, last, np.int64)
        for i in range(first, last):
            part = array_at(places[i], sizes[i], real)
            copy(part, array_at(flat_at, sizes[i], real))
            flat_at += sizes[i] * part.itemsize

    return gather_parts


@entry
def scatter(real):
    def scatter_parts(places_at, sizes_at, flat_at, first, last):
        """The way back."""
        places, sizes = array_at(places_at, last, np.int64), array_at(sizes_at, last, np.int64)
        for i in range(first, last):
            part = array_at(places[i], sizes[i], real)
            copy(array_at(flat_at, sizes[i], real), part)
            flat_at += sizes[i] * part.itemsize

    return scatter_parts
