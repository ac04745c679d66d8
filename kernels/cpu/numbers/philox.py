"""Dropout masks from a counter: Philox4x32 with 10 rounds (Salmon et al., SC 2011, section 3.2).

Key: the 64 bits of the seed. Counter: the element's place, low and high 32 bits; the block; the
layer. The four words of block b are eight halves, low half first, for the masks 8b … 8b + 7 of the
element. Scalar subnets are layer 0: mask 0 is the input's, mask 1 the output's, mask 2 + k that of
hidden unit k. In hidden layer l ≥ 1 of a dense network, whose elements are rows, unit k has mask k.
A number is dropped where its half is below round(65536·p), else multiplied by 1/(1 − p).
"""

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from ..machine.jit import address_of, array_at, inner, select
from ..machine.vectors import LANE_BYTES, count_from, lanes_of, load, load_words, low_words, store

MASKS_PER_BLOCK = 8
MASKS_PER_WORD = 32
"""Masks of one element whose outcomes :func:`draw_kept` packs into one word."""

UNIT_MASK = 2
"""The mask of hidden unit 0."""

_LOW, _NONE = np.uint64(0xFFFFFFFF), np.uint64(0)
_HALF = np.uint32(0xFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_32 = np.uint64(32)
AT_ONCE = LANE_BYTES // 8
"""Blocks that are drawn as one vector of their places."""


def _rounds(count):
    """Function (c0, c1, c2, c3, k0, k1): so many rounds of a counter under a key.

    The low 32 bits of each count; what is above is not cleared. Unrolled: the keys of the rounds
    are then made once for all blocks.
    """
    if count == 0:

        @inner
        def no_rounds(c0, c1, c2, c3, k0, k1):
            return c0, c1, c2, c3

        return no_rounds

    rest = _rounds(count - 1)

    @inner
    def rounds(c0, c1, c2, c3, k0, k1):
        # cleared here, a vector takes one instruction for each product
        product0, product1 = (c0 & _LOW) * _M0, (c2 & _LOW) * _M1
        c0, c2 = (product1 >> _32) ^ c1 ^ k0, (product0 >> _32) ^ c3 ^ k1
        return rest(c0, product1, c2, product0, k0 + _W0, k1 + _W1)

    return rounds


_ten_rounds = _rounds(10)


@inner
def _words(at, block, layer, key):
    """The four words of a block of one element, each the low half; of numbers, or vectors."""
    nothing = at & _NONE
    block, layer = nothing | np.uint64(block), nothing | np.uint64(layer)
    return _ten_rounds(at, at >> _32, block, layer, key, key >> _32)


@inner
def _store_words(four, at, row):
    w0, w1, w2, w3 = four
    store(at, low_words(w0))
    store(at + row, low_words(w1))
    store(at + 2 * row, low_words(w2))
    store(at + 3 * row, low_words(w3))


@inner
def draw_words(seed, place, block, n, words, to=0, layer=0):
    """words[0 … 3, to + e] = the words of a block, for the elements at ``place`` + e, e < n."""
    key, first = np.uint64(seed), np.uint64(place)
    row = 4 * words.shape[1]
    at, whole = address_of(words) + 4 * to, n // AT_ONCE * AT_ONCE
    for e in range(0, whole, AT_ONCE):
        _store_words(_words(count_from(first + np.uint64(e)), block, layer, key), at, row)
        at += 4 * AT_ONCE
    for e in range(whole, n):
        i = to + e
        w0, w1, w2, w3 = _words(first + np.uint64(e), block, layer, key)
        words[0, i], words[1, i] = np.uint32(w0), np.uint32(w1)
        words[2, i], words[3, i] = np.uint32(w2), np.uint32(w3)


@inner
def draw_lane_words(keys, places, block, words, layer):
    """words[0 … 3, l] = the words of a block of the element at places[l], of the key keys[l].

    Of a whole number of vectors of 64-bit integers.
    """
    at, row = address_of(words), 4 * words.shape[1]
    for l in range(0, keys.size, AT_ONCE):
        key = load(address_of(keys) + 8 * l, np.uint64)
        place = load(address_of(places) + 8 * l, np.uint64)
        _store_words(_words(place, block, layer, key), at, row)
        at += 4 * AT_ONCE


@intrinsic
def _halves_at_least(typingctx, words, limits):
    """0xFFFF for each half of a vector's words that is at least the like half of ``limits``."""

    def codegen(context, builder, sig, args):
        kind = args[0].type
        halves = ir.VectorType(ir.IntType(16), 2 * kind.count)
        a, b = (builder.bitcast(arg, halves) for arg in args)
        kept = builder.sext(builder.icmp_unsigned(">=", a, b), halves)
        return builder.bitcast(kept, kind)

    return words(words, words), codegen


@inner
def limits_of(p_low, p_high):
    """What a word's halves must reach to be kept, and a bit for each that may."""
    low, high = round(65536 * p_low), round(65536 * p_high)
    limits = min(low, 65535) | min(high, 65535) << 16
    return np.uint32(limits), np.uint32((low < 65536) | (high < 65536) << 16)


@inner
def kept_bit(mask):
    """Where the words of :func:`draw_kept` have a mask's outcome."""
    return np.uint32(1 << (mask % MASKS_PER_WORD // 2 + 16 * (mask % 2)))


@inner
def draw_kept(seed, place, group, n_masks, first, rest, n, kept):
    """kept[e] = which masks keep the element at ``place`` + e; writes whole vectors of e < n.

    Mask m, of 32·group ≤ m < n_masks and at most 32, has the bit :func:`kept_bit`.

    Args:
        seed: The key.
        place: Of element 0.
        group: Which 32 masks.
        n_masks: Of an element, in all groups.
        first: The :func:`limits_of` the first two masks of the group.
        rest: Those of the others.
        n: Elements.
        kept: uint32, with room for whole vectors.
    """
    key, start, at = np.uint64(seed), np.uint64(place), address_of(kept)
    block = group * (MASKS_PER_WORD // MASKS_PER_BLOCK)
    n_left = min(n_masks - group * MASKS_PER_WORD, MASKS_PER_WORD)
    n_blocks = (n_left + MASKS_PER_BLOCK - 1) // MASKS_PER_BLOCK
    for e in range(0, n, AT_ONCE):
        places = count_from(start + np.uint64(e))
        bits = low_words(places & _NONE)
        limits, ones = first
        for i in range(n_blocks):
            w0, w1, w2, w3 = _words(places, block + i, 0, key)
            bits = bits | (_halves_at_least(low_words(w0), limits) & (ones << 4 * i))
            limits, ones = rest
            bits = bits | (_halves_at_least(low_words(w1), limits) & (ones << 4 * i + 1))
            bits = bits | (_halves_at_least(low_words(w2), limits) & (ones << 4 * i + 2))
            bits = bits | (_halves_at_least(low_words(w3), limits) & (ones << 4 * i + 3))
        store(at, bits)
        at += 4 * AT_ONCE


@inner
def scale_of(p, real):
    """What is kept is multiplied by it."""
    return real(1 / (1 - p)) if p < 1 else real(0)


@inner
def factor_of(kept, bit, scale, real):
    """``scale`` where a word of :func:`draw_kept` has a mask's bit, else 0."""
    return scale if (kept & bit) != 0 else real(0)


@inner
def multiply_kept(a, kept, bit, scale, n, real):
    """a[e] *= what the mask of this bit makes of the element."""
    for e in range(n):
        a[e] *= factor_of(kept[e], bit, scale, real)


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
    zero, scale = real(0), scale_of(p, real)
    words_at, factors_at, lanes = address_of(row), address_of(factors), lanes_of(real)
    whole = n // lanes * lanes
    for e in range(0, whole, lanes):
        halves = (load_words(words_at + 4 * e, real) >> shift) & _HALF
        store(factors_at, select(halves >= threshold, scale, zero))
        factors_at += LANE_BYTES
    for e in range(whole, n):
        factors[e] = scale if ((row[e] >> shift) & _HALF) >= threshold else zero
