"""The verbs of dense subnets and of MLPs, by the kernels of their ops: see `training/models.py`."""

from functools import partial

import numpy as np
import torch

from ..machine.gemm import VECTOR, transpose
from ..machine.jit import address_of, array_at, inner, wide_vectors
from ..subnet import dense, stacked
from . import blocks

DTYPES = {np.float32: torch.float32, np.float64: torch.float64}


@inner
def address(a):
    """Where an array begins; 0 for an empty one."""
    return np.int64(a.ctypes.data) if a.size > 0 else np.int64(0)


@inner
def add(sums, grad, real):
    for i in range(grad.size):
        grad[i] += real(sums[i])


@inner
def _dense_parts(theta, sizes):
    """As _subnet_parts, for subnets that may be stacked: one for each feature."""
    n_hidden, bias, n_in, stacked = sizes[0], sizes[1], sizes[2], sizes[5]
    n_nets = n_in if stacked != 0 else 1
    w, rest = theta[: n_nets * n_hidden], theta[n_nets * n_hidden :]
    b, rest = rest[: n_nets * n_hidden * bias], rest[n_nets * n_hidden * bias :]
    v, rest = rest[: n_nets * n_hidden], rest[n_nets * n_hidden :]
    return w, b, v, rest[: n_nets * bias], rest[n_nets * bias :]


