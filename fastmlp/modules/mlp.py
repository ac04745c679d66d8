"""The module MLP."""

from collections.abc import Sequence

import torch

from fastmlp import functional, reference
from fastmlp.arguments import check_choice, flag, integer, probability
from fastmlp.modules.checks import sizes_of
from fastmlp.op_arguments import MAX_WIDTH
from fastmlp.reference import ACTIVATIONS
from fastmlp.reference.layers import plain_parameters


class MLP(reference.MLP):
    """Apply a dense network to the last dimension: the whole net in one kernel.

    .. math:: h_l = \\sigma_l(W_l h_{l-1} + b_l), \\quad h_0 = x, \\quad y = h_L

    Parameters and ``state_dict`` are those of the equivalent ``nn.Sequential`` of ``Linear`` and
    activation in turn: ``0.weight``, ``0.bias``, ``2.weight``, …, so its checkpoint loads strictly.
    Input ``[*, in_features]``, output ``[*, out_features]``. Hidden activations never exist in
    memory, but for a layer now and then of a net that is wide or deep, on a GPU.

    Args:
        in_features: Inputs, 1 … 128.
        hidden_features: Widths of the hidden layers, each 1 … 128: a sequence, which may be empty,
            or one int.
        out_features: Outputs, 1 … 128.
        activation: σ of the hidden layers, a key of :data:`fastmlp.reference.ACTIVATIONS`.
        output_activation: σ of the last layer, likewise; ``None`` for none.
        bias: Whether the layers have a bias.
        dropout: Probability of dropping an output of a hidden layer in training mode; what is kept
            is multiplied by 1/(1 − p), as by ``torch.nn.Dropout``. Masks are a function of a seed
            drawn from torch's generator at each call; they are never in memory.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: A size is no int, ``bias`` no bool, ``dropout`` no number.
        ValueError: A size out of range, an unknown activation, ``dropout`` not a probability.

    Source: one kernel for a whole small network, Müller et al. 2021, arXiv:2106.12372, section 4.

    Example:
        >>> import torch, fastmlp
        >>> fastmlp.MLP(64, [64, 64], 16)(torch.zeros(100, 64)).shape
        torch.Size([100, 16])
    """

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
        check_choice("activation", activation, ACTIVATIONS)
        if output_activation is not None:
            check_choice("output_activation", output_activation, ACTIVATIONS)
        super().__init__(
            integer("in_features", in_features, 1, MAX_WIDTH),
            sizes_of(hidden_features, MAX_WIDTH),
            integer("out_features", out_features, 1, MAX_WIDTH),
            activation=activation,
            output_activation=output_activation,
            bias=flag("bias", bias),
            dropout=probability("dropout", dropout),
            device=device,
            dtype=dtype,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parameters = plain_parameters(self._modules.values())
        if parameters is None:
            return super().forward(x)
        return functional.mlp(
            x,
            parameters[::2],
            parameters[1::2],
            self.activation,
            self.output_activation or "identity",
            self.dropout if self.training else 0.0,
        )
