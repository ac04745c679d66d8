"""What tensor cores do to numbers, in NumPy: for the tests of products on them.

A product of two bfloat16 or tf32 is exact; some of them and the sum so far are then shifted to the
exponent of the largest and cut off there, and the sum is cut off to float32 (Fasi, Higham, Mikaitis
and Pranesh 2021, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7:e330, sections
3 and 4). Newer cards keep bits beyond the 24 that are kept here.
"""

import numpy as np


def to_bfloat16(x):
    """float32 rounded to the nearest bfloat16, ties to even; NaN and infinities stay."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x).astype(np.float32)


def to_tf32(x):
    """float32 without the 13 bits that tensor cores do not look at."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), bits.view(np.float32), x).astype(np.float32)


def terms_of(x):
    """Three bfloat16 whose sum a float32 is, as float32; NaN behind an infinity."""
    with np.errstate(invalid="ignore"):
        first = to_bfloat16(x)
        second = to_bfloat16(x - first)
        return first, second, to_bfloat16(x - first - second)


def dot(a, b, total, terms=16):
    """total + a b, ``terms`` products at a time; operands that are exact in what is multiplied."""
    total = np.asarray(total, np.float64)
    for k in range(0, a.shape[1], terms):
        left, right = a[:, k : k + terms].astype(np.float64), b[k : k + terms].astype(np.float64)
        summands = left[:, :, None] * right[None]
        summands = np.concatenate([summands, total[:, None]], axis=1)
        _, exponent = np.frexp(np.abs(summands).max(axis=1))
        unit = np.ldexp(1.0, exponent - 24)
        total = _cut_to_float32((np.trunc(summands / unit[:, None]) * unit[:, None]).sum(axis=1))
    return total.astype(np.float32)


def _cut_to_float32(x):
    nearest = x.astype(np.float32).astype(np.float64)
    beyond = np.abs(nearest) > np.abs(x)
    return np.where(beyond, np.nextafter(nearest.astype(np.float32), np.float32(0)), nearest)


def split_product(a, b):
    """a b of float32 as the kernels form it of bfloat16 terms."""
    left, right = terms_of(a), terms_of(b)
    total = np.zeros((len(a), b.shape[1]))
    for i, j in ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)):
        total = dot(left[i], right[j], total)
    return total
