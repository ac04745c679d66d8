"""The op `mlp` with Numba: h_0 = x, h_l = σ_l(W_l·h_{l−1} + b_l), y = h_L, for any depth.

Rows go through the whole net a block at a time. A block of a layer lies as [width, rows] in a
cache, so that every width is its own number of vector operations; `gemm.py` multiplies. Forward
reads x and writes y. Backward reads x and dy, computes the block's activations again, and keeps
them and the slopes σ'(z) until the chain rule has come back to them: with g_L = dy·σ'(z_L),

    dW_l = Σ_rows g_l·h_{l−1}^T,   db_l = Σ_rows g_l,   g_{l−1} = (W_l^T·g_l)·σ'(z_{l−1}),

and dx = W_1^T·g_1. With dropout the outputs of hidden layers are h_l = m_l·σ_l(…), m_l the factors
of `philox.py`, which backward makes again, once for h_l and once for g_l. Sums over rows are in the
compute dtype for :data:`FLUSH_ROWS` rows, then in float64.

The net is one integer vector: the number of layers L, L + 1 widths, L addresses of weights
[out, in], L addresses of biases, 0 for none. Gradients are one flat vector: W_1, b_1, W_2, b_2, ….
"""

from array import array

import numpy as np

from .block_activations import CODES, IDENTITY, by_sign, passes
from .gemm import VECTOR, add_product, multiply, size_of, transpose
from .jit import address_of, array_at, entry, inner, wide_vectors
from .launch import PIECE, any_needed, cast_back, prepare, prepare_as, run, run_summed, store
from .philox import MASKS_PER_BLOCK, draw_factors, draw_words, seed_at_address

FLUSH_ROWS = 1024

DOT_WIDTH = 4
"""Up to this many inputs a layer's weight gradient is taken as dot products: a vector of inputs
would be mostly empty."""

LARGEST_PIECES = 64
"""Pieces of a long batch: each writes as many sums as there are parameters."""


def block_rows(widest):
    """Rows of a block: a layer of one is 8 to 32 KB in float32, all fit a level-2 cache."""
    return 128 if widest <= 32 else 64


_block_rows = inner(block_rows)


@inner
def _padded(width, lanes):
    return (width + lanes - 1) // lanes * lanes


@inner
def _widest(net, n_layers):
    widest = 1
    for i in range(n_layers + 1):
        widest = max(widest, net[1 + i])
    return widest


@inner
def _bias_or_zeros(net, n_layers, layer, zeros_at):
    bias_at = net[2 + 2 * n_layers + layer]
    return bias_at if bias_at != 0 else zeros_at


@inner
def n_sums(net):
    """Numbers of all parameters' gradients, of biases that are missing too."""
    total = 0
    for layer in range(net[0]):
        total += (net[1 + layer] + 1) * net[2 + layer]
    return total


