"""To and from plain PyTorch: find the patterns that have a kernel, swap them, and swap them back.

A swap builds a new module around the very layers of the old one, so every Parameter stays the same
object: optimizers, ``DistributedDataParallel``, tied weights and frozen parameters do not notice.
"""

from typing import Any, NamedTuple

from torch import nn

from fastmlp import reference
from fastmlp.arguments import flag
from fastmlp.drop_in import give_back, plan_of, take
from fastmlp.models import base_of, is_ours, namesake_of
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.parts import ACTIVATION_NAMES, oddity_of
from fastmlp.patterns import build, options_of, pattern_of

_CHAINS = (ElementwiseMLP, MLP, reference.ElementwiseMLP, reference.MLP)

__all__ = ["Match", "find", "from_sequential", "fuse", "to_sequential", "unfuse"]


class Match(NamedTuple):
    """A place in a model that :func:`fuse` swaps, or nearly would.

    Args:
        path: Name of the place, as in ``named_modules()``; ``""`` is the model itself.
        kind: Name of the fused class.
        reason: Why it stays as it is, or ``None`` where it can be swapped.
    """

    path: str
    kind: str
    reason: str | None

    def __str__(self) -> str:
        place = self.path or "(the model itself)"
        if self.reason is None:
            return f"{place}: fused to {self.kind}"
        return f"{place}: not fused to {self.kind}: {self.reason}"


def find(module: nn.Module) -> list[Match]:
    """List the places of a model that :func:`fuse` would swap, and the near misses.

    Nothing is changed. A module that is used in several places is listed once for each.

    Args:
        module: Any ``nn.Module``.

    Returns:
        A list of :class:`Match`, in the order of ``module.named_modules()``.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.

    Example:
        >>> from torch import nn
        >>> good = nn.Sequential(nn.Linear(1, 14), nn.ReLU(), nn.Linear(14, 1))
        >>> near = nn.Sequential(nn.Linear(1, 14), nn.ELU(), nn.Linear(14, 1))
        >>> for match in find(nn.ModuleDict({"good": good, "near": near})):
        ...     print(match)
        good: fused to ElementwiseMLP
        near: not fused to ElementwiseMLP: activation ELU has no kernel
    """
    _check_module(module)
    return [match for match, _, _ in _search(module)]


def fuse(module: nn.Module, *, verbose: bool = False) -> nn.Module:
    """Swap every pattern we know inside a model for the fused module, in place.

    The patterns are ``Sequential(Linear(1, H), activation, Linear(H, 1))``, also with ``Dropout``
    before it, after the activation and at the end; a ``Sequential`` of two or more ``Linear`` up to
    128 wide with one activation between them and perhaps another at the end; ``Identity`` and
    ``Dropout(p=0)`` anywhere in them; the classes of
    :mod:`fastmlp.reference`; and modules of any class with three layers ``Linear(1, H)``,
    ``Linear(H, 1)``, ``Linear(F, M)`` that compute what :class:`fastmlp.AdditiveMLP` with ReLU
    computes, or with one parameter that compute what :class:`fastmlp.SineSum` computes, however
    their forward is written. For those a copy with random parameters is run: outputs and gradients
    must agree, in training and in evaluation mode, for inputs of several shapes and sizes; dropout
    is found by its places and p.

    A module with more than a forward (methods, a ``LightningModule``), with a cast of its input or
    with layers of other names stays the same object, of a generated subclass of its class: methods,
    attributes and names in the ``state_dict`` stay, and so do ``isinstance``, ``pickle`` and
    ``deepcopy``. The kernel takes matrices ``[N, F]`` while the layers are plain; whatever else
    comes runs the author's forward.

    The new module holds the very layers of the old one, hence the same Parameter objects, and
    takes over its mode, its forward and backward hooks and its attributes. Names in the
    ``state_dict`` follow the new module: ``0.weight`` of a Sequential becomes ``fc1.weight``.
    :func:`unfuse` brings the old modules and names back. Code that reaches into a swapped
    Sequential by index must be adapted.

    Args:
        module: Any ``nn.Module``, on any device.
        verbose: Print one line for each swap and each near miss.

    Returns:
        The model: ``module`` itself, or its replacement where it is a pattern as a whole.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.

    Example:
        >>> from torch import nn
        >>> phi = nn.Sequential(nn.Linear(1, 14), nn.ReLU(), nn.Linear(14, 1))
        >>> model = nn.Sequential(nn.Unflatten(-1, (64, 1)), phi, nn.Flatten(-2), nn.Linear(64, 1))
        >>> model = fuse(model, verbose=True)
        1: fused to ElementwiseMLP
    """
    _check_module(module)
    verbose, replacements = flag("verbose", verbose), {}
    for match, old, pattern in _search(module):
        if verbose:
            print(match)
        if pattern.plan is not None and plan_of(old) is None:
            take(old, pattern.plan)
        elif match.reason is None and pattern.plan is None:
            replacements[id(old)] = _fused(old, pattern)
    return _replaced(module, replacements)


def unfuse(module: nn.Module) -> nn.Module:
    """Swap every fused module inside a model for the plain one, in place.

    What :func:`fuse` or :func:`from_sequential` has swapped becomes the original module again,
    with its class and the names of its ``state_dict``; this also holds after ``deepcopy`` and
    ``pickle``. A module that was fused from the start becomes its namesake in
    :mod:`fastmlp.reference`. The layers and Parameters stay the same objects.

    Args:
        module: Any ``nn.Module``.

    Returns:
        The model: ``module`` itself, or its replacement where it is a fused module as a whole.

    Raises:
        TypeError: ``module`` is no ``nn.Module``.

    Example:
        >>> import fastmlp
        >>> unfuse(fastmlp.SineSum(8)).__class__
        <class 'fastmlp.reference.SineSum'>
    """
    _check_module(module)
    for kept in [m for m in module.modules() if plan_of(m) is not None]:
        give_back(kept)
    fused = [m for m in module.modules() if is_ours(m) and namesake_of(m)]
    return _replaced(module, {id(m): _plain(m) for m in fused})


