"""The layers in plain PyTorch: the definition of what is right.

Every fused op and module has its namesake here, with the same arguments, parameters and
``state_dict``. Evaluated in float64, these functions judge every kernel; in the working dtype they
are the baseline of every benchmark. This module and the two that it is made of import torch alone.
"""

import math
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

from fastmlp.dropout import dropout_masks, dropout_places, layer_dropout_masks
from fastmlp.featurewise import FeaturewiseLinear

__all__ = [
    "MLP",
    "AdditiveMLP",
    "ElementwiseMLP",
    "FeaturewiseLinear",
    "SineSum",
    "additive_mlp",
    "elementwise_mlp",
    "mlp",
    "piecewise_linear",
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


def _subnet(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation, dropout, seed):
    """f of a vector ``[n]``, or of a matrix ``[N, F]`` with a subnet per feature."""
    places = dropout_places(dropout)
    if not any(places):

        def drop(value, place):
            return value
    elif seed is None:

        def drop(value, place):
            return F.dropout(value, places[place])
    else:
        masks = dropout_masks(seed, x.numel(), fc1_weight.shape[-2], places, x.dtype)

        def drop(value, place):
            mask = masks[place]
            return value if mask is None else value * mask.reshape(value.shape)

    x = drop(x, 0)
    if fc1_weight.dim() == 2:
        hidden = drop(ACTIVATIONS[activation](F.linear(x.unsqueeze(-1), fc1_weight, fc1_bias)), 1)
        f = F.linear(hidden, fc2_weight, fc2_bias).squeeze(-1)
    else:
        z = x.unsqueeze(-1) * fc1_weight.squeeze(-1)
        hidden = drop(ACTIVATIONS[activation](z if fc1_bias is None else z + fc1_bias), 1)
        f = (hidden * fc2_weight.squeeze(-2)).sum(-1)
        f = f if fc2_bias is None else f + fc2_bias.squeeze(-1)
    return drop(f, 2)


def elementwise_mlp(
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation="relu", dropout=0.0, seed=None
):
    """Apply one scalar subnet 1 → H → 1 to every element.

    .. math:: y = \\sum_k w^{(2)}_k \\, \\sigma(w^{(1)}_k x + b^{(1)}_k) + b^{(2)}

    Args:
        x: Input. Any shape, floating point.
        fc1_weight: Shape ``[H, 1]``.
        fc1_bias: Shape ``[H]``, or ``None``.
        fc2_weight: Shape ``[1, H]``.
        fc2_bias: Shape ``[1]``, or ``None``.
        activation: A key of :data:`ACTIVATIONS`.
        dropout: Probability of dropping an input, a hidden unit and an output of the subnet, or
            the three of them.
        seed: Key of the masks of :func:`dropout_masks`, an int64 tensor of shape ``[1]``, or
            ``None`` for those of ``torch.nn.functional.dropout``.

    Returns:
        Output. Shape of ``x``, the promoted dtype of all arguments.
    """
    x, *parameters = _promote(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return _subnet(x.reshape(-1), *parameters, activation, dropout, seed).reshape(x.shape)


def additive_mlp(
    x,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    fc3_weight,
    fc3_bias,
    activation="relu",
    dropout=0.0,
    seed=None,
):
    """Apply a scalar subnet to every feature, then one linear layer across the features.

    .. math:: y_m = \\sum_j V_{mj} f_j(x_j) + c_m

    One subnet for all features, or one for each: then the parameters of the subnets are stacked
    along a first dimension of size F.

    Args:
        x: Input. Shape ``[*, F]``, floating point.
        fc1_weight: Shape ``[H, 1]`` or ``[F, H, 1]``.
        fc1_bias: Shape ``[H]`` or ``[F, H]``, or ``None``.
        fc2_weight: Shape ``[1, H]`` or ``[F, 1, H]``.
        fc2_bias: Shape ``[1]`` or ``[F, 1]``, or ``None``.
        fc3_weight: The read-out ``V``. Shape ``[M, F]``.
        fc3_bias: The read-out's bias ``c``. Shape ``[M]``, or ``None``.
        activation: A key of :data:`ACTIVATIONS`.
        dropout: Probability of dropping an input, a hidden unit and an output of the subnet, or
            the three of them.
        seed: As in :func:`elementwise_mlp`; an element's place is its index in row-major order.

    Returns:
        Output. Shape ``[*, M]``, the promoted dtype of all arguments.
    """
    x, *parameters, fc3_weight, fc3_bias = _promote(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    )
    flat = x.reshape(-1) if fc1_weight.dim() == 2 else x.reshape(-1, x.shape[-1])
    f = _subnet(flat, *parameters, activation, dropout, seed).reshape(x.shape)
    return F.linear(f, fc3_weight, fc3_bias)


def mlp(
    x,
    weights,
    biases=None,
    activation="relu",
    output_activation="identity",
    dropout=0.0,
    seed=None,
):
    """Apply a dense network: linear layers with an activation behind each.

    .. math:: h_l = \\sigma_l(W_l h_{l-1} + b_l), \\quad h_0 = x, \\quad y = h_L

    Args:
        x: Input. Shape ``[*, n_0]``, floating point.
        weights: The ``W_l``, shape ``[n_l, n_{l-1}]``, a sequence.
        biases: The ``b_l``, shape ``[n_l]`` or ``None``, a sequence as long; ``None`` for no bias
            at all.
        activation: σ of all layers but the last, a key of :data:`ACTIVATIONS`.
        output_activation: σ of the last layer, a key of :data:`ACTIVATIONS`.
        dropout: Probability of dropping an output of a hidden layer.
        seed: Key of the masks of :func:`layer_dropout_masks`, an int64 tensor of shape ``[1]``, or
            ``None`` for those of ``torch.nn.functional.dropout``.

    Returns:
        Output. Shape ``[*, n_L]``, the promoted dtype of all arguments.
    """
    biases = [None] * len(weights) if biases is None else biases
    x, *parameters = _promote(x, *weights, *biases)
    layers = list(zip(parameters[: len(weights)], parameters[len(weights) :], strict=True))
    *hidden, (weight, bias) = layers
    masks = [None] * len(hidden)
    if dropout > 0 and seed is not None:
        n, widths = math.prod(x.shape[:-1]), [len(w) for w, _ in hidden]
        masks = layer_dropout_masks(seed, n, widths, dropout, x.dtype)
    for (hidden_weight, hidden_bias), mask in zip(hidden, masks, strict=True):
        x = ACTIVATIONS[activation](F.linear(x, hidden_weight, hidden_bias))
        if mask is not None:
            x = x * mask.reshape(x.shape)
        elif dropout > 0:
            x = F.dropout(x, dropout)
    return ACTIVATIONS[output_activation](F.linear(x, weight, bias))


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


def piecewise_linear(x, breakpoints, anchors, values, slopes):
    """Evaluate a table of lines: the segment of every element, then its line.

    .. math:: y = v_s + p_s (x - a_s), \\quad t_{s-1} < x \\le t_s

    Args:
        x: Input. Any shape, floating point.
        breakpoints: The ``t``, increasing. Shape ``[K]``.
        anchors: The ``a``. Shape ``[K + 1]``.
        values: The ``v``. Shape ``[K + 1]``, or ``[K + 1, M]`` for M outputs.
        slopes: The ``p``. Shape of ``values``.

    Returns:
        Output. Shape of ``x``, or ``[*, M]``; the promoted dtype of all arguments.
    """
    x, breakpoints, anchors, values, slopes = _promote(x, breakpoints, anchors, values, slopes)
    segment = torch.searchsorted(breakpoints, x.detach().contiguous())
    distance = x - anchors[segment]
    if values.dim() == 2:
        distance = distance.unsqueeze(-1)
    return values[segment] + slopes[segment] * distance


class ElementwiseMLP(nn.Module):
    """One scalar subnet for every element, see :func:`elementwise_mlp`, :func:`mlp`."""

    def __init__(
        self,
        hidden_features=14,
        *,
        activation="relu",
        bias=True,
        dropout=0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        hidden = (hidden_features,) if isinstance(hidden_features, int) else (*hidden_features,)
        self.hidden_features = hidden[0] if len(hidden) == 1 else hidden
        self.activation = activation
        self.dropout = dropout
        for i, (n_in, n_out) in enumerate(zip((1, *hidden), (*hidden, 1), strict=True)):
            layer = nn.Linear(n_in, n_out, bias=bias, device=device, dtype=dtype)
            self.add_module(f"fc{i + 1}", layer)

    def forward(self, x):
        dropout = self.dropout if self.training else 0.0
        if not isinstance(self.hidden_features, int):
            return self._deep(x, mlp, dropout)
        fc1, fc2 = self.fc1, self.fc2
        return elementwise_mlp(
            x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.activation, dropout
        )

    def _deep(self, x, mlp, dropout):
        p_input, p_hidden, p_output = dropout_places(dropout)
        y = mlp(
            F.dropout(x.unsqueeze(-1), p_input),
            [layer.weight for layer in self.children()],
            [layer.bias for layer in self.children()],
            self.activation,
            dropout=p_hidden,
        )
        return F.dropout(y.squeeze(-1), p_output)

    def extra_repr(self):
        return (
            f"hidden_features={self.hidden_features}, activation={self.activation!r}, "
            f"dropout={self.dropout}"
        )


class AdditiveMLP(nn.Module):
    """One scalar subnet for every feature, then a linear layer: see :func:`additive_mlp`."""

    def __init__(
        self,
        in_features=64,
        hidden_features=14,
        out_features=1,
        *,
        shared=True,
        activation="relu",
        bias=True,
        dropout=0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.shared = shared
        self.activation = activation
        self.dropout = dropout
        if shared:
            self.fc1 = nn.Linear(1, hidden_features, bias=bias, **factory)
            self.fc2 = nn.Linear(hidden_features, 1, bias=bias, **factory)
        else:
            self.fc1 = FeaturewiseLinear(in_features, 1, hidden_features, bias=bias, **factory)
            self.fc2 = FeaturewiseLinear(in_features, hidden_features, 1, bias=bias, **factory)
        self.fc3 = nn.Linear(in_features, out_features, bias=bias, **factory)

    def forward(self, x):
        fc1, fc2, fc3 = self.fc1, self.fc2, self.fc3
        return additive_mlp(
            x,
            fc1.weight,
            fc1.bias,
            fc2.weight,
            fc2.bias,
            fc3.weight,
            fc3.bias,
            self.activation,
            self.dropout if self.training else 0.0,
        )

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, hidden_features={self.hidden_features}, "
            f"out_features={self.out_features}, shared={self.shared}, "
            f"activation={self.activation!r}, dropout={self.dropout}"
        )


class MLP(nn.Module):
    """A dense network, parameters named as in its ``nn.Sequential``: see :func:`mlp`."""

    def __init__(
        self,
        in_features,
        hidden_features,
        out_features,
        *,
        activation="relu",
        output_activation=None,
        bias=True,
        dropout=0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        single = isinstance(hidden_features, int)
        self.in_features = in_features
        self.hidden_features = (hidden_features,) if single else tuple(hidden_features)
        self.out_features = out_features
        self.activation = activation
        self.output_activation = output_activation
        self.dropout = dropout
        widths = (in_features, *self.hidden_features, out_features)
        for i in range(len(widths) - 1):
            layer = nn.Linear(widths[i], widths[i + 1], bias=bias, device=device, dtype=dtype)
            # the odd places of the Sequential are the activations
            self.add_module(str(2 * i), layer)

    def forward(self, x):
        layers = self._modules.values()
        return mlp(
            x,
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            self.activation,
            self.output_activation or "identity",
            self.dropout if self.training else 0.0,
        )

    def extra_repr(self):
        return (
            f"{self.in_features}, {list(self.hidden_features)}, {self.out_features}, "
            f"activation={self.activation!r}, output_activation={self.output_activation!r}, "
            f"dropout={self.dropout}"
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
