"""Numbers through a shared ReLU subnet: y = Σ_k w2_k relu(w1_k x + b1_k) + b2."""

import triton
import triton.language as tl

from ..machine.tiles import load_scalar, tile_size, zero_tiles
from ..numbers.activations import is_tiny, order_of_size
from .canonical import (
    add_active,
    canonical_units,
    canonical_value,
    plain_slope,
    plain_value,
    steep_units,
    store_unit_gradients,
    unit_terms,
)


@triton.jit
def load_pair(x_ptr, dy_ptr, offsets, length, COMPUTE: tl.constexpr):
    """x and dy at some offsets, 0 from ``length`` on."""
    x = tl.load(x_ptr + offsets, mask=offsets < length, other=0.0).to(COMPUTE)
    dy = tl.load(dy_ptr + offsets, mask=offsets < length, other=0.0).to(COMPUTE)
    return x, dy


@triton.jit
def elementwise_mlp_fwd_kernel(
    x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, y_ptr, n,
    N_HIDDEN: tl.constexpr, CANONICAL: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = f(x), canonical form; what comes out infinite or NaN is done again in the plain form.

    Shapes: x, y [n]. Grid: programs that walk over tiles of BLOCK elements. Reads 1, writes 1
    value per element.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    block = tl.arange(0, BLOCK)
    plain = True
    if CANONICAL:
        breakpoints, coefficients, slope, offset, fit = canonical_units(
            fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, N_HIDDEN, COMPUTE
        )
        # 0 as long as all values are finite, else NaN
        poison = tl.zeros((BLOCK,), COMPUTE)
        for i in range(start, n, step):
            inside = block < tile_size(n - i, BLOCK)
            x = tl.load(x_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
            y = canonical_value(x, breakpoints, coefficients, slope, offset, N_HIDDEN)
            tl.store(y_ptr + i + block, y, mask=inside)
            poison += y * 0.0
        plain = (fit == 0) | (tl.sum(poison) != 0.0)
        # the second loop reads what the first has written
        tl.debug_barrier()
    if plain:
        for i in range(start, n, step):
            inside = block < tile_size(n - i, BLOCK)
            if CANONICAL:
                old = tl.load(y_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
                # element by element, so that no value depends on its neighbours
                again = inside & (((tl.abs(old) < float("inf")) == 0) | (fit == 0))
            else:
                again = inside
            x = tl.load(x_ptr + i + block, mask=again, other=0.0).to(COMPUTE)
            y = plain_value(
                x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, 0, N_HIDDEN, COMPUTE
            )
            tl.store(y_ptr + i + block, y, mask=again)


@triton.jit
def elementwise_mlp_bwd_x_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, dx_ptr, n,
    N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = dy f'(x).

    Shapes: dy, x, dx [n]. Grid: one program per BLOCK elements. Reads 2, writes 1 value an element.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    slope = plain_slope(x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, N_HIDDEN, COMPUTE)
    tl.store(dx_ptr + offsets, dy * slope, mask=inside)


@triton.jit
def elementwise_mlp_bwd_params_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, partial_ptr, n, piece_size,
    UNITS: tl.constexpr, N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums A_k = Σ dy [active] and B_k = Σ dy x [active] of a piece; from them dw1, db1, dw2, db2.

    Shapes: dy, x [n]; partial [pieces, 3 N_HIDDEN + 1]. Grid: pieces x groups of UNITS units.
    Reads 2 values per element and group.
    """
    piece = tl.program_id(0)
    # in 64 bits, so that the address of each unit is a constant away
    first = tl.program_id(1).to(tl.int64) * UNITS
    start = piece.to(tl.int64) * piece_size
    length = tile_size(n - start, piece_size)
    x_ptr += start
    dy_ptr += start
    out_ptr = partial_ptr + piece.to(tl.int64) * (3 * N_HIDDEN + 1)
    block = tl.arange(0, BLOCK)
    weights, biases, finite = steep_units(
        fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, first, UNITS, N_HIDDEN, COMPUTE
    )
    total = tl.zeros((BLOCK,), COMPUTE)
    total_x = tl.zeros((BLOCK,), COMPUTE)
    smallest = order_of_size(total)
    sums = zero_tiles(total, UNITS)
    sums_x = zero_tiles(total, UNITS)
    x0, g0 = load_pair(x_ptr, dy_ptr, block, length, COMPUTE)
    x1, g1 = load_pair(x_ptr, dy_ptr, BLOCK + block, length, COMPUTE)
    for i in range(2 * BLOCK, length + 2 * BLOCK, 2 * BLOCK):
        # two tiles are on their way while two are summed: registers leave room for only two
        # programs on a multiprocessor, which must hide the latency of memory
        next_x0, next_g0 = load_pair(x_ptr, dy_ptr, i + block, length, COMPUTE)
        next_x1, next_g1 = load_pair(x_ptr, dy_ptr, i + BLOCK + block, length, COMPUTE)
        total += g0
        total_x += g0 * x0
        smallest = tl.minimum(smallest, order_of_size(x0))
        sums, sums_x = add_active(x0, g0, weights, biases, sums, sums_x, UNITS)
        total += g1
        total_x += g1 * x1
        smallest = tl.minimum(smallest, order_of_size(x1))
        sums, sums_x = add_active(x1, g1, weights, biases, sums, sums_x, UNITS)
        x0 = next_x0
        g0 = next_g0
        x1 = next_x1
        g1 = next_g1
    if first == 0:
        tl.store(out_ptr + 3 * N_HIDDEN, tl.sum(total))
    # an infinite or NaN x or dy shows in dy x
    regular = finite & (tl.abs(tl.sum(total_x)) < float("inf"))
    if regular & (is_tiny(tl.min(smallest, axis=0), COMPUTE) == 0):
        store_unit_gradients(
            out_ptr, sums, sums_x, 1.0, first, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr,
            UNITS, N_HIDDEN, COMPUTE,
        )  # fmt: skip
    else:
        for k in range(first, tl.minimum(first + UNITS, N_HIDDEN)):
            w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
            b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
            w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
            dw1 = tl.zeros((BLOCK,), COMPUTE)
            db1 = tl.zeros((BLOCK,), COMPUTE)
            dw2 = tl.zeros((BLOCK,), COMPUTE)
            for i in range(0, length, BLOCK):
                inside = i + block < length
                value = tl.load(x_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
                dy = tl.load(dy_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
                dw1_term, db1_term, dw2_term = unit_terms(value, dy, w1, b1, w2)
                dw1 += tl.where(inside, dw1_term, 0.0)
                db1 += tl.where(inside, db1_term, 0.0)
                dw2 += tl.where(inside, dw2_term, 0.0)
            tl.store(out_ptr + k, tl.sum(dw1))
            tl.store(out_ptr + N_HIDDEN + k, tl.sum(db1))
            tl.store(out_ptr + 2 * N_HIDDEN + k, tl.sum(dw2))
