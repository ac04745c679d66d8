"""The op `elementwise_mlp` with Numba: y = f(x), f as in `subnet/canonical.py`.

Forward reads and writes one number an element. Backward reads x and dy, and writes dx, once.
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
from .numbers.blocks import BLOCK
from .subnet.elementwise import backward, forward
from .subnet.general import general_bwd, general_fwd, is_canonical
from .subnet.segments import wide_subnet


def elementwise_mlp_fwd(
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, seed=None, activation="relu", *dropout
):
    """y [*]: shape of x, promoted dtype of the arguments."""
    if not is_canonical(fc1_weight, seed, activation):
        parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias, None, None
        return general_fwd(x, *parameters, seed, activation, *dropout)
    dtype, compute, tensors, addresses = prepare(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    n, n_hidden = x.numel(), fc1_weight.shape[0]
    y = torch.empty_like(tensors[0], dtype=dtype)
    y_at = result_at(y, compute)
    if (segments := wide_subnet(compute, addresses[1:], n_hidden, n)) is not None:
        segments.forward(addresses[0], 0, 0, n, 1, 1, y_at)
        return y
    kernel = forward[compute]
    run(kernel, n, *cut(n, n_hidden, BLOCK), *addresses, n_hidden, y_at)
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
    compute, tensors, addresses = prepare_as(
        dy.dtype, dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias
    )
    n, n_hidden = x.numel(), fc1_weight.shape[0]
    need_dx, *needs = needs
    dx = torch.empty_like(tensors[1], dtype=x.dtype) if need_dx else None
    dx_at = result_at(dx, compute)
    _, _, w, b, v, d = tensors
    if (segments := wide_subnet(compute, addresses[2:], n_hidden, n)) is not None:
        at = *addresses[:2], 0
        gradients = segments.backward(*at, n, 1, 1, dx_at, tensors[2:], needs, dy.dtype)
        if gradients is not None:
            return [dx, *gradients]
    gradients = run_summed(
        backward[compute],
        n,
        *cut(n, n_hidden, BLOCK),
        (w, n_hidden if b is None else b, v, 1 if d is None else d),
        needs,
        dy.dtype,
        *addresses[:-1],
        n_hidden,
        dx_at,
    )
    return [dx, *gradients]
