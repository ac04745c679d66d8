"""The ops with a leading model axis with Numba: every model is a piece of the kernels of one.

x is ``[1, R, …]``, the same rows for all models, or ``[n, R, …]``; parameters are ``[n, …]``, y is
``[n, R, …]``. A kernel takes addresses and its first and last row: those of model m are m·R and
(m + 1)·R, its parameters lie m steps behind the first model's, and rows that all share are
addressed m·R rows before where they are. So nothing is compiled for many models, and a model's
numbers are those that its own launch would give. What lies in memory once for all models, by a
stride of 0, is read there.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np
import torch

from ..sums import by_halves
from . import additive_mlp, elementwise_mlp, mlp, sine_sum
from .layers import rows as layers
from .machine.launch import PIECE, run_pieces
from .machine.team import Strided
from .numbers.block_activations import CODES
from .numbers.sine import turns_per_unit
from .sines import rows as sines
from .subnet import additive, elementwise, featurewise, general

LARGE = 8 * PIECE
"""Work of one model, in ReLU units, from which models run one after the other, each dealt out to
all threads: a launch of its own costs some 20 µs."""


class _Launch(NamedTuple):
    """Kernels of an op, and what they take besides addresses of x, y and parameters.

    Args:
        forward: Compute dtype to kernel.
        backward: The like.
        options: Plain arguments behind the parameters' addresses.
        n_in: Numbers of a row of x.
        n_out: Of y.
        takes_last: Whether backward takes the address of the last parameter.
    """

    forward: dict
    backward: dict
    options: tuple
    n_in: int
    n_out: int
    takes_last: bool = False


def _as_computed(dtype, *tensors):
    """The dtype to compute in, and contiguous tensors of it."""
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    return compute, [None if t is None else _laid_out(t.detach().to(compute)) for t in tensors]


def _laid_out(t):
    """A tensor [n, …] in contiguous memory, or of contiguous parts that are one."""
    if t.is_contiguous():
        return t
    return t[:1].contiguous().expand_as(t) if t.stride(0) == 0 else t.contiguous()


def _promoted(tensors):
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))


def _each(tensor):
    """The address of each model's part of a tensor [n, …]; 0 for ``None``."""
    if tensor is None:
        return 0
    return Strided(tensor.data_ptr(), tensor.stride(0) * tensor.element_size())


def _rows(x):
    """Where a kernel finds the rows of a model, of x or dy [1 or n, R, …]."""
    is_shared = len(x) == 1 or x.stride(0) == 0
    return Strided(x.data_ptr(), -x[0].numel() * x.element_size() if is_shared else 0)


def _forward(launch, x, parameters):
    """y [n, R, …] of a launch."""
    n, dtype = len(parameters[0]), _promoted((x, *parameters))
    compute, (x, *parameters) = _as_computed(dtype, x, *parameters)
    n_rows = x[0].numel() // launch.n_in
    y = torch.empty(n, n_rows * launch.n_out, dtype=compute, device="cpu")
    if n_rows > 0:
        addresses = (_rows(x), *map(_each, parameters))
        arguments = *addresses, *launch.options, y.data_ptr()
        run_pieces(launch.forward[compute], n * n_rows, n_rows, 0, n, arguments)
    return y.to(dtype)


def _backward(launch, dy, x, parameters, needs):
    """Gradients of x and of the parameters; ``None`` where they are not needed."""
    n, (need_dx, *needs) = len(parameters[0]), needs
    like = (x, *parameters)
    compute, (dy, x, *parameters) = _as_computed(dy.dtype, dy, x, *parameters)
    n_rows = x[0].numel() // launch.n_in
    dx = torch.zeros(n, *x.shape[1:], dtype=compute, device="cpu") if need_dx else None
    pairs = zip(parameters, needs, strict=True)
    gradients = [torch.zeros_like(p) if need and p is not None else None for p, need in pairs]
    if n_rows > 0:
        taken = parameters if launch.takes_last else parameters[:-1]
        arguments = (
            _rows(dy), _rows(x), *map(_each, taken),
            *launch.options, 0 if dx is None else dx.data_ptr(), 0, *map(_each, gradients),
        )  # fmt: skip
        run_pieces(launch.backward[compute], n * n_rows, n_rows, 0, n, arguments)
    return _as_given(like, dx, gradients)


