"""Sines and cosines of turns, and polynomials."""

import triton
import triton.language as tl

# sin(2πr) = r u S(u) with u = r² - 1/4, cos(2πr) = v C(v) with v = r² - 1/16, for |r| ≤ 1/2. With
# the zeros factored out S and C are smooth and never vanish, so nothing cancels and the zeros come
# out exact. Minimax fits (Remez) of the relative error, highest power first: 4.0e-9, 1.9e-10,
# 8.0e-18 and 2.5e-19.
SIN32 = tl.constexpr(
    (
        3.148785899327462, -10.105551952899171, 26.420523159671937, -42.97948920361874,
        37.699128061349455, -12.566370563479234,
    )
)  # fmt: skip

COS32 = tl.constexpr(
    (
        -1.4600891911080518, 7.166887265199968, -23.598965178551627, 52.435266565326145,
        -71.39024499918517, 50.26548236368139, -12.566370612372456,
    )
)  # fmt: skip

SIN64 = tl.constexpr(
    (
        0.0010040338432552238, -0.00943917429485421, 0.08013647110318188, -0.5347214550868115,
        2.730737579192737, -10.221701847251042, 26.405949099217292, -42.98030166278018,
        37.6991118430776, -12.566370614359172,
    )
)  # fmt: skip

COS64 = tl.constexpr(
    (
        -0.0002906604947862778, 0.003559539430000583, -0.034088170039051104, 0.262192205198235,
        -1.578394939072554, 7.1836006765501565, -23.599277757147206, 52.435181516557876,
        -71.39024173629545, 50.26548245743669, -12.566370614359172,
    )
)  # fmt: skip


@triton.jit
def polynomial(u, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    """Horner's rule, highest power first."""
    y = tl.full((), COEFFICIENTS[0], u.dtype)
    for i in tl.static_range(1, DEGREE + 1):
        y = y * u + tl.full((), COEFFICIENTS[i], u.dtype)
    return y


@triton.jit
def sin_turns(r):
    """sin(2πr) for |r| ≤ 1/2, absolute error below 2e-7 in float32, 4e-16 in float64."""
    u = tl.fma(r, r, tl.full(r.shape, -0.25, r.dtype))
    if r.dtype == tl.float64:
        return polynomial(u, SIN64, 9) * (r * u)
    else:
        return polynomial(u, SIN32, 5) * (r * u)


@triton.jit
def cos_turns(r):
    """cos(2πr) for |r| ≤ 1/2, absolute error below 2e-7 in float32, 4e-16 in float64."""
    v = tl.fma(r, r, tl.full(r.shape, -0.0625, r.dtype))
    if r.dtype == tl.float64:
        return polynomial(v, COS64, 10) * v
    else:
        return polynomial(v, COS32, 6) * v


@triton.jit
def reduce_turns(frequency, x, phase):
    """frequency x + phase less its nearest integer, if |frequency x| < turns_limit, |phase| ≤ 1/2.

    Adding 1.5 2^23 rounds to an integer; the second fused operation then subtracts that from the
    exact product. Three instructions without a phase, and no rounding but the last.
    """
    MAGIC: tl.constexpr = 1.5 * 2.0**52 if x.dtype == tl.float64 else 1.5 * 2.0**23
    magic = tl.full(x.shape, MAGIC, x.dtype)
    f = tl.zeros_like(x) + frequency
    if phase is None:
        minus_nearest = magic - tl.fma(f, x, magic)
        return tl.fma(f, x, minus_nearest)
    else:
        minus_nearest = magic - (tl.fma(f, x, tl.zeros_like(x) + phase) + magic)
        return tl.fma(f, x, minus_nearest) + phase


@triton.jit
def reduce_turns_any(frequency, x, phase):
    """As reduce_turns for any size, the product as a sum of two floats; NaN where infinite."""
    f = tl.zeros_like(x) + frequency
    high = f * x
    low = tl.fma(f, x, -high)
    r = (high - tl.floor(high + 0.5)) + (low - tl.floor(low + 0.5))
    if phase is not None:
        r += phase
    return r - tl.floor(r + 0.5)


@triton.jit
def turns_limit(COMPUTE: tl.constexpr):
    """Bound on |frequency x| in reduce_turns: beyond, 1.5 2^23 + turns leaves its binade."""
    return 2.0**51 if COMPUTE.is_fp64() else 2.0**22
