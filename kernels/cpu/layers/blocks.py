"""Blocks of rows of an MLP, for the kernels of `mlp.py` and for whole training runs.

A block of a layer lies as [width, rows] in a cache, rows a whole number of vectors; what is beyond
the last row is computed with and not used. Forward leaves activations and slopes σ'(z) in a
:func:`layout`, from which backward takes them.

A net is the vector of integers of `net.py`.
"""

import numpy as np
from numba.extending import register_jitable

from ..machine.gemm import VECTOR, add_dots, add_product, multiply, size_of, sum_lanes, transpose
from ..machine.jit import address_of, array_at, inner
from ..numbers.block_activations import IDENTITY, by_sign, passes
from ..numbers.philox import MASKS_PER_BLOCK, draw_factors, draw_words
from .net import bias_at, depth, weight_at, width_of

DOT_WIDTH = 4
DOT_WEIGHTS = 256
"""Up to so many inputs or weights a layer's weight gradient is taken as dot products, a vector of
partial sums for each weight: nothing is transposed, no vector of inputs is half empty. These sums
are 16 KB; twice as many weights would leave little of a level-1 cache."""


@register_jitable
def block_rows(widest):
    """Rows of a block: a layer of one is 8 to 32 KB in float32, all fit a level-2 cache."""
    return 128 if widest <= 32 else 64


@inner
def padded(width, lanes):
    return (width + lanes - 1) // lanes * lanes


@inner
def widest_of(net):
    widest = 1
    for layer in range(depth(net) + 1):
        widest = max(widest, width_of(net, layer))
    return widest


@inner
def apply_layer(zero, net, layer, h_at, z_at, row_bytes, n_vectors, zeros_at):
    """z = W·h + b of one layer, both [width, rows]."""
    wide, width, size = width_of(net, layer), width_of(net, layer + 1), size_of(zero)
    biases_at = bias_at(net, layer)
    multiply(
        zero, weight_at(net, layer), wide * size, size, h_at, row_bytes, z_at, row_bytes,
        biases_at if biases_at != 0 else zeros_at, width, n_vectors, wide,
    )  # fmt: skip


@inner
def n_sums(net):
    """Numbers of all parameters' gradients, of biases that are missing too."""
    total = 0
    for layer in range(depth(net)):
        total += (width_of(net, layer) + 1) * width_of(net, layer + 1)
    return total


@inner
def drop(seed, layer, start, n_rows, rows, width, p, words_at, factors_at, z, real):
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


@register_jitable
def has_dots(wide, width):
    """Whether the weight gradient of a layer of ``wide`` inputs is taken as dot products."""
    return wide <= DOT_WIDTH or wide * width <= DOT_WEIGHTS


@register_jitable
def n_fast(wide, width, lanes):
    """Numbers of a layer's weight gradient in the compute dtype, in whole vectors."""
    if has_dots(wide, width):
        return (wide * width + lanes - 1) // lanes * lanes * lanes
    return (wide + lanes - 1) // lanes * lanes * width


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
def _clear_padding(block, rows, n_rows, last, width):
    """block[k, n_rows : last] = 0 for each row k of [width, rows]."""
    for k in range(width):
        for r in range(k * rows + n_rows, k * rows + last):
            block[r] = 0


@inner
def flush(net, fast, lanes, sums):
    """Add the weight gradients of the last rows to ``sums``, and clear them."""
    at = fast_at = 0
    for layer in range(depth(net)):
        wide, width = width_of(net, layer), width_of(net, layer + 1)
        n_weights, size = wide * width, n_fast(wide, width, lanes)
        if has_dots(wide, width):
            for first in range(0, n_weights, lanes):
                place = fast_at + first * lanes
                target = address_of(fast) + place * fast.itemsize
                sum_lanes(fast[0], target, target)
                for i in range(min(lanes, n_weights - first)):
                    sums[at + first + i] += fast[place + i]
        else:
            stride = size // width
            for o in range(width):
                source = fast[fast_at + o * stride : fast_at + o * stride + wide]
                target = sums[at + o * wide : at + o * wide + wide]
                for i in range(wide):
                    target[i] += source[i]
        at += n_weights + width
        fast_at += size
    fast[:] = 0