def _as_given(like, dx, gradients):
    """Gradients in the dtypes of x and parameters; that of rows that all share is summed."""
    if dx is not None:
        dx = (by_halves(dx) if len(like[0]) == 1 else dx).to(like[0].dtype)
    pairs = zip(gradients, like[1:], strict=True)
    return [dx, *(None if g is None else g.to(p.dtype) for g, p in pairs)]


def _one_by_one(fwd, x, parameters, options):
    """y by a launch for each model."""
    parts = []
    for m in range(len(parameters[0])):
        own = [None if p is None else p[m] for p in parameters]
        parts.append(fwd(x[m if len(x) > 1 else 0], *own, *options))
    return torch.stack(parts)


def _one_by_one_back(bwd, dy, x, parameters, options, needs):
    """Gradients by a launch for each model."""
    results = []
    for m in range(len(parameters[0])):
        own = [None if p is None else p[m] for p in parameters]
        given = dy[m], x[m if len(x) > 1 else 0], *own
        results.append(bwd(*given, *options, needs=needs))
    dx, *gradients = [None if g[0] is None else torch.stack(g) for g in zip(*results, strict=True)]
    return _as_given((x, *parameters), dx, gradients)


def _sines(w, scale, mean):
    width = w.shape[1]
    options = width, turns_per_unit(scale), 1.0 / width if mean else 1.0
    return _Launch(sines.forward, sines.backward, options, 1, 1, True)


def sine_sum_ensemble_fwd(x, w, amplitude, phase, scale, mean):
    """y [n, R] from x [1 or n, R]."""
    parameters = w, amplitude, phase
    if x[0].numel() * w.shape[1] * sine_sum.UNITS_PER_SINE > LARGE:
        return _one_by_one(sine_sum.sine_sum_fwd, x, parameters, (scale, mean))
    return _forward(_sines(w, scale, mean), x, parameters).view(len(w), *x.shape[1:])


