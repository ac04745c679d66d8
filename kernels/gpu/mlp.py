"""MLP: h_0 = x, h_l = σ_l(W_l h_{l-1} + b_l), y = h_L, any depth, widths up to 128.

Forward reads x and writes y; backward reads x and dy, and computes the activations again. Nets are
multiplied on tensor cores where `layers/choices.py` says so, in segments of layers, before and
behind which activations and, in backward, their gradients are in memory.
"""

import triton

from .layers import choices
from .layers.cores import Net, mlp_cores_bwd_kernel, mlp_cores_fwd_kernel
from .layers.rows import mlp_bwd_kernel, mlp_fwd_kernel, offset_of, padded
from .machine.launch import (
    compute_dtype,
    contiguous,
    device_of,
    mlp_config,
    result_dtype,
    unit_column_stride,
    walking_programs,
)
from .machine.pieces import MAX_PIECES, cut, split, sum_pieces
from .machine.plans import empty, launch
from .numbers.activations import ACTIVATIONS
from .numbers.philox import dropout_constants


def _widths(x, parameters):
    return x.shape[1], *(weight.shape[0] for weight in parameters[::2])


def _dropout(dropout, widths):
    return dropout_constants(0.0, *[dropout] * (len(widths) - 2), 0.0)


def _constants(widths, activation, output_activation, dropout, compute):
    return {
        "WIDTHS": widths,
        "N_LAYERS": len(widths) - 1,
        "HIDDEN": ACTIVATIONS[activation],
        "OUTPUT": ACTIVATIONS[output_activation],
        "DROPOUT": _dropout(dropout, widths),
        "COMPUTE": compute,
    }


def _net(widths, products, activation, output_activation, dropout):
    """The whole net, for tensor cores."""
    functions = ACTIVATIONS[activation], ACTIVATIONS[output_activation]
    return Net(widths, 0, len(widths) - 1, *functions, _dropout(dropout, widths), *products)


def mlp_fwd(x, *arguments):
    """y [N, out] for x [N, in], weights and biases in turn, seed, two activations, dropout."""
    *parameters, seed, activation, output_activation, dropout = arguments
    options = activation, output_activation, dropout
    out_dtype = result_dtype(x, *parameters)
    _, compute = compute_dtype(out_dtype)
    x, params = unit_column_stride(x), contiguous(*parameters)
    widths = _widths(x, params)
    if x.shape[0] == 0:
        return empty((0, widths[-1]), x, out_dtype)
    with device_of(x):
        if (products := choices.products_here(x, widths, out_dtype)) is not None:
            net = _net(widths, products, *options)
            tile = choices.tile_of("mlp_fwd", net, choices.target_of(x))
            segments = choices.segments(widths, tile)
            return _segments_fwd(x, params, seed, net, tile, segments, out_dtype)[-1]
        config = mlp_config("mlp_fwd", widths, compute)
        y = empty((x.shape[0], widths[-1]), x, out_dtype)
        launch(
            mlp_fwd_kernel, (triton.cdiv(x.shape[0], config.rows),),
            x, params, seed, y, x.shape[0], x.stride(0),
            **_constants(widths, *options, compute), BLOCK_ROWS=config.rows,
            num_warps=config.warps,
        )  # fmt: skip
    return y


def _stride(x):
    """Between rows; ``None`` where they are dense."""
    return None if x.stride(0) == x.shape[1] else x.stride(0)


def _segments_fwd(x, params, seed, net, tile, segments, dtype):
    """The outputs of the segments, [N, out] each."""
    outputs, n_rows = [], x.shape[0]
    per_sm = choices.PROGRAMS_PER_SM[padded(max(net.widths))]
    programs = walking_programs(x, triton.cdiv(n_rows, tile.rows), per_sm)
    for first, last in segments:
        outputs.append(empty((n_rows, net.widths[last]), x, dtype))
        launch(
            mlp_cores_fwd_kernel, (programs,),
            x, params, seed, outputs[-1], n_rows, _stride(x),
            NET=net._replace(first=first, last=last), BLOCK_ROWS=tile.rows, num_warps=tile.warps,
            **tile.options,
        )  # fmt: skip
        x = outputs[-1]
    return outputs


def mlp_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, seed, activation, output_activation, dropout = arguments
    options = activation, output_activation, dropout
    need_dx, *needs = needs
    compute_torch, compute = compute_dtype(dy.dtype)
    dy, x, params = unit_column_stride(dy), unit_column_stride(x), contiguous(*parameters)
    widths, n_rows = _widths(x, params), x.shape[0]
    n_params = offset_of(widths, len(widths) - 1, True)
    dx = empty(x.shape, x, x.dtype) if need_dx else None
    total = dy.new_zeros(n_params) if n_rows == 0 else None
    if n_rows > 0:
        products = choices.products_here(x, widths, dy.dtype)
        if products is None:
            config, most = mlp_config("mlp_bwd", widths, compute), MAX_PIECES
        else:
            net = _net(widths, products, *options)
            config = choices.tile_of("mlp_bwd", net, choices.target_of(x))
            most = choices.PIECES
        pieces = cut(n_rows, sum(widths), n_params, config.rows, most)
        partials = empty((pieces[1], n_params), x, compute_torch) if any(needs) else None
        with device_of(x):
            if products is None:
                launch(
                    mlp_bwd_kernel, (pieces[1],),
                    dy, x, params, seed, dx, partials, n_rows, pieces[0],
                    dy.stride(0), x.stride(0), **_constants(widths, *options, compute),
                    BLOCK_ROWS=config.rows, num_warps=config.warps,
                )  # fmt: skip
            else:
                _segments_bwd(dy, x, params, seed, dx, partials, net, config, pieces)
            if any(needs):
                shape = pieces[1], n_params
                total = sum_pieces(partials, shape, (0, 0), dy.dtype, compute)
    # in place of a bias that is missing, its size
    sized = [
        parameters[i - 1].shape[0] if parameter is None else parameter
        for i, parameter in enumerate(parameters)
    ]
    return [dx, *split(total, sized, needs)]


def _segments_bwd(dy, x, params, seed, dx, partials, net, tile, pieces):
    """Fill dx and partials, either of which may be None: the last segment first."""
    (piece_rows, n_pieces), n_rows, dtype = pieces, x.shape[0], dy.dtype
    segments = choices.segments(net.widths, tile)
    inputs = [x]
    if len(segments) > 1:
        forward = choices.tile_of("mlp_fwd", net, choices.target_of(x))
        inputs += _segments_fwd(x, params, seed, net, forward, segments[:-1], dtype)
    for (first, last), h in zip(reversed(segments), reversed(inputs), strict=True):
        dh = dx if first == 0 else empty(h.shape, h, dtype)
        launch(
            mlp_cores_bwd_kernel, (n_pieces,),
            dy, h, params, seed, dh, partials, n_rows, piece_rows, _stride(dy), _stride(h),
            NET=net._replace(first=first, last=last), BLOCK_ROWS=tile.rows, num_warps=tile.warps,
            **tile.options,
        )  # fmt: skip
        dy = dh
