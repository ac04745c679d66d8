"""The verbs of layers for whole training runs: see `training/models.py`."""

import numpy as np

from ...spec import LayerSizes, layer_sizes
from ..machine.gemm import VECTOR, transpose
from ..machine.jit import add, address_of, array_at, inner, named, record, wide_vectors
from . import blocks

SIZES, N_SIZES = record(LayerSizes), len(LayerSizes._fields)


@inner
def _net_of(theta, sizes, kept):
    """The integer vector of the op `mlp` (see `mlp.py`), and where the memory behind it begins."""
    model, widths = named(sizes, SIZES), sizes[N_SIZES:]
    n_layers, bias = model.n_layers, model.bias
    net = array_at(address_of(kept), 2 + 3 * n_layers, np.int64)
    at = address_of(theta)
    net[0] = n_layers
    for layer in range(n_layers + 1):
        net[1 + layer] = widths[layer]
    for layer in range(n_layers):
        wide, width = widths[layer], widths[layer + 1]
        net[2 + n_layers + layer] = at
        at += wide * width * theta.itemsize
        net[2 + 2 * n_layers + layer] = at if bias else 0
        at += width * bias * theta.itemsize
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
    integers = 2 + 3 * model.n_layers + blocks.n_sums.py_func(net)
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
        n_in, n_out = net[1], net[1 + net[0]]
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
        n_layers, bias, n_in, n_out = net[0], model.bias, net[1], net[1 + net[0]]
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
            n_weights = net[1 + layer] * net[2 + layer]
            n_kept = n_weights + net[2 + layer] * bias
            add(sums[at:], grad[to : to + n_kept], real)
            at += n_weights + net[2 + layer]
            to += n_kept

    return mlp_verb_backward
