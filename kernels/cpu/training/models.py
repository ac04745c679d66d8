"""The verbs of every model that can be trained whole: see :mod:`.loop` for their contract.

Where a block has many numbers they are those of the ops, whose loops run over numbers. Where it has
a few, the loops here run over the units.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from .. import additive_mlp, elementwise_mlp, sine_sum
from ..layers.verbs import (
    DTYPES,
    add,
    address,
    dense_backward,
    dense_forward,
    mlp_backward,
    mlp_block_rows,
    mlp_forward,
    mlp_n_kept,
    stacked_backward,
    stacked_forward,
)
from ..machine.jit import fma, inner, rint, wide_vectors
from ..numbers.sine import COS, SIN
from ..sine_sum import TURNS_PER_RADIAN
from ..subnet.canonical import plain_gradients, plain_value
from .loop import trainer

KEPT = 4096
"""Numbers that forward leaves for backward, about: with the weights, half a level-1 cache."""

BLOCK_NUMBERS = 1 << 15
"""Numbers of x in a block of a model that keeps nothing: a small part of a level-2 cache."""

FEW = 8
"""Numbers in a block, below which the loops run over units whatever their number."""

NARROW = 16
"""Sines of a model, below which loops over many numbers are the faster ones."""


class Verbs(NamedTuple):
    """One kind of model.

    Args:
        forward: Function of the scalar type that returns the verb.
        backward: The like.
        block_rows: Function of (sizes, n_in): most rows in a block.
        n_kept: Function of (sizes, n_in): numbers of scratch space that the verbs need.
        has_sums: Whether there are univariate nets of straight pieces among them.
    """

    forward: object
    backward: object
    block_rows: object
    n_kept: object
    has_sums: bool = False


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
    sin_turns, cos_turns, op = SIN[real], COS[real], sine_sum._fwd[DTYPES[real]]

    @inner
    def sine_sum_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        wide_vectors()
        width, turns, factor = sizes[0], constants[0], constants[1]
        w, amplitude, phase = _sine_parts(theta, sizes)
        n = x.size
        if not _over_units(width, n):
            addresses = address(x), address(w), address(amplitude), address(phase)
            op(*addresses, width, turns, factor, address(y), 0, n)
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
    op = sine_sum._bwd[DTYPES[real]]

    @inner
    def sine_sum_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        wide_vectors()
        width, turns, factor = sizes[0], constants[0], constants[1]
        w, amplitude, phase = _sine_parts(theta, sizes)
        n = x.size
        if not _over_units(width, n):
            sums = np.empty(grad.size, np.float64)
            addresses = address(x), address(w), address(amplitude), address(phase)
            op(address(dy), *addresses, width, turns, factor, 0, address(sums), 0, 0, 0, 0, n)
            add(sums, grad, real)
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
    op = elementwise_mlp._fwd[DTYPES[real]]

    @inner
    def elementwisemlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        n_hidden, bias = sizes[0], sizes[1]
        w, b, v, d, _ = _subnet_parts(theta, n_hidden, bias)
        if x.size < FEW and bias:
            for e in range(x.size):
                y[e] = plain_value(x[e], w, b, v, d[0], real)
            return
        addresses = address(x), address(w), address(b), address(v), address(d)
        op(*addresses, n_hidden, address(y), 0, x.size)

    return elementwisemlp_forward


def _subnet_backward(real):
    op = elementwise_mlp._bwd[DTYPES[real]]

    @inner
    def elementwisemlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_hidden, bias = sizes[0], sizes[1]
        w, b, v, _, _ = _subnet_parts(theta, n_hidden, bias)
        sums = np.zeros(3 * n_hidden + 1, np.float64)
        if x.size < FEW and bias:
            for e in range(x.size):
                plain_gradients(x[e], dy[e], w, b, v, sums, real)
        else:
            addresses = address(x), address(w), address(b), address(v)
            op(address(dy), *addresses, n_hidden, 0, address(sums), 0, 0, 0, 0, 0, x.size)
        if bias:
            add(sums, grad, real)
        else:
            add(sums[:n_hidden], grad[:n_hidden], real)
            add(sums[2 * n_hidden : 3 * n_hidden], grad[n_hidden:], real)

    return elementwisemlp_backward


def _additive_forward(real):
    op = additive_mlp._fwd[DTYPES[real]]

    @inner
    def additivemlp_forward(theta, x, n_rows, sizes, constants, seed, place, kept, y):
        n_hidden, bias, n_in, n_out = sizes[0], sizes[1], sizes[2], sizes[3]
        w, b, v, d, rest = _subnet_parts(theta, n_hidden, bias)
        addresses = address(x), address(w), address(b), address(v), address(d)
        readout, c = address(rest), address(rest[n_in * n_out :])
        op(*addresses, readout, c, n_hidden, n_in, n_out, address(y), 0, x.size // n_in)

    return additivemlp_forward


def _additive_backward(real):
    op = additive_mlp._bwd[DTYPES[real]]

    @inner
    def additivemlp_backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad):
        n_hidden, bias, n_in, n_out = sizes[0], sizes[1], sizes[2], sizes[3]
        w, b, v, d, rest = _subnet_parts(theta, n_hidden, bias)
        at_readout = 3 * n_hidden + 1
        sums = np.empty(at_readout + n_in * n_out + n_out, np.float64)
        addresses = address(x), address(w), address(b), address(v), address(d)
        op(
            address(dy), *addresses, address(rest), n_hidden, n_in, n_out,
            0, address(sums), 0, 0, 0, 0, 0, 0, 0, x.size // n_in,
        )  # fmt: skip
        if bias:
            add(sums, grad, real)
        else:
            add(sums[:n_hidden], grad[:n_hidden], real)
            add(sums[2 * n_hidden : 3 * n_hidden], grad[n_hidden : 2 * n_hidden], real)
            add(sums[at_readout:], grad[2 * n_hidden :], real)

    return additivemlp_backward


def _many_rows(sizes, n_in):
    return max(1, BLOCK_NUMBERS // n_in)


def _none_kept(sizes, n_in):
    return 0


VERBS = {
    "sine_sum": Verbs(_sine_forward, _sine_backward, _sine_block_rows, _sine_n_kept),
    "elementwise_mlp": Verbs(_subnet_forward, _subnet_backward, _many_rows, _none_kept, True),
    "additive_mlp": Verbs(_additive_forward, _additive_backward, _many_rows, _none_kept),
    "dense": Verbs(dense_forward, dense_backward, _many_rows, _none_kept, True),
    "stacked": Verbs(stacked_forward, stacked_backward, _many_rows, _none_kept),
    "mlp": Verbs(mlp_forward, mlp_backward, mlp_block_rows, mlp_n_kept, True),
}
"""Every model by the name of its op. ``sizes`` and ``constants``, in the order of the verbs:

- ``sine_sum``: width, whether amplitudes, phases are learned; turns a unit of w·x, 1 or 1/width
- ``elementwise_mlp``: hidden units, whether there are biases
- ``additive_mlp``: hidden units, whether there are biases, features, outputs
- ``dense``, what the two above do not cover: hidden units, whether there are biases, features,
  outputs, number of the activation, whether there is a subnet for each feature, whether there is a
  read-out; the three dropout probabilities
- ``stacked``: those of them that have a subnet for each feature, a trainer of their own, for each
  takes long to compile
- ``mlp``: layers, whether there are biases, numbers of the two activations, the widths; the
  dropout probability
"""


def kind_of(structure):
    """The key of the model's verbs."""
    has_many = structure.kind == "dense" and structure.sizes[5]
    return "stacked" if has_many else structure.kind


@cache
def trainer_of(kind):
    """Compute dtype to the compiled trainer of one kind of model."""
    verbs = VERBS[kind]
    return trainer(verbs.forward, verbs.backward, verbs.has_sums)
