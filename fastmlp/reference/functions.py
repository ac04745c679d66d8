"""What the ops are made of in plain PyTorch: activations, reductions, subnets."""

from collections.abc import Callable
from functools import reduce

import torch
from torch.nn import functional as F

from fastmlp.dropout import dropout_masks, dropout_places

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,  # slope 0.01
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,  # exact, with erf
    "sin": torch.sin,
    "identity": lambda z: z,
    "softplus": F.softplus,  # log(1 + exp(z)), z itself above 20
}
REDUCTIONS = ("mean", "sum")


def promote(*tensors):
    """Cast all tensors to their common dtype; ``None`` stays ``None``."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
    return tuple(None if t is None else t.to(dtype) for t in tensors)


def subnet(x, layers, activation, dropout, seed):
    """f of a vector ``[n]``, or of a matrix ``[N, F]`` with a subnet per feature."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = layers
    places = dropout_places(dropout)
    if not any(places):

        def drop(value, place):
            return value
    elif seed is None:

        def drop(value, place):
            return F.dropout(value, places[place])
    else:
        masks = dropout_masks(seed, x.numel(), fc1_weight.shape[-2], places, x.dtype)

        def drop(value, place):
            mask = masks[place]
            return value if mask is None else value * mask.reshape(value.shape)

    x = drop(x, 0)
    if fc1_weight.dim() == 2:
        hidden = drop(ACTIVATIONS[activation](F.linear(x.unsqueeze(-1), fc1_weight, fc1_bias)), 1)
        f = F.linear(hidden, fc2_weight, fc2_bias).squeeze(-1)
    else:
        z = x.unsqueeze(-1) * fc1_weight.squeeze(-1)
        hidden = drop(ACTIVATIONS[activation](z if fc1_bias is None else z + fc1_bias), 1)
        f = (hidden * fc2_weight.squeeze(-2)).sum(-1)
        f = f if fc2_bias is None else f + fc2_bias.squeeze(-1)
    return drop(f, 2)
