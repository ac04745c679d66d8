"""The module AdditiveMLP."""

from fastmlp import functional, reference
from fastmlp.modules.checks import check_size, check_subnet, weight_and_bias


class AdditiveMLP(reference.AdditiveMLP):
    """Apply one scalar subnet 1 → H → 1 to every feature, then one linear layer across them.

    .. math:: y_m = \\sum_j V_{mj} f(x_j) + c_m

    Parameters and ``state_dict`` are those of the plain layers ``fc1 = Linear(1, H)``,
    ``fc2 = Linear(H, 1)`` and ``fc3 = Linear(F, M)``, so a checkpoint of the plain network loads
    strictly. Input ``[*, F]``, output ``[*, M]``. Hidden activations never exist in memory.

    Args:
        in_features: Features F, at least 1.
        hidden_features: Hidden units H of the subnet, 1 … 1024.
        out_features: Outputs M, at least 1.
        activation: The subnet's activation, one of :data:`fastmlp.functional.SUBNET_ACTIVATIONS`.
        bias: Whether the three layers have a bias.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is no int, ``bias`` no bool.
        ValueError: A size out of range, an unknown activation.

    Source: the shape of Deep Sets, Zaheer et al. 2017, arXiv:1703.06114, section 2.2.

    Example:
        >>> import torch, fastmlp
        >>> fastmlp.AdditiveMLP(64, 14)(torch.zeros(100, 64)).shape
        torch.Size([100, 1])
    """

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
        check_size("in_features", in_features)
        check_size("out_features", out_features)
        check_subnet(hidden_features, activation, bias)
        super().__init__(
            in_features,
            hidden_features,
            out_features,
            activation=activation,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, x):
        layers = self._modules
        return functional.additive_mlp(
            x,
            *weight_and_bias(layers["fc1"]),
            *weight_and_bias(layers["fc2"]),
            *weight_and_bias(layers["fc3"]),
            self.activation,
        )
