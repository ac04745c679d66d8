"""Rows through layers: h_0 = x, h_l = σ_l(W_l·h_{l−1} + b_l), y = h_L, for any depth.

Rows go through the whole net a block at a time. A block of a layer lies as [width, rows] in a
cache, so that every width is its own number of vector operations; `machine/gemm.py` multiplies.
Forward reads x and writes y. Backward reads x and dy, computes the block's activations again, and
keeps them and the slopes σ'(z) until the chain rule has come back to them: with g_L = dy·σ'(z_L),

    dW_l = Σ_rows g_l·h_{l−1}^T,   db_l = Σ_rows g_l,   g_{l−1} = (W_l^T·g_l)·σ'(z_{l−1}),

and dx = W_1^T·g_1. With dropout the outputs of hidden layers are h_l = m_l·σ_l(…), m_l the factors
of `numbers/philox.py`, which backward makes again, once for h_l and once for g_l. Sums over rows
are in the compute dtype for :data:`FLUSH_ROWS` rows, then in float64.

The net is the vector of integers of `net.py`. Gradients are one flat vector: W_1, b_1, W_2, b_2, ….
"""

import numpy as np

from ..machine.gemm import VECTOR, size_of, transpose
from ..machine.jit import address_of, array_at, entry, wide_vectors
from ..machine.launch import (
    any_needed,
    store,
)
from ..numbers.block_activations import passes
from ..numbers.philox import seed_at_address
from .blocks import (
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
from .net import depth, width_of

FLUSH_ROWS = 1024


@entry
def forward(real):
    activate, _, _ = passes(real)

    def mlp_fwd(
        x_at, net_at, net_size, hidden_code, output_code, seed_at, dropout, y_at, first, last
    ):
        wide_vectors()
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        net = array_at(net_at, net_size, np.int64)
        n_layers = depth(net)
        n_in, n_out = width_of(net, 0), width_of(net, n_layers)
        widest = widest_of(net)
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
                width = width_of(net, layer + 1)
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
def backward(real):
    forward_block, backward_block = blocks(real)

    def mlp_bwd(
        dy_at, x_at, net_at, net_size, hidden_code, output_code, seed_at, dropout, dx_at, sums_at,
        gradients_at, first, last,
    ):  # fmt: skip
        wide_vectors()
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        net = array_at(net_at, net_size, np.int64)
        n_layers = depth(net)
        n_in, n_out = width_of(net, 0), width_of(net, n_layers)
        gradients = array_at(gradients_at, 2 * n_layers, np.int64)
        need_dparams = any_needed(sums_at, gradients)
        drops, rates = dropout > 0, np.full(1, dropout)
        settings = last - first, hidden_code, output_code, drops, size
        rows, places = block_layout(net, *settings, 0)
        memory = np.empty(places[9] // size + lanes, real)
        memory[:] = 0
        _, places = block_layout(net, *settings, address_of(memory))
        fast = fast_of(places, size, real)
        # of many pieces each sums where it is asked to: as many sums as there are parameters
        n_gradients = n_sums(net)
        if sums_at != 0:
            sums = array_at(sums_at, n_gradients, np.float64)
        else:
            sums = np.empty(n_gradients, np.float64)
        sums[:] = 0
        unflushed = 0
        seed = seed_at_address(seed_at)
        for start in range(first, last, rows):
            n_rows = min(rows, last - start)
            block_x = x_at + start * n_in * size
            forward_block(
                net, hidden_code, output_code, seed, drops, rates, block_x, start, n_rows, rows,
                places, False,
            )  # fmt: skip
            backward_block(
                net, hidden_code, output_code, seed, drops, rates, dy_at + start * n_out * size,
                block_x, dx_at + start * n_in * size if dx_at != 0 else 0, start, n_rows, rows,
                places, sums, need_dparams,
            )  # fmt: skip
            unflushed += n_rows
            if unflushed >= FLUSH_ROWS:
                flush(net, fast, lanes, sums)
                unflushed = 0
        if need_dparams:
            flush(net, fast, lanes, sums)
        if need_dparams and sums_at == 0:
            sizes = np.empty(2 * n_layers, np.int64)
            for layer in range(n_layers):
                width = width_of(net, layer + 1)
                sizes[2 * layer], sizes[2 * layer + 1] = width_of(net, layer) * width, width
            store(sums, 0, gradients, sizes, real)
        memory[0] = 0  # Numba frees what is not used any more

    return mlp_bwd
