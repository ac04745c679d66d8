"""The order of rows in an epoch and the keys of dropout masks, computed from counters.

The numbers of `kernels/cpu/numbers/order.py`, where the method and its sources are.
"""

import triton
import triton.language as tl

MIN_BITS = tl.constexpr(6)


@triton.jit
def split(seed):
    """The low and the high 32 bits."""
    return (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def order_keys(seed, stream, epoch, SHUFFLE: tl.constexpr):
    """The twelve keys of an epoch's order; none where the rows come as they are."""
    if SHUFFLE:
        low, high = split(stream)
        e = epoch.to(tl.uint32)
        i = tl.zeros((), tl.uint32)
        a0, a1, a2, a3 = tl.philox_impl(e, i, low, high, *split(seed))
        b0, b1, b2, b3 = tl.philox_impl(e, i + 4, low, high, *split(seed))
        c0, c1, c2, c3 = tl.philox_impl(e, i + 8, low, high, *split(seed))
        return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3
    else:
        return ()


@triton.jit
def step_key(seed, stream, step, DRAWS: tl.constexpr):
    """The two words of the key of a step's dropout masks; none where there are no masks."""
    if DRAWS:
        low, high = split(stream)
        # the second word tells it from the keys of an epoch's order
        second = tl.full((), 0x80000000, tl.uint32)
        w0, w1, _, _ = tl.philox_impl(step.to(tl.uint32), second, low, high, *split(seed))
        return w0, w1 & 0x7FFFFFFF
    else:
        return ()


@triton.jit
def mix(x):
    """A bijection of 32 bits of which every bit depends on every other."""
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def permuted(i, keys, left_bits, right_bits):
    one = tl.full((), 1, tl.uint32)
    left_mask = (one << left_bits) - one
    right_mask = (one << right_bits) - one
    left, right = i >> right_bits, i & right_mask
    for k in tl.static_range(0, 12, 2):
        left = left ^ (mix(right ^ keys[k]) & left_mask)
        right = right ^ (mix(left ^ keys[k + 1]) & right_mask)
    return (left << right_bits) | right


@triton.jit
def rows_of(positions, stop, keys, n_rows, SHUFFLE: tl.constexpr):
    """The rows at some positions of an epoch, int64; row 0 beyond ``stop``."""
    positions = tl.where(positions < stop, positions, 0)
    if SHUFFLE:
        bits = tl.full((), MIN_BITS, tl.uint32)
        while (tl.full((), 1, tl.int64) << bits.to(tl.int64)) < n_rows:
            bits += 1
        left_bits = bits >> 1
        right_bits = bits - left_bits
        rows = permuted(positions.to(tl.uint32), keys, left_bits, right_bits)
        n = n_rows.to(tl.uint32)
        while tl.max((rows >= n).to(tl.int32)) > 0:
            rows = tl.where(rows >= n, permuted(rows, keys, left_bits, right_bits), rows)
        return rows.to(tl.int64)
    else:
        return positions.to(tl.int64)


@triton.jit
def find(
    items, first, stop, keys, n_rows, weight_ptr,
    PER_ROW: tl.constexpr, SHUFFLE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Where the items of a batch are in x and y, which of them there are, and their weights."""
    positions = first + items // PER_ROW
    inside = positions < stop
    rows = rows_of(positions, stop, keys, n_rows, SHUFFLE)
    if weight_ptr is None:
        weight = inside.to(COMPUTE)
    else:
        weight = tl.load(weight_ptr + rows, mask=inside, other=0.0)
    return rows * PER_ROW + items % PER_ROW, inside, weight
