"""The ops as functions of tensors, in plain PyTorch."""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch.nn import functional as F

from fastmlp.dropout import dropout_masks, dropout_places, layer_mask, layer_rates

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,  # exact, with erf
    "sin": torch.sin,
    "identity": lambda z: z,
    "softplus": F.softplus,  # log(1 + exp(z)), z itself above 20
}
REDUCTIONS = ("mean", "sum")


def _promote(*tensors):
    """Cast all tensors to their common dtype; ``None`` stays ``None``."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def _subnet(x, layers, activation, dropout, seed):
    """f of a vector ``[n]``, or of a matrix ``[N, F]`` with a subnet per feature."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = layers
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
    x: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor | None,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor | None,
    activation: str = "relu",
    dropout: float | Sequence[float] = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
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
    x, *layers = _promote(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return _subnet(x.reshape(-1), layers, activation, dropout, seed).reshape(x.shape)


def additive_mlp(
    x: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor | None,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor | None,
    fc3_weight: torch.Tensor,
    fc3_bias: torch.Tensor | None,
    activation: str = "relu",
    dropout: float | Sequence[float] = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
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
    x, *layers, fc3_weight, fc3_bias = _promote(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    )
    flat = x.reshape(-1) if fc1_weight.dim() == 2 else x.reshape(-1, x.shape[-1])
    f = _subnet(flat, layers, activation, dropout, seed).reshape(x.shape)
    return F.linear(f, fc3_weight, fc3_bias)


def mlp(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None] | None = None,
    activation: str = "relu",
    output_activation: str = "identity",
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
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
    return dropped_mlp(x, weights, biases, activation, output_activation, dropout, seed)


def dropped_mlp(x, weights, biases, activation, output_activation, dropout, seed):
    """:func:`mlp`, with dropout anywhere.

    ``dropout`` may be a sequence: the probabilities of dropping an input and an output of each
    layer.
    """
    biases = [None] * len(weights) if biases is None else biases
    x, *parameters = _promote(x, *weights, *biases)
    layers = zip(parameters[: len(weights)], parameters[len(weights) :], strict=True)
    first, *rates = layer_rates(dropout, len(weights))
    n = math.prod(x.shape[:-1])

    def drop(h, layer, p):
        if p == 0:
            return h
        if seed is None:
            return F.dropout(h, p)
        return h * layer_mask(seed, n, h.shape[-1], layer, p, h.dtype).reshape(h.shape)

    h = drop(x, 0, first)
    for layer, ((weight, bias), p) in enumerate(zip(layers, rates, strict=True), 1):
        name = activation if layer < len(weights) else output_activation
        h = drop(ACTIVATIONS[name](F.linear(h, weight, bias)), layer, p)
    return h


def sine_sum(
    x: torch.Tensor,
    w: torch.Tensor,
    amplitude: torch.Tensor | None = None,
    phase: torch.Tensor | None = None,
    scale: float = math.pi,
    reduction: str = "mean",
) -> torch.Tensor:
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


def piecewise_linear(
    x: torch.Tensor,
    breakpoints: torch.Tensor,
    anchors: torch.Tensor,
    values: torch.Tensor,
    slopes: torch.Tensor,
) -> torch.Tensor:
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
