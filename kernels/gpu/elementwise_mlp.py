"""ElementwiseMLP: y = Σ_k w2_k relu(w1_k x + b1_k) + b2 for every element of x.

Forward reads x and writes y; backward reads x and dy. Hidden activations are never in memory.
"""

import triton

from .machine.launch import (
    MAX_CANONICAL_UNITS,
    MAX_UNITS_PER_PROGRAM,
    compute_dtype,
    config_for,
    contiguous,
    device_of,
    result_dtype,
    walking_programs,
)
from .machine.pieces import cut, split, sum_pieces
from .machine.plans import empty, launch
from .subnet.elementwise import (
    elementwise_mlp_bwd_params_kernel,
    elementwise_mlp_bwd_x_kernel,
    elementwise_mlp_fwd_kernel,
)
from .subnet.general import general_bwd, general_fwd, is_canonical


def elementwise_mlp_fwd(
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, seed=None, activation="relu", *dropout
):
    """y of the shape of x, in the promoted dtype."""
    if not is_canonical(fc1_weight, seed, activation):
        parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, None, None
        return general_fwd(x, *parameters, seed, activation, *dropout)
    out_dtype = result_dtype(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    _, compute = compute_dtype(out_dtype)
    x, *params = contiguous(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    y = empty(x.shape, x, out_dtype)
    if x.numel() == 0:
        return y
    config = config_for("elementwise_mlp_fwd", compute)
    n_hidden = fc1_weight.shape[0]
    with device_of(x):
        launch(
            elementwise_mlp_fwd_kernel, (walking_programs(x, triton.cdiv(x.numel(), config.cols)),),
            x, *params, y, x.numel(),
            N_HIDDEN=n_hidden, CANONICAL=n_hidden <= MAX_CANONICAL_UNITS[compute], COMPUTE=compute,
            BLOCK=config.cols, num_warps=config.warps,
        )  # fmt: skip
    return y


def elementwise_mlp_bwd(
    dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, seed=None, activation="relu", *dropout, needs
):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    if not is_canonical(fc1_weight, seed, activation):
        parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, None, None
        gradients = general_bwd(
            dy, x, *parameters, seed, activation, *dropout, needs=(*needs, False, False)
        )
        return gradients[:5]
    need_dx, *needs = needs
    sizes = (fc1_weight.shape[0],) * 3 + (1,)
    parameters = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    parameters = [size if p is None else p for p, size in zip(parameters, sizes, strict=True)]
    dx, dparams = _bwd(dy, x, fc1_weight, fc1_bias, fc2_weight, need_dx, any(needs))
    return [dx, *split(dparams, parameters, needs)]


def _bwd(dy, x, fc1_weight, fc1_bias, fc2_weight, need_dx, need_dparams):
    """dx in the dtype of x, and [dw1, db1, dw2, db2] as one flat tensor in the dtype of dy."""
    compute_torch, compute = compute_dtype(dy.dtype)
    dy, x, *params = contiguous(dy, x, fc1_weight, fc1_bias, fc2_weight)
    n, n_hidden = x.numel(), fc1_weight.shape[0]
    n_params = 3 * n_hidden + 1
    dx = empty(x.shape, x, x.dtype) if need_dx else None
    if n == 0:
        return dx, x.new_zeros(n_params, dtype=dy.dtype) if need_dparams else None
    dparams = None
    with device_of(x):
        if need_dx:
            config = config_for("elementwise_mlp_bwd_x", compute)
            launch(
                elementwise_mlp_bwd_x_kernel, (triton.cdiv(n, config.cols),),
                dy, x, *params, dx, n,
                N_HIDDEN=n_hidden, COMPUTE=compute, BLOCK=config.cols, num_warps=config.warps,
            )  # fmt: skip
        if need_dparams:
            config = config_for("elementwise_mlp_bwd_params", compute)
            n_groups = triton.cdiv(n_hidden, MAX_UNITS_PER_PROGRAM[compute])
            piece_size, n_pieces = cut(n, 1, n_params, config.cols)
            partials = empty((n_pieces, n_params), x, compute_torch)
            launch(
                elementwise_mlp_bwd_params_kernel, (n_pieces, n_groups),
                dy, x, *params, partials, n, piece_size,
                UNITS=triton.cdiv(n_hidden, n_groups), N_HIDDEN=n_hidden, COMPUTE=compute,
                BLOCK=config.cols, num_warps=config.warps,
            )  # fmt: skip
            dparams = sum_pieces(partials, (n_pieces, n_params), (0, 0), dy.dtype, compute)
    return dx, dparams
