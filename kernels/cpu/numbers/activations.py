"""Activations of one number, σ(z) and σ'(z), without calls, so that LLVM vectorises every loop.

``ACTIVATIONS[name][real]`` has ``value(z)`` and ``value_and_derivative(z)``, both
compiled into their callers. NaN and infinity come out as PyTorch's do; at a kink the derivative is
that of the inactive side.

Exponentials are of numbers ≤ 0 alone, so nothing overflows: e^x = 2^n·(1 + m), n = round(x/ln 2),
m = expm1(x − n·ln 2), the difference exact in two steps (Cody and Waite). With e = e^{−|z|} and
M = e^{−2|z|} − 1:

    sigmoid(|z|) = 1/(1 + e)    sigmoid' = e/(1 + e)²
    tanh(|z|) = −M/(2 + M)      tanh' = 4·(1 + M)/(2 + M)²
    softplus(z) = max(z, 0) + log(1 + e),   log(1 + e) = 2·artanh(s), s = e/(2 + e) ≤ 1/3

and softplus is z above 20, as in PyTorch.

The normal distribution's tail is Φ(−a) = e^{−a²/2}·F(t)/(a + 4), t = (a − 4)/(a + 4), F smooth on
[−1, 1); so gelu(z) = z·Φ(z) keeps its relative accuracy where Φ is tiny. Sines reduce z by the
nearest multiple of π in float64 (float32) or with π in three parts (float64); beyond |z| = 2^52,
where neighbours in float64 lie a radian apart, they are only bounded.

The polynomials are minimax in the relative error of the result (Remez exchange, 50 digits; the
cosine's in the absolute one). Largest errors in float32 and float64: expm1 1.3e-8, 1.8e-17; F 9e-9,
2.1e-17; sine 6e-9, 2.8e-19; cosine 2.4e-10, 4.2e-18; artanh 4.5e-9, 1.3e-18.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..machine.jit import (
    exponents,
    fma,
    inner,
    inner_in_order,
    narrowed,
    select,
    sign_of_odd,
    widened,
)

# lowest power first
# fmt: off
_EXPM1_32 = (  # (expm1(r) − r)/r², |r| ≤ ln(2)/2
    0.4999999815325453, 0.1666654357140137, 0.04166720000320687, 0.008366527261742127,
    0.001388252388344553,
)
_EXPM1_64 = (
    0.5000000000000006, 0.16666666666666588, 0.04166666666657669, 0.008333333333389615,
    0.001388888893159006, 0.0001984126971889376, 2.4801505241322302e-05, 2.755740761383262e-06,
    2.7626051544728583e-07, 2.5053764049846818e-08,
)
_SIN_32 = (  # (sin(r) − r)/r³ in r², |r| ≤ π/2
    -0.16666659538634268, 0.008333065916662948, -0.00019809577117714018, 2.6057203887227573e-06,
)
_SIN_64 = (
    -0.16666666666666666, 0.008333333333333194, -0.00019841269841209072, 2.755731921111143e-06,
    -2.5052106870380036e-08, 1.605893958140505e-10, -7.642988179987621e-13, 2.721139402253894e-15,
)
_COS_32 = (  # (cos(r) − 1)/r² in r², |r| ≤ π/2
    -0.4999999954867055, 0.04166664068704635, -0.001388840293345846, 2.476185504076451e-05,
    -2.607652865398274e-07,
)
_COS_64 = (
    -0.49999999999999983, 0.04166666666666436, -0.0013888888888785409, 2.4801587279104804e-05,
    -2.755731652097437e-07, 2.087656751757534e-09, -1.146303331803249e-11, 4.610228090537871e-14,
)
_TAIL_32 = (  # F(t): a ≤ 15, beyond which the tail is 0; float64: a ≤ 40
    0.7552851352504331, -0.6078965798522489, 0.38713691653210885, -0.18652365672425972,
    0.06040348947020177, -0.007524002459815139, -0.003510210430137927, 0.001568405573557619,
    0.00017465772274689935, -0.00013419614142717287,
)
_TAIL_64 = (
    0.7552851304157515, -0.6078966419718921, 0.3871374007422197, -0.1865218579596636,
    0.06039657489065374, -0.007540188966493354, -0.0034796923613636286, 0.0016308184541486983,
    0.00013334424618684825, -0.0002310949109557563, -1.907831499558725e-06, 3.51446063704206e-05,
    7.149371407921805e-07, -5.920128892855073e-06, -6.251633630187272e-07, 1.0220966623805972e-06,
    2.641097287042109e-07, -1.5689203073773987e-07, -7.723697698378097e-08, 1.6279874541936842e-08,
    1.4681924971367667e-08, -4.02466981486992e-10, -1.2257424158756838e-09,
)
_ARTANH_32 = (  # (artanh(s) − s)/s³ in s², s ≤ 1/3
    0.33333208142857185, 0.20010763618754138, 0.14000902643223265, 0.14005993398300218,
)
_ARTANH_64 = (
    0.33333333333333154, 0.20000000000077559, 0.1428571427405899, 0.11111111976824174,
    0.09090872239501831, 0.07693274197170422, 0.06650560676976874, 0.06052472569189584,
    0.04172485147984316, 0.0850487960788747,
)
# fmt: on


class Activation(NamedTuple):
    """The compiled functions of one activation in one precision, each of one number."""

    value: Callable
    value_and_derivative: Callable


def _polynomial(coefficients, real):
    """Horner's rule as a compiled function of one number."""
    coefficients = tuple(real(c) for c in coefficients)

    @inner
    def polynomial(u):
        y = coefficients[-1]
        for i in range(len(coefficients) - 1):
            y = fma(y, u, coefficients[len(coefficients) - 2 - i])
        return y

    return polynomial


