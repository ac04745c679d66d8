"""Checks of single arguments: what each raises names the argument, what came, what was wanted."""

import math

import numpy as np
import torch

from fastmlp import boundary

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
"""What the ops take."""


def check_choice(name, value, choices):
    """Raise unless ``value`` is one of ``choices``; ``name`` is the argument's."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def integer(name, value, low=None, high=None):
    """``value`` as an int from ``low`` to ``high``; like the next two it takes NumPy's scalars."""
    whole = _item(value)
    if isinstance(whole, bool) or not isinstance(whole, int):
        raise TypeError(f"{name} must be an int, got {told(value)}")
    if (low is not None and whole < low) or (high is not None and whole > high):
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return whole


def number(name, value, low=-math.inf, below=math.inf):
    """``value`` as a finite int or float, low ≤ value < below."""
    came = real(name, value)
    if not -math.inf < came < math.inf:  # so that torch.compile can trace it
        raise ValueError(f"{name} must be finite, got {value}")
    if not low <= came < below:
        wanted = f"at least {low:g}" if below == math.inf else f"in [{low:g}, {below:g})"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return came


def flag(name, value):
    """``value`` as a bool."""
    truth = _item(value)
    if not isinstance(truth, bool):
        raise TypeError(f"{name} must be a bool, got {told(value)}")
    return truth


def sequence(value):
    """A list, tuple, range or NumPy array as a list; ``None`` where ``value`` is none."""
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return value.tolist()
    return list(value) if isinstance(value, (list, tuple, range)) else None


def told(value):
    """What came, in an error: the type, and the value where that is a number."""
    numbers = (bool, int, float, complex, np.generic)
    return f"{type(value).__name__} {value}" if isinstance(value, numbers) else type(value).__name__


def _item(value):
    scalar = isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0
    return value.item() if scalar else value


def real(name, value):
    """``value`` as an int or a float, infinity and NaN among them."""
    if type(value) is float:
        return value
    came = _item(value)
    if isinstance(came, bool) or not isinstance(came, (int, float)):
        raise TypeError(f"{name} must be a number, got {told(value)}")
    return came


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


def in_memory(name, value):
    """A tensor without its graph, whose memory holds the numbers that it stands for.

    For what reads that memory: conjugate and negative bits are resolved, and what belongs to
    inference mode is copied.

    Raises:
        TypeError: There is no such memory: another layout, a subclass, a tensor without numbers.
    """
    if type(torch.empty(0, device="cpu")) is not torch.Tensor:
        raise TypeError(f"{name} must hold numbers, but a mode makes tensors that have none")
    if type(value) not in boundary.PLAIN_TYPES:
        raise TypeError(
            f"{name} must be a plain Tensor, got {type(value).__name__}: what it stands for is "
            "unknown; if its own numbers are meant, pass as_subclass(torch.Tensor)"
        )
    value = value.detach().resolve_conj().resolve_neg()
    if value._is_zerotensor() or value.is_inference():
        value = value.clone()
    if (what := boundary.oddity(value)) is not None:
        wanted = "hold numbers" if what in boundary.NUMBERLESS else "be a dense tensor"
        raise TypeError(f"{name} must {wanted}, got {what}")
    return value


def check_x(x):
    """Raise unless ``x`` is a tensor of a dtype that the ops take."""
    check_tensor("x", x, getattr(x, "device", None))


def probability(name, value):
    """``value`` as a float from 0 to 1."""
    p = real(name, value)
    if not 0 <= p <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return float(p)


def probabilities(dropout):
    """``dropout`` as one float, or as a tuple of three."""
    places = sequence(dropout)
    if places is None:
        return probability("dropout", dropout)
    if len(places) != 3:
        raise ValueError(
            "dropout must be one probability or a tuple (p_input, p_hidden, p_output), "
            f"got {len(places)} values"
        )
    return tuple([probability("dropout", p) for p in places])
