"""Scalar subnets as written, on tiles of rows x features: any activation, dropout, one per feature.

f(x) = m_out (Σ_k w2_k m_k σ(w1_k m_in x + b1_k) + b2) with the masks m of philox.py, 1 without
dropout. Parameters of one subnet are vectors over units; those of one subnet a feature
(FEATUREWISE) are matrices of units x features, so that neighbouring features lie side by side.
"""

import triton
import triton.language as tl

from ..machine.tiles import load_scalar
from ..numbers.activations import preactivation, times_slope
from ..numbers.philox import mask, philox


@triton.jit
def load_unit(ptr, k, cols, n_in, inside, FEATUREWISE: tl.constexpr, COMPUTE: tl.constexpr):
    """A parameter of unit ``k``: a number, or [1, cols]; 0 where absent or ``inside`` is false."""
    if FEATUREWISE:
        if ptr is None:
            return tl.zeros((1, cols.shape[0]), COMPUTE)
        else:
            ptrs = ptr + tl.cast(k, tl.int64) * n_in + cols
            return tl.load(ptrs, mask=(cols < n_in) & inside, other=0.0).to(COMPUTE)[None, :]
    else:
        return load_scalar(ptr, k, inside, COMPUTE)


@triton.jit
def zeros_of(x):
    """Zeros in the integer type of the size of x, held by the very threads that hold x.

    Only LLVM finds that they are zero: until then what they are added to gets the layout of x.
    """
    if x.dtype == tl.float64:
        bits = x.to(tl.uint64, bitcast=True)
    else:
        bits = x.to(tl.uint32, bitcast=True)
    return (bits & 1) >> 1


@triton.jit
def first_words(x, key, rows, cols, n_in, DROPOUT: tl.constexpr):
    """Places of a tile of elements, and the words of their first masks; zeros without dropout."""
    if DROPOUT[0] < 0 and DROPOUT[2] < 0 and DROPOUT[4] < 0:
        place = tl.zeros(x.shape, tl.int64)
        words = (place, place, place, place)
    else:
        # else each mask would pass from thread to thread through shared memory
        tie = zeros_of(x).to(tl.int64)
        place = rows.to(tl.int64)[:, None] * n_in + cols[None, :] + tie
        words = philox(key, place, 0)
    return place, words


@triton.jit
def drop(value, words, N: tl.constexpr, WHERE: tl.constexpr, DROPOUT: tl.constexpr):
    """The value times its mask, a product so that NaN and infinity times 0 are NaN."""
    if DROPOUT[2 * WHERE] < 0:
        return value
    else:
        return value * mask(words, N, WHERE, DROPOUT, value.dtype)


@triton.jit
def add_units(
    total, x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, first, cols, n_in, words,
    FIRST_MASK: tl.constexpr, UNITS: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    FEATUREWISE: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Add the terms of UNITS units from ``first`` on to f(x), or to f'(x) if SLOPE."""
    for i in tl.static_range(UNITS):
        w1 = load_unit(fc1_weight_ptr, first + i, cols, n_in, True, FEATUREWISE, COMPUTE)
        b1 = load_unit(fc1_bias_ptr, first + i, cols, n_in, True, FEATUREWISE, COMPUTE)
        w2 = load_unit(fc2_weight_ptr, first + i, cols, n_in, True, FEATUREWISE, COMPUTE)
        value, slope = ACT(preactivation(x, w1, b1))
        if SLOPE:
            weight = drop(w1 * w2, words, FIRST_MASK + i, 1, DROPOUT)
            total += times_slope(weight, slope, ACT)
        else:
            total += w2 * drop(value, words, FIRST_MASK + i, 1, DROPOUT)
    return total


@triton.jit
def sum_units(
    x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, cols, n_in, key, place, words,
    N_HIDDEN: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, FEATUREWISE: tl.constexpr,
    DROPOUT: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Σ_k w2_k m_k σ(z_k), or Σ_k w2_k m_k σ'(z_k) w1_k if SLOPE; x is the subnet's own input."""
    total = tl.zeros_like(x)
    if DROPOUT[2] < 0:
        for k in range(N_HIDDEN):
            total = add_units(
                total, x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, k, cols, n_in, words,
                0, 1, ACT, SLOPE, FEATUREWISE, DROPOUT, COMPUTE,
            )  # fmt: skip
    else:
        # of the eight masks of the first counter two are the input's and the output's
        START: tl.constexpr = N_HIDDEN if N_HIDDEN < 6 else 6
        FULL: tl.constexpr = (N_HIDDEN - START) // 8
        REST: tl.constexpr = (N_HIDDEN - START) % 8
        total = add_units(
            total, x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, 0, cols, n_in, words,
            2, START, ACT, SLOPE, FEATUREWISE, DROPOUT, COMPUTE,
        )  # fmt: skip
        for block in range(1, FULL + 1):
            total = add_units(
                total, x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, 8 * block - 2, cols,
                n_in, philox(key, place, block), 0, 8, ACT, SLOPE, FEATUREWISE, DROPOUT, COMPUTE,
            )  # fmt: skip
        if REST > 0:
            total = add_units(
                total, x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, N_HIDDEN - REST, cols,
                n_in, philox(key, place, FULL + 1), 0, REST, ACT, SLOPE, FEATUREWISE, DROPOUT,
                COMPUTE,
            )  # fmt: skip
    return total


@triton.jit
def subnet_value(
    x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, rows, cols, n_in, key,
    N_HIDDEN: tl.constexpr, ACT: tl.constexpr, FEATUREWISE: tl.constexpr, DROPOUT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """f of a tile whose rows and columns in the whole input are ``rows`` and ``cols``."""
    place, words = first_words(x, key, rows, cols, n_in, DROPOUT)
    x = drop(x, words, 0, 0, DROPOUT)
    f = sum_units(
        x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, cols, n_in, key, place, words,
        N_HIDDEN, ACT, False, FEATUREWISE, DROPOUT, COMPUTE,
    )  # fmt: skip
    f += load_unit(fc2_bias_ptr, 0, cols, n_in, True, FEATUREWISE, COMPUTE)
    return drop(f, words, 1, 2, DROPOUT)
