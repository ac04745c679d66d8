"""Many models of one structure as one module: parameters stacked along a first dimension."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmlp import stacked
from fastmlp.arguments import flag, in_memory, integer, told
from fastmlp.kernels.spec import Sines
from fastmlp.models import NAMESAKES, spec_of

_DRAWN_AT_ONCE = 1 << 22
"""Numbers in float64 while they are on their way to the parameters: 32 MB."""

_KNOWN = ", ".join(cls.__name__ for cls in NAMESAKES)


class Ensemble(nn.Module):
    """n models of one structure as one module.

    Its parameters have the names that one model's have, and a first dimension more, the model:
    ``fc1.weight`` ``[n, H, 1]``, ``w`` ``[n, width]``, and so on. Optimizers, ``state_dict``,
    ``.to`` and files treat them as those of any module, and :func:`fastmlp.fit` trains them without
    work in Python for each model.

    ``ensemble[i]`` is an ordinary module whose parameters are views: what is written into one is
    seen in the other, while gradients are each one's own. ``ensemble[i:j]`` is an ensemble of
    views, ``ensemble[mask]`` and ``ensemble[indices]`` are copies.

    Args:
        module: A model of the structure that is wanted: ElementwiseMLP, AdditiveMLP, SineSum, MLP,
            one of their namesakes in :mod:`fastmlp.reference`, or an ``nn.Sequential`` of linear
            layers with one activation between. It is left as it is; dtype, device, mode and which
            parameters are frozen are taken from it.
        n: How many models, at least 1.
        seed: Key of the draws. The weights are drawn anew for each model, from the distributions
            that ``module`` itself is drawn from, and the same for a seed on every machine; those of
            the first models do not depend on how many follow. ``None`` draws from PyTorch's
            default generator.

    Raises:
        TypeError: ``module`` is no Module, ``n`` or ``seed`` no int.
        ValueError: A structure without a kernel, ``n`` below 1, ``seed`` below 0.

    Example:
        >>> import torch, fastmlp
        >>> ensemble = fastmlp.Ensemble(fastmlp.SineSum(8), 1000, seed=0)
        >>> ensemble.w.shape, ensemble(torch.zeros(5)).shape, ensemble[3]
        (torch.Size([1000, 8]), torch.Size([1000, 5]), SineSum(width=8, ...))
    """

    _template: nn.Module
    _spec: Any

    def __init__(self, module: nn.Module, n: int, *, seed: int | None = None):
        super().__init__()
        n = integer("n", n, 1)
        seed = None if seed is None else integer("seed", seed, 0, 2**63 - 1)
        spec = _known(module, "module")
        like = [module.get_parameter(name) for name in spec.names]
        self._form(module, spec, _draw(spec.record, like, n, seed), like)

    def _form(self, module, spec, tensors, like):
        """Be an ensemble of the structure of a module, with these stacked parameters.

        ``like``: those that tell which are frozen.
        """
        self.training = module.training
        memo: dict[int, Any] = {
            id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
        }
        # in the dictionary, for what it has is not the ensemble's
        self.__dict__["_template"] = copy.deepcopy(module, memo)
        self.__dict__["_spec"] = spec
        for name, tensor, one in zip(spec.names, tensors, like, strict=True):
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(leaf, nn.Parameter(tensor.detach(), one.requires_grad))

    @property
    def template(self) -> nn.Module:
        """A module of the structure, without numbers: its parameters are on the device ``meta``."""
        return self._template

    def _stacked(self):
        """The parameters in the order of the structure."""
        names = self._spec.names
        # not get_parameter: torch.func.functional_call puts tensors in their place
        found = attrgetter(*names)(self)
        return [found] if len(names) == 1 else [*found]

    @classmethod
    def _of(cls, *arguments):
        ensemble = cls.__new__(cls)
        nn.Module.__init__(ensemble)
        ensemble._form(*arguments)
        return ensemble

    def _with(self, tensors):
        """Another ensemble of the structure."""
        return self._of(self._template, self._spec, tensors, self._stacked())

    def train(self, mode: bool = True) -> Ensemble:
        """Set the mode of all models, as :meth:`torch.nn.Module.train`.

        Args:
            mode: Whether they are in training.

        Returns:
            Itself.
        """
        super().train(mode)
        self._template.train(mode)
        return self

    @classmethod
    def from_modules(cls, modules: Sequence[nn.Module] | nn.ModuleList) -> Ensemble:
        """Stack modules of one structure; copies of their weights.

        Args:
            modules: A list, not empty: of one class and structure, dtype and device.

        Raises:
            TypeError: Something else than modules.
            ValueError: No module, modules that differ, a structure without a kernel.
        """
        if isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList):
            raise TypeError(f"modules must be a list of modules, got {told(modules)}")
        modules = list(modules)
        if not modules:
            raise ValueError("modules must hold at least one module, got an empty list")
        spec = _known(modules[0], "modules[0]")
        wanted = _signature(modules[0])
        for i, module in enumerate(modules[1:], 1):
            if not isinstance(module, nn.Module) or _signature(module) != wanted:
                _known(module, f"modules[{i}]")
                raise ValueError(
                    f"modules must be of one structure, dtype and device, got another in "
                    f"modules[{i}] than in modules[0]"
                )
        like = [modules[0].get_parameter(name) for name in spec.names]
        parts = [[m.get_parameter(name).detach() for m in modules] for name in spec.names]
        return cls._of(modules[0], spec, map(torch.stack, parts), like)

    def to_modules(self) -> list[nn.Module]:
        """The models as ordinary modules with weights of their own.

        Returns:
            A list of ``len(self)`` modules.
        """
        return [self._module([p.detach()[i].clone() for p in self._stacked()]) for i in self._range]

    def _module(self, tensors):
        """A module of the structure with these weights."""
        template = self._template
        memo: dict[int, Any] = {
            id(template.get_parameter(name)): nn.Parameter(tensor, mine.requires_grad)
            for name, tensor, mine in zip(self._spec.names, tensors, self._stacked(), strict=True)
        }
        return copy.deepcopy(template, memo)

    @property
    def _range(self):
        return range(len(self))

    def __len__(self) -> int:
        return len(self._stacked()[0])

    def __iter__(self) -> Iterator[nn.Module]:
        return (self[i] for i in self._range)

    def __getitem__(self, key: Any) -> Any:
        """One model, a slice of them, or those of a mask or of indices.

        Raises:
            IndexError: An index beyond the last model.
            TypeError: No index, slice, mask or indices.
            ValueError: A mask of another length; no model at all.
        """
        if isinstance(key, slice):
            chosen = self._range[key]
            if chosen.step < 0:
                raise ValueError(f"the slice's step must be positive, got {key.step}")
            self._check_some(len(chosen))
            step = slice(chosen.start, chosen.stop, chosen.step)
            return self._with([p.detach()[step] for p in self._stacked()])
        if isinstance(key, torch.Tensor | np.ndarray | list | tuple) and np.ndim(key) > 0:
            indices = self._indices(key)
            return self._with([p.detach()[indices] for p in self._stacked()])
        if isinstance(key, torch.Tensor):
            key = key.item()
        i = integer("index", key)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index must be below {len(self)}, the number of models, got {i}")
        return self._module([p.detach()[i] for p in self._stacked()])

    def _indices(self, key):
        """A mask or indices as indices on the device of the parameters."""
        device = self._stacked()[0].device
        key = torch.as_tensor(key, device="cpu")
        if key.dim() != 1 or key.is_floating_point() or key.is_complex():
            raise TypeError(
                f"index must be an int, a slice, a mask or indices of one dimension, got "
                f"{key.dtype} of shape {list(key.shape)}"
            )
        if key.dtype is torch.bool:
            if len(key) != len(self):
                raise ValueError(f"a mask must have {len(self)} entries, got {len(key)}")
            key = key.nonzero()[:, 0]
        self._check_some(len(key))
        low, high = int(key.min()), int(key.max())
        if low < -len(self) or high >= len(self):
            wrong = low if low < -len(self) else high
            raise IndexError(f"indices must be below {len(self)}, got {wrong}")
        return key.to(device=device, dtype=torch.int64)

    @staticmethod
    def _check_some(n):
        if n == 0:
            raise ValueError("an ensemble must have at least one model, got an empty choice")

    def forward(self, x: torch.Tensor, own: bool = False) -> torch.Tensor:
        """Call every model, on the same input or each on its own.

        Args:
            x: Input of every model; with ``own`` shape ``[n, …]``, one input for each.
            own: Whether the first dimension of ``x`` is the model.

        Returns:
            Output. Shape ``[n, …]``, an output for each model.

        Raises:
            TypeError: ``x`` is no floating-point tensor, ``own`` no bool.
            ValueError: ``x`` has another first dimension than n, or a shape that the models do not
                take.
        """
        own = flag("own", own)
        stacked.check(self._spec.record, x, self._stacked()[0], own)
        if self.training and any(getattr(self._spec.record, "dropout", ())):
            # masks of its own for each
            return torch.stack([model(x[i] if own else x) for i, model in enumerate(self)])
        return stacked.call(self._spec.record, x, self._stacked(), own)

    def extra_repr(self) -> str:
        return f"{self._template!r}, n={len(self)}"

    def __repr__(self) -> str:
        return f"Ensemble({self.extra_repr()})"


def _known(module, name):
    """The :class:`fastmlp.models.Spec` of a module of which there may be many."""
    spec = spec_of(module) if isinstance(module, nn.Module) else None
    if spec is None:
        raise TypeError(f"{name} must be a Module, got {told(module)}")
    reason = spec.obstacle or spec.layout or spec.randomness
    if reason is None and spec.record is None:
        reason = "its activations follow each other"
    if reason is None:
        reason = stacked.obstacle(spec.record)
    if reason is not None:
        raise ValueError(
            f"{name} is a {type(module).__name__}, of which there is no ensemble: {reason}; "
            f"there are ensembles of {_KNOWN}"
        )
    for label, p in module.named_parameters():
        in_memory(f"{name}.{label}", p)
        if not p.is_floating_point():
            raise TypeError(f"{name}.{label} must be of a floating-point dtype, got {p.dtype}")
    return spec


def _signature(module):
    """What modules of one ensemble have in common."""
    spec = spec_of(module)
    kinds = [(p.dtype, p.device, p.requires_grad) for p in module.parameters()]
    return type(module), spec.obstacle, spec.layout, spec.record, spec.names, kinds


def _draw(record, parameters, n, seed):
    """Stacked parameters, drawn model after model as PyTorch's layers and SineSum draw theirs."""
    ranges = _ranges(record)
    sizes = [p.numel() * (low < high) for p, (low, high) in zip(parameters, ranges, strict=True)]
    generator = None if seed is None else torch.Generator(device="cpu").manual_seed(seed)
    options: Any = {"dtype": torch.float64, "device": "cpu", "generator": generator}
    drawn = [
        torch.full((n, *p.shape), low, dtype=p.dtype, device="cpu")
        for p, (low, _) in zip(parameters, ranges, strict=True)
    ]
    at_once = max(1, _DRAWN_AT_ONCE // max(sum(sizes), 1))
    for first in range(0, n, at_once):
        rows = min(at_once, n - first)
        uniform = torch.rand(rows, sum(sizes), **options).split(sizes, 1)
        for out, size, part, (low, high) in zip(drawn, sizes, uniform, ranges, strict=True):
            if size > 0:
                chosen = out[first : first + rows]
                chosen.copy_((part * (high - low)).add_(low).view_as(chosen))
    return [out.to(p.device) for out, p in zip(drawn, parameters, strict=True)]


def _ranges(record):
    """From where to where each parameter is drawn; twice the same where it is no random number."""
    if isinstance(record, Sines):
        return [(0.0, 2.0)] + [(1.0, 1.0)] * record.amplitude + [(0.0, 0.0)] * record.phase
    ranges, biases = [], iter(record.biases)
    shapes = iter(record.shapes)
    for shape, has_bias in zip(shapes, biases, strict=False):
        bound = 1 / math.sqrt(shape[-1])  # of the inputs, as torch.nn.Linear
        ranges += [(-bound, bound)] * (1 + has_bias)
        if has_bias:
            next(shapes)
    return ranges
