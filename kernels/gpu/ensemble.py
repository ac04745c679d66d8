"""The ops with a leading model axis with Triton: the launches of one model, one after the other.

x is ``[1, R, …]``, the same rows for all models, or ``[n, R, …]``; parameters are ``[n, …]``, y is
``[n, R, …]``.
"""

import torch

from .additive_mlp import additive_mlp_bwd, additive_mlp_fwd
from .elementwise_mlp import elementwise_mlp_bwd, elementwise_mlp_fwd
from .mlp import mlp_bwd, mlp_fwd
from .sine_sum import sine_sum_bwd, sine_sum_fwd


def _of(m, x, parameters):
    """Rows and parameters of one model."""
    return x[m if len(x) > 1 else 0], *(None if p is None else p[m] for p in parameters)


def _forward(fwd, x, parameters, options):
    """y [n, R, …]."""
    n = len(parameters[0])
    return torch.stack([fwd(*_of(m, x, parameters), *options) for m in range(n)])


def _backward(bwd, dy, x, parameters, options, needs):
    """Gradients of x and of the parameters; ``None`` where they are not needed."""
    n = len(parameters[0])
    results = [bwd(dy[m], *_of(m, x, parameters), *options, needs=needs) for m in range(n)]
    dx, *gradients = [None if g[0] is None else torch.stack(g) for g in zip(*results, strict=True)]
    if dx is not None and len(x) < n:
        dx = _sum(dx)
    return [dx, *gradients]


def _sum(parts):
    """Σ over the models ``[1, …]``, by halves: always in the same order."""
    while len(parts) > 1:
        half = len(parts) // 2
        rest = parts[2 * half :]
        parts = torch.cat([parts[:half] + parts[half : 2 * half], rest])
    return parts


def sine_sum_ensemble_fwd(x, w, amplitude, phase, scale, mean):
    """y [n, R] from x [1 or n, R]."""
    return _forward(sine_sum_fwd, x, (w, amplitude, phase), (scale, mean))


def sine_sum_ensemble_bwd(dy, x, w, amplitude, phase, scale, mean, *, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    return _backward(sine_sum_bwd, dy, x, (w, amplitude, phase), (scale, mean), needs)


def elementwise_mlp_ensemble_fwd(x, *arguments):
    """y [n, R] from x [1 or n, R]."""
    *parameters, activation = arguments
    return _forward(elementwise_mlp_fwd, x, parameters, (None, activation, 0.0, 0.0, 0.0))


def elementwise_mlp_ensemble_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, activation = arguments
    options = None, activation, 0.0, 0.0, 0.0
    return _backward(elementwise_mlp_bwd, dy, x, parameters, options, needs)


def additive_mlp_ensemble_fwd(x, *arguments):
    """y [n, R, M] from x [1 or n, R, F]."""
    *parameters, activation = arguments
    return _forward(additive_mlp_fwd, x, parameters, (None, activation, 0.0, 0.0, 0.0))


def additive_mlp_ensemble_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, activation = arguments
    options = None, activation, 0.0, 0.0, 0.0
    return _backward(additive_mlp_bwd, dy, x, parameters, options, needs)


def mlp_ensemble_fwd(x, *arguments):
    """y [n, R, out] from x [1 or n, R, in], weights and biases in turn, two activations."""
    *parameters, activation, output_activation = arguments
    return _forward(mlp_fwd, x, parameters, (None, activation, output_activation, 0.0))


def mlp_ensemble_bwd(dy, x, *arguments, needs):
    """Gradients of x and of each parameter; ``None`` where ``needs`` says so."""
    *parameters, activation, output_activation = arguments
    options = None, activation, output_activation, 0.0
    return _backward(mlp_bwd, dy, x, parameters, options, needs)
