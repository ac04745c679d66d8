"""AdditiveMLP: y_im = Σ_j V_mj f(x_ij) + c_m with one scalar subnet f for all features.

The sum over features happens in registers: neither hidden activations nor f(x) are ever in memory.
Forward reads x and writes y; backward reads x and dy.
"""

import torch
import triton
import triton.language as tl

from .launch import (
    CONFIGS,
    MAX_CANONICAL_UNITS,
    MAX_UNITS_PER_PROGRAM,
    OUT_PER_PROGRAM,
    block_of,
    compute_dtype,
    contiguous,
    device_of,
    result_dtype,
    unit_column_stride,
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
def load_tile(ptr, rows, cols, last_row, n_cols, row_stride, COMPUTE: tl.constexpr):
    """Rows x cols of a row-major matrix, 0 outside."""
    inside = (rows < last_row)[:, None] & (cols < n_cols)[None, :]
    offsets = rows.to(tl.int64)[:, None] * row_stride + cols[None, :]
    return tl.load(ptr + offsets, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def load_readout(ptr, outs, cols, n_out, n_in, COMPUTE: tl.constexpr):
    """V^T for some features and outputs, 0 outside: [1, cols, outs]."""
    inside = (cols < n_in)[:, None] & (outs < n_out)[None, :]
    offsets = cols[:, None] + outs.to(tl.int64)[None, :] * n_in
    return tl.load(ptr + offsets, mask=inside, other=0.0).to(COMPUTE)[None, :, :]


@triton.jit
def load_upstream(
    dy_ptr, fc3_weight_ptr, rows, cols, last_row, n_in, n_out, dy_row_stride, COMPUTE: tl.constexpr
):
    """dL/df(x_ij) = Σ_m dy_im V_mj as a tile, 0 outside."""
    g = tl.zeros((rows.shape[0], cols.shape[0]), COMPUTE)
    dy_ptrs = dy_ptr + rows.to(tl.int64) * dy_row_stride
    for m in range(n_out):
        dy = tl.load(dy_ptrs + m, mask=rows < last_row, other=0.0).to(COMPUTE)
        v_ptrs = fc3_weight_ptr + tl.cast(m, tl.int64) * n_in + cols
        v = tl.load(v_ptrs, mask=cols < n_in, other=0.0).to(COMPUTE)
        g += dy[:, None] * v[None, :]
    return tl.where((rows < last_row)[:, None] & (cols < n_in)[None, :], g, 0.0)


@triton.jit
def additive_mlp_fwd_kernel(
    x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, fc3_weight_ptr,
    fc3_bias_ptr, y_ptr, n_rows, n_in, n_out, x_row_stride,
    N_HIDDEN: tl.constexpr, CANONICAL: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """y = f(x) V^T + c, canonical form; rows that come out infinite or NaN again in the dense form.

    Shapes: x [n_rows, n_in]; V [n_out, n_in]; y [n_rows, n_out]. Grid: programs that walk over
    tiles of BLOCK_ROWS rows x blocks of BLOCK_OUT outputs. Reads 1 value per element and block of
    outputs, writes n_out values per row.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    step = tl.num_programs(0).to(tl.int64) * BLOCK_ROWS
    outs = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    row_block = tl.arange(0, BLOCK_ROWS)
    col_block = tl.arange(0, BLOCK_IN)
    c = tl.zeros((BLOCK_OUT,), COMPUTE)
    if fc3_bias_ptr is not None:
        c = tl.load(fc3_bias_ptr + outs, mask=outs < n_out, other=0.0).to(COMPUTE)
    dense = (row_block < BLOCK_ROWS)[:, None] & (outs < n_out)[None, :]
    if CANONICAL:
        breakpoints, coefficients, slope, offset, fit = canonical_units(
            fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, N_HIDDEN, COMPUTE
        )
        dense = dense & (fit == 0)
        for i in range(start, n_rows, step):
            rows = i + row_block
            acc = tl.zeros((BLOCK_ROWS, BLOCK_IN, BLOCK_OUT), COMPUTE)
            for j in range(0, n_in, BLOCK_IN):
                cols = j + col_block
                x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
                v = load_readout(fc3_weight_ptr, outs, cols, n_out, n_in, COMPUTE)
                f = canonical_value(x, breakpoints, coefficients, slope, offset, N_HIDDEN)
                acc += f[:, :, None] * v
            y = tl.sum(acc, axis=1) + c[None, :]
            inside = (rows < n_rows)[:, None] & (outs < n_out)[None, :]
            tl.store(y_ptr + rows[:, None] * n_out + outs[None, :], y, mask=inside)
            dense |= (tl.abs(y) < float("inf")) == 0
        # the second loop reads what the first has written
        tl.debug_barrier()
    if tl.max(dense.to(tl.int32)) > 0:
        for i in range(start, n_rows, step):
            rows = i + row_block
            inside = (rows < n_rows)[:, None] & (outs < n_out)[None, :]
            y_ptrs = y_ptr + rows[:, None] * n_out + outs[None, :]
            if CANONICAL:
                old = tl.load(y_ptrs, mask=inside, other=0.0).to(COMPUTE)
                # value by value, so that no row depends on its neighbours
                inside = inside & (((tl.abs(old) < float("inf")) == 0) | (fit == 0))
            acc = tl.zeros((BLOCK_ROWS, BLOCK_IN, BLOCK_OUT), COMPUTE)
            for j in range(0, n_in, BLOCK_IN):
                cols = j + col_block
                x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
                v = load_readout(fc3_weight_ptr, outs, cols, n_out, n_in, COMPUTE)
                f = dense_value(
                    x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, 0, N_HIDDEN,
                    COMPUTE,
                )  # fmt: skip
                # beyond the last feature f(0) may be infinite
                f = tl.where((cols < n_in)[None, :], f, 0.0)
                acc += f[:, :, None] * v
            tl.store(y_ptrs, tl.sum(acc, axis=1) + c[None, :], mask=inside)


@triton.jit
def additive_mlp_bwd_x_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc3_weight_ptr, dx_ptr,
    n_rows, n_in, n_out, dy_row_stride, x_row_stride,
    N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """dx_ij = f'(x_ij) Σ_m dy_im V_mj.

    Shapes: x, dx [n_rows, n_in]; dy [n_rows, n_out]. Grid: blocks of rows x blocks of features.
    Reads 1, writes 1 value per element, reads n_out values per row and block of features.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    cols = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    x = load_tile(x_ptr, rows, cols, n_rows, n_in, x_row_stride, COMPUTE)
    g = load_upstream(
        dy_ptr, fc3_weight_ptr, rows, cols, n_rows, n_in, n_out, dy_row_stride, COMPUTE
    )
    slope = dense_slope(x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, N_HIDDEN, COMPUTE)
    inside = (rows < n_rows)[:, None] & (cols < n_in)[None, :]
    tl.store(dx_ptr + rows[:, None] * n_in + cols[None, :], g * slope, mask=inside)


@triton.jit
def additive_mlp_bwd_params_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, fc3_weight_ptr,
    unit_partial_ptr, readout_partial_ptr, n_rows, n_in, n_out, dy_row_stride, x_row_stride,
    piece_rows,
    UNITS: tl.constexpr, N_HIDDEN: tl.constexpr, ONE_OUT: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Sums a_kj = Σ_i g_ij [active], b_kj = Σ_i g_ij x_ij [active] of a piece of rows.

    With one output g = dy and V is applied to the sums, which then also give dV_j = Σ_k w2_k (w1_k
    b_kj + b1_k a_kj) + b2 Σ dy. With more, g_ij = Σ_m dy_im V_mj and dV has a kernel of its own.
    Shapes: x [n_rows, n_in]; dy [n_rows, n_out]; unit_partial [pieces x blocks of features,
    3 N_HIDDEN + 1]; readout_partial [pieces x groups of units, n_in + 1], for one output. Grid:
    pieces x groups of UNITS units x blocks of features. Reads 1 value per element and group.
    """
    piece = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    first = group * UNITS
    start = piece * piece_rows
    stop = tl.minimum(start + piece_rows, n_rows)
    cols = tl.program_id(2) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    row_block = tl.arange(0, BLOCK_ROWS)
    unit_row = piece * tl.num_programs(2) + tl.program_id(2)
    unit_ptr = unit_partial_ptr + unit_row * (3 * N_HIDDEN + 1)
    taus, finite = thresholds(
        fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, first, UNITS, N_HIDDEN, COMPUTE
    )
    readout = tl.full((1, BLOCK_IN), 1.0, COMPUTE)
    if ONE_OUT:
        v = tl.load(fc3_weight_ptr + cols, mask=cols < n_in, other=0.0).to(COMPUTE)
        readout = v[None, :]
        total = tl.zeros((BLOCK_ROWS, 1), COMPUTE)
    else:
        total = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    total_x = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    above = zero_tiles(total_x, UNITS)
    above_x = zero_tiles(total_x, UNITS)
    for i in range(start, stop, BLOCK_ROWS):
        rows = i + row_block
        x = load_tile(x_ptr, rows, cols, stop, n_in, x_row_stride, COMPUTE)
        if ONE_OUT:
            dy_ptrs = dy_ptr + rows * dy_row_stride
            g = tl.load(dy_ptrs, mask=rows < stop, other=0.0).to(COMPUTE)[:, None]
        else:
            g = load_upstream(
                dy_ptr, fc3_weight_ptr, rows, cols, stop, n_in, n_out, dy_row_stride, COMPUTE
            )
        g_x = g * x
        total += g
        total_x += g_x
        above = add_where_above(x, g, taus, above, UNITS)
        above_x = add_where_above(x, g_x, taus, above_x, UNITS)
    if first == 0:
        tl.store(unit_ptr + 3 * N_HIDDEN, tl.sum(total * readout))
    dv = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
    # an infinite or NaN x or dy shows in g x
    if finite & (tl.abs(tl.sum(total_x)) < float("inf")):
        dv += store_unit_gradients(
            unit_ptr, above, above_x, total, total_x, readout, first,
            fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, UNITS, N_HIDDEN, COMPUTE,
        )  # fmt: skip
        dv += load_scalar(fc2_bias_ptr, 0, first == 0, COMPUTE) * total
    else:
        last = tl.minimum(first + UNITS, N_HIDDEN)
        for k in range(first, last):
            w1 = load_scalar(fc1_weight_ptr, k, True, COMPUTE)
            b1 = load_scalar(fc1_bias_ptr, k, True, COMPUTE)
            w2 = load_scalar(fc2_weight_ptr, k, True, COMPUTE)
            dw1 = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
            db1 = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
            dw2 = tl.zeros((BLOCK_ROWS, BLOCK_IN), COMPUTE)
            for i in range(start, stop, BLOCK_ROWS):
                rows = i + row_block
                inside = (rows < stop)[:, None] & (cols < n_in)[None, :]
                x = load_tile(x_ptr, rows, cols, stop, n_in, x_row_stride, COMPUTE)
                g = load_upstream(
                    dy_ptr, fc3_weight_ptr, rows, cols, stop, n_in, n_out, dy_row_stride, COMPUTE
                )
                dw1_term, db1_term, dw2_term = unit_terms(x, g, w1, b1, w2)
                dw1 += tl.where(inside, dw1_term, 0.0)
                db1 += tl.where(inside, db1_term, 0.0)
                dw2 += tl.where(inside, dw2_term, 0.0)
            tl.store(unit_ptr + k, tl.sum(dw1))
            tl.store(unit_ptr + N_HIDDEN + k, tl.sum(db1))
            tl.store(unit_ptr + 2 * N_HIDDEN + k, tl.sum(dw2))
        if ONE_OUT:
            for i in range(start, stop, BLOCK_ROWS):
                rows = i + row_block
                inside = (rows < stop)[:, None] & (cols < n_in)[None, :]
                x = load_tile(x_ptr, rows, cols, stop, n_in, x_row_stride, COMPUTE)
                dy_ptrs = dy_ptr + rows * dy_row_stride
                dy = tl.load(dy_ptrs, mask=rows < stop, other=0.0).to(COMPUTE)[:, None]
                f = dense_value(
                    x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, first, last,
                    COMPUTE,
                )  # fmt: skip
                dv += tl.where(inside, dy * f, 0.0)
    if ONE_OUT:
        readout_row = piece * tl.num_programs(1) + group
        readout_ptr = readout_partial_ptr + readout_row * (n_in + 1)
        tl.store(readout_ptr + cols, tl.sum(dv, axis=0), mask=cols < n_in)
        if tl.program_id(2) == 0:
            # every group has seen all of dy; one of them says so
            tl.store(readout_ptr + n_in, tl.where(first == 0, tl.sum(total), 0.0))


@triton.jit
def additive_mlp_bwd_readout_kernel(
    dy_ptr, x_ptr, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr,
    readout_partial_ptr, n_rows, n_in, n_out, dy_row_stride, x_row_stride, piece_rows,
    N_HIDDEN: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """dV_mj = Σ_i dy_im f(x_ij) and dc_m = Σ_i dy_im of a piece of rows, for several outputs.

    Shapes: x [n_rows, n_in]; dy [n_rows, n_out]; readout_partial [pieces, n_out n_in + n_out]. Grid:
    pieces x blocks of features x blocks of outputs. Reads 1 value per element and block of outputs.
    """
    piece = tl.program_id(0).to(tl.int64)
    start = piece * piece_rows
    stop = tl.minimum(start + piece_rows, n_rows)
    cols = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    outs = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    dv = tl.zeros((BLOCK_ROWS, BLOCK_IN, BLOCK_OUT), COMPUTE)
    dc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), COMPUTE)
    for i in range(start, stop, BLOCK_ROWS):
        rows = i + tl.arange(0, BLOCK_ROWS)
        x = load_tile(x_ptr, rows, cols, stop, n_in, x_row_stride, COMPUTE)
        dy = load_tile(dy_ptr, rows, outs, stop, n_out, dy_row_stride, COMPUTE)
        f = dense_value(
            x, fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, 0, N_HIDDEN, COMPUTE
        )
        # beyond the last row f(0) may be infinite
        f = tl.where((rows < stop)[:, None], f, 0.0)
        dv += f[:, :, None] * dy[:, None, :]
        dc += dy
    row_ptr = readout_partial_ptr + piece * (n_out * n_in + n_out)
    inside = (cols < n_in)[:, None] & (outs < n_out)[None, :]
    tl.store(row_ptr + outs[None, :] * n_in + cols[:, None], tl.sum(dv, axis=0), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(row_ptr + n_out * n_in + outs, tl.sum(dc, axis=0), mask=outs < n_out)


def additive_mlp_fwd(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias):
    """y [N, M] for x [N, F], in the promoted dtype."""
    params = contiguous(fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias)
    out_dtype = result_dtype(x, *params)
    _, compute = compute_dtype(out_dtype)
    x = unit_column_stride(x)
    (n_rows, n_in), n_out, n_hidden = x.shape, fc3_weight.shape[0], fc1_weight.shape[0]
    y = torch.empty((n_rows, n_out), device=x.device, dtype=out_dtype)
    if n_rows == 0:
        return y
    config = CONFIGS["additive_mlp_fwd" if n_out == 1 else "additive_mlp_fwd_many_out"]
    block_out = block_of(n_out, OUT_PER_PROGRAM)
    grid = (walking_programs(x, triton.cdiv(n_rows, config.rows)), triton.cdiv(n_out, block_out))
    with device_of(x):
        additive_mlp_fwd_kernel[grid](
            x, *params, y, n_rows, n_in, n_out, x.stride(0),
            N_HIDDEN=n_hidden, CANONICAL=n_hidden <= MAX_CANONICAL_UNITS, COMPUTE=compute,
            BLOCK_ROWS=config.rows, BLOCK_IN=block_of(n_in, config.cols), BLOCK_OUT=block_out,
            num_warps=config.warps,
        )  # fmt: skip
    return y


def additive_mlp_bwd(
    dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, *, need_dx, need_dparams
):
    """dx in the dtype of x, and [dw1, db1, dw2, db2, dV, dc] as one flat tensor in that of dy."""
    params = contiguous(fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight)
    dy, x = unit_column_stride(dy), unit_column_stride(x)
    n_rows = x.shape[0]
    dx = torch.empty(x.shape, device=x.device, dtype=x.dtype) if need_dx else None
    dparams = None
    with device_of(x):
        if need_dx and n_rows > 0:
            _launch_bwd_x(dy, x, params, dx)
        if need_dparams and n_rows > 0:
            dparams = _launch_bwd_params(dy, x, params)
    if need_dparams and n_rows == 0:
        n_params = 3 * fc1_weight.shape[0] + 1 + fc3_weight.numel() + fc3_weight.shape[0]
        dparams = torch.zeros(n_params, device=x.device, dtype=dy.dtype)
    return dx, dparams


def _launch_bwd_x(dy, x, params, dx):
    fc1_weight, fc1_bias, fc2_weight, _, fc3_weight = params
    (n_rows, n_in), n_out = x.shape, fc3_weight.shape[0]
    config = CONFIGS["additive_mlp_bwd_x"]
    block_in = block_of(n_in, config.cols)
    grid = (triton.cdiv(n_rows, config.rows), triton.cdiv(n_in, block_in))
    additive_mlp_bwd_x_kernel[grid](
        dy, x, fc1_weight, fc1_bias, fc2_weight, fc3_weight, dx,
        n_rows, n_in, n_out, dy.stride(0), x.stride(0),
        N_HIDDEN=fc1_weight.shape[0], COMPUTE=compute_dtype(dy.dtype)[1],
        BLOCK_ROWS=config.rows, BLOCK_IN=block_in, num_warps=config.warps,
    )  # fmt: skip


def _launch_bwd_params(dy, x, params):
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight = params
    (n_rows, n_in), n_out, n_hidden = x.shape, fc3_weight.shape[0], fc1_weight.shape[0]
    compute_torch, compute = compute_dtype(dy.dtype)
    config = CONFIGS["additive_mlp_bwd_params"]
    block_in = block_of(n_in, config.cols)
    n_blocks = triton.cdiv(n_in, block_in)
    n_groups = triton.cdiv(n_hidden, MAX_UNITS_PER_PROGRAM)
    n_unit, n_readout = 3 * n_hidden + 1, (n_in + 1) * n_out
    unit_rows = n_blocks
    readout_rows = n_groups if n_out == 1 else 1
    per_piece = unit_rows * n_unit + readout_rows * n_readout
    piece_rows, n_pieces = cut(n_rows, n_in, per_piece, config.rows)
    first, second = (n_pieces * unit_rows, n_unit), (n_pieces * readout_rows, n_readout)
    partials = torch.empty(n_pieces * per_piece, device=x.device, dtype=compute_torch)
    readout_partials = partials[first[0] * first[1] :]
    additive_mlp_bwd_params_kernel[(n_pieces, n_groups, n_blocks)](
        dy, x, *params, partials, readout_partials,
        n_rows, n_in, n_out, dy.stride(0), x.stride(0), piece_rows,
        UNITS=triton.cdiv(n_hidden, n_groups), N_HIDDEN=n_hidden, ONE_OUT=n_out == 1,
        COMPUTE=compute, BLOCK_ROWS=config.rows, BLOCK_IN=block_in, num_warps=config.warps,
    )  # fmt: skip
    if n_out > 1:
        config = CONFIGS["additive_mlp_bwd_readout"]
        block_in, block_out = block_of(n_in, config.cols), block_of(n_out, OUT_PER_PROGRAM)
        grid = (n_pieces, triton.cdiv(n_in, block_in), triton.cdiv(n_out, block_out))
        additive_mlp_bwd_readout_kernel[grid](
            dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, readout_partials,
            n_rows, n_in, n_out, dy.stride(0), x.stride(0), piece_rows,
            N_HIDDEN=n_hidden, COMPUTE=compute, BLOCK_ROWS=config.rows, BLOCK_IN=block_in,
            BLOCK_OUT=block_out, num_warps=config.warps,
        )  # fmt: skip
    return sum_pieces(partials, first, second, dy.dtype, compute)
