"""The models of a run: what they are, and how their parameters come together and go back."""

import math
from itertools import chain

import numpy as np
import torch

from fastmlp import backends
from fastmlp.arguments import told
from fastmlp.ensemble import Ensemble
from fastmlp.training import checks
from fastmlp.training.signatures import (
    Patterns,
    are_apart,
    call_hooks,
    is_plain,
    signature_of,
)
from fastmlp.training.structures import structure_of


class Members:
    """Models as the loops see them: numbered, their parameters one after the other.

    Attributes:
        models: What came, a list of modules or an :class:`fastmlp.Ensemble`.
        structures: The different ones among them.
        kinds: Which of these each model has, int64 ``[n]``.
        offsets: Where each model's parameters begin in a flat buffer, and the last end, int64
            ``[n + 1]``.
        dtype: Of all parameters.
        device: Of all parameters.
    """

    def __init__(self, models, structures, kinds, first):
        self.models, self.structures, self.kinds = models, structures, kinds
        self.dtype, self.device = first.dtype, first.device
        sizes = np.array([s.n_parameters for s in structures], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes[kinds])]).astype(np.int64)

    def __len__(self):
        return len(self.kinds)

    def structure(self, i):
        """That of model i."""
        return self.structures[self.kinds[i]]

    def examples(self):
        """Each structure with the name of a model that has it, as errors call it."""
        first = np.unique(self.kinds, return_index=True)[1]
        return [(s, self.label(i)) for s, i in zip(self.structures, first.tolist(), strict=True)]

    def views(self, buffer, i):
        """Model i's part of a flat buffer, one view per parameter."""
        flat = buffer[int(self.offsets[i]) : int(self.offsets[i + 1])]
        shapes = self.structure(i).shapes
        parts = flat.split([math.prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class Modules(Members):
    """A list of modules, of any structures."""

    def __init__(self, models):
        models = checks.modules(models)
        structures, kinds, strange = self._look_at(models)
        if call_hooks(self._all):
            for i, model in enumerate(models):  # one of them raises
                structure_of(model, self.label(i))
        sizes = [[math.prod(shape) for shape in s.shapes] for s in structures]
        self._sizes = np.array([*chain.from_iterable(map(sizes.__getitem__, kinds))], np.int64)
        self._places = None
        if not self._are_plain(strange):
            self._check_closely(models)
        super().__init__(models, structures, np.array(kinds, np.int64), self._all[0])

    def _look_at(self, models):
        """The structures, which of them each model has, and the parameters seen closely."""
        known, patterns, kinds, strange = {}, Patterns(), [], []
        self._all = []
        for i, model in enumerate(models):
            signature, kind = signature_of(model), None
            if signature is not None:
                kind = patterns.find(*signature)
            if kind is not None:
                self._all += signature[1]
                kinds.append(kind)
                continue
            structure = structure_of(model, self.label(i))
            kind = known.setdefault(structure, len(known))
            named = [model.get_parameter(name) for name in structure.names]
            self._all += named
            strange += named
            kinds.append(kind)
            # what was registered anew, out of order, is looked at closely each time
            in_order = signature and [*map(id, named)] == [*map(id, signature[1])]
            if in_order and all(map(is_plain, named)):
                patterns.keep(*signature, kind)
        return list(known), kinds, strange

    def _are_plain(self, strange):
        """Whether all parameters are plain, each by itself; remembers where they lie."""
        first = self._all[0]
        if not all(map(is_plain, strange)):
            return False
        if len({(p.dtype, p.device) for p in strange}) > 1:
            return False
        places = self._addresses()
        if not are_apart(places, self._sizes * first.element_size()):
            return False
        if first.device.type == "cpu" and backends.is_installed("numba"):
            self._places = places
        return True

    def _addresses(self):
        return np.array([p.data_ptr() for p in self._all], np.int64)

    @staticmethod
    def _check_closely(models):
        """Raise unless all parameters are of one dtype and device, each with its own memory."""
        first = next(models[0].parameters())
        for i, model in enumerate(models):
            for name, p in model.named_parameters():
                if p.dtype not in (torch.float32, torch.float64):
                    raise TypeError(f"models[{i}].{name} must be float32 or float64, got {p.dtype}")
                if p.dtype != first.dtype or p.device != first.device:
                    raise ValueError(
                        f"models must share one dtype and device, {first.dtype} on {first.device}, "
                        f"got {p.dtype} on {p.device} in models[{i}]"
                    )
        checks.parameters(models)

    @staticmethod
    def label(i):
        """What errors call model i."""
        return f"models[{i}]"

    def module(self, i):
        """Model i."""
        return self.models[i]

    def gather(self):
        """All parameters in one new flat tensor."""
        if self._places is None:
            return torch.cat([p.detach().reshape(-1) for p in self._all])
        flat = torch.empty(int(self._sizes.sum()), dtype=self.dtype, device=self.device)
        self._move("gather", flat)
        return flat

    def load(self, flat):
        """Copy a flat tensor into the modules."""
        if self._places is not None and self._can_be_written():
            self._move("scatter", flat)
            return
        parts = flat.split([p.numel() for p in self._all])
        for parameter, part in zip(self._all, parts, strict=True):
            _write(parameter, part.view(parameter.shape))

    def _can_be_written(self):
        """Whether the parameters lie where they did; counts the change of what is written."""
        if not np.array_equal(self._addresses(), self._places):  # somebody's callback moved them
            return False
        try:
            torch.autograd.graph.increment_version(self._all)
        except RuntimeError:  # made in inference mode
            return False
        return True

    def _move(self, way, flat):
        """To or from a flat tensor in one call: PyTorch takes some 5 µs a parameter."""
        kernel = getattr(backends.launchers("numba", "machine.parts"), way)[self.dtype]
        places, sizes = self._places.ctypes.data, self._sizes.ctypes.data
        kernel(places, sizes, flat.data_ptr(), 0, len(self._sizes))


class Stacked(Members):
    """An ensemble: one structure, and its parameters are columns of a matrix."""

    def __init__(self, ensemble):
        structure = structure_of(ensemble.template, "models")
        self._stacked = [ensemble.get_parameter(name) for name in structure.names]
        for name, p in zip(structure.names, self._stacked, strict=True):
            if p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"models.{name} must be float32 or float64, got {p.dtype}")
        first = self._stacked[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in self._stacked):
            raise ValueError("models must have parameters of one dtype, on one device")
        checks.parameters([ensemble], ["models"])
        structure = structure._replace(trained=tuple(p.requires_grad for p in self._stacked))
        super().__init__(ensemble, [structure], np.zeros(len(ensemble), np.int64), first)

    @staticmethod
    def label(i):
        """What errors call model i."""
        return "models"

    def module(self, i):
        """Model i, its parameters views of the ensemble's."""
        return self.models[i]

    def gather(self):
        """All parameters in one new flat tensor."""
        parts = [p.detach().reshape(len(self), -1) for p in self._stacked]
        return torch.cat(parts, 1).reshape(-1)

    def load(self, flat):
        """Copy a flat tensor into the ensemble."""
        sizes = [math.prod(shape) for shape in self.structures[0].shapes]
        columns = flat.view(len(self), -1).split(sizes, 1)
        for parameter, part in zip(self._stacked, columns, strict=True):
            _write(parameter, part.reshape(parameter.shape))


def _write(parameter, values):
    # outside of inference mode, what was made inside cannot be written to
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.copy_(values)


def members_of(models):
    """The models that ``fit`` was given.

    Raises:
        TypeError: Neither modules nor an ensemble; parameters of another dtype.
        ValueError: None; a structure without a kernel; parameters that share memory.
    """
    if isinstance(models, Ensemble):
        return Stacked(models)
    if isinstance(models, list | tuple) and any(isinstance(m, Ensemble) for m in models):
        raise TypeError(f"models must be modules or one Ensemble, got a {told(models)} with one")
    return Modules(models)
