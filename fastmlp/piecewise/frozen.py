"""A univariate net, frozen: evaluated by a search among its breakpoints."""

import torch
from torch import nn

from fastmlp import functional
from fastmlp.arguments import flag
from fastmlp.piecewise.layers import is_elementwise
from fastmlp.piecewise.nets import from_module
from fastmlp.piecewise.table import PiecewiseLinear


class FrozenPiecewiseLinear(nn.Module):
    """A table as a module for inference: a search and one line an element, whatever the net was.

    Its buffers are the table in one dtype; it has no parameters. Derivatives with respect to x are
    those of the table.

    Args:
        table: The :class:`PiecewiseLinear` to evaluate, known on the whole line.
        elementwise: Whether input ``[*]`` gives output ``[*]``; otherwise input ``[*, 1]`` gives
            output ``[*, M]``, as a net of Linear layers does.
        device: Device of the buffers.
        dtype: Dtype of the buffers; the arithmetic is float32 or float64 accordingly.

    Raises:
        TypeError, ValueError: Wrong arguments; a table known on an interval alone.
    """

    breakpoints: torch.Tensor
    anchors: torch.Tensor
    values: torch.Tensor
    slopes: torch.Tensor

    def __init__(
        self,
        table: PiecewiseLinear,
        *,
        elementwise: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if any(abs(end) != float("inf") for end in table.interval):
            raise ValueError(f"table must be known on the whole line, got {table.interval}")
        if elementwise and table.n_outputs != 1:
            raise ValueError(f"an elementwise function has one output, got {table.n_outputs}")
        self.elementwise = flag("elementwise", elementwise)
        dtype = dtype or torch.get_default_dtype()
        for name in ("breakpoints", "anchors", "values", "slopes"):
            self.register_buffer(name, getattr(table, name).to(device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Evaluate the function.

        Args:
            x: Shape ``[*]`` or ``[*, 1]``, as ``elementwise`` says.
        """
        if not self.elementwise:
            if x.dim() == 0 or x.shape[-1] != 1:
                raise ValueError(f"x must have shape [*, 1], got {list(x.shape)}")
            x = x.squeeze(-1)
        tables = self.breakpoints, self.anchors, self.values, self.slopes
        y = functional.piecewise_linear(x, *tables)
        return y.unsqueeze(-1) if not self.elementwise and self.values.dim() == 1 else y

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"{len(self.slopes)} segments, elementwise={self.elementwise}"


def freeze(module: nn.Module) -> FrozenPiecewiseLinear:
    """A module for inference that evaluates a univariate net by a search among its breakpoints.

    It costs the same for any width and depth. The net stays as it is.

    Args:
        module: As for :func:`fastmlp.piecewise.from_module`.

    Returns:
        :class:`FrozenPiecewiseLinear` with the input and output shapes of ``module``, in the dtype
        and on the device of its parameters. The table is computed in float64 and rounded.

    Raises:
        TypeError, ValueError: As for :func:`fastmlp.piecewise.from_module`.

    Example:
        >>> import torch, fastmlp
        >>> net = fastmlp.ElementwiseMLP(200)
        >>> x = torch.linspace(-3, 3, 7)
        >>> torch.allclose(freeze(net)(x), net(x), atol=1e-5)
        True
    """
    table = from_module(module)
    first = next(module.parameters())
    return FrozenPiecewiseLinear(
        table,
        elementwise=is_elementwise(module),
        device=first.device,
        dtype=first.dtype,
    )
