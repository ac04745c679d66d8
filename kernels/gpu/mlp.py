"""MLP: h_0 = x, h_l = σ_l(W_l h_{l-1} + b_l), y = h_L, any depth, widths up to 128.

Forward reads x and writes y; backward reads x and dy, and computes the activations again. The
parameters come as one vector, W_1, b_1, W_2, b_2, …, a missing bias as zeros; so does their
gradient.
"""

import triton

from .layers.rows import mlp_bwd_kernel, mlp_fwd_kernel, offset_of
from .machine.launch import (
    compute_dtype,
    device_of,
    mlp_config,
    result_dtype,
    unit_column_stride,
)
from .machine.pack import pack
from .machine.pieces import cut, split, sum_pieces
from .machine.plans import empty, launch
from .numbers.activations import ACTIVATIONS
from .numbers.philox import dropout_constants


def _pack(parameters, compute):
    """All parameters as one vector of the compute dtype, a missing bias as zeros."""
    shapes = []
    for weight in parameters[::2]:
        shapes += [(1, weight.numel()), (1, weight.shape[0])]
    return pack(parameters, shapes, compute)


def _constants(x, parameters, activation, output_activation, dropout, compute):
    widths = (x.shape[1], *(weight.shape[0] for weight in parameters[::2]))
    return {
        "WIDTHS": widths,
        "N_LAYERS": len(widths) - 1,
        "HIDDEN": ACTIVATIONS[activation],
        "OUTPUT": ACTIVATIONS[output_activation],
        "DROPOUT": dropout_constants(0.0, *[dropout] * (len(widths) - 2), 0.0),
        "COMPUTE": compute,
    }


def mlp_fwd(x, *arguments):
    """y [N, out] for x [N, in], weights and biases in turn, seed, two activations, dropout."""
    *parameters, seed, activation, output_activation, dropout = arguments
    out_dtype = result_dtype(x, *parameters)
    compute_torch, compute = compute_dtype(out_dtype)
    x = unit_column_stride(x)
    constants = _constants(x, parameters, activation, output_activation, dropout, compute)
    y = empty((x.shape[0], constants["WIDTHS"][-1]), x, out_dtype)
    if x.shape[0] == 0:
        return y
    config = mlp_config("mlp_fwd", constants["WIDTHS"], compute)
    with device_of(x):
        launch(
            mlp_fwd_kernel, (triton.cdiv(x.shape[0], config.rows),),
            x, _pack(parameters, compute_torch), seed, y, x.shape[0], x.stride(0),
            **constants, BLOCK_ROWS=config.rows, num_warps=config.warps,
        )  # fmt: skip
    return y


def mlp_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, seed, activation, output_activation, dropout = arguments
    need_dx, *needs = needs
    compute_torch, compute = compute_dtype(dy.dtype)
    dy, x = unit_column_stride(dy), unit_column_stride(x)
    constants = _constants(x, parameters, activation, output_activation, dropout, compute)
    widths, n_rows = constants["WIDTHS"], x.shape[0]
    dx = empty(x.shape, x, x.dtype) if need_dx else None
    n_params = offset_of(widths, len(widths) - 1, True)
    total = dy.new_zeros(n_params) if n_rows == 0 else None
    if n_rows > 0:
        config = mlp_config("mlp_bwd", widths, compute)
        piece_rows, n_pieces = cut(n_rows, sum(widths), n_params, config.rows)
        partials = None
        if any(needs):
            partials = empty((n_pieces, n_params), x, compute_torch)
        with device_of(x):
            launch(
                mlp_bwd_kernel, (n_pieces,),
                dy, x, _pack(parameters, compute_torch), seed, dx, partials, n_rows,
                piece_rows, dy.stride(0), x.stride(0), **constants,
                BLOCK_ROWS=config.rows, num_warps=config.warps,
            )  # fmt: skip
            if any(needs):
                total = sum_pieces(partials, (n_pieces, n_params), (0, 0), dy.dtype, compute)
    # in place of a bias that is missing, its size
    sized = [
        parameters[i - 1].shape[0] if parameter is None else parameter
        for i, parameter in enumerate(parameters)
    ]
    return [dx, *split(total, sized, needs)]
