"""The layers in plain PyTorch: the definition of what is right.

Every fused op and module has its namesake here, with the same arguments, parameters and
``state_dict``. Evaluated in float64, these functions judge every kernel; in the working dtype they
are the baseline of every benchmark. This module imports torch alone.
"""

import math
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

__all__ = [
    "AdditiveMLP",
    "ElementwiseMLP",
    "SineSum",
    "additive_mlp",
    "elementwise_mlp",
    "sine_sum",
]

ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,  # exact, with erf
    "sin": torch.sin,
    "identity": lambda z: z,
}
REDUCTIONS = ("mean", "sum")


def _promote(*tensors):
    """Cast all tensors to their common dtype; ``None`` stays ``None``."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def elementwise_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation="relu"):
    """Apply one scalar subnet 1 → H → 1 to every element.

    .. math:: y = \\sum_k w^{(2)}_k \\, \\sigma(w^{(1)}_k x + b^{(1)}_k) + b^{(2)}

    Args:
        x: Input. Any shape, floating point.
        fc1_weight: Shape ``[H, 1]``.
        fc1_bias: Shape ``[H]``, or ``None``.
        fc2_weight: Shape ``[1, H]``.
        fc2_bias: Shape ``[1]``, or ``None``.
        activation: A key of :data:`ACTIVATIONS`.

    Returns:
        Output. Shape of ``x``, the promoted dtype of all arguments.
    """
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias = _promote(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias
    )
    hidden = ACTIVATIONS[activation](F.linear(x.reshape(-1, 1), fc1_weight, fc1_bias))
    return F.linear(hidden, fc2_weight, fc2_bias).reshape(x.shape)


def additive_mlp(
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias, activation="relu"
):
    """Apply one scalar subnet to every feature, then one linear layer across the features.

    .. math:: y_m = \\sum_j V_{mj} f(x_j) + c_m

    Args:
        x: Input. Shape ``[*, F]``, floating point.
        fc1_weight: Shape ``[H, 1]``.
        fc1_bias: Shape ``[H]``, or ``None``.
        fc2_weight: Shape ``[1, H]``.
        fc2_bias: Shape ``[1]``, or ``None``.
        fc3_weight: The read-out ``V``. Shape ``[M, F]``.
        fc3_bias: The read-out's bias ``c``. Shape ``[M]``, or ``None``.
        activation: A key of :data:`ACTIVATIONS`.

    Returns:
        Output. Shape ``[*, M]``, the promoted dtype of all arguments.
    """
    *tensors, fc3_weight, fc3_bias = _promote(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    )
    return F.linear(elementwise_mlp(*tensors, activation), fc3_weight, fc3_bias)


def sine_sum(x, w, amplitude=None, phase=None, scale=math.pi, reduction="mean"):
    """Sum or average sines of every element.

    .. math:: y = \\operatorname{mean}_i \\, a_i \\sin(s\\, w_i x + \\varphi_i)

    Args:
        x: Input. Any shape, floating point.
        w: Frequencies, in units of ``scale`` radians per unit of ``x``. Shape ``[W]``.
        amplitude: Shape ``[W]``, or ``None`` for ones.
        phase: Radians. Shape ``[W]``, or ``None`` for zeros.
        scale: The factor ``s``, a Python float.
        reduction: One of :data:`REDUCTIONS`.

    Returns:
        Output. Shape of ``x``, the promoted dtype of all arguments.
    """
    x, w, amplitude, phase = _promote(x, w, amplitude, phase)
    angle = x.unsqueeze(-1) * (scale * w)
    if phase is not None:
        angle = angle + phase
    waves = torch.sin(angle)
    if amplitude is not None:
        waves = waves * amplitude
    return waves.mean(-1) if reduction == "mean" else waves.sum(-1)


class ElementwiseMLP(nn.Module):
    """One scalar subnet 1 → H → 1 for every element: plain PyTorch, see :func:`elementwise_mlp`."""

    def __init__(
        self, hidden_features=14, *, activation="relu", bias=True, device=None, dtype=None
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.hidden_features = hidden_features
        self.activation = activation
        self.fc1 = nn.Linear(1, hidden_features, bias=bias, **factory)
        self.fc2 = nn.Linear(hidden_features, 1, bias=bias, **factory)

    def forward(self, x):
        return elementwise_mlp(
            x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.activation
        )

    def extra_repr(self):
        return f"hidden_features={self.hidden_features}, activation={self.activation!r}"


class AdditiveMLP(nn.Module):
    """One scalar subnet for every feature, then a linear layer: see :func:`additive_mlp`."""

    def __init__(
        self,
        in_features=64,
        hidden_features=14,
        out_features=1,
        *,
        activation="relu",
        bias=True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.activation = activation
        self.fc1 = nn.Linear(1, hidden_features, bias=bias, **factory)
        self.fc2 = nn.Linear(hidden_features, 1, bias=bias, **factory)
        self.fc3 = nn.Linear(in_features, out_features, bias=bias, **factory)

    def forward(self, x):
        fc1, fc2, fc3 = self.fc1, self.fc2, self.fc3
        return additive_mlp(
            x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, fc3.weight, fc3.bias, self.activation
        )

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, hidden_features={self.hidden_features}, "
            f"out_features={self.out_features}, activation={self.activation!r}"
        )


class SineSum(nn.Module):
    """A mean of sines with learned frequencies: plain PyTorch, see :func:`sine_sum`."""

    def __init__(
        self,
        width,
        *,
        scale=math.pi,
        reduction="mean",
        learn_amplitude=False,
        learn_phase=False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.width = width
        self.scale = scale
        self.reduction = reduction

        def parameter():
            return nn.Parameter(torch.empty(width, device=device, dtype=dtype))

        self.w = parameter()
        self.register_parameter("amplitude", parameter() if learn_amplitude else None)
        self.register_parameter("phase", parameter() if learn_phase else None)
        self.reset_parameters()

    def reset_parameters(self):
        """Draw ``w`` from U(0, 2); amplitudes start at 1, phases at 0."""
        nn.init.uniform_(self.w, 0.0, 2.0)
        if self.amplitude is not None:
            nn.init.ones_(self.amplitude)
        if self.phase is not None:
            nn.init.zeros_(self.phase)

    def forward(self, x):
        return sine_sum(x, self.w, self.amplitude, self.phase, self.scale, self.reduction)

    def extra_repr(self):
        return (
            f"width={self.width}, scale={self.scale:.6g}, reduction={self.reduction!r}, "
            f"learn_amplitude={self.amplitude is not None}, learn_phase={self.phase is not None}"
        )
