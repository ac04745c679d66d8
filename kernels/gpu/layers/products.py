"""Products of tiles on tensor cores, of numbers as they are or in terms.

A float32 is the sum of three bfloat16, a = a0 + a1 + a2, to its last bit. Of the nine products of
such sums those six are formed that are not below 2^-24 of the largest, smallest first: Henry, Tang
and Heinecke 2019, arXiv:1904.06376, section 2.
"""

import triton
import triton.language as tl

from ..machine.launch import INTERPRET

INTERPRETED = tl.constexpr(INTERPRET)


@triton.jit
def dot(a, b, acc=None):
    """acc + a b, in float32."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        # the interpreter would multiply the bits as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    # tf32 is how float32 is read; other types are taken as they are
    return tl.dot(a, b, acc, input_precision="tf32", out_dtype=tl.float32)


@triton.jit
def terms_of(a, OPERAND: tl.constexpr, TERMS: tl.constexpr):
    """A tile as products take it: one of type OPERAND, or three of bfloat16 whose sum it is."""
    if TERMS == 1:
        return a.to(OPERAND)
    else:
        first = a.to(tl.bfloat16)
        rest = a - first.to(tl.float32)
        second = rest.to(tl.bfloat16)
        third = (rest - second.to(tl.float32)).to(tl.bfloat16)
        return first, second, third


@triton.jit
def transposed(a, TERMS: tl.constexpr):
    """The transpose, of each term."""
    if TERMS == 1:
        return tl.trans(a)
    else:
        return tl.trans(a[0]), tl.trans(a[1]), tl.trans(a[2])


@triton.jit
def without_infinities(small):
    """A sum of small terms: of an infinity those are NaN, and it meets zeros among the other's."""
    return tl.where(tl.abs(small) < float("inf"), small, 0.0)


@triton.jit
def times(a, b, TERMS: tl.constexpr):
    """a b of two tiles in terms."""
    if TERMS == 1:
        return dot(a, b)
    else:
        small = dot(a[2], b[0])
        small = dot(a[1], b[1], small)
        small = dot(a[0], b[2], small)
        small = dot(a[1], b[0], small)
        small = dot(a[0], b[1], small)
        return dot(a[0], b[0], without_infinities(small))


@triton.jit
def add_product(acc, a, b, TERMS: tl.constexpr):
    """acc + a b: tensor cores cut off what they add to a sum, so in float32 they get a new one."""
    if TERMS == 1:
        return dot(a, b, acc)
    else:
        return acc + times(a, b, TERMS)
