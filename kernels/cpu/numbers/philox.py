"""Dropout masks from a counter: Philox4x32 with 10 rounds (Salmon et al., SC 2011, section 3.2).

Key: the 64 bits of the seed. Counter: the element's place, low and high 32 bits; the block; the
layer. The four words of block b are eight halves, low half first, for the masks 8b … 8b + 7 of the
element. Scalar subnets are layer 0: mask 0 is the input's, mask 1 the output's, mask 2 + k that of
hidden unit k. In hidden layer l ≥ 1 of a dense network, whose elements are rows, unit k has mask k.
A number is dropped where its half is below round(65536·p), else multiplied by 1/(1 − p).
"""

import numpy as np

from ..machine.jit import array_at, inner

MASKS_PER_BLOCK = 8
UNIT_MASK = 2
"""The mask of hidden unit 0."""

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint32(0xFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_32 = np.uint64(32)


@inner
def _words(at, block, layer, key):
    """The four words of a block of one element."""
    c0, c1 = at & _LOW, at >> _32
    c2, c3 = np.uint64(block), np.uint64(layer)
    k0, k1 = key & _LOW, key >> _32
    for _ in range(10):
        product0, product1 = _M0 * c0, _M1 * c2
        c0, c2 = (product1 >> _32) ^ c1 ^ k0, (product0 >> _32) ^ c3 ^ k1
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@inner
def draw_words(seed, place, block, n, words, to=0, layer=0):
    """words[0 … 3, to + e] = the words of a block, for the elements at ``place`` + e, e < n."""
    # four views of the rows may overlap for all that LLVM knows: 15 ns an element instead of 2.4
    key = np.uint64(seed)
    for e in range(n):
        at, i = np.uint64(place) + np.uint64(e), to + e
        words[0, i], words[1, i], words[2, i], words[3, i] = _words(at, block, layer, key)


@inner
def draw_lane_words(keys, places, block, words, layer):
    """words[0 … 3, l] = the words of a block of the element at places[l], of the key keys[l]."""
    for l in range(keys.size):
        at, key = np.uint64(places[l]), np.uint64(keys[l])
        words[0, l], words[1, l], words[2, l], words[3, l] = _words(at, block, layer, key)


@inner
def seed_at_address(seed_at):
    """The seed that a tensor holds; 0 where there is none."""
    return array_at(seed_at, 1, np.int64)[0] if seed_at != 0 else 0


@inner
def draw_factors(words, mask, p, n, factors, real):
    """factors[e] = 0 where the element is dropped by this mask of its block, else 1/(1 − p)."""
    half = mask % MASKS_PER_BLOCK
    row, shift = words[half // 2], np.uint32(16 * (half % 2))
    threshold = np.uint32(round(65536 * p))
    zero, scale = real(0), real(1 / (1 - p)) if p < 1 else real(0)
    for e in range(n):
        factors[e] = scale if ((row[e] >> shift) & _HALF) >= threshold else zero
