"""Where the sanitizer enters the interpreter: launches, programs, pointers, memory and barriers."""

import random
import sys
from pathlib import Path

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from . import findings, memory, numerics, races

# operations whose result points into what their argument points into
_POINTERS = (
    "create_addptr", "create_splat", "create_unsplat", "create_broadcast", "create_expand_dims",
    "create_reshape", "create_trans", "create_bitcast", "create_int_cast", "cast_impl",
)  # fmt: skip

# by an element's type; Triton makes a table of all types at every question
_SIZES = {}


class Order:
    """The order of programs: of the seed, of the test, and of the launch's place in the test."""

    seed, test, launch = 0, "", 0

    @classmethod
    def draw(cls, n_programs):
        order = list(range(n_programs))
        random.Random(f"{cls.seed} {cls.test} {cls.launch}").shuffle(order)
        cls.launch += 1
        return order


class OutOfBoundsError(IndexError):
    """A kernel was about to touch memory that is not its own."""


class Launch:
    """A launch under way."""

    current = None

    def __init__(self, kernel):
        self.kernel = kernel
        self.storages, self.told = {}, {}
        self.grid = self.order = self.program = None

    def place(self, grid, x, y, z):
        """Start the next program; its place in the grid, another than the interpreter's."""
        if self.order is None:
            self.grid, self.order = grid, Order.draw(grid[0] * grid[1] * grid[2])
        index = self.order[(x * grid[1] + y) * grid[2] + z]
        self.program = races.Program(1 + index, len(self.order), self.told)
        return self.place_of(index)

    def place_of(self, index):
        return index // (self.grid[1] * self.grid[2]), *self._inner(index)

    def _inner(self, index):
        return index // self.grid[2] % self.grid[1], index % self.grid[2]

    def access(self, kind, pointers, mask):
        # the interpreter's masks may be integers
        data, chosen = pointers.data, mask.data.astype(bool, copy=False)
        if data.size == 1:
            if not chosen.all():
                return
            addresses, first, last = data, data.item(), data.item()
        else:
            if chosen.shape != data.shape:
                data, chosen = np.broadcast_arrays(data, chosen)
            addresses = data if chosen.all() else data[chosen]
            if not addresses.size:
                return
            first, last = int(addresses.min()), int(addresses.max())
        size = _size(pointers)
        storage = getattr(pointers, "storage", None) or self._around(first)
        if not storage.holds(first, last + size):
            self._out_of_bounds(kind, storage, addresses, size)
        if kind == races.LOAD and not storage.changed:
            races.read_later(storage, self.program.stamp, addresses, pointers.data, size)
            return
        if not storage.changed:
            storage.changed = True
            races.note_reads(storage)
        if data.size == 1 and kind != races.ATOMIC and size == storage.part:
            k, rest = divmod(first - storage.start, size)
            if not rest and self.program.scalar(kind, storage, k):
                return
        k = storage.parts(addresses, size)
        tile = races.tile_of(pointers.data)
        for what, wrong, stamps in self.program.access(kind, storage, k, tile):
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                offset = int(k[at]) * storage.part // size
                self._note(what, storage, offset, self.place_of(int(stamps[at] >> 32) - 1))

    def _around(self, address):
        """The storage of a pointer of which only the address is known."""
        below = [s for s in self.storages.values() if s.start <= address]
        return max(below or self.storages.values(), key=lambda storage: storage.start)

    def _out_of_bounds(self, kind, storage, addresses, size):
        offsets = (addresses.ravel() - np.uint64(storage.start)).view(np.int64)
        wrong = offsets[(offsets < 0) | (offsets + size > storage.size)]
        what = f"{kind} out of bounds, {len(wrong)} of {len(offsets)} elements"
        raise OutOfBoundsError(self._note(what, storage, int(wrong[0]) // size, None))

    def _note(self, what, storage, offset, other):
        what = f"{self.kernel} at {_lines()}: {what}"
        where = f"argument {storage.name}, offset {offset} from the start of its {storage.size} "
        where += f"bytes, program {self.place_of(self.program.number - 1)}"
        if other is not None:
            where += f" and program {other}"
        where += f" of {self.grid}; order of seed {Order.seed}"
        findings.note(what, where)
        return f"{what}: {where}"


def _size(pointers):
    """Bytes of an element."""
    element = pointers.get_element_ty()
    if element.name not in _SIZES:
        _SIZES[element.name] = np.dtype(interpreter._get_np_dtype(element)).itemsize
    return _SIZES[element.name]


def _lines():
    """Lines of the kernel and of what it calls, the innermost first."""
    frame, lines = sys._getframe(1), []
    while frame and frame.f_code is not GridExecutor.__call__.__code__:
        path = frame.f_code.co_filename
        if path != __file__ and "triton" not in Path(path).parts:
            lines.append(f"{Path(path).name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(lines[:3])


def _call(plain):
    def call(self, *arguments, **keywords):
        Launch.current = Launch(self.fn.__name__)
        try:
            return plain(self, *arguments, **keywords)
        finally:
            Launch.current = None

    return call


def _arguments(plain):
    def copy_to_host(self, arguments, keywords):
        arguments, keywords = plain(self, arguments, keywords)
        names, values = [*self.arg_names[: len(arguments)], *keywords], [*arguments]
        named = memory.named_tensors(names, [*values, *keywords.values()])
        Launch.current.storages = memory.storages(named)
        return arguments, keywords

    return copy_to_host


def _convert(plain):
    def convert(argument):
        converted = plain(argument)
        if hasattr(argument, "data_ptr"):
            tensor = getattr(argument, "base", argument)
            address = tensor.untyped_storage().data_ptr()
            converted.handle.storage = Launch.current.storages.get(address)
        return converted

    return convert


def _place(plain):
    return lambda self, x, y, z: plain(self, *Launch.current.place(self.grid_dim, x, y, z))


def _pointer(plain):
    def compute(self, *arguments):
        result = plain(self, *arguments)
        for argument in arguments[:2]:
            # not `hasattr`: Triton 3.5's tuples raise a ValueError for a field that they lack
            if "storage" in getattr(argument, "__dict__", ()):
                result.storage = argument.storage
                break
        return result

    return compute


def _memory(plain, kind):
    at = 1 if kind == races.LOAD else 2

    def touch(self, pointers, *arguments, **keywords):
        mask = arguments[at - 1]
        Launch.current.access(kind, pointers, mask)
        return plain(self, pointers, *arguments, **keywords)

    return touch


def _atomic(plain, pointers_at):
    def change(self, *arguments):
        pointers, (sem, scope) = arguments[pointers_at], arguments[-2:]
        everywhere = np.ones(pointers.data.shape, bool)
        mask = arguments[3].data.astype(bool) & everywhere if pointers_at else everywhere
        launch, addresses = Launch.current, pointers.data[mask]
        across, order = "CTA" not in str(scope).upper(), sem.name
        if across and order in ("RELEASE", "ACQUIRE_RELEASE"):
            for address in addresses.tolist():
                launch.program.release(address)
        launch.access(races.ATOMIC, pointers, interpreter.TensorHandle(mask, interpreter.tl.int1))
        result = plain(self, *arguments)
        if across and order in ("ACQUIRE", "ACQUIRE_RELEASE"):
            for address in addresses.tolist():
                launch.program.acquire(address)
        return result

    return change


def _barrier(plain):
    def wait(self, *arguments):
        Launch.current.program.barrier()
        return plain(self, *arguments)

    return wait


def install():
    """From here on every launch in the interpreter is watched."""
    builder = InterpreterBuilder
    GridExecutor.__call__ = _call(GridExecutor.__call__)
    GridExecutor._init_args_hst = _arguments(GridExecutor._init_args_hst)
    interpreter._implicit_cvt = _convert(interpreter._implicit_cvt)
    builder.set_grid_idx = _place(builder.set_grid_idx)
    for name in _POINTERS:
        if hasattr(builder, name):
            setattr(builder, name, _pointer(getattr(builder, name)))
    builder.create_masked_load = _memory(builder.create_masked_load, races.LOAD)
    builder.create_masked_store = _memory(builder.create_masked_store, races.STORE)
    builder.create_atomic_cas = _atomic(builder.create_atomic_cas, 0)
    builder.create_atomic_rmw = _atomic(builder.create_atomic_rmw, 1)
    builder.create_barrier = _barrier(builder.create_barrier)
    numerics.install()
