"""The op `mlp` with Numba: h_0 = x, h_l = σ_l(W_l·h_{l−1} + b_l), y = h_L, for any depth.

Rows go through the whole net a block at a time. A block of a layer lies as [width, rows] in a
cache, so that every width is its own number of vector operations; `machine/gemm.py` multiplies.
Forward reads x and writes y. Backward reads x and dy, computes the block's activations again, and
keeps them and the slopes σ'(z) until the chain rule has come back to them: with g_L = dy·σ'(z_L),

    dW_l = Σ_rows g_l·h_{l−1}^T,   db_l = Σ_rows g_l,   g_{l−1} = (W_l^T·g_l)·σ'(z_{l−1}),

and dx = W_1^T·g_1. With dropout the outputs of hidden layers are h_l = m_l·σ_l(…), m_l the factors
of `numbers/philox.py`, which backward makes again, once for h_l and once for g_l. Sums over rows
are in the compute dtype for :data:`FLUSH_ROWS` rows, then in float64.

The net is one integer vector: the number of layers L, L + 1 widths, L addresses of weights
[out, in], L addresses of biases, 0 for none. Gradients are one flat vector: W_1, b_1, W_2, b_2, ….
"""

from array import array
from functools import lru_cache
from operator import mul

import numpy as np

from .layers.blocks import (
    apply_layer,
    block_layout,
    block_rows,
    blocks,
    drop,
    fast_of,
    flush,
    n_sums,
    padded,
    widest_of,
)
from .machine.gemm import VECTOR, size_of, transpose
from .machine.jit import address_of, array_at, entry, wide_vectors
from .machine.launch import (
    PIECE,
    any_needed,
    prepare,
    prepare_as,
    result_at,
    run,
    run_summed,
    store,
)
from .numbers.block_activations import CODES, passes
from .numbers.philox import seed_at_address

FLUSH_ROWS = 1024

LARGEST_PIECES = 64
"""Pieces of a long batch: each writes as many sums as there are parameters."""


