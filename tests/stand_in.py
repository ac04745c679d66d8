"""A stand-in for Triton's compiler: what it gives refuses arguments of kinds it was not made for.

It runs kernels in the interpreter, and notes every launch.
"""

import ctypes
import threading

import torch


def kind(value):
    """What Triton compiles a kernel for, of one argument."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, tuple):
        return tuple(map(kind, value))
    if type(value) is int:
        return "1" if value == 1 else (value % 16 == 0, -(2**31) <= value < 2**31)
    return value


class _Log(threading.local):
    def __init__(self):
        self.names, self.log = {}, []


class Launches:
    """Every launch: kernel, grid and arguments, an address as the name of the tensor there."""

    local = _Log()
    planned = 0
    interpreted = False

    @classmethod
    def note(cls, kernel, grid, arguments):
        named = cls.named(arguments, is_of_many(kernel))
        cls.local.log.append((kernel.__name__, grid, named))

    @classmethod
    def named(cls, value, of_many):
        if isinstance(value, tuple):
            return tuple(cls.named(v, of_many) for v in value)
        if isinstance(value, torch.Tensor):
            name = cls.local.names.get(value.data_ptr(), "own memory")
            return name, value.dtype, extent(value, of_many)
        return value


class Compiler:
    """In place of a kernel: its first launch gives one compiled for the kinds of its arguments."""

    def __init__(self, kernel):
        self.kernel, self.arg_names, self.pre_run_hooks = kernel, kernel.arg_names, []

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.first(grid, arguments, constants)

    def __call__(self, *arguments):
        """As a function of another kernel."""
        return self.kernel(*arguments)

    def first(self, grid, arguments, constants):
        names = self.arg_names[len(arguments) :]
        everything = (*arguments, *(constants[name] for name in names))
        Launches.note(self.kernel, (*grid, 1, 1)[:3], everything)
        if Launches.interpreted:
            self.kernel[grid](*arguments, **constants)
        return Compiled(self.kernel, everything)


class Compiled:
    function, packed_metadata = "function", "metadata"

    def __init__(self, kernel, arguments):
        self.kernel, self.wanted = kernel, [kind(a) for a in arguments]
        self.sizes = [extent(a, is_of_many(kernel)) for a in arguments]

    def run(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        assert (stream, function, metadata) == ("stream", "function", "metadata")
        assert (launch_metadata, enter, leave) == (None, None, None)
        arguments = tuple(map(at_address, arguments, self.sizes, self.wanted))
        assert [kind(a) for a in arguments] == self.wanted
        Launches.planned += 1
        Launches.note(self.kernel, (x, y, z), arguments)
        if Launches.interpreted:
            self.kernel[x, y, z](*arguments)


def is_of_many(kernel):
    return kernel.__name__ == "each_kernel"


def extent(value, of_many):
    """Elements between the first and the last of a tensor; of a tuple of constants, none.

    ``of_many``: the tensor is the first model's, and those of the others lie behind it.
    """
    if isinstance(value, tuple):
        extents = tuple(extent(v, of_many) for v in value)
        return extents if any(e is not None for e in extents) else None
    if not isinstance(value, torch.Tensor):
        return None
    if of_many:
        return value.untyped_storage().nbytes() // value.element_size() - value.storage_offset()
    return 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))


def at_address(value, size, wanted):
    """The memory at an address as a tensor; anything else as it is."""
    if isinstance(size, tuple):
        return tuple(map(at_address, value, size, wanted))
    if size is None:
        return value
    memory = (ctypes.c_char * (size * wanted[0].itemsize)).from_address(value)
    return torch.frombuffer(memory, dtype=wanted[0])
