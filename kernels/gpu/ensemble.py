"""The ops with a leading model axis with Triton: each launch of one model's op is that of all.

x is ``[1, R, …]``, the same rows for all models, or ``[n, R, …]``; parameters are ``[n, …]``, y is
``[n, R, …]``. See `machine/models.py` for how.
"""

from ..sums import by_halves
from .additive_mlp import additive_mlp_bwd, additive_mlp_fwd
from .elementwise_mlp import elementwise_mlp_bwd, elementwise_mlp_fwd
from .machine.models import Models
from .mlp import mlp_bwd, mlp_fwd
from .sine_sum import sine_sum_bwd, sine_sum_fwd


def _first(*tensors):
    return [None if t is None else t[0] for t in tensors]


def _forward(fwd, x, parameters, options):
    """y [n, R, …]."""
    n = len(parameters[0])
    if x.numel() == 0:
        y = fwd(*_first(x, *parameters), *options)
        return y.new_empty((n, *y.shape))
    with Models(n, (x, *parameters)) as models:
        return models.whole(fwd(*models.first, *options))


def _backward(bwd, dy, x, parameters, options, needs):
    """Gradients of x and of the parameters; ``None`` where they are not needed."""
    n = len(parameters[0])
    if x.numel() == 0:
        gradients = bwd(*_first(dy, x, *parameters), *options, needs=needs)
        return [
            None if g is None else g.new_zeros((size, *g.shape))
            for g, size in zip(gradients, (len(x), *[n] * len(parameters)), strict=True)
        ]
    with Models(n, (dy, x, *parameters)) as models:
        gradients = bwd(*models.first, *options, needs=needs)
        dx, *gradients = [None if g is None else models.whole(g) for g in gradients]
    if dx is not None and len(x) < n:
        dx = by_halves(dx)
    return [dx, *gradients]


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