def from_sequential(module: nn.Module) -> ElementwiseMLP | MLP:
    """Build an :class:`fastmlp.ElementwiseMLP` or :class:`fastmlp.MLP` on a ``Sequential``.

    Args:
        module: ``Sequential(Linear(1, H), activation, Linear(H, 1))``, which takes inputs
            ``[*, 1]``, the new ``ElementwiseMLP`` any shape; or any other ``Sequential`` of
            ``Linear`` and activation in turn, which becomes an ``MLP``.

    Returns:
        The new module; the Parameters are the same objects.

    Raises:
        TypeError: ``module`` is no ``nn.Sequential``.
        ValueError: It has no kernel, with the reason.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> phi = nn.Sequential(nn.Linear(1, 14), nn.ReLU(), nn.Linear(14, 1))
        >>> from_sequential(phi)(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    if not isinstance(module, nn.Sequential):
        raise TypeError(f"module must be an nn.Sequential, got {type(module).__name__}")
    pattern = pattern_of(module)
    if pattern is None:
        raise ValueError(
            "module must be Sequential(Linear, activation, Linear, …), got "
            f"Sequential({', '.join(type(layer).__name__ for layer in module)})"
        )
    if pattern.reason is not None:
        raise ValueError(f"module has no kernel: {pattern.reason}")
    return _fused(module, pattern)


def to_sequential(module: nn.Module) -> nn.Sequential:
    """Build a plain ``Sequential`` on the layers of an ``ElementwiseMLP`` or ``MLP``.

    Args:
        module: :class:`fastmlp.ElementwiseMLP` or :class:`fastmlp.MLP`, or a namesake in
            :mod:`fastmlp.reference`.

    Returns:
        ``Sequential(Linear, activation, Linear, …)``, for inputs ``[*, 1]`` where the module was an
        ``ElementwiseMLP``; the Parameters are the same objects.

    Raises:
        TypeError: ``module`` is neither.
        ValueError: An activation of it is no module of PyTorch; it has dropout.

    Example:
        >>> import fastmlp
        >>> to_sequential(fastmlp.ElementwiseMLP(14))
        Sequential(
          (0): Linear(in_features=1, out_features=14, bias=True)
          (1): ReLU()
          (2): Linear(in_features=14, out_features=1, bias=True)
        )
    """
    _check_module(module)
    base = base_of(module)
    if base not in _CHAINS:
        raise TypeError(f"module must be an ElementwiseMLP or MLP, got {type(module).__name__}")
    oddity = oddity_of(module, "it", hooks=False)
    if oddity is not None:
        raise ValueError(f"module must compute what its class says, but {oddity}")
    if module.dropout not in (0, (0, 0, 0)):
        raise ValueError(f"module must have no dropout, got {module.dropout}")
    classes = {name: cls for cls, name in ACTIVATION_NAMES.items()}
    # a layer that it has twice is there twice
    linears: list[Any] = list(module._modules.values())
    if isinstance(getattr(module, "hidden_features", None), int):
        linears = [module.fc1, module.fc2]
    names: list[Any] = [module.activation] * (len(linears) - 1)
    if getattr(module, "output_activation", None) is not None:
        names.append(module.output_activation)
    layers = []
    for i, linear in enumerate(linears):
        layers.append(linear)
        if i < len(names):
            if names[i] not in classes:
                raise ValueError(
                    f"module must have activations among {', '.join(classes)}, got {names[i]!r}"
                )
            layers.append(classes[names[i]]().train(module.training))
    plain = nn.Sequential(*layers)
    plain.training = module.training
    _take_hooks(plain, module)
    return plain


def _check_module(module):
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")


def _search(model):
    """List ``(match, module, pattern)`` of every place; each module is judged once."""
    known, found, kept = {}, [], []
    for path, module in model.named_modules(remove_duplicate=False):
        if any(path.startswith(whole) for whole in kept):
            continue  # its layers keep their names
        if id(module) not in known:
            known[id(module)] = pattern_of(module)
        pattern = known[id(module)]
        if plan_of(module) is not None or (pattern is not None and pattern.plan is not None):
            kept.append(f"{path}." if path else "")
        if pattern is not None:
            found.append(
                (Match(path, pattern.fused_class.__name__, pattern.reason), module, pattern)
            )
    return found


def _fused(old, pattern):
    new = build(pattern.fused_class, pattern.options, pattern.layers, old)
    _take_hooks(new, old)
    for name, value in vars(old).items():
        vars(new).setdefault(name, value)
    # in a tuple, so that it is no submodule; copies and pickles keep the layers shared
    new._fused_from = (old, pattern.layers)
    return new


def _plain(fused):
    if "_fused_from" not in vars(fused):
        cls = namesake_of(fused)
        plain = build(cls, options_of(cls, fused), {name: name for name in fused._modules}, fused)
        layers = {}
    else:
        plain, layers = fused._fused_from
        plain._parameters.update(fused._parameters if plain._parameters else {})
    for name, plain_name in layers.items():
        plain._modules[plain_name] = fused._modules[name]
    for part in {plain, *plain.children()} - {*fused.children()}:
        part.training = fused.training
    _take_hooks(plain, fused)
    return plain


def _take_hooks(new, old):
    """Share the dictionaries of hooks, so that their handles can still remove them."""
    vars(new).update({name: value for name, value in vars(old).items() if "hook" in name})


def _replaced(model, replacements):
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)]
    return replacements.get(id(model), model)
