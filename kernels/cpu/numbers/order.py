"""The order of rows in an epoch: a bijection of {0 … n − 1} that is computed, not stored.

A Feistel network of 12 half rounds permutes {0 … 2^k − 1}, 2^k ≥ n; what leaves {0 … n − 1} is
permuted again until it is back. Every position stands for itself, so that any backend, any piece of
an epoch and any number of threads get the same order. The round keys are Philox4x32-10 of
(epoch, stream) under the seed.

Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains, section 5 (cycle walking);
Philox: Salmon et al. 2011; the mixing of 32 bits: C. Wellons, lowbias32 (public domain).
"""

import numpy as np

from ..machine.jit import inner

ROUNDS = 12
"""Half rounds. Fewer leave small sets unevenly mixed: 5 rows want 8, on a domain of 64."""

MIN_BITS = 6
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@inner
def _philox(counter0, counter1, counter2, counter3, key0, key1):
    """Four random 32-bit numbers of a 128-bit counter and a 64-bit key."""
    for _ in range(10):
        product0, product1 = _M0 * counter0, _M1 * counter2
        counter0, counter2 = (
            (product1 >> _32) ^ counter1 ^ key0,
            (product0 >> _32) ^ counter3 ^ key1,
        )
        counter1, counter3 = product1 & _LOW, product0 & _LOW
        key0, key1 = (key0 + _W0) & _LOW, (key1 + _W1) & _LOW
    return counter0, counter1, counter2, counter3


@inner
def _round_keys(seed, stream, epoch):
    keys = np.empty(ROUNDS, np.uint64)
    seed, stream, epoch = np.uint64(seed), np.uint64(stream), np.uint64(epoch)
    for i in range(0, ROUNDS, 4):
        keys[i], keys[i + 1], keys[i + 2], keys[i + 3] = _philox(
            epoch & _LOW, np.uint64(i), stream & _LOW, stream >> _32, seed & _LOW, seed >> _32
        )
    return keys


@inner
def step_key(seed, stream, step):
    """The key of the dropout masks of one step, below 2^63."""
    seed, stream, step = np.uint64(seed), np.uint64(stream), np.uint64(step)
    # the second word tells it from the keys of an epoch's order
    w0, w1, _, _ = _philox(
        step & _LOW,
        (step >> _32) | np.uint64(0x80000000),
        stream & _LOW,
        stream >> _32,
        seed & _LOW,
        seed >> _32,
    )
    return np.int64(((w1 & np.uint64(0x7FFFFFFF)) << _32) | w0)


@inner
def _mix(x):
    """A bijection of 32 bits of which every bit depends on every other."""
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & _LOW
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & _LOW
    return x ^ (x >> np.uint64(16))


@inner
def _permuted(i, keys, left_bits, right_bits):
    left_mask = (np.uint64(1) << left_bits) - np.uint64(1)
    right_mask = (np.uint64(1) << right_bits) - np.uint64(1)
    left, right = i >> right_bits, i & right_mask
    for k in range(0, ROUNDS, 2):
        left ^= _mix(right ^ keys[k]) & left_mask
        right ^= _mix(left ^ keys[k + 1]) & right_mask
    return (left << right_bits) | right


@inner
def fill_order(order, seed, stream, epoch):
    """order[i] = the row that comes at position i of an epoch."""
    n = order.size
    bits = MIN_BITS
    while (1 << bits) < n:
        bits += 1
    left_bits = np.uint64(bits // 2)
    right_bits = np.uint64(bits) - left_bits
    keys = _round_keys(seed, stream, epoch)
    for i in range(n):
        order[i] = _permuted(np.uint64(i), keys, left_bits, right_bits)
    for i in range(n):
        while order[i] >= n:
            order[i] = _permuted(order[i], keys, left_bits, right_bits)