class _Precision(NamedTuple):
    """What a float type needs for 2^n by its bits."""

    expm1: tuple
    rounder: float  # 1.5·2^(digits): adding it leaves an integer in the last bits
    mantissa: int
    bias: int
    shift: int  # n + shift is an exponent that is not subnormal
    lowest: float  # e^lowest is 0
    ln2_high: float  # so few digits that n·ln2_high is exact
    ln2_low: float


_PRECISIONS = {
    np.float32: _Precision(
        _EXPM1_32, 1.5 * 2**23, 23, 127, 64, -106.0, 0.693145751953125, 1.4286068203094173e-06
    ),
    np.float64: _Precision(
        _EXPM1_64, 1.5 * 2**52, 52, 1023, 512, -748.0, 0.6931471803691238, 1.9082149292705877e-10
    ),
}


def exponential_of(real):
    """e^x and e^x − 1 of a number x ≤ 0."""
    p = _PRECISIONS[real]
    quotient = _polynomial(p.expm1, real)
    per_ln2, rounder, lowest = real(1 / math.log(2)), real(p.rounder), real(p.lowest)
    high, low, one = real(p.ln2_high), real(p.ln2_low), real(1)
    exponent = exponents(p.bias + p.shift, p.mantissa)
    unshift = real(2.0**-p.shift)

    @inner_in_order
    def exponential(x):
        x = select(x < lowest, lowest, x)
        shifted = fma(x, per_ln2, rounder)
        n = shifted - rounder
        r = fma(-n, low, fma(-n, high, x))
        # the last bits of `shifted` are n; the higher ones leave through the shift
        power = exponent(shifted)
        m = fma(r * r, quotient(r), r)
        power_down = power * unshift
        return fma(power, m, power) * unshift, fma(power_down, m, power_down - one)

    return exponential


def _normal_tail(real):
    """Φ(−|z|) and the density φ(z) of the normal distribution."""
    exponential = exponential_of(real)
    smooth = _polynomial(_TAIL_32 if real is np.float32 else _TAIL_64, real)
    largest = real(15 if real is np.float32 else 40)
    half, one, four, eight = real(0.5), real(1), real(4), real(8)
    density_at_0 = real(1 / math.sqrt(2 * math.pi))

    @inner_in_order
    def normal_tail(z):
        a = abs(z)
        a = select(a > largest, largest, a)
        square = a * a
        rest = fma(a, a, -square)
        e = exponential(-half * square)[0]
        e = fma(-half * rest, e, e)
        inverse = one / (a + four)
        return e * (inverse * smooth(fma(-eight, inverse, one))), e * density_at_0

    return normal_tail


_PI = (3.141592653589793, 1.2246467991473532e-16, -2.994769809718339656e-33)


