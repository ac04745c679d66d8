"""A dense network: linear layers with an activation behind each."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastmlp.dropout import layer_mask, layer_rates
from fastmlp.reference.functions import ACTIVATIONS, promote
from fastmlp.reference.layers import call_chain, plain_parameters


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
    x, *parameters = promote(x, *weights, *biases)
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


class MLP(nn.Module):
    """A dense network, parameters named as in its ``nn.Sequential``: see :func:`mlp`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | Sequence[int],
        out_features: int,
        *,
        activation: str = "relu",
        output_activation: str | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        several = isinstance(hidden_features, Sequence)
        hidden: Any = hidden_features if several else (hidden_features,)
        self.in_features = in_features
        self.hidden_features = tuple(hidden)
        self.out_features = out_features
        self.activation = activation
        self.output_activation = output_activation
        self.dropout = dropout
        widths = (in_features, *self.hidden_features, out_features)
        for i in range(len(widths) - 1):
            layer = nn.Linear(widths[i], widths[i + 1], bias=bias, device=device, dtype=dtype)
            # the odd places of the Sequential are the activations
            self.add_module(str(2 * i), layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers: Collection[Any] = self._modules.values()
        names = self.activation, self.output_activation or "identity"
        dropout = self.dropout if self.training else 0.0
        parameters = plain_parameters(layers)
        if parameters is None:
            hidden, output = (ACTIVATIONS[name] for name in names)
            return call_chain(x, layers, hidden, output, dropout)
        return mlp(x, parameters[::2], parameters[1::2], *names, dropout)

    def extra_repr(self):
        return (
            f"{self.in_features}, {list(self.hidden_features)}, {self.out_features}, "
            f"activation={self.activation!r}, output_activation={self.output_activation!r}, "
            f"dropout={self.dropout}"
        )
