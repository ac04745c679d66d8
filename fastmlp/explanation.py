"""Which path a call takes, and why, in words."""

import torch
from torch.overrides import TorchFunctionMode

from fastmlp import backends, boundary, functional

_OPS = {getattr(functional, name): name for name in functional.__all__}


class _Listener(TorchFunctionMode):
    """Notes a sentence about every call of the functional API."""

    def __init__(self):
        super().__init__()
        self.sentences = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _OPS:
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t)]
            self.sentences.append(f"{_OPS[func]} {_path(tensors)}")
        return func(*args, **kwargs or {})


def _path(tensors):
    device = tensors[0].device.type
    backend = backends.choose(device)
    if backend == "torch":
        return f"runs in plain PyTorch: {backends.reason_for_torch(device)}."
    why = boundary.reason(tensors)
    if why is None:
        return f"runs as {backend} kernels: its tensors are plain, on {device!r}."
    if boundary.is_interposed(tensors):
        return f"goes to the dispatcher as a registered op: {why}."
    if boundary.has_rules(tensors):
        masked = "with dropout or a table in plain PyTorch"
        return f"goes to the dispatcher as a registered op, {masked}: {why}."
    return f"runs in plain PyTorch: {why}."


def explain(module: torch.nn.Module, x: torch.Tensor) -> str:
    """Say which path a call takes and why: a kernel, a registered op or plain PyTorch.

    Args:
        module: Any module; its fastmlp layers are spoken of, each in a sentence.
        x: Input of a call, as it would be passed. The call is made once, without gradients;
            torch's generators are put back where they were.

    Returns:
        A line of text for every call of a fastmlp layer.

    Raises:
        TypeError: ``module`` is no module.

    Example:
        >>> import torch, fastmlp
        >>> with fastmlp.backend("torch"):
        ...     fastmlp.explain(fastmlp.SineSum(8), torch.zeros(3))
        "sine_sum runs in plain PyTorch: backend 'torch' was chosen."
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    eager = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    listener = _Listener()
    with torch.random.fork_rng(), torch.no_grad(), listener:
        eager(x)
    if not listener.sentences:
        return "No fastmlp layer was called: all runs as its own code says."
    if eager is not module:
        note = "torch.compile records a registered op for each; without it:"
        return "\n".join([note, *listener.sentences])
    return "\n".join(listener.sentences)
