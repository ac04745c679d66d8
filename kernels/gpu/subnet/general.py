"""Subnets that the canonical form does not cover: smooth activations, dropout, one per feature.

Launchers of both ops: without a read-out, `elementwise_mlp` is a network of one feature, V = 1.
Hidden activations and masks are never in memory, f is computed again in backward.
"""

import torch
import triton

from ..machine.launch import (
    MAX_GENERAL_UNITS,
    OUT_PER_PROGRAM,
    SUM_BLOCK,
    block_of,
    compute_dtype,
    config_for,
    contiguous,
    device_of,
    result_dtype,
    unit_column_stride,
)
from ..machine.pack import pack
from ..machine.pieces import cut, split, sum_pieces
from ..machine.plans import empty, launch
from ..numbers.activations import ACTIVATIONS
from ..numbers.philox import dropout_constants
from .general_bwd import general_bwd_params_kernel, general_bwd_readout_kernel, general_bwd_x_kernel
from .general_fwd import general_fwd_kernel


def is_canonical(fc1_weight, seed, activation) -> bool:
    """Whether this is one ReLU subnet for all, without dropout: what the canonical form covers."""
    return activation == "relu" and seed is None and fc1_weight.dim() == 2


def _subnet_parameters(fc1_weight, fc1_bias, fc2_weight, fc2_bias, compute):
    """The parameters as the kernels read them: those of a subnet per feature as [units, F]."""
    parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    if fc1_weight.dim() == 2:
        return contiguous(*parameters)
    n_in, n_hidden = fc1_weight.shape[:2]
    shapes = [(n_in, n_hidden)] * 3 + [(n_in, 1)]
    packed = pack(parameters, shapes, compute)
    size = n_in * n_hidden
    return [
        None if t is None else packed[i * size : i * size + t.numel()]
        for i, t in enumerate(parameters)
    ]


def _constants(fc1_weight, seed, activation, dropout):
    """Constants that all kernels have in common."""
    return {
        "ACT": ACTIVATIONS[activation],
        "N_HIDDEN": fc1_weight.shape[-2],
        "FEATUREWISE": fc1_weight.dim() == 3,
        "DROPOUT": dropout_constants(*(dropout if seed is not None else (0.0, 0.0, 0.0))),
    }


def _tile(name, n_in, compute):
    """Rows and columns of a program's tile, more rows where there are fewer columns; warps."""
    rows, cols, warps = config_for(name, compute)
    block_in = block_of(n_in, cols)
    return rows * cols // block_in, block_in, warps


def _unit_groups(n_hidden, dropout):
    """Programs that share the units, units of each, and which mask of its counters comes first."""
    if dropout[2] < 0:
        n_groups = triton.cdiv(n_hidden, MAX_GENERAL_UNITS)
        return n_groups, triton.cdiv(n_hidden, n_groups), 0
    if n_hidden <= MAX_GENERAL_UNITS:
        return 1, n_hidden, 2
    return triton.cdiv(n_hidden + 2, 8), 8, 0


def general_fwd(
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    fc3_weight,
    fc3_bias,
    seed,
    activation,
    p_input=0.0,
    p_hidden=0.0,
    p_output=0.0,
):
    """y [N, M] for x [N, F]; without ``fc3_weight`` f(x) for x of any shape."""
    subnet = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    out_dtype = result_dtype(x, *subnet, fc3_weight, fc3_bias)
    compute_torch, compute = compute_dtype(out_dtype)
    if fc3_weight is None:
        y = empty(x.shape, x, out_dtype)
        x, n_out = x.reshape(-1, 1), 1
    else:
        n_out = fc3_weight.shape[0]
        y = empty((x.shape[0], n_out), x, out_dtype)
    x = unit_column_stride(x)
    n_rows, n_in = x.shape
    if n_rows == 0:
        return y
    constants = _constants(fc1_weight, seed, activation, (p_input, p_hidden, p_output))
    name = "general_fwd" if n_out == 1 else "general_fwd_many_out"
    block_rows, block_in, warps = _tile(name, n_in, compute)
    block_out = block_of(n_out, OUT_PER_PROGRAM)
    grid = (triton.cdiv(n_rows, block_rows), triton.cdiv(n_out, block_out))
    with device_of(x):
        launch(
            general_fwd_kernel, grid,
            x, *_subnet_parameters(*subnet, compute_torch), *contiguous(fc3_weight, fc3_bias),
            seed, y,
            n_rows, n_in, n_out, x.stride(0), **constants, COMPUTE=compute,
            BLOCK_ROWS=block_rows, BLOCK_IN=block_in, BLOCK_OUT=block_out, num_warps=warps,
        )  # fmt: skip
    return y