@register_jitable
def layout(net, rows, keeps_slopes, size, at):
    """Where a block of ``rows`` rows keeps what backward wants, in memory from ``at`` on.

    Returns the addresses of zeros for a bias, of weight gradients in the compute dtype, of the
    L + 1 layers, of g, of the next g, of a transposed layer, of L slopes, of random words and of
    dropout factors; and where all this ends. The first two do not depend on ``rows``. Plain Python,
    for who reserves the memory too.

    Memory from the system, page by page, costs more than a small batch's arithmetic: so take
    little. Padding is computed with, and subnormal garbage is slow: so clear it once.
    """
    n_layers, lanes = depth(net), VECTOR // size
    widest, fast_size = width_of(net, 0), 0
    for layer in range(n_layers):
        wide, width = width_of(net, layer), width_of(net, layer + 1)
        widest = max(widest, width)
        fast_size += n_fast(wide, width, lanes)
    widest = (widest + lanes - 1) // lanes * lanes
    layer_bytes = widest * rows * size
    zeros_at = (at + VECTOR - 1) // VECTOR * VECTOR
    fast_at = zeros_at + widest * size
    layers_at = fast_at + fast_size * size
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


@inner
def rate_behind(rates, layer, n_layers):
    """The probability of dropout behind a layer; behind layer 0, of an input.

    ``rates`` has L + 1 of them, or one, that of the hidden layers.
    """
    if rates.size == 1:
        return rates[0] if 0 < layer < n_layers else 0.0
    return rates[layer]


@inner
def block_layout(net, n_rows, hidden_code, output_code, drops, size, at):
    """Rows of a block of a batch of ``n_rows``, and its layout."""
    lanes = VECTOR // size
    rows = min(block_rows(widest_of(net)), padded(max(n_rows, 1), lanes))
    slopes = drops or not (by_sign(hidden_code) and by_sign(output_code))
    return rows, layout(net, rows, slopes, size, at)


