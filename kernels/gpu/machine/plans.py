"""What launchers did for one pattern of tensors, done again without them.

A launcher in Python chooses tiles, allocates and launches, and Triton binds every argument anew:
more than a hundred microseconds for kernels of ten. All of it follows from the tensors' dtypes,
shapes, strides and devices and from the options. So the first call with a pattern is recorded:
allocations, the compiled kernels, and where each pointer came from. Later ones replay it: they
allocate, put the new addresses in place and launch the compiled kernels.

Triton compiles another kernel where a pointer is not a multiple of 16, and where a number is 1 or a
multiple of 16. Numbers follow from the pattern; whether inputs are aligned as they were must be
compared by who replays, whether allocations are is compared here.
"""

import threading
from collections.abc import Callable
from functools import partial, reduce
from itertools import pairwise, repeat
from operator import attrgetter, itemgetter, or_
from typing import NamedTuple

import torch
import triton
from triton import knobs

from . import models

ALIGNMENT = 16
"""Bytes; Triton compiles for pointers that are multiples of it, or for any."""

# releases of Triton in which the call below was read: CompiledKernel.run(grid, stream, function,
# metadata of the kernel, metadata of the launch, two hooks, *all arguments in their order)
_KNOWN = ("3.5", "3.6", "3.7")
_CAN_REPLAY = triton.__version__.startswith(tuple(release + "." for release in _KNOWN))

_data_ptr = torch.Tensor.data_ptr
# what compiled programs call: allocations without the dispatcher, and parts of a tensor for half of
# what as_strided takes, and again when they are freed
_guards = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
_part = getattr(_guards, "_reinterpret_tensor", torch.as_strided)
_hooks = attrgetter("launch_enter_hook", "launch_exit_hook")
_local = threading.local()


def launch(kernel, grid, *arguments, num_warps, **constants):
    """``kernel[grid](…)``: pointers and numbers by position, constants by name.

    Inside of :class:`.models.Models` for each of them.
    """
    if (all_models := models.here()) is not None:
        all_models.launch(_launch, kernel, grid, *arguments, num_warps=num_warps, **constants)
    else:
        _launch(kernel, grid, *arguments, num_warps=num_warps, **constants)


def _launch(kernel, grid, *arguments, num_warps, **constants):
    compiled = kernel[grid](*arguments, **constants, num_warps=num_warps)
    if (recorder := getattr(_local, "recorder", None)) is not None:
        names = kernel.arg_names[len(arguments) :]
        recorder.launched(kernel, compiled, grid, (*arguments, *(constants[n] for n in names)))


def empty(shape, x, dtype):
    """Uninitialized memory of a launcher's own on the device of ``x``, row-major.

    Inside of :class:`.models.Models` for each of them: that of the first is returned.
    """
    if (all_models := models.here()) is not None:
        whole, tensor = all_models.allocated(shape, x, dtype)
    else:
        whole = tensor = torch.empty(shape, device=x.device, dtype=dtype)
    if (recorder := getattr(_local, "recorder", None)) is not None:
        recorder.allocated.append(whole)
    return tensor


def recorded(inputs, launcher, *arguments, **keywords):
    """What a launcher returns, and the plan to do the same for other tensors of this pattern.

    Args:
        inputs: All tensors that the launcher takes.
        launcher: The function.
        *arguments: What it is called with.
        **keywords: What it is called with by name.

    Returns:
        The result: one tensor, or a list of tensors and ``None``; and the plan, or ``None`` where
        what the launcher did cannot be replayed.
    """
    if not _CAN_REPLAY or is_hooked():
        return launcher(*arguments, **keywords), None
    _local.recorder = recorder = _Recorder(inputs)
    try:
        result = launcher(*arguments, **keywords)
    finally:
        _local.recorder = None
    try:
        return result, recorder.plan(result)
    except _NotReplayableError:
        return result, None


def is_hooked():
    """Whether a profiler or a user of Triton wants to hear of every launch."""
    enter, leave = _hooks(knobs.runtime)
    # chains of hooks, which are never None; or one hook that was put in place of a chain
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


class _NotReplayableError(Exception):
    """A launcher did something else than allocate and launch."""


class Allocation(NamedTuple):
    shape: tuple
    strides: tuple
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, t):
        return cls(tuple(t.shape), t.stride(), t.dtype, t.device)

    def maker(self):
        """What allocates it, on a device that is the current one of its kind."""
        shape, strides, dtype, device = self
        make = getattr(_guards, f"_empty_strided_{device.type}", None)
        if make is None:
            return partial(torch.empty_strided, shape, strides, dtype=dtype, device=device)
        return partial(make, shape, strides, dtype)


class Launch(NamedTuple):
    """One kernel's launch: what is called with ``before``, the stream, ``after`` and arguments.

    ``pick`` finds these among the addresses and constants.
    """

    kernel: object
    run: Callable
    before: tuple
    after: tuple
    pick: itemgetter


class Part(NamedTuple):
    """A result: part of an allocation, elements from its start."""

    allocation: int
    shape: tuple
    strides: tuple
    offset: int

    def covers(self, allocation):
        """Whether it is the whole allocation, in whatever shape."""
        dense = self.strides == _row_major(self.shape)
        return dense and self.offset == 0 and _size(self.shape) == _size(allocation.shape)

    def geometry(self):
        return {"shape": self.shape, "strides": self.strides}


