"""The scalar subnet f(x) = Σ_k w2_k relu(w1_k x + b1_k) + b2 on tiles of any shape.

Shared by every op that holds such a subnet. Parameters are read from pointers; an absent bias is a
null pointer, None. Three forms of the same function:

- plain: as written, with PyTorch's treatment of NaN and infinity;
- canonical: Σ_k c_k max(x, t_k) + S x + C with t = -b1/w1 and c = w2 |w1|, two instructions a unit;
- steep: exact masks of the active units, for sums of gradients.
"""

import triton
import triton.language as tl

from ..machine.tiles import append, load_scalar
from ..numbers.activations import relu, steep_line, step_above_zero


@triton.jit
def plain_value(
    x,
    fc1_weight_ptr,
    fc1_bias_ptr,
    fc2_weight_ptr,
    fc2_bias_ptr,
    first,
    last,
    COMPUTE: tl.constexpr,
):
    """Terms of f from units ``first`` to ``last``, and b2 if the first unit is among them."""
    y = tl.zeros_like(x) + load_scalar(fc2_bias_ptr, 0, first == 0, COMPUTE)
    for k in range(first, last):
        w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
        b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
        w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
        y += w2 * relu(tl.fma(tl.zeros_like(x) + w1, x, tl.zeros_like(x) + b1))
    return y


@triton.jit
def plain_slope(
    x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr
):
    """f'(x). The fused product and sum has the exact sign, so ties are exact; NaN is active."""
    slope = tl.zeros_like(x)
    for k in range(N_HIDDEN):
        w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
        b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
        w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
        z = tl.fma(tl.zeros_like(x) + w1, x, tl.zeros_like(x) + b1)
        slope = tl.where(z <= 0.0, slope, slope + w1 * w2)
    return slope


@triton.jit
def canonical_units(
    fc1_weight_ptr,
    fc1_bias_ptr,
    fc2_weight_ptr,
    fc2_bias_ptr,
    N_HIDDEN: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Breakpoints t, coefficients c, slope S, offset C, and whether they stand for f.

    They do not where t or c underflows: t and c would have lost their digits. Overflow needs no
    flag, it shows in the value.
    """
    TINY: tl.constexpr = 2.0**-1021 if COMPUTE.is_fp64() else 2.0**-125
    breakpoints = ()
    coefficients = ()
    slope = tl.zeros((), COMPUTE)
    offset = load_scalar(fc2_bias_ptr, 0, True, COMPUTE)
    underflow = tl.zeros((), tl.int1)
    for k in tl.static_range(N_HIDDEN):
        w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
        b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
        w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
        t = -b1 / tl.where(w1 == 0.0, 1.0, w1)
        c = w2 * tl.abs(w1)
        slope += tl.where(w1 < 0.0, w2 * w1, 0.0)
        offset += w2 * tl.where(w1 < 0.0, 0.0, tl.where(w1 > 0.0, b1, relu(b1)))
        underflow |= (tl.abs(t) < TINY) & (b1 != 0.0)
        underflow |= (tl.abs(c) < TINY) & (w1 != 0.0) & (w2 != 0.0)
        breakpoints = append(breakpoints, t)
        coefficients = append(coefficients, c)
    return breakpoints, coefficients, slope, offset, underflow == 0


@triton.jit
def canonical_value(x, breakpoints, coefficients, slope, offset, N_HIDDEN: tl.constexpr):
    """f(x) where it is finite; not finite where f(x) is not, for S x keeps what max(x, t) drops."""
    y = slope * x + offset
    for k in tl.static_range(N_HIDDEN):
        y += coefficients[k] * tl.maximum(x, breakpoints[k])
    return y


@triton.jit
def steep_units(
    fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, first,
    UNITS: tl.constexpr, N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Steep lines of UNITS units, 0 beyond the last, and whether all parameters are finite."""
    weights = ()
    biases = ()
    size = tl.zeros((), COMPUTE)
    for i in tl.static_range(UNITS):
        k = first + i
        w1 = load_scalar(fc1_weight_ptr, k, k < N_HIDDEN, COMPUTE)
        b1 = load_scalar(fc1_bias_ptr, k, k < N_HIDDEN, COMPUTE)
        w2 = load_scalar(fc2_weight_ptr, k, k < N_HIDDEN, COMPUTE)
        size = tl.maximum(size, tl.abs(w1), tl.PropagateNan.ALL)
        size = tl.maximum(size, tl.abs(b1), tl.PropagateNan.ALL)
        size = tl.maximum(size, tl.abs(w2), tl.PropagateNan.ALL)
        weight, bias = steep_line(w1, b1)
        weights = append(weights, weight)
        biases = append(biases, bias)
    return weights, biases, size < float("inf")


@triton.jit
def add_active(x, g, weights, biases, sums, sums_x, UNITS: tl.constexpr):
    """Add g to Σ g [active] and g x to Σ g x [active] of each unit: three instructions a unit."""
    g_x = g * x
    next_sums = ()
    next_sums_x = ()
    for k in tl.static_range(UNITS):
        active = step_above_zero(weights[k], biases[k], x)
        next_sums = append(next_sums, sums[k] + active * g)
        next_sums_x = append(next_sums_x, sums_x[k] + active * g_x)
    return next_sums, next_sums_x


@triton.jit
def store_unit_gradients(
    out_ptr, sums, sums_x, readout, first, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr,
    UNITS: tl.constexpr, N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Write dw1, db1, dw2 of UNITS units; return Σ_k w2_k (w1_k B_k + b1_k A_k) per element.

    ``sums`` and ``sums_x`` are A = Σ g [active] and B = Σ g x [active]; weighted by ``readout``
    they give dw2 = w1 B + b1 A, dw1 = w2 B, db1 = w2 A.
    """
    value = tl.zeros_like(sums_x[0])
    for i in tl.static_range(UNITS):
        k = first + i
        w1 = load_scalar(fc1_weight_ptr, k, k < N_HIDDEN, COMPUTE)
        b1 = load_scalar(fc1_bias_ptr, k, k < N_HIDDEN, COMPUTE)
        w2 = load_scalar(fc2_weight_ptr, k, k < N_HIDDEN, COMPUTE)
        value += w2 * (w1 * sums_x[i] + b1 * sums[i])
        a = tl.sum(sums[i] * readout)
        b = tl.sum(sums_x[i] * readout)
        tl.store(out_ptr + k, w2 * b, mask=k < N_HIDDEN)
        tl.store(out_ptr + N_HIDDEN + k, w2 * a, mask=k < N_HIDDEN)
        tl.store(out_ptr + 2 * N_HIDDEN + k, w1 * b + b1 * a, mask=k < N_HIDDEN)
    return value


@triton.jit
def unit_terms(x, g, w1, b1, w2):
    """Elementwise terms of dw1, db1 and dw2 of one unit, as PyTorch has them for any x and g."""
    z = tl.fma(tl.zeros_like(x) + w1, x, tl.zeros_like(x) + b1)
    dz = tl.where(z <= 0.0, 0.0, g * w2)
    return dz * x, dz, g * relu(z)
