"""The verbs of subnets for whole training runs: see `models.py`.

Where a block has many numbers they are those of the ops, whose loops run over numbers. Where it has
a few, the loops here run over the units.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from ...spec import SubnetSizes, subnet_places
from ..machine.jit import DTYPES, add, address, inner, named, record
from ..numbers.blocks import FEW
from . import additive, elementwise, featurewise, general
from .canonical import plain_gradients, plain_value


class Numbers(NamedTuple):
    """Probabilities of dropping an input, a hidden unit, an output of the subnet."""

    input: float
    hidden: float
    output: float


SIZES, NUMBERS = record(SubnetSizes), record(Numbers, np.float64)


_places = inner(subnet_places)


@inner
def _parts(theta, n_nets, n_hidden, bias):
    """fc1.weight, fc1.bias, fc2.weight, fc2.bias and what follows; absent biases are empty."""
    at_b, at_v, at_d, at_rest, _ = _places(n_nets, n_hidden, bias, 0)
    return theta[:at_b], theta[at_b:at_v], theta[at_v:at_d], theta[at_d:at_rest], theta[at_rest:]


@inner
def _add_sums(sums, grad, n, at_rest, bias, real):
    """grad += [dw, db, dv, dd, the rest], of n numbers the first three; absent biases are none."""
    if bias:
        add(sums, grad, real)
    else:
        add(sums[:n], grad[:n], real)
        add(sums[2 * n : 3 * n], grad[n : 2 * n], real)
        add(sums[at_rest:], grad[2 * n :], real)


def subnet_forward(real):
    op = elementwise.forward[DTYPES[real]]

    @inner
    def elementwisemlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        model = named(sizes, SIZES)
        n_hidden, bias = model.n_hidden, model.bias
        w, b, v, d, _ = _parts(theta, 1, n_hidden, bias)
        if x.size < FEW and bias:
            for e in range(x.size):
                y[e] = plain_value(x[e], w, b, v, d[0], real)
            return
        addresses = address(x), address(w), address(b), address(v), address(d)
        op(*addresses, n_hidden, address(y), 0, x.size)

    return elementwisemlp_forward


def subnet_backward(real):
    op = elementwise.backward[DTYPES[real]]

    @inner
    def elementwisemlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        model = named(sizes, SIZES)
        n_hidden, bias = model.n_hidden, model.bias
        w, b, v, _, _ = _parts(theta, 1, n_hidden, bias)
        sums = np.zeros(3 * n_hidden + 1, np.float64)
        if x.size < FEW and bias:
            for e in range(x.size):
                plain_gradients(x[e], dy[e], w, b, v, sums, real)
        else:
            addresses = address(x), address(w), address(b), address(v)
            op(address(dy), *addresses, n_hidden, 0, address(sums), 0, 0, 0, 0, 0, x.size)
        _add_sums(sums, grad, n_hidden, sums.size, bias, real)

    return elementwisemlp_backward


def additive_forward(real):
    op = additive.forward[DTYPES[real]]

    @inner
    def additivemlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        model = named(sizes, SIZES)
        n_hidden, bias, n_in, n_out = model.n_hidden, model.bias, model.n_in, model.n_out
        w, b, v, d, rest = _parts(theta, 1, n_hidden, bias)
        addresses = address(x), address(w), address(b), address(v), address(d)
        readout, c = address(rest), address(rest[n_in * n_out :])
        op(*addresses, readout, c, n_hidden, n_in, n_out, address(y), 0, x.size // n_in)

    return additivemlp_forward


def additive_backward(real):
    op = additive.backward[DTYPES[real]]

    @inner
    def additivemlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        model = named(sizes, SIZES)
        n_hidden, bias, n_in, n_out = model.n_hidden, model.bias, model.n_in, model.n_out
        w, b, v, d, rest = _parts(theta, 1, n_hidden, bias)
        at_readout = 3 * n_hidden + 1
        sums = np.empty(at_readout + n_in * n_out + n_out, np.float64)
        addresses = address(x), address(w), address(b), address(v), address(d)
        op(
            address(dy), *addresses, address(rest), n_hidden, n_in, n_out,
            0, address(sums), 0, 0, 0, 0, 0, 0, 0, x.size // n_in,
        )  # fmt: skip
        _add_sums(sums, grad, n_hidden, at_readout, bias, real)

    return additivemlp_backward


@inner
def _general_place(x, n_rows, n_in, place, constants):
    """The index of the block's first row, as the masks have it; 0 where there are no masks."""
    p = named(constants, NUMBERS)
    drops = place >= 0 and p.input + p.hidden + p.output > 0
    return (place * (x.size // n_in // n_rows) if drops else 0), drops


def _general_forward(ops, real):
    op = ops.forward[DTYPES[real]]

    @inner
    def general_verb_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        model, p = named(sizes, SIZES), named(constants, NUMBERS)
        n_hidden, n_in, n_out = model.n_hidden, model.n_in, model.n_out
        n_nets = n_in if model.featurewise != 0 else 1
        w, b, v, d, rest = _parts(theta, n_nets, n_hidden, model.bias)
        first, drops = _general_place(x, n_rows, n_in, place, constants)
        on = 1.0 if drops else 0.0
        key = np.empty(1, np.int64)
        key[0] = seed
        readout = rest if model.readout != 0 else rest[:0]
        c = rest[n_in * n_out :] if model.readout != 0 else rest[:0]
        # masks go by a row's place in the batch: the op counts from row 0, this block from `first`,
        # and it reads no row before it
        arguments = (
            address(x) - first * n_in * x.itemsize, address(w), address(b), address(v),
            address(d), address(readout), address(c), address(key) if drops else np.int64(0),
            model.activation, on * p.input, on * p.hidden, on * p.output,
            n_hidden, n_in, n_out, address(y) - first * n_out * x.itemsize,
            first, first + x.size // n_in,
        )  # fmt: skip
        op(*arguments)
        key[0] = 0  # keeps it until here

    return general_verb_forward


def _general_backward(ops, real):
    op = ops.backward[DTYPES[real]]

    @inner
    def general_verb_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        model, p = named(sizes, SIZES), named(constants, NUMBERS)
        n_hidden, bias, n_in, n_out = model.n_hidden, model.bias, model.n_in, model.n_out
        n_nets = n_in if model.featurewise != 0 else 1
        w, b, v, d, rest = _parts(theta, n_nets, n_hidden, bias)
        first, drops = _general_place(x, n_rows, n_in, place, constants)
        on = 1.0 if drops else 0.0
        key = np.empty(1, np.int64)
        key[0] = seed
        readout = rest if model.readout != 0 else rest[:0]
        at_readout = n_nets * (3 * n_hidden + 1)
        sums = np.empty(at_readout + (n_in + 1) * n_out * model.readout, np.float64)
        arguments = (
            address(dy) - first * n_out * x.itemsize, address(x) - first * n_in * x.itemsize,
            address(w), address(b), address(v), address(d), address(readout),
            address(key) if drops else np.int64(0), model.activation,
            on * p.input, on * p.hidden, on * p.output, n_hidden, n_in, n_out,
            0, address(sums), 0, 0, 0, 0, 0, 0, first, first + x.size // n_in,
        )  # fmt: skip
        op(*arguments)
        key[0] = 0  # keeps it until here
        _add_sums(sums, grad, w.size, at_readout, bias, real)

    return general_verb_backward


general_forward, general_backward = (
    partial(_general_forward, general),
    partial(_general_backward, general),
)
featurewise_forward = partial(_general_forward, featurewise)
featurewise_backward = partial(_general_backward, featurewise)
# apart, for their ops take 20 s to compile into a trainer, each
