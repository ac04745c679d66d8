"""The loops of `featurewise.py`: over the lanes of a tile, a feature's parameters in its own lane.

A tile is TILE_ROWS lane rows of LANES numbers. A row of 64 features is a lane row; shorter rows are
packed several to a lane row, longer ones cut into chunks of 64; what is left over is padding.

All arrays of a tile lie in one ``scratch``, TILE numbers apart, and what belongs to a unit in one
``units``, LANES numbers apart: at constant distances LLVM vectorises a loop over all of them.
"""

import math

import numpy as np

from ..machine.jit import inner, inner_vectorized
from ..numbers.activations import ACTIVATIONS
from ..numbers.block_activations import CODES
from ..numbers.philox import draw_words
from .general_loops import TILE, gradient

LANES = 64
TILE_ROWS = TILE // LANES

# places in the scratch: x, f, dropout factors, g = ∂/∂f, dx
F_AT, FACTORS_AT, G_AT, DX_AT = (np.uintp(i * TILE) for i in (1, 2, 3, 4))
# places in a unit: w, b, v and, for backward, v·w, v·b and the sums of its gradients
B_AT, V_AT, VW_AT, VB_AT, DW_AT, DB_AT, DV_AT, A_AT, C_AT = (
    np.uintp(i * LANES) for i in range(1, 10)
)
VALUES, VALUES_AND_SUMS = 3, 10
"""Vectors of LANES numbers that a unit has in forward and in backward."""


