"""A scalar subnet for every feature, then one linear layer across the features."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from fastmlp.featurewise import FeaturewiseLinear
from fastmlp.reference.functions import ACTIVATIONS, promote, subnet
from fastmlp.reference.layers import call_subnet, plain_parameters


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
    x, *layers, fc3_weight, fc3_bias = promote(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    )
    flat = x.reshape(-1) if fc1_weight.dim() == 2 else x.reshape(-1, x.shape[-1])
    f = subnet(flat, layers, activation, dropout, seed).reshape(x.shape)
    return F.linear(f, fc3_weight, fc3_bias)


class AdditiveMLP(nn.Module):
    """One scalar subnet for every feature, then a linear layer: see :func:`additive_mlp`."""

    fc1: nn.Linear | FeaturewiseLinear
    fc2: nn.Linear | FeaturewiseLinear

    def __init__(
        self,
        in_features: int = 64,
        hidden_features: int = 14,
        out_features: int = 1,
        *,
        shared: bool = True,
        activation: str = "relu",
        bias: bool = True,
        dropout: float | Sequence[float] = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = self.fc1, self.fc2, self.fc3
        dropout = self.dropout if self.training else 0.0
        parameters = plain_parameters(layers)
        if parameters is None:
            f = call_subnet(x, layers[:2], ACTIVATIONS[self.activation], dropout)
            return self.fc3(f)
        return additive_mlp(x, *parameters, self.activation, dropout)  # type: ignore[call-arg]

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, hidden_features={self.hidden_features}, "
            f"out_features={self.out_features}, shared={self.shared}, "
            f"activation={self.activation!r}, dropout={self.dropout}"
        )
