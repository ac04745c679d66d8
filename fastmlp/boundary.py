"""The boundary: which tensors may reach a kernel, and what becomes of the others.

A kernel reads memory by its address. So the direct path is for plain, dense, strided tensors with
memory of their own, on one real device, while nothing stands between a call and its tensors: no
dispatch mode, no ``torch.func`` level, no dual level, no tracer. Every entry point asks
:func:`is_plain`. What is not plain takes the registered ops, where PyTorch's dispatcher knows what
to do with them, or plain PyTorch, which does what it does with its own layers: see
:func:`is_interposed`.
"""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch.autograd import forward_ad

PLAIN_TYPES = frozenset((torch.Tensor, torch.nn.Parameter))
_C = torch._C
_n_modes = _C._len_torch_dispatch_stack
_level = _C._functorch.peek_interpreter_stack
_tracing = _C._get_tracing_state
_Guards = getattr(getattr(getattr(_C, "_dynamo", None), "guards", None), "TensorGuards", None)

_FREED = "one whose memory has been freed"
_ON_META = "one without memory on meta"
NUMBERLESS = _FREED, _ON_META
"""What :func:`oddity` says of tensors that are like plain ones but for their numbers."""

# keys that the dispatcher adds to every call of a thread when nobody interferes, and under
# torch.inference_mode
_INFERENCE = _C.DispatchKeySet(_C.DispatchKey.BackendSelect)
_PLAIN_STATES = _INFERENCE, _INFERENCE.add(_C.DispatchKey.ADInplaceOrView)

TAPES_LEVEL = 1
"""That of the older `vmap` by which autograd's tape is asked for many gradients at once."""

MAX_PATTERNS = 16
"""Patterns that are remembered for a number of tensors."""


class Known:
    """Tensors that were looked at one by one, by which like ones are known at a glance.

    A glance is one call of what guards PyTorch's compiled programs. It compares types, dispatch
    keys, dtypes, devices, ``requires_grad`` and some sizes. The keys are those of a call: levels of
    ``torch.func`` and tracers change them, and so do most modes.
    """

    def __init__(self):
        self._patterns = {}  # lists of (check, note) by the number of tensors, the newest first

    def find(self, tensors):
        """The note on tensors like these, ``None`` where there is none, or a mode between."""
        # PyTorch's check does not see dual tensors
        if _n_modes() or forward_ad._current_level >= 0:
            return None
        for t in tensors:  # by map it takes longer
            if t.is_nested:  # which would end the process in PyTorch's check
                return None
        for check, note in self._patterns.get(len(tensors), ()):
            if check(*tensors):
                return note if tensors[0].data_ptr() or not _is_freed(tensors[0]) else None
        return None

    def keep(self, tensors, note, sizes=None):
        """Remember plain tensors, and of each the sizes that are not ``None``."""
        # the check takes no tensor twice
        distinct = len({*map(id, tensors)}) == len(tensors)
        if not tensors or not distinct or forward_ad._current_level >= 0:
            return
        free = [[None] * t.dim() for t in tensors]
        guards = guards_of(tensors, free if sizes is None else sizes, free)
        if guards is not None:
            # a new list: another thread may be reading the old one
            known = self._patterns.get(len(tensors), ())
            self._patterns[len(tensors)] = [(guards.check, note), *known][:MAX_PATTERNS]


_plain = Known()


def is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether a kernel may read and write these tensors at their addresses.

    Args:
        tensors: All that a call takes, none of them ``None``.
    """
    if _plain.find(tensors):
        return True
    if not is_direct() or any(oddity(t) is not None for t in tensors):
        return False
    if len({t.device for t in tensors}) > 1:  # a parameter has moved since forward
        return False
    if forward_ad._current_level >= 0 and has_tangents(tensors):
        return False
    _plain.keep(tensors, True)
    return True


def is_direct() -> bool:
    """Tell whether no dispatch mode, ``torch.func`` level or tracer is at work."""
    return not _n_modes() and _level() is None and _tracing() is None


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


def is_within_transforms() -> bool:
    """Tell whether a transform of `torch.func` is at work."""
    return _level() is not None


def has_rules(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether registered ops have rules for all that `torch.func` does with these tensors.

    So it is for `vmap` and reverse mode, one in the other, where no mode or tracer is at work. A
    pull-back is called when its transform is over: its tensors are still wrapped.
    """
    if _n_modes() or _tracing() is not None or forward_ad._current_level >= 0:
        return False
    if _level() is None:
        return any(map(_C._functorch.is_functorch_wrapped_tensor, tensors))
    kinds = _C._functorch.TransformType
    return all(
        level.key() in (kinds.Vmap, kinds.Grad) for level in _C._functorch.get_interpreter_stack()
    )


@contextmanager
def functions_allowed():
    """Have PyTorch call the rule of an ``autograd.Function`` for the innermost transform alone.

    An op's registered rule of autograd is called once for each of them.
    """
    before = _C._functorch.get_single_level_autograd_function_allowed()
    _C._functorch.set_single_level_autograd_function_allowed(True)
    try:
        yield
    finally:
        _C._functorch.set_single_level_autograd_function_allowed(before)


def is_batched_alone(dy: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    """Tell whether a gradient of an output is many, and nothing else is out of the ordinary.

    So it is in ``torch.autograd.grad(…, is_grads_batched=True)``, by which Jacobians and Hessians
    of :mod:`torch.autograd.functional` are vectorized: by an older `vmap` than `torch.func`'s, with
    tensors of its own.
    """
    if not _C._functorch.is_legacy_batchedtensor(dy) or not is_direct():
        return False
    level = _C._vmapmode_increment_nesting() - 1
    _C._vmapmode_decrement_nesting()
    return level == TAPES_LEVEL and is_plain(others)


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
        raise ValueError(f"a tensor cannot be read, got {_FREED}")


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
    return next(f"a tensor is {why}" for t in tensors if (why := oddity(t)) is not None)


def oddity(t: torch.Tensor) -> str | None:
    """Say in words what a tensor is, if it has no memory that a kernel may read as it stands."""
    if type(t) not in PLAIN_TYPES and _dispatches(t):
        return f"a {type(t).__name__}, which computes by rules of its own"
    if _C._functorch.is_functorch_wrapped_tensor(t):
        return "one inside a transform of torch.func"
    if t.is_nested:
        return "nested, without a shape"
    if t.layout is not torch.strided:
        return f"{str(t.layout).removeprefix('torch.')}, not dense"
    if t.is_neg() or t.is_conj():
        return "lazily negated or conjugated"
    if t.is_meta:
        return _ON_META
    if (keys := _C._dispatch_keys(t)) not in _plain_keys(t.device.type):
        return f"one that the dispatcher treats apart: {keys}"
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
    name = device_type.upper()
    if device_type == _C._get_privateuse1_backend_name():
        name = "PrivateUse1"
    backend, autograd, autocast = (
        getattr(_C.DispatchKey, prefix + name, None) for prefix in ("", "Autograd", "Autocast")
    )
    if backend is None or autograd is None or autocast is None:
        return ()
    inference = _C.DispatchKeySet(backend).add(autocast)
    return inference, inference.add(_C.DispatchKey.ADInplaceOrView).add(autograd)