@inner
def fast_of(memory, size, real):
    """The weight gradients of a layout."""
    return array_at(memory[1], (memory[2] - memory[1]) // size, real)


def blocks(real):
    """Functions of one block in a :func:`layout`: its activations; its share of the gradients."""
    _, activate_and_keep, chain = passes(real)

    @inner
    def forward_block(
        net, hidden_code, output_code, seed, drops, rates, x_at, place, n_rows, rows, memory, whole
    ):
        """Fill the layers and the slopes; returns where the output [out, rows] lies.

        ``place`` is the index of the first row in the whole batch. Unless ``whole``, an output that
        is not needed for gradients is left out. With ``drops``, by the probabilities of
        :func:`rate_behind`; else these are not looked at.
        """
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        n_vectors = (n_rows + lanes - 1) // lanes
        n_layers, row_bytes, n_in = depth(net), rows * size, width_of(net, 0)
        zeros_at, _, layers_at, g_at, next_g_at, _, slopes_at, words_at, factors_at, _ = memory
        layer_bytes = next_g_at - g_at
        transpose(zero, x_at, n_in * size, n_rows, n_in, layers_at, row_bytes)
        p = rate_behind(rates, 0, n_layers) if drops else 0.0
        if p > 0:
            drop(
                seed, 0, place, n_rows, rows, n_in, p, words_at, factors_at,
                array_at(layers_at, n_in * rows, real), real,
            )  # fmt: skip
        for layer in range(n_layers):
            code = hidden_code if layer < n_layers - 1 else output_code
            if layer == n_layers - 1 and code == IDENTITY and not whole:
                break
            width = width_of(net, layer + 1)
            h = layers_at + layer * layer_bytes
            apply_layer(zero, net, layer, h, h + layer_bytes, row_bytes, n_vectors, zeros_at)
            values = array_at(h + layer_bytes, width * rows, real)
            kept = array_at(slopes_at + layer * layer_bytes, width * rows, real)
            activate_and_keep(code, values, kept)
            p = rate_behind(rates, layer + 1, n_layers) if drops else 0.0
            if p > 0:
                if by_sign(code):  # what is dropped has lost its sign
                    for e in range(values.size):
                        kept[e] = values[e]
                drop(
                    seed, layer + 1, place, n_rows, rows, width, p, words_at, factors_at, values,
                    real,
                )  # fmt: skip
        return layers_at + n_layers * layer_bytes

    @inner
    def backward_block(
        net, hidden_code, output_code, seed, drops, rates, dy_at, x_at, dx_at, place, n_rows, rows,
        memory, sums, need_dparams,
    ):  # fmt: skip
        """After forward_block: add to ``sums`` and the weight gradients; dx where it is wanted.

        Nobody wants dx of an input that is dropped.
        """
        zero = real(0)
        size = size_of(zero)
        lanes = VECTOR // size
        n_vectors = (n_rows + lanes - 1) // lanes
        n_layers, row_bytes = depth(net), rows * size
        n_in, n_out = width_of(net, 0), width_of(net, n_layers)
        zeros_at, _, layers_at, g, g_below, transposed, slopes_at, words_at, factors_at, _ = memory
        layer_bytes = g_below - g
        transpose(zero, dy_at, n_out * size, n_rows, n_out, g, row_bytes)
        weights_at, fast_weights_at = sums.size, layers_at
        for layer in range(n_layers - 1, -1, -1):
            wide, width = width_of(net, layer), width_of(net, layer + 1)
            code = hidden_code if layer < n_layers - 1 else output_code
            h = layers_at + layer * layer_bytes
            g_block = array_at(g, width * rows, real)
            values_at, kept_at = h + layer_bytes, slopes_at + layer * layer_bytes
            p = rate_behind(rates, layer + 1, n_layers) if drops else 0.0
            if p > 0:
                drop(
                    seed, layer + 1, place, n_rows, rows, width, p, words_at, factors_at, g_block,
                    real,
                )  # fmt: skip
                values_at = kept_at if by_sign(code) else values_at
            chain(
                code,
                array_at(values_at, width * rows, real),
                array_at(kept_at, width * rows, real),
                g_block,
            )
            stride = padded(wide, lanes)
            weights_at -= (wide + 1) * width
            fast_weights_at -= n_fast(wide, width, lanes) * size
            if need_dparams:
                _add_row_sums(g_block, rows, n_rows, width, sums, weights_at + wide * width)
                if has_dots(wide, width):
                    if n_rows < n_vectors * lanes:
                        h_block = array_at(h, wide * rows, real)
                        _clear_padding(h_block, rows, n_rows, n_vectors * lanes, wide)
                        _clear_padding(g_block, rows, n_rows, n_vectors * lanes, width)
                    add_dots(
                        zero, g, row_bytes, h, row_bytes, fast_weights_at, width, wide, n_vectors
                    )
                else:
                    h_rows = transposed
                    from_x = layer == 0 and wide == stride
                    if from_x and not (drops and rate_behind(rates, 0, n_layers) > 0):
                        h_rows = x_at
                    else:
                        transpose(
                            zero, h, row_bytes, stride, padded(n_rows, lanes), transposed,
                            stride * size,
                        )  # fmt: skip
                    add_product(
                        zero, g, row_bytes, size, h_rows, stride * size, fast_weights_at,
                        stride * size, width, stride // lanes, n_rows,
                    )  # fmt: skip
            if layer > 0 or dx_at != 0:
                multiply(
                    zero, weight_at(net, layer), size, wide * size, g, row_bytes, g_below,
                    row_bytes, zeros_at, wide, n_vectors, width,
                )  # fmt: skip
                g, g_below = g_below, g
        if dx_at != 0:
            transpose(zero, g, row_bytes, n_in, n_rows, dx_at, n_in * size)

    return forward_block, backward_block
