"""Rows of a batch as vectors, and the groups that they are dealt into: see `loop.py`."""

import numpy as np

from ..machine.jit import array_at, inner, inner_in_order, widened
from ..machine.vectors import LANE_BYTES, lanes_of, load, load_wide, splat, splat_wide, store

B = LANE_BYTES


@inner
def fetch(run, at, source, starts, is_own, width, rows, order, target, real):
    """Vectors of rows, in the models' orders if there are any.

    ``starts`` are the lanes' first rows; ``rows`` the position of the first one to fetch, how many,
    and the last position that there is.
    """
    first, n_rows, last = rows
    lanes, item = run.lanes, B // lanes_of(real)
    starts, base = array_at(starts, lanes, np.int64), array_at(at.base, lanes, np.int64)
    n_orders = run.n_rows if order != 0 else 0
    if is_own == 0 and (order == 0 or run.shared_order != 0) and run.spread == 1:
        data = array_at(source + starts[0] * width * item, (last + 1) * width, real)
        places = array_at(order, n_orders, np.int64)
        for r in range(n_rows):
            row = places[first + r] if order != 0 else first + r
            for e in range(width):
                store(target + (r * width + e) * B, splat(data[row * width + e], real))
        return
    out = array_at(target, n_rows * width * lanes, real)
    for l in range(at.used):
        data = array_at(source + starts[l] * width * item, (last + 1) * width, real)
        leader = 0 if run.shared_order != 0 else l - l % run.spread
        places = array_at(order + 8 * leader * run.n_rows, n_orders, np.int64)
        for r in range(n_rows):
            row = min(first + base[l] + r, last)
            row = places[row] if order != 0 else row
            for e in range(width):
                out[np.uintp((r * width + e) * lanes + l)] = data[np.uintp(row * width + e)]


@inner
def fetch_weights(run, at, source, starts, is_own, rows, order, target, real):
    """The rows' weights, and those of no row."""
    if source != 0:
        fetch(run, at, source, starts, is_own, 1, rows, order, target, real)
    else:
        for r in range(0, rows[1] * B, B):
            store(target + r, splat(real(1), real))
    if run.spread > 1:
        _clear_weights(run, at, rows, target, real)


@inner
def _clear_weights(run, at, rows, target, real):
    """Weights of 0 where a group of rows is shorter than others."""
    first, n_rows, last = rows
    lanes = run.lanes
    out, base = array_at(target, n_rows * lanes, real), array_at(at.base, lanes, np.int64)
    for l in range(at.used):
        for r in range(max(0, last + 1 - first - base[l]), n_rows):
            out[r * lanes + l] = 0


@inner_in_order
def fold(run, at, n, real):
    """Of n vectors: the sum over a model's lanes, in order, in each of them."""
    if run.spread == 1:
        return
    vectors = array_at(at, n * run.lanes, real)
    for first in range(0, n * run.lanes, run.spread):
        total = vectors[first]
        for l in range(first + 1, first + run.spread):
            total += vectors[l]
        for l in range(first, first + run.spread):
            vectors[l] = total


@inner
def lay_groups(run, at, n_rows):
    """Rows of a group, of so many rows; tells each lane its own group, if it has one."""
    size = (n_rows + run.groups - 1) // run.groups
    if run.spread > 1:
        base = array_at(at.base, run.lanes, np.int64)
        for l in range(run.lanes):
            base[l] = l % run.spread * size
    return size


@inner
def fetch_block(run, at, rows, order, x, y, weight, real):
    """Rows of the training data, to addresses; ``weight`` is 0 where none are wanted."""
    fetch(run, at, run.x, at.first, run.own, run.n_in, rows, order, x, real)
    fetch(run, at, run.y, at.first, run.own, run.n_out, rows, order, y, real)
    if weight != 0:
        starts, is_own = at.first_weight, run.own_weight
        fetch_weights(run, at, run.weight, starts, is_own, rows, order, weight, real)


@inner
def weigh(run, at, weight, starts, is_own, span, order, real):
    """at.total = the weight of the rows from one position to another, for each model."""
    start, stop = span
    if weight == 0:
        store(at.total, splat_wide(np.float64(stop - start), real))
        return
    size = lay_groups(run, at, stop - start)
    store(at.total, splat_wide(0.0, real))
    for group in range(0, stop - start, size if run.spread == 1 else stop - start):
        total = splat_wide(0.0, real)
        end = min(group + size, stop - start)
        for first in range(group, end, run.block_rows):
            rows = start + first, min(run.block_rows, end - first), stop - 1
            fetch_weights(run, at, weight, starts, is_own, rows, order, at.weight, real)
            for r in range(at.weight, at.weight + rows[1] * B, B):
                total += widened(load(r, real))
        store(at.total, load_wide(at.total, real) + total)
    fold(run, at.total, 1, np.float64)