@entry
def _fwd(real):
    activate, _, _ = passes(real)

    def mlp_fwd(
        net_at, net_size, hidden_code, output_code, seed_at, dropout, x_at, y_at, first, last
    ):
        wide_vectors()
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        net = array_at(net_at, net_size, np.int64)
        n_layers = net[0]
        n_in, n_out = net[1], net[1 + n_layers]
        widest = widest_of(net, n_layers)
        rows = min(block_rows(widest), padded(max(last - first, 1), lanes))
        row_bytes = rows * size
        layer_bytes = padded(widest, lanes) * row_bytes
        mask_bytes = 16 * rows + row_bytes if dropout > 0 else 0
        memory = np.empty((2 * layer_bytes + mask_bytes) // size + widest + lanes, real)
        memory[:] = 0  # padding is computed with, and subnormal garbage is slow
        ping = (address_of(memory) + VECTOR - 1) // VECTOR * VECTOR
        pong = ping + layer_bytes
        words_at = pong + layer_bytes
        factors_at = words_at + 16 * rows
        zeros_at = words_at + mask_bytes
        seed = seed_at_address(seed_at)
        for start in range(first, last, rows):
            n_rows = min(rows, last - start)
            n_vectors = (n_rows + lanes - 1) // lanes
            transpose(zero, x_at + start * n_in * size, n_in * size, n_rows, n_in, ping, row_bytes)
            h, z = ping, pong
            for layer in range(n_layers):
                width = net[2 + layer]
                apply_layer(zero, net, layer, h, z, row_bytes, n_vectors, zeros_at)
                code = hidden_code if layer < n_layers - 1 else output_code
                activate(code, array_at(z, width * rows, real))
                if dropout > 0 and layer < n_layers - 1:
                    drop(
                        seed, layer + 1, start, n_rows, rows, width, dropout, words_at, factors_at,
                        array_at(z, width * rows, real), real,
                    )  # fmt: skip
                h, z = z, h
            transpose(zero, h, row_bytes, n_out, n_rows, y_at + start * n_out * size, n_out * size)
        memory[0] = 0  # Numba frees what is not used any more

    return mlp_fwd


@entry
def _bwd(real):
    forward_block, backward_block = blocks(real)

    def mlp_bwd(
        net_at, net_size, hidden_code, output_code, seed_at, dropout, dy_at, x_at, dx_at, sums_at,
        gradients_at, first, last,
    ):  # fmt: skip
        wide_vectors()
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        net = array_at(net_at, net_size, np.int64)
        n_layers = net[0]
        n_in, n_out = net[1], net[1 + n_layers]
        gradients = array_at(gradients_at, 2 * n_layers, np.int64)
        need_dparams = any_needed(sums_at, gradients)
        settings = last - first, hidden_code, output_code, dropout, size
        rows, places = block_layout(net, *settings, 0)
        memory = np.empty(places[9] // size + lanes, real)
        memory[:] = 0
        _, places = block_layout(net, *settings, address_of(memory))
        fast = fast_of(places, size, real)
        sums = np.zeros(n_sums(net), np.float64)
        unflushed = 0
        seed = seed_at_address(seed_at)
        for start in range(first, last, rows):
            n_rows = min(rows, last - start)
            block_x = x_at + start * n_in * size
            forward_block(
                net, hidden_code, output_code, seed, dropout, block_x, start, n_rows, rows, places,
                False,
            )  # fmt: skip
            backward_block(
                net, hidden_code, output_code, seed, dropout, dy_at + start * n_out * size, block_x,
                dx_at + start * n_in * size if dx_at != 0 else 0, start, n_rows, rows, places, sums,
                need_dparams,
            )  # fmt: skip
            unflushed += n_rows
            if unflushed >= FLUSH_ROWS:
                flush(net, fast, lanes, sums)
                unflushed = 0
        if need_dparams:
            flush(net, fast, lanes, sums)
            sizes = np.empty(2 * n_layers, np.int64)
            for layer in range(n_layers):
                sizes[2 * layer + 1] = net[2 + layer]
                sizes[2 * layer] = net[1 + layer] * net[2 + layer]
            store(sums, sums_at, gradients, sizes, real)
        memory[0] = 0  # Numba frees what is not used any more

    return mlp_bwd


def _widths(x, parameters):
    """Of the input and of each layer's output; weights and biases alternate."""
    return x.shape[1], *[w.shape[0] for w in parameters[::2]]


def _pack(widths, addresses):
    """The integer vector of the module's first lines, of the addresses of weights and biases."""
    return array("q", [len(widths) - 1, *widths, *addresses[::2], *addresses[1::2]])


@lru_cache(256)
def _cut(n_rows, widths):
    """Rows per piece and number of pieces, from the shape alone."""
    work_per_row = sum(map(mul, widths, widths[1:]))
    rows = max(PIECE // work_per_row, -(-n_rows // LARGEST_PIECES))
    rows = -(-rows // 256) * 256
    return rows, max(-(-n_rows // rows), 1)


def mlp_fwd(x, *arguments):
    """y [N, out] from x [N, in], weights and biases in turn, seed, two activations, dropout."""
    *parameters, seed, activation, output_activation, dropout = arguments
    dtype, compute, _held, addresses = prepare(x, *parameters)
    widths = _widths(x, parameters)
    net = _pack(widths, addresses[1:])
    y = x.new_empty(x.shape[0], widths[-1], dtype=dtype)
    run(
        _fwd[compute],
        x.shape[0],
        *_cut(x.shape[0], widths),
        net.buffer_info()[0],
        len(net),
        CODES[activation],
        CODES[output_activation],
        0 if seed is None else seed.data_ptr(),
        dropout,
        addresses[0],
        result_at(y, compute),
    )
    return y


def mlp_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, seed, activation, output_activation, dropout = arguments
    compute, tensors, addresses = prepare_as(dy.dtype, dy, x, *parameters)
    widths = _widths(x, parameters)
    net = _pack(widths, addresses[2:])
    dx = x.new_empty(x.shape) if needs[0] else None
    # in place of a bias that is missing, its size
    sized = [widths[1 + i // 2] if p is None else p for i, p in enumerate(tensors[2:])]
    gradients = run_summed(
        _bwd[compute],
        x.shape[0],
        *_cut(x.shape[0], widths),
        sized,
        needs[1:],
        dy.dtype,
        net.buffer_info()[0],
        len(net),
        CODES[activation],
        CODES[output_activation],
        0 if seed is None else seed.data_ptr(),
        dropout,
        addresses[0],
        addresses[1],
        result_at(dx, compute),
        packed=True,
    )
    return [dx, *gradients]
