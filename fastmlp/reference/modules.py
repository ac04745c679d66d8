"""The layers as modules in plain PyTorch: parameters, names and `state_dict` of ours."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastmlp.dropout import dropout_places
from fastmlp.featurewise import FeaturewiseLinear
from fastmlp.reference.functions import (
    ACTIVATIONS,
    additive_mlp,
    elementwise_mlp,
    mlp,
    sine_sum,
)
from fastmlp.reference.layers import call_chain, call_subnet, plain_parameters


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


class MLP(nn.Module):
    """A dense network, parameters named as in its ``nn.Sequential``: see :func:`mlp`."""

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
        super().__init__()
        several = isinstance(hidden_features, Sequence)
        hidden: Any = hidden_features if several else (hidden_features,)
        self.in_features = in_features
        self.hidden_features = tuple(hidden)
        self.out_features = out_features
        self.activation = activation
        self.output_activation = output_activation
        self.dropout = dropout
        widths = (in_features, *self.hidden_features, out_features)
        for i in range(len(widths) - 1):
            layer = nn.Linear(widths[i], widths[i + 1], bias=bias, device=device, dtype=dtype)
            # the odd places of the Sequential are the activations
            self.add_module(str(2 * i), layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers: Collection[Any] = self._modules.values()
        names = self.activation, self.output_activation or "identity"
        dropout = self.dropout if self.training else 0.0
        parameters = plain_parameters(layers)
        if parameters is None:
            hidden, output = (ACTIVATIONS[name] for name in names)
            return call_chain(x, layers, hidden, output, dropout)
        return mlp(x, parameters[::2], parameters[1::2], *names, dropout)

    def extra_repr(self):
        return (
            f"{self.in_features}, {list(self.hidden_features)}, {self.out_features}, "
            f"activation={self.activation!r}, output_activation={self.output_activation!r}, "
            f"dropout={self.dropout}"
        )


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