def sine_sum_ensemble_bwd(dy, x, w, amplitude, phase, scale, mean, *, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    parameters = w, amplitude, phase
    if x[0].numel() * w.shape[1] * sine_sum.UNITS_PER_SINE > LARGE:
        options = scale, mean
        return _one_by_one_back(sine_sum.sine_sum_bwd, dy, x, parameters, options, needs)
    return _backward(_sines(w, scale, mean), dy, x, parameters, needs)


def _subnet(fc1_weight, fc3_weight, activation, x):
    """The launch of a subnet; of one without a read-out each number is a row."""
    n_hidden = fc1_weight.shape[-2]
    n_in, n_out = (1, 1) if fc3_weight is None else (x.shape[-1], fc3_weight.shape[1])
    shared = fc1_weight.dim() == 3
    if shared and activation == "relu":
        kernels = elementwise if fc3_weight is None else additive
        options = (n_hidden,) if fc3_weight is None else (n_hidden, n_in, n_out)
    else:
        kernels = general if shared else featurewise
        options = 0, CODES[activation], 0.0, 0.0, 0.0, n_hidden, n_in, n_out
    return _Launch(kernels.forward, kernels.backward, options, n_in, n_out)


def _given(parameters, launch):
    """All six parameters, or the four of the kernels that have no read-out."""
    canonical = launch.forward is elementwise.forward
    return parameters[:4] if canonical else (*parameters, None, None)[:6]


def elementwise_mlp_ensemble_fwd(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation):
    """y [n, R] from x [1 or n, R]."""
    parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    if x[0].numel() * fc1_weight.shape[1] > LARGE:
        options = None, activation
        return _one_by_one(elementwise_mlp.elementwise_mlp_fwd, x, parameters, options)
    launch = _subnet(fc1_weight, None, activation, x)
    return _forward(launch, x, _given(parameters, launch)).view(len(fc1_weight), *x.shape[1:])


def elementwise_mlp_ensemble_bwd(
    dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation, *, needs
):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    parameters = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    if x[0].numel() * fc1_weight.shape[1] > LARGE:
        bwd, options = elementwise_mlp.elementwise_mlp_bwd, (None, activation)
        return _one_by_one_back(bwd, dy, x, parameters, options, needs)
    launch = _subnet(fc1_weight, None, activation, x)
    given = _given(parameters, launch)
    needs = (*needs, False, False)[: 1 + len(given)]
    return _backward(launch, dy, x, given, needs)[:5]


def additive_mlp_ensemble_fwd(x, *arguments):
    """y [n, R, M] from x [1 or n, R, F]."""
    *parameters, activation = arguments
    fc1_weight, fc3_weight = parameters[0], parameters[4]
    if x[0].numel() * fc1_weight.shape[-2] > LARGE:
        return _one_by_one(additive_mlp.additive_mlp_fwd, x, parameters, (None, activation))
    launch = _subnet(fc1_weight, fc3_weight, activation, x)
    return _forward(launch, x, parameters).view(len(fc1_weight), x.shape[1], -1)


def additive_mlp_ensemble_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, activation = arguments
    fc1_weight, fc3_weight = parameters[0], parameters[4]
    if x[0].numel() * fc1_weight.shape[-2] > LARGE:
        options = None, activation
        return _one_by_one_back(additive_mlp.additive_mlp_bwd, dy, x, parameters, options, needs)
    return _backward(_subnet(fc1_weight, fc3_weight, activation, x), dy, x, parameters, needs)


def _net_of_each(widths, tensors):
    """The integer vector of `mlp` of each model, int64 ``[n, 1 + widths + tensors]``."""
    n = len(next(t for t in tensors if t is not None))
    table = np.zeros((n, 1 + len(widths) + len(tensors)), np.int64)
    table[:, 0], table[:, 1 : 1 + len(widths)] = len(widths) - 1, widths
    table[:, 1 + len(widths) :] = _places_of_each((*tensors[::2], *tensors[1::2]), n)
    return table


def _places_of_each(tensors, n):
    """The addresses of each model's part of some tensors, int64 ``[n, tensors]``."""
    table = np.zeros((n, len(tensors)), np.int64)
    for column, tensor in enumerate(tensors):
        if tensor is not None:
            at, step = _each(tensor)
            table[:, column] = at + np.arange(n) * step
    return table


def _table(table):
    return Strided(table.ctypes.data, table.strides[0])


def _widths(x, parameters):
    return x.shape[-1], *[w.shape[1] for w in parameters[::2]]


def _is_large(x, parameters):
    return x.shape[1] * sum(w[0].numel() for w in parameters[::2]) > LARGE


def mlp_ensemble_fwd(x, *arguments):
    """y [n, R, out] from x [1 or n, R, in], weights and biases in turn, two activations."""
    *parameters, activation, output_activation = arguments
    if _is_large(x, parameters):
        options = None, activation, output_activation, 0.0
        return _one_by_one(mlp.mlp_fwd, x, parameters, options)
    n, widths, dtype = len(parameters[0]), _widths(x, parameters), _promoted((x, *parameters))
    compute, (x, *parameters) = _as_computed(dtype, x, *parameters)
    n_rows = x.shape[1]
    net = _net_of_each(widths, parameters)
    y = torch.empty(n, n_rows, widths[-1], dtype=compute, device="cpu")
    if n_rows > 0:
        arguments = (
            _rows(x), _table(net), net.shape[1], CODES[activation], CODES[output_activation], 0,
            0.0, y.data_ptr(),
        )  # fmt: skip
        run_pieces(layers.forward[compute], n * n_rows, n_rows, 0, n, arguments)
    return y.to(dtype)


def mlp_ensemble_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, activation, output_activation = arguments
    if _is_large(x, parameters):
        options = None, activation, output_activation, 0.0
        return _one_by_one_back(mlp.mlp_bwd, dy, x, parameters, options, needs)
    n, widths, like, (need_dx, *needs) = (
        len(parameters[0]),
        _widths(x, parameters),
        (x, *parameters),
        needs,
    )
    compute, (dy, x, *parameters) = _as_computed(dy.dtype, dy, x, *parameters)
    n_rows = x.shape[1]
    dx = torch.zeros(n, *x.shape[1:], dtype=compute, device="cpu") if need_dx else None
    pairs = zip(parameters, needs, strict=True)
    gradients = [torch.zeros_like(p) if need and p is not None else None for p, need in pairs]
    net, places = _net_of_each(widths, parameters), _places_of_each(gradients, n)
    if n_rows > 0:
        arguments = (
            _rows(dy), _rows(x), _table(net), net.shape[1], CODES[activation],
            CODES[output_activation], 0, 0.0, 0 if dx is None else dx.data_ptr(), 0, _table(places),
        )  # fmt: skip
        run_pieces(layers.backward[compute], n * n_rows, n_rows, 0, n, arguments)
    return _as_given(like, dx, gradients)
