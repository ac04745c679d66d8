"""One scalar subnet for every element."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastmlp.dropout import dropout_places
from fastmlp.reference.functions import ACTIVATIONS, promote, subnet
from fastmlp.reference.layers import call_chain, call_subnet, plain_parameters
from fastmlp.reference.mlp import mlp


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
    x, *layers = promote(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    return subnet(x.reshape(-1), layers, activation, dropout, seed).reshape(x.shape)


class ElementwiseMLP(nn.Module):
    """One scalar subnet for every element, see :func:`elementwise_mlp`, :func:`mlp`."""

    fc1: nn.Linear
    fc2: nn.Linear
    hidden_features: int | tuple[int, ...]

    def __init__(
        self,
        hidden_features: int | Sequence[int] = 14,
        *,
        activation: str = "relu",
        bias: bool = True,
        dropout: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        several = isinstance(hidden_features, Sequence)
        hidden: Any = (*hidden_features,) if several else (hidden_features,)  # type: ignore[misc]
        self.hidden_features = hidden[0] if len(hidden) == 1 else hidden
        self.activation = activation
        self.dropout = dropout
        for i, (n_in, n_out) in enumerate(zip((1, *hidden), (*hidden, 1), strict=True)):
            layer = nn.Linear(n_in, n_out, bias=bias, device=device, dtype=dtype)
            self.add_module(f"fc{i + 1}", layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        if not isinstance(self.hidden_features, int):
            return self._deep(x, mlp, dropout)
        layers = self.fc1, self.fc2
        parameters = plain_parameters(layers)
        if parameters is None:
            return call_subnet(x, layers, ACTIVATIONS[self.activation], dropout)
        return elementwise_mlp(x, *parameters, self.activation, dropout)  # type: ignore[call-arg]

    def _deep(self, x, mlp, dropout):
        p_input, p_hidden, p_output = dropout_places(dropout)
        rows, layers = F.dropout(x.unsqueeze(-1), p_input), self._modules.values()
        parameters = plain_parameters(layers)
        if parameters is None:
            identity = ACTIVATIONS["identity"]
            y = call_chain(rows, layers, ACTIVATIONS[self.activation], identity, p_hidden)
        else:
            weights, biases = parameters[::2], parameters[1::2]
            y = mlp(rows, weights, biases, self.activation, dropout=p_hidden)
        return F.dropout(y.squeeze(-1), p_output)

    def extra_repr(self):
        return (
            f"hidden_features={self.hidden_features}, activation={self.activation!r}, "
            f"dropout={self.dropout}"
        )
