"""The module AdditiveMLP."""

from collections.abc import Sequence

import torch

from fastmlp import functional, reference
from fastmlp.arguments import check_choice, flag, integer, probabilities
from fastmlp.op_arguments import MAX_HIDDEN
from fastmlp.reference import ACTIVATIONS
from fastmlp.reference.layers import plain_parameters


class AdditiveMLP(reference.AdditiveMLP):
    """Apply a scalar subnet 1 → H → 1 to every feature, then one linear layer across them.

    .. math:: y_m = \\sum_j V_{mj} f_j(x_j) + c_m

    Parameters and ``state_dict`` are those of the plain layers ``fc1 = Linear(1, H)``,
    ``fc2 = Linear(H, 1)`` and ``fc3 = Linear(F, M)``, so a checkpoint of the plain network loads
    strictly. Input ``[*, F]``, output ``[*, M]``. Hidden activations never exist in memory.

    Args:
        in_features: Features F, at least 1.
        hidden_features: Hidden units H of the subnet, 1 … 1024.
        out_features: Outputs M, at least 1.
        shared: Whether all features share one subnet. If not, each has one of its own, as in a
            neural additive model: the parameters of ``fc1`` and ``fc2`` are then F linear layers'
            stacked along a first dimension, ``fc1.weight [F, H, 1]``, ``fc1.bias [F, H]``,
            ``fc2.weight [F, 1, H]``, ``fc2.bias [F, 1]``.
        activation: The subnet's activation, a key of :data:`fastmlp.reference.ACTIVATIONS`.
        bias: Whether the three layers have a bias.
        dropout: Probability of dropping an input, a hidden unit and an output of the subnet in
            training, all independently; or a tuple ``(p_input, p_hidden, p_output)``. What is kept
            is multiplied by 1/(1 − p), as by ``torch.nn.Dropout``. Masks are a function of a seed
            drawn from torch's generator at each call; they are never in memory.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is no int, ``shared`` or ``bias`` no bool, ``dropout`` no number.
        ValueError: A size out of range, an unknown activation, a probability outside
            [0, 1].

    Source: the shape of Deep Sets, Zaheer et al. 2017, arXiv:1703.06114, section 2.2;
    ``shared=False``: Agarwal et al. 2021, arXiv:2004.13912.

    Example:
        >>> import torch, fastmlp
        >>> fastmlp.AdditiveMLP(64, 14)(torch.zeros(100, 64)).shape
        torch.Size([100, 1])
    """

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
        check_choice("activation", activation, ACTIVATIONS)
        super().__init__(
            integer("in_features", in_features, 1),
            integer("hidden_features", hidden_features, 1, MAX_HIDDEN),
            integer("out_features", out_features, 1),
            shared=flag("shared", shared),
            activation=activation,
            bias=flag("bias", bias),
            dropout=probabilities(dropout),
            device=device,
            dtype=dtype,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = self._modules
        parameters = plain_parameters((layers["fc1"], layers["fc2"], layers["fc3"]))
        if parameters is None:
            return super().forward(x)
        dropout = self.dropout if self.training else 0.0
        return functional.additive_mlp(x, *parameters, self.activation, dropout)  # type: ignore[call-arg]
