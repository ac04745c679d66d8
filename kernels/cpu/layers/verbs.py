"""The verbs of layers for whole training runs: see `models.py`."""

import numpy as np

from ...spec import LayerSizes, layer_sizes
from ..machine.gemm import VECTOR, transpose
from ..machine.jit import add, address_of, array_at, inner, named, record, wide_vectors
from . import blocks
from .net import depth, lay, n_words, width_of

SIZES, N_SIZES = record(LayerSizes), len(LayerSizes._fields)


@inner
def _net_of(theta, sizes, kept):
    """The vector of `net.py`, and where the memory behind it begins."""
    model, widths = named(sizes, SIZES), sizes[N_SIZES:]
    net = array_at(address_of(kept), n_words(model.n_layers), np.int64)
    lay(net, model.n_layers, widths, model.bias, address_of(theta), theta.itemsize)
    return net, address_of(kept) + net.itemsize * net.size


@inner
def _mlp_dropout(n, n_rows, place, constants):
    """Whether there are masks, none where the model is evaluated; the first item's index in all."""
    drops = False
    if place >= 0:
        for p in constants:
            drops = drops or p > 0
    return drops, place * (n // n_rows) if drops else 0


def _element_rows(sizes):
    return blocks.block_rows(max(layer_sizes(sizes)[1]))


def mlp_block_rows(sizes, n_in):
    """Rows whose activations forward keeps: of a net of single numbers a row is ``n_in`` rows."""
    _, widths = layer_sizes(sizes)
    return max(1, _element_rows(sizes) * widths[0] // n_in)


def mlp_n_kept(sizes, n_in):
    """The net, sums in float64 and the layout of a block, in numbers of either dtype."""
    model, widths = layer_sizes(sizes)
    net = (model.n_layers, *widths)
    integers = n_words(model.n_layers) + blocks.n_sums.py_func(net)
    return max(
        -(-blocks.layout(net, _element_rows(sizes), True, size, 8 * integers)[-1] // size) + 16
        for size in (4, 8)
    )


def mlp_forward(real):
    forward_block, _ = blocks.blocks(real)

    @inner
    def mlp_verb_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        wide_vectors()
        zero, size = real(0), theta.itemsize
        model = named(sizes, SIZES)
        net, at = _net_of(theta, sizes, kept)
        n_in, n_out = width_of(net, 0), width_of(net, depth(net))
        n = x.size // n_in
        drops, first = _mlp_dropout(n, n_rows, place, constants)
        at += 8 * blocks.n_sums(net)
        rows, memory = blocks.block_layout(net, n, model.hidden, model.output, drops, size, at)
        for start in range(0, n, rows):
            n_block = min(rows, n - start)
            output = forward_block(
                net, model.hidden, model.output, seed, drops, constants,
                address_of(x) + start * n_in * size, first + start, n_block, rows, memory, True,
            )  # fmt: skip
            target = address_of(y) + start * n_out * size
            transpose(zero, output, rows * size, n_out, n_block, target, n_out * size)

    return mlp_verb_forward


def mlp_backward(real):
    forward_block, backward_block = blocks.blocks(real)

    @inner
    def mlp_verb_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        wide_vectors()
        size = theta.itemsize
        model = named(sizes, SIZES)
        net, at = _net_of(theta, sizes, kept)
        n_layers, bias = depth(net), model.bias
        n_in, n_out = width_of(net, 0), width_of(net, n_layers)
        sums = array_at(at, blocks.n_sums(net), np.float64)
        sums[:] = 0
        n = x.size // n_in
        drops, first = _mlp_dropout(n, n_rows, place, constants)
        at += 8 * sums.size
        rows, memory = blocks.block_layout(net, n, model.hidden, model.output, drops, size, at)
        fast = blocks.fast_of(memory, size, real)
        fast[:] = 0
        for start in range(0, n, rows):
            n_block = min(rows, n - start)
            x_at = address_of(x) + start * n_in * size
            if n > rows:  # forward kept the last block alone
                forward_block(
                    net, model.hidden, model.output, seed, drops, constants, x_at, first + start,
                    n_block, rows, memory, False,
                )  # fmt: skip
            backward_block(
                net, model.hidden, model.output, seed, drops, constants,
                address_of(dy) + start * n_out * size, x_at, 0, first + start, n_block, rows,
                memory, sums, True,
            )  # fmt: skip
        blocks.flush(net, fast, VECTOR // size, sums)
        at = to = 0
        for layer in range(n_layers):
            width = width_of(net, layer + 1)
            n_weights = width_of(net, layer) * width
            n_kept = n_weights + width * bias
            add(sums[at:], grad[to : to + n_kept], real)
            at += n_weights + width
            to += n_kept

    return mlp_verb_backward
