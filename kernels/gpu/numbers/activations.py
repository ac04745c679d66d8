"""Mathematics of one value: activations and their slopes, and where ReLU switches."""

import triton
import triton.language as tl

from .sine import polynomial


@triton.jit
def relu(z):
    """max(z, 0) that keeps NaN, as PyTorch's does."""
    return tl.where(z <= 0.0, 0.0, z)


@triton.jit
def steep_line(w, b):
    """w and b times the power of two that brings the larger into [2^120, 2^121), 2^1000 in float64.

    The line through the same zero, so steep that it leaves [0, 1] within a rounding of it.
    """
    largest = tl.maximum(tl.abs(w), tl.abs(b))
    if w.dtype == tl.float64:
        exponent = largest.to(tl.int64, bitcast=True) & 0x7FF0000000000000
        power = exponent.to(tl.float64, bitcast=True)
        power = tl.where(power == 0.0, 2.0**-1022, power)
        return w / power * 2.0**1000, b / power * 2.0**1000
    else:
        exponent = largest.to(tl.int32, bitcast=True) & 0x7F800000
        power = exponent.to(tl.float32, bitcast=True)
        power = tl.where(power == 0.0, 2.0**-126, power)
        return tl.div_rn(w, power) * 2.0**120, tl.div_rn(b, power) * 2.0**120


@triton.jit
def order_of_size(x):
    """Unsigned integer in the order of |x| ≠ 0, with 0 at the very end: two instructions to watch
    for the smallest."""
    if x.dtype == tl.float64:
        bits = x.to(tl.uint64, bitcast=True)
    else:
        bits = x.to(tl.uint32, bitcast=True)
    # doubling drops the sign; 0 - 1 wraps around
    return bits + bits - 1


@triton.jit
def is_tiny(smallest, COMPUTE: tl.constexpr):
    """Whether an order_of_size is that of 0 < |x| < 2^-73, 2^-890 in float64."""
    if tl.float64 == COMPUTE:
        return smallest < 0x10A0000000000000 - 1
    else:
        return smallest < 0x36000000 - 1


@triton.jit
def step_above_zero(w, b, x):
    """1 where w x + b > 0, else 0, for a steep_line: one fused operation that saturates.

    The fused operation has the exact sign, so ties are exact: the step is 0 at w x + b = 0. Off the
    zero |w x + b| is at least 2^-47 of |w x|, hence the line beyond 1, unless x is_tiny. NaN gives
    0. The interpreter rounds the product first: right wherever a tie is between representable
    numbers.
    """
    z = tl.fma(tl.zeros_like(x) + w, x, tl.zeros_like(x) + b)
    return tl.minimum(tl.maximum(z, 0.0), 1.0)


# The activations, as in kernels/cpu/numbers/activations.py, where their formulas and sources are:
# highest power first (expm1(r) − r)/r², (sin(r) − r)/r³ and (cos(r) − 1)/r² in r², the normal
# distribution's tail, and (artanh(s) − s)/s³ in s².
EXPM1_32 = tl.constexpr(
    (
        0.001388252388344553, 0.008366527261742127, 0.04166720000320687, 0.1666654357140137,
        0.4999999815325453,
    )
)  # fmt: skip
EXPM1_64 = tl.constexpr(
    (
        2.5053764049846818e-08, 2.7626051544728583e-07, 2.755740761383262e-06,
        2.4801505241322302e-05, 0.0001984126971889376, 0.001388888893159006, 0.008333333333389615,
        0.04166666666657669, 0.16666666666666588, 0.5000000000000006,
    )
)  # fmt: skip
SINE_32 = tl.constexpr(
    (
        2.6057203887227573e-06, -0.00019809577117714018, 0.008333065916662948,
        -0.16666659538634268,
    )
)  # fmt: skip
SINE_64 = tl.constexpr(
    (
        2.721139402253894e-15, -7.642988179987621e-13, 1.605893958140505e-10,
        -2.5052106870380036e-08, 2.755731921111143e-06, -0.00019841269841209072,
        0.008333333333333194, -0.16666666666666666,
    )
)  # fmt: skip
COSINE_32 = tl.constexpr(
    (
        -2.607652865398274e-07, 2.476185504076451e-05, -0.001388840293345846, 0.04166664068704635,
        -0.4999999954867055,
    )
)  # fmt: skip
COSINE_64 = tl.constexpr(
    (
        4.610228090537871e-14, -1.146303331803249e-11, 2.087656751757534e-09,
        -2.755731652097437e-07, 2.4801587279104804e-05, -0.0013888888888785409,
        0.04166666666666436, -0.49999999999999983,
    )
)  # fmt: skip
TAIL_32 = tl.constexpr(
    (
        -0.00013419614142717287, 0.00017465772274689935, 0.001568405573557619,
        -0.003510210430137927, -0.007524002459815139, 0.06040348947020177, -0.18652365672425972,
        0.38713691653210885, -0.6078965798522489, 0.7552851352504331,
    )
)  # fmt: skip
TAIL_64 = tl.constexpr(
    (
        -1.2257424158756838e-09, -4.02466981486992e-10, 1.4681924971367667e-08,
        1.6279874541936842e-08, -7.723697698378097e-08, -1.5689203073773987e-07,
        2.641097287042109e-07, 1.0220966623805972e-06, -6.251633630187272e-07,
        -5.920128892855073e-06, 7.149371407921805e-07, 3.51446063704206e-05,
        -1.907831499558725e-06, -0.0002310949109557563, 0.00013334424618684825,
        0.0016308184541486983, -0.0034796923613636286, -0.007540188966493354, 0.06039657489065374,
        -0.1865218579596636, 0.3871374007422197, -0.6078966419718921, 0.7552851304157515,
    )
)  # fmt: skip
ARTANH_32 = tl.constexpr(
    (0.14005993398300218, 0.14000902643223265, 0.20010763618754138, 0.33333208142857185)
)
ARTANH_64 = tl.constexpr(
    (
        0.0850487960788747, 0.04172485147984316, 0.06052472569189584, 0.06650560676976874,
        0.07693274197170422, 0.09090872239501831, 0.11111111976824174, 0.1428571427405899,
        0.20000000000077559, 0.33333333333333154,
    )
)  # fmt: skip