class Plan:
    """Allocations and launches for one pattern of tensors."""

    def __init__(self, allocations, derived, nested, constants, launches, results):
        self._derived, self._nested = derived, nested
        self._constants, self._launches = constants, launches
        driver = triton.runtime.driver.active
        self._device = driver.get_current_device()
        if any(a.device.index not in (None, self._device) for a in allocations):
            # recorded in the context of another device, which a replay does not enter
            raise _NotReplayableError
        self._current_device, self._stream = driver.get_current_device, driver.get_current_stream
        self._n_results, self._whole, self._views = len(results), [], []
        for source, allocation in enumerate(allocations):
            places = [i for i, part in enumerate(results) if part and part.allocation == source]
            parts = [results[i] for i in places]
            if len(parts) == 1 and parts[0].covers(allocation):
                # allocated in the shape of the result
                allocations[source] = allocation._replace(**parts[0].geometry())
                self._whole.append((places[0], source))
            elif parts:
                geometry = zip(*(part[1:] for part in parts), strict=True)
                self._views.append((source, places, *geometry))
        self._makers = [allocation.maker() for allocation in allocations]

    def replay(self, addresses):
        """Allocations, filled for inputs at ``addresses``; ``None`` where launchers must run."""
        if is_hooked() or self._current_device() != self._device:
            return None
        allocated = [make() for make in self._makers]
        own = list(map(_data_ptr, allocated))
        if reduce(or_, own) % ALIGNMENT:
            return None
        pool = [*addresses, *own, *self._constants]
        for source, offset in self._derived:
            pool.append(pool[source] + offset)
        for pick in self._nested:
            pool.append(pick(pool))
        stream = self._stream(self._device)
        for kernel, run, before, after, pick in self._launches:
            if kernel.pre_run_hooks:
                return None
            run(*before, stream, *after, *pick(pool))
        return allocated

    def result(self, allocated):
        """The one tensor that the launcher returned: a whole allocation."""
        return allocated[self._whole[0][1]]

    def results(self, allocated):
        """The list that the launcher returned: ``None``, whole allocations, and parts of some."""
        found = [None] * self._n_results
        for place, source in self._whole:
            found[place] = allocated[source]
        for source, places, *geometry in self._views:
            parts = map(_part, repeat(allocated[source]), *geometry)
            for place, part in zip(places, parts, strict=True):
                found[place] = part
        return found


def _size(shape):
    return torch.Size(shape).numel()


def _row_major(shape):
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _extent(t):
    """First address of a tensor, and the one behind its last byte."""
    last = sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


class _Recorder:
    def __init__(self, inputs):
        self._extents = [_extent(t) for t in inputs]
        self.allocated, self._launches = [], []

    def launched(self, kernel, compiled, grid, arguments):
        self._launches.append((kernel, compiled, grid, arguments))

    def plan(self, result):
        if not self._launches:  # no rows: nothing to replay
            raise _NotReplayableError
        n_inputs = len(self._extents)
        extents = [*self._extents, *map(_extent, self.allocated)]
        ordered = sorted(extents)
        if any(stop > start for (_, stop), (start, _) in pairwise(ordered)):
            # of an address in both nobody could say whose it is
            raise _NotReplayableError
        self._all, self._derived, self._constants, self._nested = extents, [], [], []
        indices = [self._indices(arguments) for _, _, _, arguments in self._launches]
        # addresses, constants, derived addresses, nested tuples: only now are their numbers known
        first = {"source": 0, "constant": len(extents)}
        first["derived"] = first["constant"] + len(self._constants)
        first["nested"] = first["derived"] + len(self._derived)

        def place(index):
            return first[index[0]] + index[1]

        launches = []
        for (kernel, compiled, grid, _), found in zip(self._launches, indices, strict=True):
            if not all(hasattr(compiled, n) for n in ("run", "function", "packed_metadata")):
                raise _NotReplayableError
            before = (*grid, 1, 1)[:3]
            after = compiled.function, compiled.packed_metadata, None, None, None
            pick = itemgetter(*map(place, found))
            launches.append(Launch(kernel, compiled.run, before, after, pick))
        return Plan(
            allocations=[Allocation.of(t) for t in self.allocated],
            derived=self._derived,
            nested=[_tuple_getter([place(i) for i in found]) for found in self._nested],
            constants=self._constants,
            launches=launches,
            results=self._parts(result, n_inputs),
        )

    def _indices(self, arguments):
        return [self._index(argument) for argument in arguments]

    def _index(self, argument):
        """Where an argument is found at a replay: kind of place, and number among its kind."""
        if isinstance(argument, torch.Tensor):
            source, offset = self._source(argument)
            if offset == 0:
                return "source", source
            self._derived.append((source, offset))
            return "derived", len(self._derived) - 1
        if isinstance(argument, tuple) and _has_tensor(argument):
            self._nested.append(self._indices(argument))
            return "nested", len(self._nested) - 1
        self._constants.append(argument)
        return "constant", len(self._constants) - 1

    def _source(self, t):
        """The input or allocation in which a tensor lies, and how many bytes from its start."""
        for source, (start, stop) in enumerate(self._all):
            if start <= t.data_ptr() < stop:
                return source, t.data_ptr() - start
        raise _NotReplayableError

    def _parts(self, result, n_inputs):
        parts = []
        for t in [result] if isinstance(result, torch.Tensor) else result:
            if t is None:
                parts.append(None)
                continue
            source, offset = self._source(t)
            if source < n_inputs or t.dtype != self.allocated[source - n_inputs].dtype:
                raise _NotReplayableError
            offset //= t.element_size()
            parts.append(Part(source - n_inputs, tuple(t.shape), t.stride(), offset))
        return parts


def _has_tensor(argument):
    """Whether it is a tensor, or a tuple in which there is one at any depth."""
    if isinstance(argument, tuple):
        return any(map(_has_tensor, argument))
    return isinstance(argument, torch.Tensor)


def _tuple_getter(places):
    if len(places) == 1:
        return lambda pool: (pool[places[0]],)
    return itemgetter(*places)
