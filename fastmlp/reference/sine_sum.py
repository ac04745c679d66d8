"""A sum or mean of sines."""

import math

import torch
from torch import nn

from fastmlp.reference.functions import promote


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
    x, w, amplitude, phase = promote(x, w, amplitude, phase)
    angle = x.unsqueeze(-1) * (scale * w)
    if phase is not None:
        angle = angle + phase
    waves = torch.sin(angle)
    if amplitude is not None:
        waves = waves * amplitude
    return waves.mean(-1) if reduction == "mean" else waves.sum(-1)


class SineSum(nn.Module):
    """A mean of sines with learned frequencies: plain PyTorch, see :func:`sine_sum`."""

    amplitude: nn.Parameter | None
    phase: nn.Parameter | None

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
        super().__init__()
        self.width = width
        self.scale = scale
        self.reduction = reduction

        def parameter():
            return nn.Parameter(torch.empty(width, device=device, dtype=dtype))

        self.w = parameter()
        self.register_parameter("amplitude", parameter() if learn_amplitude else None)
        self.register_parameter("phase", parameter() if learn_phase else None)
        self.reset_parameters()

    def reset_parameters(self):
        """Draw ``w`` from U(0, 2); amplitudes start at 1, phases at 0."""
        nn.init.uniform_(self.w, 0.0, 2.0)
        if self.amplitude is not None:
            nn.init.ones_(self.amplitude)
        if self.phase is not None:
            nn.init.zeros_(self.phase)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sine_sum(x, self.w, self.amplitude, self.phase, self.scale, self.reduction)

    def extra_repr(self):
        return (
            f"width={self.width}, scale={self.scale:.6g}, reduction={self.reduction!r}, "
            f"learn_amplitude={self.amplitude is not None}, learn_phase={self.phase is not None}"
        )