@triton.jit
def exponential(x):
    """e^x and e^x - 1 for x ≤ 0 to two ulps, subnormal results included."""
    FP64: tl.constexpr = x.dtype == tl.float64
    if FP64:
        x = tl.where(x < -748.0, -748.0, x)
        magic = tl.full(x.shape, 1.5 * 2.0**52, tl.float64)
        shifted = tl.fma(x, tl.full(x.shape, 1.4426950408889634, tl.float64), magic)
        n = shifted - magic
        r = tl.fma(n, tl.full(x.shape, -0.6931471803691238, tl.float64), x)
        r = tl.fma(n, tl.full(x.shape, -1.9082149292705877e-10, tl.float64), r)
        m = tl.fma(r * r, polynomial(r, EXPM1_64, 9), r)
        # the last bits of `shifted` are n; 512 keeps the exponent normal, and is taken back last
        power = ((shifted.to(tl.int64, bitcast=True) + (1023 + 512)) << 52).to(
            tl.float64, bitcast=True
        )
        lower = power * 2.0**-512
        return tl.fma(power, m, power) * 2.0**-512, tl.fma(lower, m, lower - 1.0)
    else:
        x = tl.where(x < -106.0, -106.0, x)
        magic = tl.full(x.shape, 1.5 * 2.0**23, tl.float32)
        shifted = tl.fma(x, tl.full(x.shape, 1.4426950408889634, tl.float32), magic)
        n = shifted - magic
        r = tl.fma(n, tl.full(x.shape, -0.693145751953125, tl.float32), x)
        r = tl.fma(n, tl.full(x.shape, -1.4286068203094173e-06, tl.float32), r)
        m = tl.fma(r * r, polynomial(r, EXPM1_32, 4), r)
        power = ((shifted.to(tl.int32, bitcast=True) + (127 + 64)) << 23).to(
            tl.float32, bitcast=True
        )
        lower = power * 2.0**-64
        return tl.fma(power, m, power) * 2.0**-64, tl.fma(lower, m, lower - 1.0)


@triton.jit
def normal_tail(z):
    """Φ(-|z|) and the density φ(z) of the normal distribution."""
    a = tl.abs(z)
    if z.dtype == tl.float64:
        a = tl.where(a > 40.0, 40.0, a)
    else:
        a = tl.where(a > 15.0, 15.0, a)
    square = a * a
    rest = tl.fma(a, a, -square)
    e, _ = exponential(-0.5 * square)
    e -= 0.5 * rest * e
    inverse = 1.0 / (a + 4.0)
    t = 1.0 - 8.0 * inverse
    if z.dtype == tl.float64:
        smooth = polynomial(t, TAIL_64, 22)
    else:
        smooth = polynomial(t, TAIL_32, 9)
    return e * (inverse * smooth), e * 0.3989422804014327


