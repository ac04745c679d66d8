"""Linear layers of which every feature has its own."""

import math

import torch
from torch import nn


class FeaturewiseLinear(nn.Module):
    """A ``Linear`` of its own for each of F features, their parameters stacked: one a feature.

    Parameters ``weight [F, out_features, in_features]`` and ``bias [F, out_features]``, drawn as
    ``torch.nn.Linear`` draws its own.

    Args:
        n_features: Features F.
        in_features: Inputs of each layer.
        out_features: Outputs of each layer.
        bias: Whether the layers have a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, n_features, in_features, out_features, *, bias=True, device=None, dtype=None
    ):
        super().__init__()
        self.n_features = n_features
        self.in_features = in_features
        self.out_features = out_features

        def parameter(*shape):
            return nn.Parameter(torch.empty(n_features, *shape, device=device, dtype=dtype))

        self.weight = parameter(out_features, in_features)
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self.reset_parameters()

    def reset_parameters(self):
        """Draw from U(−1/√in_features, 1/√in_features)."""
        bound = 1 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply each feature's layer to that feature.

        Args:
            x: Shape ``[*, F, in_features]``.

        Returns:
            Shape ``[*, F, out_features]``.
        """
        y = (self.weight @ x.unsqueeze(-1)).squeeze(-1)
        return y if self.bias is None else y + self.bias

    def extra_repr(self):
        return (
            f"n_features={self.n_features}, in_features={self.in_features}, "
            f"out_features={self.out_features}, bias={self.bias is not None}"
        )
