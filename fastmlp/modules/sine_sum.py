"""The module SineSum."""

import math

import torch

from fastmlp import functional, reference
from fastmlp.arguments import check_choice, flag, integer, number


class SineSum(reference.SineSum):
    """Average sines of learned frequencies over every element.

    .. math:: y = \\operatorname{mean}_i \\, a_i \\sin(s\\, w_i x + \\varphi_i)

    The parameter ``w`` of shape ``[width]`` is drawn from U(0, 2). Input of any shape, output of
    the same shape.

    Args:
        width: Number of sines, at least 1.
        scale: The factor ``s``: radians per unit of ``w * x``. A finite number.
        reduction: ``"mean"`` or ``"sum"`` over the sines.
        learn_amplitude: Give the module a parameter ``amplitude`` of shape ``[width]``, at first 1.
        learn_phase: Give the module a parameter ``phase`` of shape ``[width]``, radians, at
            first 0.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        TypeError: ``width`` is no int, ``scale`` no number.
        ValueError: ``width`` below 1, ``scale`` not finite, an unknown reduction.

    Source: sines as hidden units, Sitzmann et al. 2020, arXiv:2006.09661.

    Example:
        >>> import torch, fastmlp
        >>> fastmlp.SineSum(8)(torch.zeros(3)).detach()
        tensor([0., 0., 0.])
    """

    def __init__(
        self,
        width: int,
        *,
        scale: float = math.pi,
        reduction: str = "mean",
        learn_amplitude: bool = False,
        learn_phase: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_choice("reduction", reduction, reference.REDUCTIONS)
        super().__init__(
            integer("width", width, 1),
            scale=number("scale", scale),
            reduction=reduction,
            learn_amplitude=flag("learn_amplitude", learn_amplitude),
            learn_phase=flag("learn_phase", learn_phase),
            device=device,
            dtype=dtype,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.sine_sum(
            x, self.w, self.amplitude, self.phase, self.scale, self.reduction
        )