@triton.jit
def reduce_radians(z):
    """z less the nearest multiple n π, |r| ≤ π/2, and (-1)^n.

    For |z| below 2^22 in float32, 2^51 in float64; beyond, where neighbours lie half a radian
    apart, r is bounded, no more.
    """
    if z.dtype == tl.float64:
        magic = tl.full(z.shape, 1.5 * 2.0**52, tl.float64)
        shifted = tl.fma(z, tl.full(z.shape, 0.3183098861837907, tl.float64), magic)
        n = shifted - magic
        r = tl.fma(n, tl.full(z.shape, -3.141592653589793, tl.float64), z)
        r = tl.fma(n, tl.full(z.shape, -1.2246467991473532e-16, tl.float64), r)
        r = tl.fma(n, tl.full(z.shape, 2.9947698097183397e-33, tl.float64), r)
        odd = (shifted.to(tl.int64, bitcast=True) & 1) != 0
    else:
        magic = tl.full(z.shape, 1.5 * 2.0**23, tl.float32)
        shifted = tl.fma(z, tl.full(z.shape, 0.3183098861837907, tl.float32), magic)
        n = shifted - magic
        r = tl.fma(n, tl.full(z.shape, -3.1415927410125732, tl.float32), z)
        r = tl.fma(n, tl.full(z.shape, 8.742277657347586e-08, tl.float32), r)
        r = tl.fma(n, tl.full(z.shape, 3.4302490e-15, tl.float32), r)
        odd = (shifted.to(tl.int32, bitcast=True) & 1) != 0
    r = tl.where(r > 1.5708, 1.5708, r)
    r = tl.where(r < -1.5708, -1.5708, r)
    return r, tl.where(odd, -1.0, 1.0).to(z.dtype)


@triton.jit
def identity(z):
    return z, tl.full(z.shape, 1.0, z.dtype)


@triton.jit
def relu_pair(z):
    return relu(z), tl.where(z <= 0.0, 0.0, 1.0).to(z.dtype)


@triton.jit
def times_slope(value, slope, ACT: tl.constexpr):
    """value σ'(z); of an inactive ReLU 0 whatever the value, as in PyTorch."""
    if relu_pair == ACT:
        return tl.where(slope == 0.0, 0.0, value)
    else:
        return value * slope


@triton.jit
def preactivation(x, w1, b1):
    """w1 x + b1 with one rounding: the sign is exact, so ties of ReLU are."""
    return tl.fma(tl.broadcast_to(w1, x.shape), x, tl.broadcast_to(b1, x.shape))


@triton.jit
def leaky_relu(z):
    # a bare 0.01 would be a float32
    slope = tl.where(z > 0.0, tl.full(z.shape, 1.0, z.dtype), tl.full(z.shape, 0.01, z.dtype))
    return slope * z, slope


@triton.jit
def sigmoid(z):
    e, _ = exponential(-tl.abs(z))
    inverse = 1.0 / (1.0 + e)
    small = e * inverse
    return tl.where(z < 0.0, small, inverse), small * inverse


@triton.jit
def tanh(z):
    e, m = exponential(-2.0 * tl.abs(z))
    inverse = 1.0 / (2.0 + m)
    t = m * inverse
    return tl.where(z < 0.0, t, -t), 4.0 * e * inverse * inverse


@triton.jit
def silu(z):
    s, ds = sigmoid(z)
    return z * s, z * ds + s


@triton.jit
def gelu(z):
    tail, density = normal_tail(z)
    p = tl.where(z < 0.0, tail, 1.0 - tail)
    return z * p, z * density + p


@triton.jit
def sin(z):
    r, sign = reduce_radians(z)
    q = r * r
    if z.dtype == tl.float64:
        s = polynomial(q, SINE_64, 7)
        c = polynomial(q, COSINE_64, 7)
    else:
        s = polynomial(q, SINE_32, 3)
        c = polynomial(q, COSINE_32, 4)
    return sign * (r + r * q * s), sign * (1.0 + q * c)


@triton.jit
def softplus(z):
    e, _ = exponential(-tl.abs(z))
    inverse = 1.0 / (1.0 + e)
    s = e / (2.0 + e)
    q = s * s
    if z.dtype == tl.float64:
        rest = polynomial(q, ARTANH_64, 9)
    else:
        rest = polynomial(q, ARTANH_32, 3)
    curved = tl.where(z < 0.0, 0.0, z) + 2.0 * (s + s * q * rest)
    slope = tl.where(z < 0.0, e * inverse, inverse)
    # above 20 it is z, as in PyTorch
    return tl.where(z > 20.0, z, curved), tl.where(z > 20.0, 1.0, slope)


ACTIVATIONS = {
    "relu": relu_pair,
    "leaky_relu": leaky_relu,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "silu": silu,
    "gelu": gelu,
    "sin": sin,
    "identity": identity,
    "softplus": softplus,
}
"""By name: the function of a tile z that gives σ(z) and σ'(z); what is not used costs nothing."""


@triton.jit
def activate(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """σ(z) and σ'(z); ``SLOPE`` is that of leaky ReLU below 0."""
    if leaky_relu == ACT:
        slope = tl.where(z > 0.0, tl.full(z.shape, 1.0, z.dtype), tl.full(z.shape, SLOPE, z.dtype))
        return slope * z, slope
    else:
        return ACT(z)
