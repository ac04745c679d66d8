"""The op `additive_mlp` with Numba: y_im = Σ_j V_mj·f(x_ij) + c_m, f as in `subnet/canonical.py`.

Forward reads each input once and writes one number a row and output; backward reads x and dy, and
writes dx, once.
"""

import torch

from .machine.launch import (
    cut,
    prepare,
    prepare_as,
    result_at,
    run,
    run_summed,
)
from .numbers.blocks import LANES, TILE_ROWS
from .subnet.additive import backward, forward
from .subnet.general import general_bwd, general_fwd, is_canonical
from .subnet.segments import wide_subnet


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
    """y [N, M] from x [N, F], in the promoted dtype of the arguments."""
    if not is_canonical(fc1_weight, seed, activation):
        parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
        return general_fwd(x, *parameters, seed, activation, *dropout)
    dtype, compute, _held, addresses = prepare(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    )
    n_rows, n_in = x.shape
    n_hidden, n_out = fc1_weight.shape[0], fc3_weight.shape[0]
    y = x.new_empty(n_rows, n_out, dtype=dtype)  # a tuple of sizes takes a microsecond more
    y_at = result_at(y, compute)
    if (segments := wide_subnet(compute, addresses[1:5], n_hidden, x.numel())) is not None:
        segments.forward(addresses[0], *addresses[5:], n_rows, n_in, n_out, y_at)
        return y
    run(
        forward[compute],
        n_rows,
        *cut(n_rows, n_in * n_hidden, 4),
        *addresses,
        n_hidden,
        n_in,
        n_out,
        y_at,
    )
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
    compute, tensors, addresses = prepare_as(
        dy.dtype, dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    )
    n_rows, n_in = x.shape
    n_hidden, n_out = fc1_weight.shape[0], fc3_weight.shape[0]
    need_dx, *needs = needs
    dx = torch.empty_like(tensors[1], dtype=x.dtype) if need_dx else None
    dx_at = result_at(dx, compute)
    _, _, w, b, v, d, readout, c = tensors
    if (segments := wide_subnet(compute, addresses[2:6], n_hidden, x.numel())) is not None:
        at = *addresses[:2], addresses[6]
        gradients = segments.backward(*at, n_rows, n_in, n_out, dx_at, tensors[2:], needs, dy.dtype)
        if gradients is not None:
            return [dx, *gradients]
    gradients = run_summed(
        backward[compute],
        n_rows,
        *cut(n_rows, n_in * n_hidden, TILE_ROWS * max(1, LANES // n_in)),
        (
            w,
            n_hidden if b is None else b,
            v,
            1 if d is None else d,
            readout,
            n_out if c is None else c,
        ),
        needs,
        dy.dtype,
        *addresses[:-1],
        n_hidden,
        n_in,
        n_out,
        dx_at,
    )
    return [dx, *gradients]
