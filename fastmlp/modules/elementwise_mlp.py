"""The module ElementwiseMLP."""

from collections.abc import Sequence

import torch

from fastmlp import functional, reference
from fastmlp.arguments import check_choice, flag, probabilities, sequence
from fastmlp.modules.checks import sizes_of
from fastmlp.op_arguments import MAX_HIDDEN, MAX_WIDTH
from fastmlp.reference import ACTIVATIONS
from fastmlp.reference.layers import plain_parameters


class ElementwiseMLP(reference.ElementwiseMLP):
    """Apply one learned scalar function, a subnet 1 → H → … → 1, to every element.

    .. math:: y = \\sum_k w^{(2)}_k \\, \\sigma(w^{(1)}_k x + b^{(1)}_k) + b^{(2)}

    Parameters and ``state_dict`` are those of the plain layers ``fc1 = Linear(1, H)`` and
    ``fc2 = Linear(H, 1)``; of ``fc1``, ``fc2``, ``fc3``, … with several hidden layers. Input of any
    shape, output of the same shape.

    Args:
        hidden_features: Hidden units H, 1 … 1024; or the widths of several hidden layers, a
            sequence, each 1 … 128.
        activation: The σ of the formula, a key of :data:`fastmlp.reference.ACTIVATIONS`.
        bias: Whether both layers have a bias.
        dropout: Probability of dropping an input, a hidden unit and an output of the subnet in
            training, all independently; or a tuple ``(p_input, p_hidden, p_output)``. What is kept
            is multiplied by 1/(1 − p), as by ``torch.nn.Dropout``. Masks are a function of a seed
            drawn from torch's generator at each call; they are never in memory. With several hidden
            layers, those of input and output are ``torch.nn.functional.dropout``'s.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: ``hidden_features`` is no int and no list or tuple of them, ``bias`` no bool,
            ``dropout`` no number.
        ValueError: ``hidden_features`` out of range, an unknown activation, a probability outside
            [0, 1].

    Source: a learned activation in the sense of Agostinelli et al. 2014, arXiv:1412.6830.

    Example:
        >>> import torch, fastmlp
        >>> fastmlp.ElementwiseMLP(14)(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """

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
        layers = sequence(hidden_features)
        deep = layers is not None and len(layers) > 1
        widths = sizes_of(hidden_features, MAX_WIDTH if deep else MAX_HIDDEN)
        if not widths:
            raise TypeError("hidden_features must be at least one width, got an empty sequence")
        check_choice("activation", activation, ACTIVATIONS)
        super().__init__(
            widths,
            activation=activation,
            bias=flag("bias", bias),
            dropout=probabilities(dropout),
            device=device,
            dtype=dtype,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        if not isinstance(self.hidden_features, int):
            return self._deep(x, functional.mlp, dropout)
        layers = self._modules
        parameters = plain_parameters((layers["fc1"], layers["fc2"]))
        if parameters is None:
            return super().forward(x)
        return functional.elementwise_mlp(x, *parameters, self.activation, dropout)  # type: ignore[call-arg]
