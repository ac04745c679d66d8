"""The verbs of every model that can be trained whole: see :mod:`.training` for their contract.

Where a block has many numbers they are those of the ops, whose loops run over numbers. Where it has
a few, the loops here run over the units.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from . import additive_mlp, dense, elementwise_mlp, mlp, sine_sum
from .jit import fma, inner, rint, wide_vectors
from .sine import COS, SIN
from .sine_sum import TURNS_PER_RADIAN
from .subnet import plain_gradients, plain_value
from .training import trainer

KEPT = 4096
"""Numbers that forward leaves for backward, about: with the weights, half a level-1 cache."""

BLOCK_NUMBERS = 1 << 15
"""Numbers of x in a block of a model that keeps nothing: a small part of a level-2 cache."""

FEW = 8
"""Numbers in a block, below which the loops run over units whatever their number."""

NARROW = 16
"""Sines of a model, below which loops over many numbers are the faster ones."""

_DTYPES = {np.float32: torch.float32, np.float64: torch.float64}


class Verbs(NamedTuple):
    """One kind of model.

    Args:
        forward: Function of the scalar type that returns the verb.
        backward: The like.
        block_rows: Function of (sizes, n_in): most rows in a block.
        n_kept: Function of (sizes, n_in): numbers of scratch space that the verbs need.
    """

    forward: object
    backward: object
    block_rows: object
    n_kept: object


@inner
def _address(a):
    """Where an array begins; 0 for an empty one."""
    return np.int64(a.ctypes.data) if a.size > 0 else np.int64(0)


@inner
def _add(sums, grad, real):
    for i in range(grad.size):
        grad[i] += real(sums[i])


@inner
def _over_units(width, n):
    return n < FEW or width >= NARROW


@inner
def _sine_parts(theta, sizes):
    """w, amplitude, phase; one that is absent is empty."""
    width = sizes[0]
    stop = width * (1 + sizes[1])
    return theta[:width], theta[width:stop], theta[stop:]


def _sine_forward(real):
    sin_turns, cos_turns, op = SIN[real], COS[real], sine_sum._fwd[_DTYPES[real]]

    @inner
    def sine_sum_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        wide_vectors()
        width, turns, factor = sizes[0], constants[0], constants[1]
        w, amplitude, phase = _sine_parts(theta, sizes)
        n = x.size
        if not _over_units(width, n):
            addresses = _address(x), _address(w), _address(amplitude), _address(phase)
            op(*addresses, width, turns, factor, _address(y), 0, n)
            return
        half = real(0.5)
        for r in range(n):
            xr = x[r]
            cosines = kept[r * width : (r + 1) * width]
            total = real(0)
            if turns == 0.5 and amplitude.size == 0 and phase.size == 0:
                # half a turn a unit: the frequency is exact
                for i in range(width):
                    hi = half * w[i]
                    u = fma(hi, xr, -rint(hi * xr))
                    u -= rint(u)
                    cosines[i] = cos_turns(u)
                    total += sin_turns(u)
            else:
                sines = kept[(n + r) * width : (n + r + 1) * width]
                for i in range(width):
                    kappa = np.float64(w[i]) * turns
                    hi = real(kappa)
                    lo = real(kappa - np.float64(hi))
                    sines[i] = fma(lo, xr, fma(hi, xr, -rint(hi * xr)))
                if phase.size > 0:
                    for i in range(width):
                        sines[i] += phase[i] * real(TURNS_PER_RADIAN)
                for i in range(width):
                    u = sines[i] - rint(sines[i])
                    cosines[i] = cos_turns(u)
                    sines[i] = sin_turns(u)
                if amplitude.size > 0:
                    for i in range(width):
                        total += amplitude[i] * sines[i]
                else:
                    for i in range(width):
                        total += sines[i]
            y[r] = total * real(factor)

    return sine_sum_forward


def _sine_backward(real):
    op = sine_sum._bwd[_DTYPES[real]]

    @inner
    def sine_sum_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        wide_vectors()
        width, turns, factor = sizes[0], constants[0], constants[1]
        w, amplitude, phase = _sine_parts(theta, sizes)
        n = x.size
        if not _over_units(width, n):
            sums = np.empty(grad.size, np.float64)
            addresses = _address(x), _address(w), _address(amplitude), _address(phase)
            op(_address(dy), *addresses, width, turns, factor, 0, _address(sums), 0, 0, 0, 0, n)
            _add(sums, grad, real)
            return
        dw, damplitude, dphase = _sine_parts(grad, sizes)
        radians = turns / TURNS_PER_RADIAN
        for r in range(n):
            g = dy[r] * real(factor)
            gx = dy[r] * x[r] * real(factor * radians)
            cosines = kept[r * width : (r + 1) * width]
            sines = kept[(n + r) * width : (n + r + 1) * width]
            if amplitude.size > 0:
                for i in range(width):
                    dw[i] += gx * (amplitude[i] * cosines[i])
                    damplitude[i] += g * sines[i]
                if phase.size > 0:
                    for i in range(width):
                        dphase[i] += g * (amplitude[i] * cosines[i])
                continue
            for i in range(width):
                dw[i] += gx * cosines[i]
            if phase.size > 0:
                for i in range(width):
                    dphase[i] += g * cosines[i]

    return sine_sum_backward


def _sine_block_rows(sizes, n_in):
    rows = KEPT // (sizes[0] * n_in) if sizes[0] >= NARROW else BLOCK_NUMBERS // n_in
    return max(1, rows)


def _sine_n_kept(sizes, n_in):
    rows = _sine_block_rows(sizes, n_in) if sizes[0] >= NARROW else 1
    return 2 * sizes[0] * max(FEW, rows * n_in)


@inner
def _subnet_parts(theta, n_hidden, bias):
    """fc1.weight, fc1.bias, fc2.weight, fc2.bias and what follows; absent biases are empty."""
    w, rest = theta[:n_hidden], theta[n_hidden:]
    b, rest = rest[: n_hidden * bias], rest[n_hidden * bias :]
    v, rest = rest[:n_hidden], rest[n_hidden:]
    return w, b, v, rest[:bias], rest[bias:]


def _subnet_forward(real):
    op = elementwise_mlp._fwd[_DTYPES[real]]

    @inner
    def elementwise_mlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        n_hidden, bias = sizes[0], sizes[1]
        w, b, v, d, _ = _subnet_parts(theta, n_hidden, bias)
        if x.size < FEW and bias:
            for e in range(x.size):
                y[e] = plain_value(x[e], w, b, v, d[0], real)
            return
        addresses = _address(x), _address(w), _address(b), _address(v), _address(d)
        op(*addresses, n_hidden, _address(y), 0, x.size)

    return elementwise_mlp_forward


def _subnet_backward(real):
    op = elementwise_mlp._bwd[_DTYPES[real]]

    @inner
    def elementwise_mlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_hidden, bias = sizes[0], sizes[1]
        w, b, v, _, _ = _subnet_parts(theta, n_hidden, bias)
        sums = np.zeros(3 * n_hidden + 1, np.float64)
        if x.size < FEW and bias:
            for e in range(x.size):
                plain_gradients(x[e], dy[e], w, b, v, sums, real)
        else:
            addresses = _address(x), _address(w), _address(b), _address(v)
            op(_address(dy), *addresses, n_hidden, 0, _address(sums), 0, 0, 0, 0, 0, x.size)
        if bias:
            _add(sums, grad, real)
        else:
            _add(sums[:n_hidden], grad[:n_hidden], real)
            _add(sums[2 * n_hidden : 3 * n_hidden], grad[n_hidden:], real)

    return elementwise_mlp_backward


def _additive_forward(real):
    op = additive_mlp._fwd[_DTYPES[real]]

    @inner
    def additive_mlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        n_hidden, bias, n_in, n_out = sizes[0], sizes[1], sizes[2], sizes[3]
        w, b, v, d, rest = _subnet_parts(theta, n_hidden, bias)
        addresses = _address(x), _address(w), _address(b), _address(v), _address(d)
        readout, c = _address(rest), _address(rest[n_in * n_out :])
        op(*addresses, readout, c, n_hidden, n_in, n_out, _address(y), 0, n_rows)

    return additive_mlp_forward


def _additive_backward(real):
    op = additive_mlp._bwd[_DTYPES[real]]

    @inner
    def additive_mlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_hidden, bias, n_in, n_out = sizes[0], sizes[1], sizes[2], sizes[3]
        w, b, v, d, rest = _subnet_parts(theta, n_hidden, bias)
        at_readout = 3 * n_hidden + 1
        sums = np.empty(at_readout + n_in * n_out + n_out, np.float64)
        addresses = _address(x), _address(w), _address(b), _address(v), _address(d)
        op(
            _address(dy), *addresses, _address(rest), n_hidden, n_in, n_out,
            0, _address(sums), 0, 0, 0, 0, 0, 0, 0, n_rows,
        )  # fmt: skip
        if bias:
            _add(sums, grad, real)
        else:
            _add(sums[:n_hidden], grad[:n_hidden], real)
            _add(sums[2 * n_hidden : 3 * n_hidden], grad[n_hidden : 2 * n_hidden], real)
            _add(sums[at_readout:], grad[2 * n_hidden :], real)

    return additive_mlp_backward


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


def _dense_forward(real):
    op = dense._fwd[_DTYPES[real]]

    @inner
    def dense_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        n_hidden, n_in, n_out = sizes[0], sizes[2], sizes[3]
        w, b, v, d, rest = _dense_parts(theta, sizes)
        first, drops = _dense_place(x, n_rows, n_in, place, constants)
        on = 1.0 if drops else 0.0
        key = np.empty(1, np.int64)
        key[0] = seed
        readout = rest if sizes[6] != 0 else rest[:0]
        c = rest[n_in * n_out :] if sizes[6] != 0 else rest[:0]
        op(
            _address(x) - first * n_in * x.itemsize, _address(w), _address(b), _address(v),
            _address(d), _address(readout), _address(c), _address(key) if drops else np.int64(0),
            sizes[4], sizes[5] != 0, on * constants[0], on * constants[1], on * constants[2],
            n_hidden, n_in, n_out, sizes[7], _address(y) - first * n_out * x.itemsize,
            first, first + x.size // n_in,
        )  # fmt: skip
        key[0] = 0  # keeps it until here

    return dense_forward


def _dense_backward(real):
    op = dense._bwd[_DTYPES[real]]

    @inner
    def dense_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
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
        op(
            _address(dy) - first * n_out * x.itemsize, _address(x) - first * n_in * x.itemsize,
            _address(w), _address(b), _address(v), _address(d), _address(readout),
            _address(key) if drops else np.int64(0), sizes[4], sizes[5] != 0,
            on * constants[0], on * constants[1], on * constants[2], n_hidden, n_in, n_out,
            sizes[7], 0, _address(sums), 0, 0, 0, 0, 0, 0, first, first + x.size // n_in,
        )  # fmt: skip
        key[0] = 0  # keeps it until here
        if bias:
            _add(sums, grad, real)
        else:
            n = w.size
            _add(sums[:n], grad[:n], real)
            _add(sums[2 * n : 3 * n], grad[n : 2 * n], real)
            _add(sums[at_readout:], grad[2 * n :], real)

    return dense_backward


@inner
def _fill_net(theta, sizes, net):
    """The integer vector of the op `mlp`: layers, widths, addresses of weights and of biases."""
    n_layers, bias = sizes[0], sizes[1]
    at = _address(theta)
    net[0] = n_layers
    for layer in range(n_layers + 1):
        net[1 + layer] = sizes[4 + layer]
    for layer in range(n_layers):
        wide, width = sizes[4 + layer], sizes[5 + layer]
        net[2 + n_layers + layer] = at
        at += wide * width * theta.itemsize
        net[2 + 2 * n_layers + layer] = at if bias else 0
        at += width * bias * theta.itemsize


def _mlp_forward(real):
    op = mlp._fwd[_DTYPES[real]]

    @inner
    def mlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        net = np.empty(2 + 3 * sizes[0], np.int64)
        _fill_net(theta, sizes, net)
        op(
            _address(net),
            net.size,
            sizes[2],
            sizes[3],
            _address(x),
            _address(y),
            0,
            x.size // net[1],
        )
        net[0] = 0  # keeps it until here

    return mlp_forward


def _mlp_backward(real):
    op = mlp._bwd[_DTYPES[real]]

    @inner
    def mlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_layers, bias = sizes[0], sizes[1]
        net = np.empty(2 + 3 * n_layers, np.int64)
        _fill_net(theta, sizes, net)
        n_sums = 0
        for layer in range(n_layers):
            n_sums += (sizes[4 + layer] + 1) * sizes[5 + layer]
        sums = np.empty(n_sums, np.float64)
        nowhere = np.zeros(2 * n_layers, np.int64)
        op(
            _address(net), net.size, sizes[2], sizes[3], _address(dy), _address(x), 0,
            _address(sums), _address(nowhere), 0, x.size // net[1],
        )  # fmt: skip
        at = to = 0
        for layer in range(n_layers):
            size = sizes[4 + layer] * sizes[5 + layer]
            size_kept = size + sizes[5 + layer] * bias
            _add(sums[at:], grad[to : to + size_kept], real)
            at += size + sizes[5 + layer]
            to += size_kept
        net[0] = nowhere[0] = 0  # keeps them until here

    return mlp_backward


def _many_rows(sizes, n_in):
    return max(1, BLOCK_NUMBERS // n_in)


def _none_kept(sizes, n_in):
    return 0


VERBS = {
    "sine_sum": Verbs(_sine_forward, _sine_backward, _sine_block_rows, _sine_n_kept),
    "elementwise_mlp": Verbs(_subnet_forward, _subnet_backward, _many_rows, _none_kept),
    "additive_mlp": Verbs(_additive_forward, _additive_backward, _many_rows, _none_kept),
    "dense": Verbs(_dense_forward, _dense_backward, _many_rows, _none_kept),
    "mlp": Verbs(_mlp_forward, _mlp_backward, _many_rows, _none_kept),
}
"""Every model by the name of its op. ``sizes`` and ``constants``, in the order of the verbs:

- ``sine_sum``: width, whether amplitudes, phases are learned; turns a unit of w·x, 1 or 1/width
- ``elementwise_mlp``: hidden units, whether there are biases
- ``additive_mlp``: hidden units, whether there are biases, features, outputs
- ``dense``, what the two above do not cover: hidden units, whether there are biases, features,
  outputs, number of the activation, whether there is a subnet for each feature, whether there is a
  read-out, lanes; the three dropout probabilities
- ``mlp``: layers, whether there are biases, numbers of the two activations, the widths
"""


@cache
def trainer_of(kind):
    """Compute dtype to the compiled trainer of one kind of model."""
    verbs = VERBS[kind]
    return trainer(verbs.forward, verbs.backward, kind)
