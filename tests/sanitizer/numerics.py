"""Triton's interpreter with the arithmetic of a card, where that is not NumPy's.

As Triton's PTX has it (sources: the PTX of small kernels, and the PTX ISA's table of errors):
``fma`` is rounded once; in float32 a division is ``div.full`` (2 ulps), a square root
``sqrt.approx.ftz`` (1 ulp), its inverse ``rsqrt.approx.ftz`` (2 ulps), an exponential
``ex2.approx`` (2 ulps) of the rounded product with log2(e); logarithms are within 2 ulps. A result
is one of the floats that the bound allows, the same one whenever the operands are the same.
Products that may take tf32 see no more of float32, and bfloat16 is the nearest one.
"""

import numpy as np
import triton.language as tl
from tensor_cores import to_bfloat16, to_tf32
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

LOG2_E = np.float32(1.4426950408889634)
SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal


def inexact(exact, ulps, *operands):
    """Floats within ``ulps`` of the exact results, in float64: which, the operands' bits decide."""
    nearest = exact.astype(np.float32)
    bits = np.zeros(nearest.shape, np.uint32)
    for operand in operands:
        bits = (bits ^ np.ascontiguousarray(operand).view(np.uint32)) * np.uint32(2654435761)
        bits ^= bits >> np.uint32(15)
    # 2 ulps: one float below what was rounded, or up to two beyond it
    step = (bits % np.uint32(2 * ulps)).astype(np.int32) - (ulps - 1)
    step = np.where(np.abs(exact) < np.abs(nearest), -step, step)
    moved = (nearest.view(np.int32) + step).view(np.float32)
    movable = (nearest != 0) & np.isfinite(nearest) & (moved != 0) & np.isfinite(moved)
    return np.where(movable, moved, nearest)


def flushed(x):
    """Subnormal numbers as 0."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.float32(0), x)


def divide(x, y):
    quotient = inexact(x.astype(np.float64) / y, 2, x, y)
    # the inverse of a power of two is exact
    power = np.frexp(y)[0]
    return np.where(np.abs(power) == 0.5, x / y, quotient)


def square_root(x):
    x = flushed(x)
    return inexact(np.sqrt(x.astype(np.float64)), 1, x)


def inverse_root(x):
    x = flushed(x)
    return inexact(1 / np.sqrt(x.astype(np.float64)), 2, x)


def exponential(x):
    return _ex2(x * LOG2_E)


def power_of_two(x):
    return flushed(_ex2(flushed(x)))


def _ex2(x):
    # 1 at 0 is promised
    return np.where(x == 0, np.float32(1), inexact(np.exp2(x.astype(np.float64)), 2, x))


def logarithm(x):
    return inexact(np.log(x.astype(np.float64)), 2, x)


def fma(x, y, z):
    """x y + z, rounded once; near the smallest subnormal numbers perhaps twice."""
    if z.dtype == np.float32:
        product = x.astype(np.float64) * y
        total = product + z
        if ((total.view(np.int64) & 0x1FFFFFFF) != 0x10000000).all():
            return total.astype(np.float32)
        # halfway between two floats after a first rounding: what that took away decides
        total, rest = two_sum(product, z.astype(np.float64))
        toward = np.where(rest > 0, np.inf, -np.inf)
        return np.where(rest == 0, total, np.nextafter(total, toward)).astype(np.float32)
    plain = x * y + z
    product, low = two_product(x, y)
    total, rest = two_sum(product, z)
    once = total + (rest + low)
    return np.where(np.isfinite(once), once, plain)


def two_sum(a, b):
    """a + b rounded, and what the rounding took away: Knuth."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a, b):
    """a b rounded, and what the rounding took away: Dekker, with Veltkamp's splitting."""
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    product = a * b
    low = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, low


def split(a):
    scaled = a * 134217729.0
    high = scaled - (scaled - a)
    return high, a - high


FUNCTIONS = {
    "create_fdiv": divide,
    "create_sqrt": square_root,
    "create_rsqrt": inverse_root,
    "create_exp": exponential,
    "create_exp2": power_of_two,
    "create_log": logarithm,
}


def _in_float32(plain, function):
    def compute(self, *operands):
        if any(operand.data.dtype != np.float32 for operand in operands):
            return plain(self, *operands)
        with np.errstate(all="ignore"):
            result = function(*(operand.data for operand in operands))
        return TensorHandle(result, operands[0].dtype.scalar)

    return compute


def _fused(plain):
    def compute(self, x, y, z):
        if z.data.dtype not in (np.float32, np.float64):
            return plain(self, x, y, z)
        with np.errstate(all="ignore"):
            return TensorHandle(fma(x.data, y.data, z.data), z.dtype.scalar)

    return compute


def _of_tf32(plain):
    def compute(self, a, b, d, input_precision, *rest):
        if a.data.dtype == np.float32 and input_precision == ir.INPUT_PRECISION.TF32:
            a, b = (TensorHandle(to_tf32(t.data), t.dtype.scalar) for t in (a, b))
        with np.errstate(all="ignore"):
            return plain(self, a, b, d, input_precision, *rest)

    return compute


def _rounded(plain):
    def convert(self, src, dst_type):
        if src.data.dtype != np.float32 or dst_type.scalar != tl.bfloat16:
            return plain(self, src, dst_type)
        bits = to_bfloat16(src.data).view(np.uint32) >> 16
        return TensorHandle(bits.astype(np.uint16), dst_type.scalar)

    return convert


def install():
    """From here on the interpreter computes as a card does."""
    for name, function in FUNCTIONS.items():
        plain = getattr(InterpreterBuilder, name)
        setattr(InterpreterBuilder, name, _in_float32(plain, function))
    InterpreterBuilder.create_fma = _fused(InterpreterBuilder.create_fma)
    InterpreterBuilder.create_dot = _of_tf32(InterpreterBuilder.create_dot)
    InterpreterBuilder.create_fp_trunc = _rounded(InterpreterBuilder.create_fp_trunc)