@inner
def _dense_place(x, n_rows, n_in, place, constants):
    """The index of the block's first row, as the masks have it; 0 where there are no masks."""
    drops = place >= 0 and constants[0] + constants[1] + constants[2] > 0
    return (place * (x.size // n_in // n_rows) if drops else 0), drops


def _dense_forward(ops, real):
    op = ops._fwd[DTYPES[real]]

    @inner
    def dense_verb_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        n_hidden, n_in, n_out = sizes[0], sizes[2], sizes[3]
        w, b, v, d, rest = _dense_parts(theta, sizes)
        first, drops = _dense_place(x, n_rows, n_in, place, constants)
        on = 1.0 if drops else 0.0
        key = np.empty(1, np.int64)
        key[0] = seed
        readout = rest if sizes[6] != 0 else rest[:0]
        c = rest[n_in * n_out :] if sizes[6] != 0 else rest[:0]
        arguments = (
            address(x) - first * n_in * x.itemsize, address(w), address(b), address(v),
            address(d), address(readout), address(c), address(key) if drops else np.int64(0),
            sizes[4], on * constants[0], on * constants[1], on * constants[2],
            n_hidden, n_in, n_out, address(y) - first * n_out * x.itemsize,
            first, first + x.size // n_in,
        )  # fmt: skip
        op(*arguments)
        key[0] = 0  # keeps it until here

    return dense_verb_forward


def _dense_backward(ops, real):
    op = ops._bwd[DTYPES[real]]

    @inner
    def dense_verb_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_hidden, bias, n_in, n_out = sizes[0], sizes[1], sizes[2], sizes[3]
        w, b, v, d, rest = _dense_parts(theta, sizes)
        first, drops = _dense_place(x, n_rows, n_in, place, constants)
        on = 1.0 if drops else 0.0
        key = np.empty(1, np.int64)
        key[0] = seed
        readout = rest if sizes[6] != 0 else rest[:0]
        n_nets = n_in if sizes[5] != 0 else 1
        at_readout = n_nets * (3 * n_hidden + 1)
        sums = np.empty(at_readout + (n_in + 1) * n_out * sizes[6], np.float64)
        arguments = (
            address(dy) - first * n_out * x.itemsize, address(x) - first * n_in * x.itemsize,
            address(w), address(b), address(v), address(d), address(readout),
            address(key) if drops else np.int64(0), sizes[4],
            on * constants[0], on * constants[1], on * constants[2], n_hidden, n_in, n_out,
            0, address(sums), 0, 0, 0, 0, 0, 0, first, first + x.size // n_in,
        )  # fmt: skip
        op(*arguments)
        key[0] = 0  # keeps it until here
        if bias:
            add(sums, grad, real)
        else:
            n = w.size
            add(sums[:n], grad[:n], real)
            add(sums[2 * n : 3 * n], grad[n : 2 * n], real)
            add(sums[at_readout:], grad[2 * n :], real)

    return dense_verb_backward


dense_forward, dense_backward = partial(_dense_forward, dense), partial(_dense_backward, dense)
stacked_forward = partial(_dense_forward, stacked)
stacked_backward = partial(_dense_backward, stacked)
# apart, for their ops take 20 s to compile into a trainer, each


@inner
def _net_of(theta, sizes, kept):
    """The integer vector of the op `mlp` (see `mlp.py`), and where the memory behind it begins."""
    n_layers, bias = sizes[0], sizes[1]
    net = array_at(address_of(kept), 2 + 3 * n_layers, np.int64)
    at = address_of(theta)
    net[0] = n_layers
    for layer in range(n_layers + 1):
        net[1 + layer] = sizes[4 + layer]
    for layer in range(n_layers):
        wide, width = sizes[4 + layer], sizes[5 + layer]
        net[2 + n_layers + layer] = at
        at += wide * width * theta.itemsize
        net[2 + 2 * n_layers + layer] = at if bias else 0
        at += width * bias * theta.itemsize
    return net, address_of(kept) + net.itemsize * net.size


@inner
def _mlp_dropout(n, n_rows, place, constants):
    """Probability, 0 where the model is evaluated, and the index in the batch of the first item."""
    return (constants[0], place * (n // n_rows)) if place >= 0 else (0.0, 0)


def _element_rows(sizes):
    return blocks.block_rows(max(sizes[4:]))


def mlp_block_rows(sizes, n_in):
    """Rows whose activations forward keeps: of a net of single numbers a row is ``n_in`` rows."""
    return max(1, _element_rows(sizes) * sizes[4] // n_in)


def mlp_n_kept(sizes, n_in):
    """The net, sums in float64 and the layout of a block, in numbers of either dtype."""
    net = (sizes[0], *sizes[4:])
    integers = 2 + 3 * sizes[0] + blocks.n_sums.py_func(net)
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
        net, at = _net_of(theta, sizes, kept)
        n_in, n_out = net[1], net[1 + net[0]]
        n = x.size // n_in
        p, first = _mlp_dropout(n, n_rows, place, constants)
        at += 8 * blocks.n_sums(net)
        rows, memory = blocks.block_layout(net, n, sizes[2], sizes[3], p, size, at)
        for start in range(0, n, rows):
            n_block = min(rows, n - start)
            output = forward_block(
                net, sizes[2], sizes[3], seed, p, address_of(x) + start * n_in * size,
                first + start, n_block, rows, memory, True,
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
        net, at = _net_of(theta, sizes, kept)
        n_layers, bias, n_in, n_out = net[0], sizes[1], net[1], net[1 + net[0]]
        sums = array_at(at, blocks.n_sums(net), np.float64)
        sums[:] = 0
        n = x.size // n_in
        p, first = _mlp_dropout(n, n_rows, place, constants)
        at += 8 * sums.size
        rows, memory = blocks.block_layout(net, n, sizes[2], sizes[3], p, size, at)
        fast = blocks.fast_of(memory, size, real)
        fast[:] = 0
        for start in range(0, n, rows):
            n_block = min(rows, n - start)
            x_at = address_of(x) + start * n_in * size
            if n > rows:  # forward kept the last block alone
                forward_block(
                    net, sizes[2], sizes[3], seed, p, x_at, first + start, n_block, rows, memory,
                    False,
                )  # fmt: skip
            backward_block(
                net, sizes[2], sizes[3], seed, p, address_of(dy) + start * n_out * size, x_at, 0,
                first + start, n_block, rows, memory, sums, True,
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