@inner
def lay_out(w, b, v, n_in, n_vectors, units, real):
    """Fill ``units`` [chunks, units, vectors, LANES] from parameters [features, units].

    Returns whether the products that :func:`relu_units` works with stand for this net in backward:
    all are finite, and no v·w is so small that it lacks digits.
    """
    n_hidden = w.size // n_in
    smallest, regular = np.finfo(real).tiny, True
    for first in range(0, n_in, LANES):
        width = lane_width(n_in, first)
        for k in range(n_hidden):
            at = (first // LANES * n_hidden + k) * n_vectors * LANES
            for l in range(width):
                source = (first + l % n_in) * n_hidden + k
                wl, bl, vl = w[source], b[source], v[source]
                i = np.uintp(at + l)
                units[i], units[i + B_AT], units[i + V_AT] = wl, bl, vl
                if n_vectors > VALUES:
                    slope, offset = vl * wl, vl * bl
                    units[i + VW_AT], units[i + VB_AT] = slope, offset
                    if not (abs(slope) + abs(offset) < math.inf and abs(vl) < math.inf):
                        regular = False
                    if abs(slope) < smallest and wl != 0 and vl != 0:
                        regular = False
    return regular


@inner
def lane_width(n_in, first):
    """Lanes in use in the chunk of features from ``first`` on."""
    return LANES // n_in * n_in if n_in <= LANES else min(LANES, n_in - first)


@inner
def into_lanes(source, first, stride, width, tile):
    """tile[r, l] = source[first + r·stride + l] as far as there are numbers, 0 beyond."""
    n = source.size
    for r in range(TILE_ROWS):
        at, to = first + r * stride, r * LANES
        count = max(0, min(width, n - at))
        for l in range(count):
            tile[np.uintp(to + l)] = source[np.uintp(at + l)]
        for l in range(count, LANES):
            tile[np.uintp(to + l)] = 0


@inner
def from_lanes(tile, first, stride, width, n, target):
    """The reverse, for the n numbers that there are; the padding is dropped."""
    for r in range(TILE_ROWS):
        at, to = first + r * stride, r * LANES
        for l in range(min(width, n - at)):
            target[np.uintp(at + l)] = tile[np.uintp(to + l)]


@inner
def add_columns(tile, total):
    """total[l] += Σ_r tile[r, l]."""
    for r in range(TILE_ROWS):
        for l in range(LANES):
            total[l] += tile[np.uintp(r * LANES + l)]


@inner
def draw_lanes(seed, place, stride, n, width, block, words):
    """The words of a block for n lane rows; ``place`` is that of the tile's first number."""
    for r in range(n):
        draw_words(seed, place + r * stride, block, width, words, r * LANES)


def chosen_unit(real):
    """What a unit adds to the lane rows of a tile, forward and backward, by activation code.

    ``n`` lane rows, the last of ``last`` lanes and the others of ``width``: padding is left alone,
    where a parameter that is not finite would make NaN of it.
    """

    def link(name, code, others):
        function = ACTIVATIONS[name][real]
        value, pair = function.value, function.value_and_derivative
        other_unit, other_gradients = others
        cuts = name == "relu"

        @inner
        def add_unit(chosen, scratch, units, at, n, width, last, drop):
            if chosen != code:
                other_unit(chosen, scratch, units, at, n, width, last, drop)
                return
            for r in range(n):
                for l in range(width if r + 1 < n else last):
                    i, u = np.uintp(r * LANES + l), np.uintp(at + l)
                    h = value(units[u] * scratch[i] + units[u + B_AT])
                    if drop:
                        h *= scratch[i + FACTORS_AT]
                    scratch[i + F_AT] += units[u + V_AT] * h

        @inner
        def add_unit_gradients(chosen, scratch, units, at, n, width, last, drop):
            if chosen != code:
                other_gradients(chosen, scratch, units, at, n, width, last, drop)
                return
            for r in range(n):
                for l in range(width if r + 1 < n else last):
                    i, u = np.uintp(r * LANES + l), np.uintp(at + l)
                    x, g, w, v = scratch[i], scratch[i + G_AT], units[u], units[u + V_AT]
                    h, slope = pair(w * x + units[u + B_AT])
                    above = g * v
                    if drop:
                        m = scratch[i + FACTORS_AT]
                        h *= m
                        above *= m
                    dz = gradient(above, slope, cuts, real)
                    scratch[i + F_AT] += v * h
                    scratch[i + DX_AT] += dz * w
                    units[u + DV_AT] += g * h
                    units[u + DB_AT] += dz
                    units[u + DW_AT] += dz * x

        return add_unit, add_unit_gradients

    @inner
    def nothing(chosen, scratch, units, at, n, width, last, drop):
        pass

    functions = nothing, nothing
    for name, code in CODES.items():
        functions = link(name, code, functions)
    return functions


def _hinges(real, count):
    """Functions that load the parameters of some units, and add them at one x."""
    zero, unit = real(0), np.uintp(VALUES * LANES)

    if count == 0:

        @inner
        def load(units, u):
            return ()

        @inner
        def value(parameters, x):
            return zero

        return load, value

    load_rest, value_of_rest = _hinges(real, count - 1)

    @inner
    def load(units, u):
        return (units[u], units[u + B_AT], units[u + V_AT]), load_rest(units, u + unit)

    @inner
    def value(parameters, x):
        (w, b, v), rest = parameters
        z = w * x + b
        return v * (zero if z <= zero else z) + value_of_rest(rest, x)

    return load, value


def _sums(real, count):
    """Functions that load and store what :func:`relu_units` adds up for some units, and do so."""
    zero, unit = real(0), np.uintp(VALUES_AND_SUMS * LANES)

    if count == 0:

        @inner
        def load(units, u):
            return (), ()

        @inner
        def add(parameters, sums, x, g, f, slope):
            return (), f, slope

        @inner
        def store(units, u, sums):
            pass

        return load, add, store

    load_rest, add_rest, store_rest = _sums(real, count - 1)

    @inner
    def load(units, u):
        parameters, sums = load_rest(units, u + unit)
        first = units[u], units[u + B_AT], units[u + VW_AT], units[u + VB_AT]
        return (first, parameters), ((units[u + A_AT], units[u + C_AT]), sums)

    @inner
    def add(parameters, sums, x, g, f, slope):
        (w, b, vw, vb), other_parameters = parameters
        (a, c), other_sums = sums
        active = w * x + b > zero
        a = a + g if active else a
        c = c + g * x if active else c
        slope = slope + vw if active else slope
        f = f + vb if active else f
        other_sums, f, slope = add_rest(other_parameters, other_sums, x, g, f, slope)
        return ((a, c), other_sums), f, slope

    @inner
    def store(units, u, sums):
        (a, c), other_sums = sums
        units[u + A_AT], units[u + C_AT] = a, c
        store_rest(units, u + unit, other_sums)

    return load, add, store


ROWS_AT_ONCE = 8
"""Lane rows for which a unit's parameters are loaded once."""

FORWARD_UNITS, BACKWARD_UNITS = 4, 2
"""Units whose parameters and sums fit into the registers."""


def relu_units(real):
    """ReLU without dropout: what all units add to a tile of whole lane rows, padding too.

    Forward adds f. Backward adds s = Σ_k v·w·[active] at dx, Σ_k v·b·[active] at f, from which
    f = s·x + Σ_k v·b·[active] + d, dx = g·s, and to each unit Σ g·[active] and Σ g·x·[active].
    """

    def forward_of(count):
        load, value = _hinges(real, count)

        @inner_vectorized
        def add_units(scratch, units, at, n_rows):
            lanes = np.uintp(LANES)
            for r in range(0, n_rows, ROWS_AT_ONCE):
                for l in range(LANES):
                    parameters = load(units, np.uintp(at + l))
                    i = np.uintp(r * LANES + l)
                    for _ in range(ROWS_AT_ONCE):
                        scratch[i + F_AT] += value(parameters, scratch[i])
                        i += lanes

        return add_units

    def backward_of(count):
        load, add, store = _sums(real, count)

        @inner_vectorized
        def add_sums(scratch, units, at, n_rows):
            lanes = np.uintp(LANES)
            for r in range(0, n_rows, ROWS_AT_ONCE):
                for l in range(LANES):
                    u, i = np.uintp(at + l), np.uintp(r * LANES + l)
                    parameters, sums = load(units, u)
                    for _ in range(ROWS_AT_ONCE):
                        x, g = scratch[i], scratch[i + G_AT]
                        f, slope = scratch[i + F_AT], scratch[i + DX_AT]
                        sums, f, slope = add(parameters, sums, x, g, f, slope)
                        scratch[i + F_AT], scratch[i + DX_AT] = f, slope
                        i += lanes
                    store(units, u, sums)

        return add_sums

    def over_units(build, count, n_vectors):
        add_some, add_one = build(count), build(1)

        @inner
        def add_all(scratch, units, at, n_hidden, n):
            n_rows = (n + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE * ROWS_AT_ONCE
            k = 0
            while k + count <= n_hidden:
                add_some(scratch, units, at + k * n_vectors * LANES, n_rows)
                k += count
            while k < n_hidden:
                add_one(scratch, units, at + k * n_vectors * LANES, n_rows)
                k += 1

        return add_all

    return (
        over_units(forward_of, FORWARD_UNITS, VALUES),
        over_units(backward_of, BACKWARD_UNITS, VALUES_AND_SUMS),
    )


@inner
def add_up(units, at, n_in, first, width, n_hidden, sums):
    """Add the sums in the lanes of a chunk to dw, db, dv [features, units each] in ``sums``."""
    n = n_in * n_hidden
    for k in range(n_hidden):
        for l in range(width):
            u = np.uintp(at + k * VALUES_AND_SUMS * LANES + l)
            to = (first + l % n_in) * n_hidden + k
            w, b, v = np.float64(units[u]), np.float64(units[u + B_AT]), units[u + V_AT]
            # what the units of a ReLU net collapsed
            a, c = units[u + A_AT], units[u + C_AT]
            sums[to] += units[u + DW_AT]
            sums[n + to] += units[u + DB_AT]
            sums[2 * n + to] += units[u + DV_AT]
            if a != 0 or c != 0:
                sums[to] += v * np.float64(c)
                sums[n + to] += v * np.float64(a)
                sums[2 * n + to] += w * c + b * a
