"""AdditiveMLP: y_im = Σ_j V_mj f(x_ij) + c_m with one scalar subnet f for all features.

The sum over features happens in registers: neither hidden activations nor f(x) are ever in memory.
Forward reads x and writes y; backward reads x and dy.
"""

import torch
import triton

from .machine.launch import (
    MAX_CANONICAL_UNITS,
    MAX_UNITS_PER_PROGRAM,
    OUT_PER_PROGRAM,
    SUM_BLOCK,
    block_of,
    compute_dtype,
    config_for,
    contiguous,
    device_of,
    result_dtype,
    unit_column_stride,
    walking_programs,
)
from .machine.pieces import cut, split, sum_pieces
from .machine.plans import empty, launch
from .numbers.philox import dropout_constants
from .subnet.additive_bwd import (
    additive_mlp_bwd_params_kernel,
    additive_mlp_bwd_x_kernel,
)
from .subnet.additive_fwd import additive_mlp_fwd_kernel
from .subnet.general import general_bwd, general_fwd, is_canonical
from .subnet.general_bwd import general_bwd_readout_kernel

NO_DROPOUT = dropout_constants(0.0, 0.0, 0.0)


def additive_mlp_fwd(
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    fc3_weight,
    fc3_bias,
    seed=None,
    activation="relu",
    *dropout,
):
    """y [N, M] for x [N, F], in the promoted dtype."""
    if not is_canonical(fc1_weight, seed, activation):
        parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
        return general_fwd(x, *parameters, seed, activation, *dropout)
    params = contiguous(fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias)
    out_dtype = result_dtype(x, *params)
    _, compute = compute_dtype(out_dtype)
    x = unit_column_stride(x)
    (n_rows, n_in), n_out, n_hidden = x.shape, fc3_weight.shape[0], fc1_weight.shape[0]
    y = empty((n_rows, n_out), x, out_dtype)
    if n_rows == 0:
        return y
    config = config_for("additive_mlp_fwd" if n_out == 1 else "additive_mlp_fwd_many_out", compute)
    block_in, block_out = block_of(n_in, config.cols), block_of(n_out, OUT_PER_PROGRAM)
    grid = (walking_programs(x, triton.cdiv(n_rows, config.rows)), triton.cdiv(n_out, block_out))
    with device_of(x):
        launch(
            additive_mlp_fwd_kernel, grid,
            x, *params, y, n_rows, n_in, n_out, x.stride(0),
            N_HIDDEN=n_hidden, CANONICAL=n_hidden <= MAX_CANONICAL_UNITS[compute],
            EVEN_IN=n_in % block_in == 0, COMPUTE=compute,
            BLOCK_ROWS=config.rows, BLOCK_IN=block_in, BLOCK_OUT=block_out,
            num_warps=config.warps,
        )  # fmt: skip
    return y


def additive_mlp_bwd(
    dy,
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    fc3_weight,
    fc3_bias,
    seed=None,
    activation="relu",
    *dropout,
    needs,
):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    if not is_canonical(fc1_weight, seed, activation):
        parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
        return general_bwd(dy, x, *parameters, seed, activation, *dropout, needs=needs)
    need_dx, *needs = needs
    n_hidden, (n_out, n_in) = fc1_weight.shape[0], fc3_weight.shape
    sizes = (n_hidden, n_hidden, n_hidden, 1, n_out * n_in, n_out)
    parameters = (fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias)
    parameters = [size if p is None else p for p, size in zip(parameters, sizes, strict=True)]
    dx, dparams = _bwd(
        dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, need_dx, any(needs)
    )
    return [dx, *split(dparams, parameters, needs)]


def _bwd(dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, need_dx, need_dparams):
    """dx in the dtype of x, and [dw1, db1, dw2, db2, dV, dc] as one flat tensor in that of dy."""
    params = contiguous(fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight)
    dy, x = unit_column_stride(dy), unit_column_stride(x)
    n_rows = x.shape[0]
    dx = empty(x.shape, x, x.dtype) if need_dx else None
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
    _, compute = compute_dtype(dy.dtype)
    config = config_for("additive_mlp_bwd_x", compute)
    block_in = block_of(n_in, config.cols)
    grid = (triton.cdiv(n_rows, config.rows), triton.cdiv(n_in, block_in))
    launch(
        additive_mlp_bwd_x_kernel, grid,
        dy, x, fc1_weight, fc1_bias, fc2_weight, fc3_weight, dx,
        n_rows, n_in, n_out, dy.stride(0), x.stride(0),
        N_HIDDEN=fc1_weight.shape[0], COMPUTE=compute,
        BLOCK_ROWS=config.rows, BLOCK_IN=block_in, num_warps=config.warps,
    )  # fmt: skip


def _launch_bwd_params(dy, x, params):
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight = params
    (n_rows, n_in), n_out, n_hidden = x.shape, fc3_weight.shape[0], fc1_weight.shape[0]
    compute_torch, compute = compute_dtype(dy.dtype)
    config = config_for("additive_mlp_bwd_params", compute)
    block_in = block_of(n_in, config.cols)
    n_blocks = triton.cdiv(n_in, block_in)
    n_groups = triton.cdiv(n_hidden, MAX_UNITS_PER_PROGRAM[compute])
    n_unit, n_readout = 3 * n_hidden + 1, (n_in + 1) * n_out
    unit_rows = n_blocks
    readout_rows = n_groups if n_out == 1 else 1
    per_piece = unit_rows * n_unit + readout_rows * n_readout
    piece_rows, n_pieces = cut(n_rows, n_in, per_piece, config.rows)
    first, second = (n_pieces * unit_rows, n_unit), (n_pieces * readout_rows, n_readout)
    partials = empty((n_pieces * per_piece,), x, compute_torch)
    readout_partials = partials[first[0] * first[1] :]
    launch(
        additive_mlp_bwd_params_kernel, (n_pieces, n_groups, n_blocks),
        dy, x, *params, partials, readout_partials,
        n_rows, n_in, n_out, dy.stride(0), x.stride(0), piece_rows,
        UNITS=triton.cdiv(n_hidden, n_groups), N_HIDDEN=n_hidden, ONE_OUT=n_out == 1,
        COMPUTE=compute, BLOCK_ROWS=config.rows, BLOCK_IN=block_in, SUM_BLOCK=SUM_BLOCK,
        FOLDED=False, num_warps=config.warps,
    )  # fmt: skip
    if n_out > 1:
        config = config_for("additive_mlp_bwd_readout", compute)
        block_in, block_out = block_of(n_in, config.cols), block_of(n_out, OUT_PER_PROGRAM)
        grid = (n_pieces, triton.cdiv(n_in, block_in), triton.cdiv(n_out, block_out))
        launch(
            general_bwd_readout_kernel, grid,
            dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, None, readout_partials,
            n_rows, n_in, n_out, dy.stride(0), x.stride(0), piece_rows,
            ACT=None, N_HIDDEN=n_hidden, FEATUREWISE=False, DROPOUT=NO_DROPOUT, COMPUTE=compute,
            BLOCK_ROWS=config.rows, BLOCK_IN=block_in, BLOCK_OUT=block_out, FOLDED=False,
            num_warps=config.warps,
        )  # fmt: skip
    return sum_pieces(partials, first, second, dy.dtype, compute)
