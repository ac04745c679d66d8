"""The boundary: which tensors may reach a kernel, and what becomes of the others.

A kernel reads memory by its address. So the direct path is for plain, dense, strided tensors with
memory of their own, on one real device, while nothing stands between a call and its tensors: no
dispatch mode, no ``torch.func`` level, no dual level, no tracer. Every entry point asks
:func:`is_plain`. What is not plain takes the registered ops, where PyTorch's dispatcher knows what
to do with them, or plain PyTorch, which does what it does with its own layers: see :func:`route`.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter

import torch
from torch.autograd import forward_ad

PLAIN_TYPES = frozenset((torch.Tensor, torch.nn.Parameter))
_C = torch._C
_n_modes = _C._len_torch_dispatch_stack
_level = _C._functorch.peek_interpreter_stack
_tracing = _C._get_tracing_state
_Guards = getattr(getattr(getattr(_C, "_dynamo", None), "guards", None), "TensorGuards", None)

_is_nested = attrgetter("is_nested")

_FREED = "its memory has been freed"

# keys that the dispatcher adds to every call of a thread when nobody interferes, and under
# torch.inference_mode
_INFERENCE = _C.DispatchKeySet(_C.DispatchKey.BackendSelect)
_PLAIN_STATES = _INFERENCE, _INFERENCE.add(_C.DispatchKey.ADInplaceOrView)

MAX_PATTERNS = 16
"""Patterns of tensors that are remembered for a number of tensors; more are checked at length."""

# checks of tensors that were found plain, by their number, the last one that said yes first
_patterns: dict[int, list] = {}


def is_direct() -> bool:
    """Tell whether no dispatch mode, ``torch.func`` level or tracer is at work."""
    return not _n_modes() and _level() is None and _tracing() is None


def is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether a kernel may read and write these tensors at their addresses.

    Args:
        tensors: All that a call takes, none of them ``None``.

    The dispatcher is asked: a check of PyTorch's own compares types, dispatch keys, dtypes and
    devices with those of tensors that were looked at one by one before, all in one call.
    """
    if not is_direct():
        return False
    if forward_ad._current_level >= 0 and has_tangents(tensors):
        return False
    if any(map(_is_nested, tensors)):  # PyTorch's check would end the process
        return False
    for check in _patterns.get(len(tensors), ()):
        if check(*tensors):
            return bool(tensors[0].data_ptr()) or not _is_freed(tensors[0])
    return _look_at_each(tensors)


def _look_at_each(tensors):
    if any(oddity(t) is not None for t in tensors):
        return False
    free = [[None] * t.dim() for t in tensors]  # any sizes, any strides
    if tensors and (guards := guards_of(tensors, free, free)) is not None:
        # a new list: another thread may be reading the old one
        known = _patterns.get(len(tensors), ())
        _patterns[len(tensors)] = [guards.check, *known][:MAX_PATTERNS]
    return True


def guards_of(tensors, sizes, strides):
    """What compares tensors with these at once, all but their values, in 0.1 µs each.

    Args:
        tensors: Examples.
        sizes: Those of each tensor that are compared, ``None`` for any.
        strides: Likewise.

    Returns:
        An object with a method ``check(*tensors)``, what compiled programs are guarded by; ``None``
        where PyTorch has it no more.
    """
    if _Guards is None:
        return None
    return _Guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)


def is_beyond_checks(x: torch.Tensor) -> bool:
    """Tell whether plain PyTorch takes an input unseen: nobody can check its shape.

    So it is with nested tensors, which have none, and under ``torch.jit.trace``, which would warn
    of every comparison.
    """
    return _tracing() is not None or getattr(x, "is_nested", False)


def is_transformed(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Tell whether derivatives are asked for beside PyTorch's tape: by torch.func, or forward."""
    if _level() is not None:
        return True
    return forward_ad._current_level >= 0 and has_tangents(t for t in tensors if t is not None)


def has_tangents(tensors: Iterable[torch.Tensor]) -> bool:
    """Tell whether one of the tensors is dual, inside a dual level."""
    # under the vmap of autograd's own checks a dual tensor cannot be taken apart
    if _C._dispatch_tls_local_include_set() not in _PLAIN_STATES:
        return True
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def is_interposed(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether a registered op is the answer for tensors that are not plain.

    So it is under a dispatch mode (fake tensors, ``make_fx``). Subclasses with operations of their
    own, ``torch.func`` and dual tensors compute in plain PyTorch, and so does what has no memory.
    """
    if not _n_modes() or _level() is not None or _tracing() is not None:
        return False
    return not any(_dispatches(t) and not _is_infrastructure(t) for t in tensors)


def refuse_freed(tensors: Sequence[torch.Tensor]) -> None:
    """Raise a ValueError where a tensor's memory has been freed: PyTorch would read address 0."""
    if any(oddity(t) == _FREED for t in tensors):
        raise ValueError(f"a tensor cannot be read: {_FREED}")


def reason(tensors: Sequence[torch.Tensor]) -> str | None:
    """Say in words why tensors are not plain, or ``None`` where they are."""
    if is_plain(tensors):
        return None
    if _tracing() is not None:
        return "torch.jit.trace records plain operations"
    if _level() is not None:
        return "a torch.func transform is at work"
    if _n_modes():
        return f"the dispatch mode {type(_C._get_dispatch_stack_at(_n_modes() - 1)).__name__} is on"
    if forward_ad._current_level >= 0 and has_tangents(tensors):
        return "forward-mode derivatives are asked for"
    return next(why for t in tensors if (why := oddity(t)) is not None)


def oddity(t: torch.Tensor) -> str | None:
    """Say in words why a tensor has no memory that a kernel may read as it stands, or ``None``."""
    if type(t) not in PLAIN_TYPES and _dispatches(t):
        return f"a {type(t).__name__} computes by rules of its own"
    if t.is_nested:
        return "a nested tensor has no shape"
    if t.layout is not torch.strided:
        return f"a tensor of layout {t.layout} is not dense"
    if t.is_neg() or t.is_conj():
        return "a lazily negated or conjugated view is not what its memory holds"
    if (keys := _C._dispatch_keys(t)) not in _plain_keys(t.device.type):
        return f"its dispatch keys are not those of a plain tensor: {keys}"
    return _FREED if _is_freed(t) else None


def _is_freed(t):
    return t.numel() > 0 and t.data_ptr() == 0


def _dispatches(t):
    """Whether a subclass has operations of its own, and not just functions."""
    return type(t).__torch_dispatch__ is not _C._disabled_torch_dispatch_impl


def _is_infrastructure(t):
    """Whether a tensor belongs to PyTorch's own tracing, which knows registered ops."""
    return type(t).__name__ in ("FakeTensor", "FunctionalTensor")


@cache
def _plain_keys(device_type):
    """Dispatch keys of plain tensors, those made under ``torch.inference_mode`` among them."""
    key, keys = _C.DispatchKey, _C.DispatchKeySet
    backend, autograd, autocast = {
        "cpu": (key.CPU, key.AutogradCPU, key.AutocastCPU),
        "cuda": (key.CUDA, key.AutogradCUDA, key.AutocastCUDA),
    }.get(device_type, (None, None, None))
    if backend is None:
        return ()
    inference = keys(backend).add(autocast)
    return inference, inference.add(key.ADInplaceOrView).add(autograd)