def general_bwd(
    dy,
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    fc3_weight,
    fc3_bias,
    seed,
    activation,
    p_input=0.0,
    p_hidden=0.0,
    p_output=0.0,
    *,
    needs,
):
    """Gradients of x and of each of the six parameters; ``None`` where ``needs`` says so."""
    need_dx, *needs = needs
    dx = empty(x.shape, x, x.dtype) if need_dx else None
    if fc3_weight is None:
        x, dy = x.reshape(-1, 1), dy.reshape(-1, 1)
    x, dy = unit_column_stride(x), unit_column_stride(dy)
    parameters = _present(fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias)
    dparams = None
    if x.shape[0] == 0:
        if any(needs):
            sizes = (p if isinstance(p, int) else p.numel() for p in parameters)
            dparams = torch.zeros(sum(sizes), device=x.device, dtype=dy.dtype)
        return [dx, *split(dparams, parameters, needs)]
    constants = _constants(fc1_weight, seed, activation, (p_input, p_hidden, p_output))
    with device_of(x):
        compute_torch, _ = compute_dtype(dy.dtype)
        subnet = _subnet_parameters(fc1_weight, fc1_bias, fc2_weight, fc2_bias, compute_torch)
        fc3_weight = None if fc3_weight is None else fc3_weight.contiguous()
        if need_dx:
            _launch_bwd_x(dy, x, subnet, fc3_weight, seed, dx, constants)
        if any(needs):
            dparams = _launch_bwd_params(dy, x, subnet, fc3_weight, seed, constants)
    return [dx, *split(dparams, parameters, needs)]


def _present(fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias):
    """The parameters; the size of its gradient in place of one that is missing."""
    n_units, n_nets = fc1_weight.numel(), fc2_weight.numel() // fc2_weight.shape[-1]
    sizes = (n_units, n_units, n_units, n_nets, 0, 0 if fc3_weight is None else len(fc3_weight))
    parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    return [size if p is None else p for p, size in zip(parameters, sizes, strict=True)]


def _launch_bwd_x(dy, x, subnet, fc3_weight, seed, dx, constants):
    fc1_weight, fc1_bias, fc2_weight, _ = subnet
    n_rows, n_in = x.shape
    _, compute = compute_dtype(dy.dtype)
    block_rows, block_in, warps = _tile("general_bwd_x", n_in, compute)
    launch(
        general_bwd_x_kernel, (triton.cdiv(n_rows, block_rows), triton.cdiv(n_in, block_in)),
        dy, x, fc1_weight, fc1_bias, fc2_weight, fc3_weight, seed, dx,
        n_rows, n_in, dy.shape[1], dy.stride(0), x.stride(0), **constants, COMPUTE=compute,
        BLOCK_ROWS=block_rows, BLOCK_IN=block_in, num_warps=warps,
    )  # fmt: skip


def _launch_bwd_params(dy, x, subnet, fc3_weight, seed, constants):
    """[dw1, db1, dw2, db2, dV, dc] as one flat tensor in the dtype of dy."""
    (n_rows, n_in), n_out = x.shape, dy.shape[1]
    compute_torch, compute = compute_dtype(dy.dtype)
    n_hidden, featurewise = constants["N_HIDDEN"], constants["FEATUREWISE"]
    block_rows, block_in, warps = _tile("general_bwd_params", n_in, compute)
    n_blocks = triton.cdiv(n_in, block_in)
    n_groups, units, first_mask = _unit_groups(n_hidden, constants["DROPOUT"])
    n_unit = (3 * n_hidden + 1) * (n_in if featurewise else 1)
    unit_rows = 1 if featurewise else n_blocks
    n_readout = 0 if fc3_weight is None else (n_in + 1) * n_out
    readout_rows = n_groups if n_out == 1 else 1
    per_piece = unit_rows * n_unit + readout_rows * n_readout
    piece_rows, n_pieces = cut(n_rows, n_in, per_piece, block_rows)
    first, second = (n_pieces * unit_rows, n_unit), (n_pieces * readout_rows, n_readout)
    partials = empty((n_pieces * per_piece,), x, compute_torch)
    readout_partials = partials[first[0] * first[1] :]
    launch(
        general_bwd_params_kernel, (n_pieces, n_groups, n_blocks),
        dy, x, *subnet, fc3_weight, seed, partials, readout_partials,
        n_rows, n_in, n_out, dy.stride(0), x.stride(0), piece_rows, **constants,
        UNITS=units, FIRST_MASK=first_mask, ONE_OUT=n_out == 1, COMPUTE=compute,
        BLOCK_ROWS=block_rows, BLOCK_IN=block_in, SUM_BLOCK=SUM_BLOCK, FOLDED=False,
        num_warps=warps,
    )  # fmt: skip
    if n_out > 1:
        block_rows, block_in, warps = _tile("general_bwd_readout", n_in, compute)
        block_out = block_of(n_out, OUT_PER_PROGRAM)
        grid = (n_pieces, triton.cdiv(n_in, block_in), triton.cdiv(n_out, block_out))
        launch(
            general_bwd_readout_kernel, grid,
            dy, x, *subnet, seed, readout_partials,
            n_rows, n_in, n_out, dy.stride(0), x.stride(0), piece_rows, **constants,
            COMPUTE=compute, BLOCK_ROWS=block_rows, BLOCK_IN=block_in, BLOCK_OUT=block_out,
            FOLDED=False, num_warps=warps,
        )  # fmt: skip
    return sum_pieces(partials, first, second, dy.dtype, compute)
