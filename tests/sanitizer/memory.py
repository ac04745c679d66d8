"""The memory of a launch: its arguments' storages, and who touched which part of them last."""

import numpy as np


class Storage:
    """One storage, as the tensors that lie in it share it out.

    A part is as large as the smallest element of those tensors. Per part are kept, once somebody
    has touched it, stamps and tiles as :mod:`.races` defines them, 0 where nobody has. Most
    storages are only read: as long as that is so, ``reads`` tells by whom, and nobody looks at it.
    """

    STAMPS = ("writer", "writer_tile", "reader", "reader_tile", "other_reader", "atomic")

    def __init__(self, storage, name, element_size):
        self.start = storage.data_ptr()
        self.size = storage.nbytes()
        self.names = [name]
        self.part = element_size
        self.changed, self.reads = False, []

    def add(self, name, element_size):
        """Another argument in the same storage."""
        self.names.append(name)
        self.part = min(self.part, element_size)

    @property
    def name(self):
        return " = ".join(dict.fromkeys(self.names))

    def holds(self, first, last):
        """Whether the bytes from ``first`` to before ``last`` lie in it."""
        return self.start <= first and last <= self.start + self.size

    def __getattr__(self, name):
        # no memory for what nobody does
        if name not in self.STAMPS:
            raise AttributeError(name)
        setattr(self, name, np.zeros(-(-self.size // self.part), np.int64))
        return getattr(self, name)

    def touched(self, name):
        """Whether anybody has touched it in that way."""
        return name in self.__dict__

    def parts(self, addresses, size):
        """Indices of the parts under elements of ``size`` bytes at these addresses."""
        k = (addresses - np.uint64(self.start)).view(np.int64).ravel() // self.part
        if size > self.part:
            k = (k[:, None] + np.arange(size // self.part)).ravel()
        return k


def storages(named):
    """The storages of named tensors, by address."""
    found = {}
    for name, tensor in named:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in found:
            found[storage.data_ptr()].add(name, tensor.element_size())
        else:
            found[storage.data_ptr()] = Storage(storage, name, tensor.element_size())
    return found


def named_tensors(names, values):
    """(name, tensor) of each tensor among the arguments, those in tuples included."""
    for name, value in zip(names, values, strict=False):
        if isinstance(value, tuple):
            yield from named_tensors([f"{name}[{i}]" for i in range(len(value))], value)
        elif hasattr(value, "data_ptr"):
            yield name, getattr(value, "base", value)