def _reduction(real):
    """z less the nearest multiple n·π, |r| ≤ π/2, and (−1)^n."""
    rounder, per_pi, largest = 1.5 * 2.0**52, 1 / math.pi, 1.5708
    pi1, pi2, pi3 = _PI

    @inner_in_order
    def reduction(z):
        wide = widened(z)
        shifted = fma(wide, per_pi, rounder)
        n = shifted - rounder
        r = fma(-n, pi3, fma(-n, pi2, fma(-n, pi1, wide)))
        r = select(r > largest, largest, r)
        r = select(r < -largest, -largest, r)
        return narrowed(r, real), narrowed(sign_of_odd(shifted), real)

    return reduction


def _sine_and_cosine(real):
    reduction = _reduction(real)
    sine = _polynomial(_SIN_32 if real is np.float32 else _SIN_64, real)
    cosine = _polynomial(_COS_32 if real is np.float32 else _COS_64, real)
    one = real(1)

    @inner
    def sin(z):
        r, sign = reduction(z)
        q = r * r
        return sign * fma(r * q, sine(q), r)

    @inner
    def sin_and_cos(z):
        r, sign = reduction(z)
        q = r * r
        return sign * fma(r * q, sine(q), r), sign * fma(q, cosine(q), one)

    return Activation(sin, sin_and_cos)


def _from_pair(pair):
    """An activation from ``value_and_derivative`` alone: what is not used costs nothing."""

    @inner
    def value(z):
        return pair(z)[0]

    return Activation(value, pair)


def _identity(real):
    one = real(1)

    @inner
    def pair(z):
        return z, one

    return _from_pair(pair)


def _leaky(slope):
    """max(z, 0) + slope·min(z, 0)."""

    def build(real):
        below, zero, one = real(slope), real(0), real(1)

        @inner
        def pair(z):
            # written so that NaN is passed on
            if slope == 0:
                return select(z <= zero, zero, z), select(z <= zero, zero, one)
            return select(z > zero, z, below * z), select(z > zero, one, below)

        return _from_pair(pair)

    return build


def _sigmoid(real):
    exponential, zero, one = exponential_of(real), real(0), real(1)

    @inner
    def pair(z):
        e = exponential(-abs(z))[0]
        inverse = one / (one + e)
        small = e * inverse
        return select(z < zero, small, inverse), small * inverse

    return _from_pair(pair)


def _tanh(real):
    exponential, two, four = exponential_of(real), real(2), real(4)

    @inner
    def pair(z):
        e, m = exponential(-two * abs(z))
        inverse = real(1) / (two + m)
        t = m * inverse
        return select(z < real(0), t, -t), four * e * inverse * inverse

    return _from_pair(pair)


def _silu(real):
    sigmoid = _sigmoid(real).value_and_derivative

    @inner
    def pair(z):
        s, ds = sigmoid(z)
        return z * s, fma(z, ds, s)

    return _from_pair(pair)


def _gelu(real):
    normal_tail, zero, one = _normal_tail(real), real(0), real(1)

    @inner
    def pair(z):
        tail, density = normal_tail(z)
        p = select(z < zero, tail, one - tail)
        return z * p, fma(z, density, p)

    return _from_pair(pair)


def artanh_of(real):
    """(artanh(s) − s)/s³ of q = s², s ≤ 1/3."""
    return _polynomial(_ARTANH_32 if real is np.float32 else _ARTANH_64, real)


def _softplus(real):
    exponential, zero, one, two = exponential_of(real), real(0), real(1), real(2)
    rest, straight = artanh_of(real), real(20)

    @inner
    def pair(z):
        e = exponential(-abs(z))[0]
        inverse = one / (one + e)
        s = e / (two + e)
        q = s * s
        curved = select(z < zero, zero, z) + two * fma(s * q, rest(q), s)
        slope = select(z < zero, e * inverse, inverse)
        return select(z > straight, z, curved), select(z > straight, one, slope)

    return _from_pair(pair)


_BUILDERS = {
    "relu": _leaky(0.0),
    "leaky_relu": _leaky(0.01),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "silu": _silu,
    "gelu": _gelu,
    "sin": _sine_and_cosine,
    "identity": _identity,
    "softplus": _softplus,
}

ACTIVATIONS = {
    name: {real: build(real) for real in (np.float32, np.float64)}
    for name, build in _BUILDERS.items()
}
"""By name and NumPy scalar type: :class:`Activation`."""
