"""The order of rows in an epoch, the same on every backend."""

import numpy as np
import torch

from fastmlp.arguments import integer

ROUNDS = 12
MIN_BITS = 6
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_LOW = np.uint64(_MASK)


def _philox(counter, key):
    """Four random 32-bit numbers by Philox4x32-10, of four counter words and two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def round_keys(seed, stream, epoch):
    """The keys of the network's rounds, as uint64 numbers below 2³²."""
    keys = []
    for i in range(0, ROUNDS, 4):
        counter = epoch & _MASK, i, stream & _MASK, stream >> 32
        keys += _philox(counter, (seed & _MASK, seed >> 32))
    return np.array(keys, np.uint64)


def step_key(seed, stream, step):
    """The key of the dropout masks of one step, below 2⁶³."""
    # the second word tells it from the keys of an epoch's order
    counter = step & _MASK, (step >> 32) | 0x80000000, stream & _MASK, stream >> 32
    w0, w1, _, _ = _philox(counter, (seed & _MASK, seed >> 32))
    return (w1 & 0x7FFFFFFF) << 32 | w0


def _mix(x):
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x7FEB352D)) & _LOW
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & _LOW
    return x ^ (x >> np.uint64(16))


def _permute(i, keys, left_bits, right_bits):
    left_mask, right_mask = ((np.uint64(1) << b) - np.uint64(1) for b in (left_bits, right_bits))
    left, right = i >> right_bits, i & right_mask
    for k in range(0, ROUNDS, 2):
        left = left ^ (_mix(right ^ keys[k]) & left_mask)
        right = right ^ (_mix(left ^ keys[k + 1]) & right_mask)
    return (left << right_bits) | right


def batch_order(n_rows: int, *, epoch: int, model: int = 0, seed: int = 0) -> torch.Tensor:
    """The order in which :func:`fastmlp.fit` takes the rows in one epoch, shuffled.

    Batch b of the epoch is ``order[b * batch_size : (b + 1) * batch_size]``. The order depends on
    the arguments alone: it is computed from counters, by a keyed bijection of the row numbers, and
    is the same on every backend. Where a batch holds all rows, ``fit`` takes them as they come.

    Args:
        n_rows: Number of rows, at least 1, below 2³².
        epoch: Number of the epoch, from 0.
        model: Place of the model in the list given to ``fit``; 0 where ``seed`` was a sequence
            with one value per model.
        seed: The seed given to ``fit``, or the model's own.

    Returns:
        A permutation of 0 … n_rows − 1, int64. Shape ``[n_rows]``.

    Raises:
        TypeError: An argument is no int.
        ValueError: An argument is out of range.

    Source: a Feistel network with cycle walking, Black and Rogaway 2002, Ciphers with arbitrary
    finite domains, section 5; round keys by Philox4x32-10, Salmon et al. 2011.

    Example:
        >>> batch_order(5, epoch=0).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    n_rows = integer("n_rows", n_rows, 1, 2**32 - 1)
    epoch = integer("epoch", epoch, 0, 2**32 - 1)
    model, seed = integer("model", model, 0, 2**63 - 1), integer("seed", seed, 0, 2**63 - 1)
    bits = max(MIN_BITS, (n_rows - 1).bit_length())
    left_bits, right_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    keys = round_keys(seed, model, epoch)
    order = _permute(np.arange(n_rows, dtype=np.uint64), keys, left_bits, right_bits)
    beyond = np.flatnonzero(order >= n_rows)
    while len(beyond):
        order[beyond] = _permute(order[beyond], keys, left_bits, right_bits)
        beyond = beyond[order[beyond] >= n_rows]
    return torch.from_numpy(order.astype(np.int64))
