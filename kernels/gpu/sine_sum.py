"""SineSum: y = s Σ_i a_i sin(scale w_i x + φ_i), with s = 1/W for the mean.

Forward reads x and writes y; backward reads x and dy. The waves are never in memory.
"""

import math

import triton

from .machine.launch import (
    BLOCK_WAVES,
    FULL_TILE_ELEMENTS,
    MAX_WAVES_PER_PROGRAM,
    compute_dtype,
    config_for,
    contiguous,
    device_of,
    result_dtype,
)
from .machine.pieces import cut, split, sum_pieces
from .machine.plans import empty, launch
from .sines.rows import sine_sum_bwd_params_kernel, sine_sum_bwd_x_kernel, sine_sum_fwd_kernel


def _factor(w, mean):
    return 1.0 / w.shape[0] if mean else 1.0


def _block(n, config):
    """Elements per program: fewer where the large tile would leave multiprocessors idle."""
    return config.cols if n >= FULL_TILE_ELEMENTS else config.cols // 4


def sine_sum_fwd(x, w, amplitude, phase, scale, mean):
    """y of the shape of x, in the promoted dtype."""
    x, *params = contiguous(x, w, amplitude, phase)
    out_dtype = result_dtype(x, *params)
    y = empty(x.shape, x, out_dtype)
    n = x.numel()
    if n == 0:
        return y
    _, compute = compute_dtype(out_dtype)
    config = config_for("sine_sum_fwd", compute)
    block = _block(n, config)
    with device_of(x):
        launch(
            sine_sum_fwd_kernel, (triton.cdiv(n, block),),
            x, *params, y, n, w.shape[0],
            FACTOR=_factor(w, mean), TURNS=scale / (2 * math.pi),
            COMPUTE=compute, BLOCK=block, BLOCK_WAVES=BLOCK_WAVES,
            num_warps=config.warps,
        )  # fmt: skip
    return y


def sine_sum_bwd(dy, x, w, amplitude, phase, scale, mean, *, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    need_dx, *needs = needs
    dx, dparams = _bwd(dy, x, w, amplitude, phase, scale, mean, need_dx, any(needs))
    parameters = [0 if p is None else p for p in (w, amplitude, phase)]
    return [dx, *split(dparams, parameters, needs)]


def _bwd(dy, x, w, amplitude, phase, scale, mean, need_dx, need_dparams):
    """dx in the dtype of x, and [dw, da if any, dφ if any] as one flat tensor in that of dy."""
    dy, x, *params = contiguous(dy, x, w, amplitude, phase)
    compute_torch, compute = compute_dtype(dy.dtype)
    n, n_waves = x.numel(), w.shape[0]
    n_params = n_waves * sum(p is not None for p in params)
    dx = empty(x.shape, x, x.dtype) if need_dx else None
    if n == 0:
        return dx, x.new_zeros(n_params, dtype=dy.dtype) if need_dparams else None
    dparams = None
    numbers = {"FACTOR": _factor(w, mean), "SCALE": scale, "TURNS": scale / (2 * math.pi)}
    with device_of(x):
        if need_dx:
            config = config_for("sine_sum_bwd_x", compute)
            block = _block(n, config)
            launch(
                sine_sum_bwd_x_kernel, (triton.cdiv(n, block),),
                dy, x, *params, dx, n, n_waves, **numbers,
                COMPUTE=compute, BLOCK=block, BLOCK_WAVES=BLOCK_WAVES, num_warps=config.warps,
            )  # fmt: skip
        if need_dparams:
            config = config_for("sine_sum_bwd_params", compute)
            waves = min(n_waves, MAX_WAVES_PER_PROGRAM[compute])
            piece_size, n_pieces = cut(n, 1, n_params, config.cols)
            partials = empty((n_pieces, n_params), x, compute_torch)
            launch(
                sine_sum_bwd_params_kernel, (n_pieces, triton.cdiv(n_waves, waves)),
                dy, x, *params, partials, n, n_waves, n_params, piece_size, **numbers,
                WAVES=waves, COMPUTE=compute, BLOCK=config.cols, num_warps=config.warps,
            )  # fmt: skip
            dparams = sum_pieces(partials, (n_pieces, n_params), (0, 0), dy.dtype, compute)
    return dx, dparams