@inner
def _drop(seed, layer, start, n_rows, rows, width, p, words_at, factors_at, z, real):
    """z[k, r] *= m, the factor of unit k of a hidden layer, in row ``start`` + r."""
    words = array_at(words_at, 4 * rows, np.uint32).reshape((4, rows))
    factors = array_at(factors_at, rows, real)
    for k in range(width):
        if k % MASKS_PER_BLOCK == 0:
            draw_words(seed, start, k // MASKS_PER_BLOCK, n_rows, words, 0, layer)
        draw_factors(words, k, p, n_rows, factors, real)
        z_row = z[k * rows : k * rows + n_rows]
        for r in range(n_rows):
            z_row[r] *= factors[r]


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
        widest = _widest(net, n_layers)
        rows = min(_block_rows(widest), _padded(max(last - first, 1), lanes))
        row_bytes = rows * size
        layer_bytes = _padded(widest, lanes) * row_bytes
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
                wide, width = net[1 + layer], net[2 + layer]
                multiply(
                    zero, net[2 + n_layers + layer], wide * size, size, h, row_bytes, z, row_bytes,
                    _bias_or_zeros(net, n_layers, layer, zeros_at), width, n_vectors, wide,
                )  # fmt: skip
                code = hidden_code if layer < n_layers - 1 else output_code
                activate(code, array_at(z, width * rows, real))
                if dropout > 0 and layer < n_layers - 1:
                    _drop(
                        seed, layer + 1, start, n_rows, rows, width, dropout, words_at, factors_at,
                        array_at(z, width * rows, real), real,
                    )  # fmt: skip
                h, z = z, h
            transpose(zero, h, row_bytes, n_out, n_rows, y_at + start * n_out * size, n_out * size)
        memory[0] = 0  # Numba frees what is not used any more

    return mlp_fwd


@inner
def _add_dots(g, h, rows, n_rows, width, wide, sums, at):
    """sums[at + o·wide + i] += Σ_r g[o, r]·h[i, r]."""
    for o in range(width):
        for i in range(wide):
            g_row, h_row = g[o * rows : o * rows + n_rows], h[i * rows : i * rows + n_rows]
            total = g[0] * 0
            for r in range(n_rows):
                total += g_row[r] * h_row[r]
            sums[at + o * wide + i] += total


@inner
def _add_row_sums(g, rows, n_rows, width, sums, at):
    """sums[at + o] += Σ_r g[o, r]."""
    for o in range(width):
        g_row = g[o * rows : o * rows + n_rows]
        total = g[0] * 0
        for r in range(n_rows):
            total += g_row[r]
        sums[at + o] += total


@inner
def flush(net, fast, lanes, sums):
    """Add the weight gradients of the last rows, padded to whole vectors, and clear them."""
    at = fast_at = 0
    for layer in range(net[0]):
        wide, width = net[1 + layer], net[2 + layer]
        stride = _padded(wide, lanes)
        if wide > DOT_WIDTH:
            for o in range(width):
                source = fast[fast_at + o * stride : fast_at + o * stride + wide]
                target = sums[at + o * wide : at + o * wide + wide]
                for i in range(wide):
                    target[i] += source[i]
        at += (wide + 1) * width
        fast_at += stride * width
    fast[:] = 0


def layout(net, rows, keeps_slopes, size, at):
    """Where a block of ``rows`` rows keeps what backward wants, in memory from ``at`` on.

    Returns the addresses of zeros for a bias, of weight gradients in the compute dtype, of the
    L + 1 layers, of g, of the next g, of a transposed layer, of L slopes, of random words and of
    dropout factors; and where all this ends. The first two do not depend on ``rows``. Plain Python,
    for who reserves the memory; compiled as :data:`_layout`.

    Memory from the system, page by page, costs more than a small batch's arithmetic: so take
    little. Padding is computed with, and subnormal garbage is slow: so clear it once.
    """
    n_layers, lanes = net[0], VECTOR // size
    widest, n_fast = net[1], 0
    for layer in range(n_layers):
        widest = max(widest, net[2 + layer])
        n_fast += (net[1 + layer] + lanes - 1) // lanes * lanes * net[2 + layer]
    widest = (widest + lanes - 1) // lanes * lanes
    layer_bytes = widest * rows * size
    zeros_at = (at + VECTOR - 1) // VECTOR * VECTOR
    fast_at = zeros_at + widest * size
    layers_at = fast_at + n_fast * size
    g_at = layers_at + (n_layers + 1) * layer_bytes
    slopes_at = g_at + 3 * layer_bytes
    words_at = slopes_at + (n_layers if keeps_slopes else 0) * layer_bytes
    factors_at = words_at + 16 * rows
    return (
        zeros_at,
        fast_at,
        layers_at,
        g_at,
        g_at + layer_bytes,
        g_at + 2 * layer_bytes,
        slopes_at,
        words_at,
        factors_at,
        factors_at + rows * size,
    )


_layout = inner(layout)


@inner
def block_layout(net, n_rows, hidden_code, output_code, dropout, size, at):
    """Rows of a block of a batch of ``n_rows``, and its layout."""
    lanes = VECTOR // size
    rows = min(_block_rows(_widest(net, net[0])), _padded(max(n_rows, 1), lanes))
    slopes = dropout > 0 or not (by_sign(hidden_code) and by_sign(output_code))
    return rows, _layout(net, rows, slopes, size, at)


@inner
def fast_of(memory, size, real):
    """The weight gradients of a layout."""
    return array_at(memory[1], (memory[2] - memory[1]) // size, real)


def blocks(real):
    """Functions of one block in a :func:`layout`: its activations; its share of the gradients."""
    _, activate_and_keep, chain = passes(real)

    @inner
    def forward_block(
        net, hidden_code, output_code, seed, dropout, x_at, place, n_rows, rows, memory, whole
    ):
        """Fill the layers and the slopes; returns where the output [out, rows] lies.

        ``place`` is the index of the first row in the whole batch. Unless ``whole``, an output that
        is not needed for gradients is left out.
        """
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        n_vectors = (n_rows + lanes - 1) // lanes
        n_layers, row_bytes = net[0], rows * size
        zeros_at, _, layers_at, g_at, next_g_at, _, slopes_at, words_at, factors_at, _ = memory
        layer_bytes = next_g_at - g_at
        transpose(zero, x_at, net[1] * size, n_rows, net[1], layers_at, row_bytes)
        for layer in range(n_layers):
            code = hidden_code if layer < n_layers - 1 else output_code
            if layer == n_layers - 1 and code == IDENTITY and not whole:
                break
            wide, width = net[1 + layer], net[2 + layer]
            h = layers_at + layer * layer_bytes
            multiply(
                zero, net[2 + n_layers + layer], wide * size, size, h, row_bytes,
                h + layer_bytes, row_bytes,
                _bias_or_zeros(net, n_layers, layer, zeros_at), width, n_vectors, wide,
            )  # fmt: skip
            values = array_at(h + layer_bytes, width * rows, real)
            kept = array_at(slopes_at + layer * layer_bytes, width * rows, real)
            activate_and_keep(code, values, kept)
            if dropout > 0 and layer < n_layers - 1:
                if by_sign(code):  # what is dropped has lost its sign
                    for e in range(values.size):
                        kept[e] = values[e]
                _drop(
                    seed, layer + 1, place, n_rows, rows, width, dropout, words_at, factors_at,
                    values, real,
                )  # fmt: skip
        return layers_at + n_layers * layer_bytes

    @inner
    def backward_block(
        net, hidden_code, output_code, seed, dropout, dy_at, x_at, dx_at, place, n_rows, rows,
        memory, sums, need_dparams,
    ):  # fmt: skip
        """After forward_block: add to ``sums`` and the weight gradients; dx where it is wanted."""
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        n_vectors = (n_rows + lanes - 1) // lanes
        n_layers, row_bytes = net[0], rows * size
        n_in, n_out = net[1], net[1 + n_layers]
        zeros_at, _, layers_at, g, g_below, transposed, slopes_at, words_at, factors_at, _ = memory
        layer_bytes = g_below - g
        transpose(zero, dy_at, n_out * size, n_rows, n_out, g, row_bytes)
        weights_at, fast_weights_at = sums.size, layers_at
        for layer in range(n_layers - 1, -1, -1):
            wide, width = net[1 + layer], net[2 + layer]
            code = hidden_code if layer < n_layers - 1 else output_code
            h = layers_at + layer * layer_bytes
            g_block = array_at(g, width * rows, real)
            values_at, kept_at = h + layer_bytes, slopes_at + layer * layer_bytes
            if dropout > 0 and layer < n_layers - 1:
                _drop(
                    seed, layer + 1, place, n_rows, rows, width, dropout, words_at, factors_at,
                    g_block, real,
                )  # fmt: skip
                values_at = kept_at if by_sign(code) else values_at
            chain(
                code,
                array_at(values_at, width * rows, real),
                array_at(kept_at, width * rows, real),
                g_block,
            )
            stride = _padded(wide, lanes)
            weights_at -= (wide + 1) * width
            fast_weights_at -= stride * width * size
            if need_dparams:
                _add_row_sums(g_block, rows, n_rows, width, sums, weights_at + wide * width)
                if wide <= DOT_WIDTH:
                    h_block = array_at(h, wide * rows, real)
                    _add_dots(g_block, h_block, rows, n_rows, width, wide, sums, weights_at)
                else:
                    h_rows = transposed
                    if layer == 0 and wide == stride:
                        h_rows = x_at
                    else:
                        transpose(
                            zero, h, row_bytes, stride, _padded(n_rows, lanes), transposed,
                            stride * size,
                        )  # fmt: skip
                    add_product(
                        zero, g, row_bytes, size, h_rows, stride * size, fast_weights_at,
                        stride * size, width, stride // lanes, n_rows,
                    )  # fmt: skip
            if layer > 0 or dx_at != 0:
                multiply(
                    zero, net[2 + n_layers + layer], size, wide * size, g, row_bytes, g_below,
                    row_bytes, zeros_at, wide, n_vectors, width,
                )  # fmt: skip
                g, g_below = g_below, g
        if dx_at != 0:
            transpose(zero, g, row_bytes, n_in, n_rows, dx_at, n_in * size)

    return forward_block, backward_block


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


def _pack(x, parameters, addresses):
    """The integer vector of the module's first lines; weights and biases alternate."""
    weights = parameters[::2]
    widths = [x.shape[1], *(w.shape[0] for w in weights)]
    return array("q", [len(weights), *widths, *addresses[::2], *addresses[1::2]])


def _cut(n_rows, parameters):
    """Rows per piece and number of pieces, from the shape alone."""
    work_per_row = sum(w.numel() for w in parameters[::2])
    rows = max(PIECE // work_per_row, -(-n_rows // LARGEST_PIECES))
    rows = -(-rows // 256) * 256
    return rows, max(-(-n_rows // rows), 1)


def mlp_fwd(x, *arguments):
    """y [N, out] from x [N, in], weights and biases in turn, seed, two activations, dropout."""
    *parameters, seed, activation, output_activation, dropout = arguments
    dtype, compute, tensors, addresses = prepare(x, *parameters)
    net = _pack(x, parameters, addresses[1:])
    y = tensors[0].new_empty((x.shape[0], parameters[-2].shape[0]))
    run(
        _fwd[compute],
        x.shape[0],
        *_cut(x.shape[0], parameters),
        net.buffer_info()[0],
        len(net),
        CODES[activation],
        CODES[output_activation],
        0 if seed is None else seed.data_ptr(),
        dropout,
        addresses[0],
        y.data_ptr(),
    )
    return cast_back(y, dtype)


def mlp_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, seed, activation, output_activation, dropout = arguments
    compute, tensors, addresses = prepare_as(dy.dtype, (dy, x, *parameters))
    net = _pack(x, parameters, addresses[2:])
    dx = tensors[1].new_empty(x.shape) if needs[0] else None
    # in place of a bias that is missing, its size
    sized = [
        tensors[2 + i // 2 * 2].shape[0] if p is None else p for i, p in enumerate(tensors[2:])
    ]
    gradients = run_summed(
        _bwd[compute],
        x.shape[0],
        *_cut(x.shape[0], parameters),
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
        dx.data_ptr() if needs[0] else 0,
        packed=True,
    )
    return [cast_back(dx, x.dtype), *gradients]
