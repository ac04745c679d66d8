"""The op `mlp` with Numba: any depth, rows dealt out in pieces to `layers/rows.py`.

Forward reads x and writes y; backward reads x and dy, and writes dx, once.
"""

from functools import lru_cache
from operator import mul

from .layers.net import pack
from .layers.rows import backward, forward
from .machine.launch import (
    cut,
    prepare,
    prepare_as,
    result_at,
    run,
    run_summed,
)
from .numbers.block_activations import CODES

LARGEST_PIECES = 64
"""Pieces of a long batch: each writes as many sums as there are parameters."""


def _widths(x, parameters):
    """Of the input and of each layer's output; weights and biases alternate."""
    return x.shape[1], *[w.shape[0] for w in parameters[::2]]


@lru_cache(256)
def _work(widths):
    """Products of a row."""
    return sum(map(mul, widths, widths[1:]))


def _cut(n_rows, widths):
    # a small batch of wide layers is worth a second thread: half of it, in whole blocks
    multiple = min(256, max(1, -(-n_rows // 128)) * 64)
    return cut(n_rows, _work(widths), multiple, LARGEST_PIECES)


def mlp_fwd(x, *arguments):
    """y [N, out] from x [N, in], weights and biases in turn, seed, two activations, dropout."""
    *parameters, seed, activation, output_activation, dropout = arguments
    dtype, compute, _held, addresses = prepare(x, *parameters)
    widths = _widths(x, parameters)
    net = pack(widths, addresses[1:])
    y = x.new_empty(x.shape[0], widths[-1], dtype=dtype)
    run(
        forward[compute],
        x.shape[0],
        *_cut(x.shape[0], widths),
        addresses[0],
        net.buffer_info()[0],
        len(net),
        CODES[activation],
        CODES[output_activation],
        0 if seed is None else seed.data_ptr(),
        dropout,
        result_at(y, compute),
    )
    return y


def mlp_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, seed, activation, output_activation, dropout = arguments
    compute, tensors, addresses = prepare_as(dy.dtype, dy, x, *parameters)
    widths = _widths(x, parameters)
    net = pack(widths, addresses[2:])
    dx = x.new_empty(x.shape) if needs[0] else None
    # in place of a bias that is missing, its size
    sized = [widths[1 + i // 2] if p is None else p for i, p in enumerate(tensors[2:])]
    gradients = run_summed(
        backward[compute],
        x.shape[0],
        *_cut(x.shape[0], widths),
        sized,
        needs[1:],
        dy.dtype,
        *addresses[:2],
        net.buffer_info()[0],
        len(net),
        CODES[activation],
        CODES[output_activation],
        0 if seed is None else seed.data_ptr(),
        dropout,
        result_at(dx, compute),
        packed=True,
    )
    return [dx, *gradients]
