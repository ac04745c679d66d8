"""ElementwiseMLP: y = Σ_k w2_k relu(w1_k x + b1_k) + b2 for every element of x.

Forward reads x and writes y; backward reads x and dy. Hidden activations are never in memory.
"""

import torch
import triton
import triton.language as tl

from .launch import (
    CONFIGS,
    MAX_CANONICAL_UNITS,
    MAX_UNITS_PER_PROGRAM,
    compute_dtype,
    contiguous,
    device_of,
    result_dtype,
    walking_programs,
)
from .pieces import cut, sum_pieces
from .subnet import (
    add_where_above,
    canonical_units,
    canonical_value,
    dense_slope,
    dense_value,
    load_scalar,
    store_unit_gradients,
    thresholds,
    unit_terms,
    zero_tiles,
)


@triton.jit
def elementwise_mlp_fwd_kernel(
    x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, y_ptr, n,
    N_HIDDEN: tl.constexpr, CANONICAL: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = f(x), canonical form; what comes out infinite or NaN is done again in the dense form.

    Shapes: x, y [n]. Grid: programs that walk over tiles of BLOCK elements. Reads 1, writes 1
    value per element.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    block = tl.arange(0, BLOCK)
    dense = block < BLOCK
    if CANONICAL:
        breakpoints, coefficients, slope, offset, fit = canonical_units(
            fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, N_HIDDEN, COMPUTE
        )
        dense = (block < BLOCK) & (fit == 0)
        for i in range(start, n, step):
            inside = i + block < n
            x = tl.load(x_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
            y = canonical_value(x, breakpoints, coefficients, slope, offset, N_HIDDEN)
            tl.store(y_ptr + i + block, y, mask=inside)
            dense |= (tl.abs(y) < float("inf")) == 0
        # the second loop reads what the first has written
        tl.debug_barrier()
    if tl.max(dense.to(tl.int32)) > 0:
        for i in range(start, n, step):
            inside = i + block < n
            if CANONICAL:
                old = tl.load(y_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
                # element by element, so that no value depends on its neighbours
                again = inside & (((tl.abs(old) < float("inf")) == 0) | (fit == 0))
            else:
                again = inside
            x = tl.load(x_ptr + i + block, mask=again, other=0.0).to(COMPUTE)
            y = dense_value(
                x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, 0, N_HIDDEN, COMPUTE
            )
            tl.store(y_ptr + i + block, y, mask=again)


@triton.jit
def elementwise_mlp_bwd_x_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, dx_ptr, n,
    N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = dy f'(x).

    Shapes: dy, x, dx [n]. Grid: one program per BLOCK elements. Reads 2, writes 1 value per element.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    slope = dense_slope(x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, N_HIDDEN, COMPUTE)
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
    first = tl.program_id(1) * UNITS
    start = piece.to(tl.int64) * piece_size
    stop = tl.minimum(start + piece_size, n)
    out_ptr = partial_ptr + piece.to(tl.int64) * (3 * N_HIDDEN + 1)
    block = tl.arange(0, BLOCK)
    taus, finite = thresholds(
        fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, first, UNITS, N_HIDDEN, COMPUTE
    )
    total = tl.zeros((BLOCK,), COMPUTE)
    total_x = tl.zeros((BLOCK,), COMPUTE)
    above = zero_tiles(total, UNITS)
    above_x = zero_tiles(total, UNITS)
    for i in range(start, stop, BLOCK):
        inside = i + block < stop
        x = tl.load(x_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
        dy = tl.load(dy_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
        dy_x = dy * x
        total += dy
        total_x += dy_x
        above = add_where_above(x, dy, taus, above, UNITS)
        above_x = add_where_above(x, dy_x, taus, above_x, UNITS)
    if first == 0:
        tl.store(out_ptr + 3 * N_HIDDEN, tl.sum(total))
    # an infinite or NaN x or dy shows in dy x
    if finite & (tl.abs(tl.sum(total_x)) < float("inf")):
        store_unit_gradients(
            out_ptr, above, above_x, total, total_x, 1.0, first,
            fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, UNITS, N_HIDDEN, COMPUTE,
        )  # fmt: skip
    else:
        for k in range(first, tl.minimum(first + UNITS, N_HIDDEN)):
            w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
            b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
            w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
            dw1 = tl.zeros((BLOCK,), COMPUTE)
            db1 = tl.zeros((BLOCK,), COMPUTE)
            dw2 = tl.zeros((BLOCK,), COMPUTE)
            for i in range(start, stop, BLOCK):
                inside = i + block < stop
                x = tl.load(x_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
                dy = tl.load(dy_ptr + i + block, mask=inside, other=0.0).to(COMPUTE)
                dw1_term, db1_term, dw2_term = unit_terms(x, dy, w1, b1, w2)
                dw1 += tl.where(inside, dw1_term, 0.0)
                db1 += tl.where(inside, db1_term, 0.0)
                dw2 += tl.where(inside, dw2_term, 0.0)
            tl.store(out_ptr + k, tl.sum(dw1))
            tl.store(out_ptr + N_HIDDEN + k, tl.sum(db1))
            tl.store(out_ptr + 2 * N_HIDDEN + k, tl.sum(dw2))


def elementwise_mlp_fwd(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """y of the shape of x, in the promoted dtype."""
    out_dtype = result_dtype(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    _, compute = compute_dtype(out_dtype)
    x, *params = contiguous(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    y = torch.empty(x.shape, device=x.device, dtype=out_dtype)
    if x.numel() == 0:
        return y
    config = CONFIGS["elementwise_mlp_fwd"]
    n_hidden = fc1_weight.shape[0]
    with device_of(x):
        elementwise_mlp_fwd_kernel[(walking_programs(x, triton.cdiv(x.numel(), config.cols)),)](
            x, *params, y, x.numel(),
            N_HIDDEN=n_hidden, CANONICAL=n_hidden <= MAX_CANONICAL_UNITS, COMPUTE=compute,
            BLOCK=config.cols, num_warps=config.warps,
        )  # fmt: skip
    return y


def elementwise_mlp_bwd(dy, x, fc1_weight, fc1_bias, fc2_weight, *, need_dx, need_dparams):
    """dx in the dtype of x, and [dw1, db1, dw2, db2] as one flat tensor in the dtype of dy."""
    compute_torch, compute = compute_dtype(dy.dtype)
    dy, x, *params = contiguous(dy, x, fc1_weight, fc1_bias, fc2_weight)
    n, n_hidden = x.numel(), fc1_weight.shape[0]
    n_params = 3 * n_hidden + 1
    dx = torch.empty_like(x) if need_dx else None
    if n == 0:
        return dx, x.new_zeros(n_params, dtype=dy.dtype) if need_dparams else None
    dparams = None
    with device_of(x):
        if need_dx:
            config = CONFIGS["elementwise_mlp_bwd_x"]
            elementwise_mlp_bwd_x_kernel[(triton.cdiv(n, config.cols),)](
                dy, x, *params, dx, n,
                N_HIDDEN=n_hidden, COMPUTE=compute, BLOCK=config.cols, num_warps=config.warps,
            )  # fmt: skip
        if need_dparams:
            config = CONFIGS["elementwise_mlp_bwd_params"]
            n_groups = triton.cdiv(n_hidden, MAX_UNITS_PER_PROGRAM)
            piece_size, n_pieces = cut(n, 1, n_params, config.cols)
            partials = torch.empty((n_pieces, n_params), device=x.device, dtype=compute_torch)
            elementwise_mlp_bwd_params_kernel[(n_pieces, n_groups)](
                dy, x, *params, partials, n, piece_size,
                UNITS=triton.cdiv(n_hidden, n_groups), N_HIDDEN=n_hidden, COMPUTE=compute,
                BLOCK=config.cols, num_warps=config.warps,
            )  # fmt: skip
            dparams = sum_pieces(partials, (n_pieces, n_params), (0, 0), dy.dtype, compute)
    return dx, dparams
