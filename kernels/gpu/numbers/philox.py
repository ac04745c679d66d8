"""Dropout masks from a counter: Philox4x32-10 of the seed and of an element's place.

Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 3.2. Nothing is stored:
backward makes the masks of forward again. The masks are those of fastmlp.dropout.
"""

import triton
import triton.language as tl


@triton.jit
def load_key(seed_ptr):
    """The two words of the key; zeros, never used, without a seed."""
    if seed_ptr is None:
        key = tl.zeros((), tl.int64)
    else:
        key = tl.load(seed_ptr)
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def philox(key, place, block, LAYER: tl.constexpr = 0):
    """Four words a place (int64) from counter (place, block, LAYER): eight halves of 16 bits.

    Ten rounds of two products and two exclusive ors each. LLVM makes two instructions of a product,
    one a word; ways to write it that bring one for both cost more elsewhere (sm_90, Triton 3.7).
    """
    key0, key1 = key
    c0 = place.to(tl.uint32)
    c1 = (place >> 32).to(tl.uint32)
    c2 = tl.cast(block, tl.uint32)
    c3 = tl.full((), LAYER, tl.uint32)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1
        c3 = product0.to(tl.uint32)
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def mask(words, N: tl.constexpr, WHERE: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr):
    """Factor 0 or 1/(1 - p) by half ``N`` of the words; WHERE is 0 input, 1 hidden, 2 output."""
    word = words[N // 2]
    if N % 2 == 0:
        half = word & 0xFFFF
    else:
        half = word >> 16
    scale = tl.full((), DROPOUT[2 * WHERE + 1], COMPUTE)
    return tl.where(half >= DROPOUT[2 * WHERE], scale, 0.0)


@triton.jit
def layer_mask(
    key, rows, LAYER: tl.constexpr, WIDTH: tl.constexpr, DROPOUT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Factors 0 or 1/(1 - p) of a layer's units, [rows, WIDTH]; see layer_dropout_masks.

    DROPOUT has two numbers for each layer, the input being layer 0. A counter serves eight units:
    WIDTH is a power of two of at least 8.
    """
    blocks = tl.arange(0, WIDTH // 8)[None, :]
    w0, w1, w2, w3 = philox(key, rows.to(tl.int64)[:, None], blocks, LAYER)
    # a unit's number in binary: block, two digits of the word, one of the half
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    halves = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (rows.shape[0], WIDTH))
    scale = tl.full((), DROPOUT[2 * LAYER + 1], COMPUTE)
    return tl.where(halves >= DROPOUT[2 * LAYER], scale, 0.0)


def dropout_constants(*probabilities: float) -> tuple:
    """The constant DROPOUT of the kernels: what a half must reach, and the factor if it does.

    Two numbers for each place, for input, hidden unit and output: round(65536 p), -1 for p = 0, and
    1/(1 - p), 0 for p = 1. Kernels are compiled anew for each set of probabilities.
    """
    constants = ()
    for p in probabilities:
        limit = round(65536 * p) if p > 0 else -1
        constants += (limit, 0.0 if p == 1 else 1 / (1 - p))
    return constants
