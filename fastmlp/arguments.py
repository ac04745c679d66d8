"""Checks of single arguments: what each raises names the argument, what came, what was wanted."""

import math

import torch

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""What the ops take."""


def check_choice(name, value, choices):
    """Raise unless ``value`` is one of ``choices``; ``name`` is the argument's."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_finite(name, value):
    """Raise unless ``value`` is a finite real number; ``name`` is the argument's."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # so that torch.compile can trace it
        raise ValueError(f"{name} must be finite, got {value}")


def check_tensor(name, value, device):
    """Raise unless ``value`` is a tensor of a dtype that the ops take, on a device."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, "
            f"got {str(value.dtype).removeprefix('torch.')}"
        )
    if value.device != device:
        raise ValueError(f"{name} must be on the device of x, {device}, got {value.device}")


def check_parameter(name, value, shape, device):
    """Raise unless ``value`` is such a tensor of a given shape."""
    if (
        isinstance(value, torch.Tensor)
        and value.shape == shape
        and value.dtype in DTYPES
        and value.device == device
    ):
        return
    check_tensor(name, value, device)
    raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")


def dense(name, value):
    """A tensor without its graph, whose memory holds the numbers that it stands for.

    For what reads that memory: conjugate and negative bits are resolved, and what belongs to
    inference mode is copied.

    Raises:
        TypeError: There is no such memory: another layout, a subclass, a tensor without numbers.
    """
    if type(torch.empty(0, device="cpu")) is not torch.Tensor:
        raise TypeError(f"{name} must hold numbers, but a mode makes tensors that have none")
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        raise TypeError(
            f"{name} must be a plain Tensor, got {type(value).__name__}: what it stands for is "
            "unknown; if its own numbers are meant, pass as_subclass(torch.Tensor)"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise TypeError(f"{name} must be a plain Tensor, got one inside a transform of torch.func")
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got {kind}, {value.dtype}")
    value = value.detach().resolve_conj().resolve_neg()
    if value._is_zerotensor() or value.is_inference():
        value = value.clone()
    if value.numel() and (value.is_meta or value.data_ptr() == 0):
        raise TypeError(f"{name} must hold numbers, got one without memory on {value.device}")
    return value


def check_x(x):
    """Raise unless ``x`` is a tensor of a dtype that the ops take."""
    check_tensor("x", x, getattr(x, "device", None))


def check_probability(name, value):
    """Raise unless ``value`` is a number from 0 to 1; ``name`` is the argument's."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def check_dropout(dropout):
    """Raise unless ``dropout`` is one probability or three; return the three."""
    places = dropout if isinstance(dropout, (tuple, list)) else (dropout,) * 3
    if len(places) != 3:
        raise ValueError(
            "dropout must be one probability or a tuple (p_input, p_hidden, p_output), "
            f"got {len(places)} values"
        )
    for p in places:
        if isinstance(p, bool) or not isinstance(p, (int, float)):
            raise TypeError(f"dropout must be a number or three, got {type(p).__name__}")
        if not 0 <= p <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {p}")
    return tuple(float(p) for p in places)
