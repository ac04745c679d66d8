"""The verbs of dense subnets and of MLPs, by the kernels of their ops: see :mod:`.verbs`."""

import numpy as np
import torch

from . import dense, mlp, stacked
from .jit import inner

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


def dense_forward(real):
    shared_op, stacked_op = dense._fwd[DTYPES[real]], stacked._fwd[DTYPES[real]]

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
        if sizes[5] != 0:
            stacked_op(*arguments)
        else:
            shared_op(*arguments)
        key[0] = 0  # keeps it until here

    return dense_verb_forward


def dense_backward(real):
    shared_op, stacked_op = dense._bwd[DTYPES[real]], stacked._bwd[DTYPES[real]]

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
        if sizes[5] != 0:
            stacked_op(*arguments)
        else:
            shared_op(*arguments)
        key[0] = 0  # keeps it until here
        if bias:
            add(sums, grad, real)
        else:
            n = w.size
            add(sums[:n], grad[:n], real)
            add(sums[2 * n : 3 * n], grad[n : 2 * n], real)
            add(sums[at_readout:], grad[2 * n :], real)

    return dense_verb_backward


@inner
def _fill_net(theta, sizes, net):
    """The integer vector of the op `mlp`: layers, widths, addresses of weights and of biases."""
    n_layers, bias = sizes[0], sizes[1]
    at = address(theta)
    net[0] = n_layers
    for layer in range(n_layers + 1):
        net[1 + layer] = sizes[4 + layer]
    for layer in range(n_layers):
        wide, width = sizes[4 + layer], sizes[5 + layer]
        net[2 + n_layers + layer] = at
        at += wide * width * theta.itemsize
        net[2 + 2 * n_layers + layer] = at if bias else 0
        at += width * bias * theta.itemsize


def mlp_forward(real):
    op = mlp._fwd[DTYPES[real]]

    @inner
    def mlp_verb_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        net = np.empty(2 + 3 * sizes[0], np.int64)
        _fill_net(theta, sizes, net)
        op(
            address(net),
            net.size,
            sizes[2],
            sizes[3],
            0,
            0.0,
            address(x),
            address(y),
            0,
            x.size // net[1],
        )
        net[0] = 0  # keeps it until here

    return mlp_verb_forward


def mlp_backward(real):
    op = mlp._bwd[DTYPES[real]]

    @inner
    def mlp_verb_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_layers, bias = sizes[0], sizes[1]
        net = np.empty(2 + 3 * n_layers, np.int64)
        _fill_net(theta, sizes, net)
        n_sums = 0
        for layer in range(n_layers):
            n_sums += (sizes[4 + layer] + 1) * sizes[5 + layer]
        sums = np.empty(n_sums, np.float64)
        nowhere = np.zeros(2 * n_layers, np.int64)
        op(
            address(net), net.size, sizes[2], sizes[3], 0, 0.0, address(dy), address(x), 0,
            address(sums), address(nowhere), 0, x.size // net[1],
        )  # fmt: skip
        at = to = 0
        for layer in range(n_layers):
            size = sizes[4 + layer] * sizes[5 + layer]
            size_kept = size + sizes[5 + layer] * bias
            add(sums[at:], grad[to : to + size_kept], real)
            at += size + sizes[5 + layer]
            to += size_kept
        net[0] = nowhere[0] = 0  # keeps them until here

    return mlp_verb_backward
