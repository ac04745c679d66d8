"""sin and cos of 2πr for r in turns, and the exact reduction that gets there.

The angle of one sine is κ·x + φ turns. With κ split into two numbers κ = hi + lo and u = hi·x,
r = fma(hi, x, −round(u)) is exact but for one rounding, so large angles keep their digits: there is
no slow path. What lo·x, φ and a u beyond the integers leave outside [−½, ½] a second rounding
takes away. Where there is none of the three, three instructions do: the sum with 1.5·2²³ (2⁵² for
float64) has no digits behind the point.

The polynomials are minimax on [0, ½] (Remez exchange, 60 digits): the largest absolute errors are
1.1e-9 and 1.1e-8 for float32, 2.3e-18 and 1.5e-19 for float64, of sine and cosine.
"""

import math

import numpy as np

from ..machine.jit import fma, inner, inner_in_order, rint

# fmt: off
_SIN_32 = tuple(np.float32(c) for c in (
    6.2831852727234905, -41.341697069083146, 81.60502462658357, -76.7015512290668,
    42.01616616117263, -14.86861204970142, 3.199694926126548,
))
_COS_32 = tuple(np.float32(c) for c in (
    0.999999989172292, -19.739204532096288, 64.93911898396136, -85.45016555129483,
    60.16783173792997, -25.968313322874486, 6.5296104405593995,
))
_SIN_64 = (
    6.283185307179586, -41.34170224039973, 81.60524927607123, -76.70585975287753,
    42.05869393998565, -15.094642496618686, 3.819951743355136, -0.7181165089993291,
    0.1042031174196713, -0.01195779571288371, 0.0010106820659487009,
)
_COS_64 = (
    1.0, -19.739208802178716, 64.93939402266825, -85.45681720669128,
    60.24464137178209, -26.426256781218473, 7.903536340153767, -1.7143904143822024,
    0.28200408233045604, -0.036374908551472664, 0.0037586043518775965, -0.00029007007980446503,
)
# fmt: on


@inner
def reduced(hi, lo, phi, x):
    """The angle κ·x + φ in turns, modulo 1, in [−½, ½]."""
    r = fma(lo, x, fma(hi, x, -rint(hi * x))) + phi
    return r - rint(r)


@inner_in_order
def _reduced_32(hi, x):
    rounder = np.float32(1.5 * 2**23)
    return fma(hi, x, -(fma(hi, x, rounder) - rounder))


@inner_in_order
def _reduced_64(hi, x):
    rounder = 1.5 * 2.0**52
    return fma(hi, x, -(fma(hi, x, rounder) - rounder))


@inner
def sin_turns_32(r):
    """sin(2πr), |r| ≤ ½, float32."""
    c0, c1, c2, c3, c4, c5, c6 = _SIN_32
    q = r * r
    return r * fma(fma(fma(fma(fma(fma(c6, q, c5), q, c4), q, c3), q, c2), q, c1), q, c0)


@inner
def cos_turns_32(r):
    """cos(2πr), |r| ≤ ½, float32."""
    c0, c1, c2, c3, c4, c5, c6 = _COS_32
    q = r * r
    return fma(fma(fma(fma(fma(fma(c6, q, c5), q, c4), q, c3), q, c2), q, c1), q, c0)


@inner
def sin_turns_64(r):
    """sin(2πr), |r| ≤ ½, float64."""
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 = _SIN_64
    q = r * r
    high = fma(fma(fma(fma(c10, q, c9), q, c8), q, c7), q, c6)
    return r * fma(fma(fma(fma(fma(fma(high, q, c5), q, c4), q, c3), q, c2), q, c1), q, c0)


@inner
def cos_turns_64(r):
    """cos(2πr), |r| ≤ ½, float64."""
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 = _COS_64
    q = r * r
    high = fma(fma(fma(fma(fma(c11, q, c10), q, c9), q, c8), q, c7), q, c6)
    return fma(fma(fma(fma(fma(fma(high, q, c5), q, c4), q, c3), q, c2), q, c1), q, c0)


REDUCED_SMALL = {np.float32: _reduced_32, np.float64: _reduced_64}
"""hi·x in turns, modulo 1, in [−½, ½], for |hi·x| below the limit."""

SMALL = {np.float32: 2.0**22, np.float64: 2.0**51}
SIN = {np.float32: sin_turns_32, np.float64: sin_turns_64}
COS = {np.float32: cos_turns_32, np.float64: cos_turns_64}


@inner
def largest(a):
    """The largest magnitude in an array; NaN does not count."""
    result = abs(a[0])
    for e in range(a.size):
        result = abs(a[e]) if abs(a[e]) > result else result
    return result


@inner
def frequencies(w, turns, real):
    """κ = turns·w as two numbers, hi + lo."""
    hi, lo = np.empty(w.size, real), np.empty(w.size, real)
    for i in range(w.size):
        kappa = np.float64(w[i]) * turns
        hi[i] = real(kappa)
        # hi is not finite where κ overflows: the sine is then NaN, as it should be
        lo[i] = real(kappa - np.float64(hi[i]))
    return hi, lo


def turns_per_unit(scale):
    """Turns per unit of w·x: scale / 2π; exactly ½ for the scale π."""
    return scale / (2 * math.pi)
