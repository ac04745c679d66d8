"""What a kernel is compiled from, as one number: equal where the machine code would be.

The number is of code objects, not of files: byte code without sources, archives and frozen programs
have it too. It takes in all that the compiler reaches: constants, closures, globals, functions that
are inlined, the intrinsics' own Python code, options. What belongs to a package whose version is
part of every key is taken by its name.
"""

import functools
import hashlib
import sys
import types

import llvmlite
import numba
import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.types import Type
from numba.extending import _Intrinsic

VERSIONED = {"numba", "llvmlite", "numpy", "torch", *sys.stdlib_module_names}
"""Packages whose functions are known by name: :func:`platform` tells their versions."""

_FLAGS = "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT"
"""Settings of Numba that change machine code."""

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_NAMED = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


def digest(*values):
    """Hexadecimal SHA-256 of functions and other values, the same in every process.

    One thread at a time; what was looked at is remembered until :func:`forget`.

    Raises:
        TypeError: A value of a kind that is not known here is reached.
    """
    try:
        return _walk.of(values)[0].hex()
    except TypeError:
        forget()
        raise


def forget():
    """Look at every value anew from here on: somebody may rebind a global between compilations."""
    _walk.__init__()


@functools.cache
def platform(codegen):
    """What machine code depends on besides its source: processor, versions, settings."""
    versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__
    flags = [(name, getattr(numba.config, name, None)) for name in _FLAGS]
    return repr((versions, flags, codegen.magic_tuple()))


def _is_versioned(value):
    module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    # this file too: what it looks at must not lead to itself
    return (module or "builtins").partition(".")[0] in VERSIONED or module == __name__


def _names(code):
    """Globals and attributes that a code object, or one within it, may look up."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return "empty cell"


class _Walk:
    """Digests of the values of one walk; a value that many reach is looked at once."""

    def __init__(self):
        self._known = {}
        self._open = []  # the values above this one, by identity

    def of(self, value):
        """The digest, and how many of the values above this one it refers back to."""
        if isinstance(value, _ATOMS):
            return f"{type(value).__name__} {value!r}".encode(), 0
        if id(value) in self._known:
            return self._known[id(value)][0], 0
        if id(value) in self._open:
            up = len(self._open) - self._open.index(id(value))
            return b"up %d" % up, up
        self._open.append(id(value))
        parts = [self.of(part) for part in self._parts(value)]
        self._open.pop()
        up = max([0, *(up - 1 for _, up in parts)])
        hashed = [part for part, _ in parts]
        if isinstance(value, (set, frozenset, dict)):
            hashed.sort()
        whole = hashlib.sha256(type(value).__name__.encode())
        for part in hashed:
            whole.update(b"%d:" % len(part) + part)
        # the digest of a part of a cycle holds for this way into the cycle alone
        if up == 0:
            self._known[id(value)] = whole.digest(), value  # which keeps its identity
        return whole.digest(), up

    def _parts(self, value):
        for kinds, parts in _KINDS:
            if isinstance(value, kinds):
                return parts(value)
        raise TypeError(f"cannot tell {type(value).__qualname__} objects apart: {value!r}")


_walk = _Walk()


def _of_code(code):
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    handlers = getattr(code, "co_exceptiontable", b"")
    return [code.co_code, handlers, repr((counts, names)), *code.co_consts]


def _of_function(function):
    if _is_versioned(function):
        return [function.__module__, function.__qualname__]
    code, found = function.__code__, function.__globals__
    parts = [function.__module__, code, function.__defaults__, function.__kwdefaults__]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__":  # it leads back from a method
            parts += name, _content(cell)
    names = sorted(_names(code))
    for name in names:
        if name not in found:
            continue
        value = found[name]
        if isinstance(value, types.ModuleType) and not _is_versioned(value):
            # of a module of ours, what is asked of it
            value = [(n, getattr(value, n)) for n in names if hasattr(value, n)]
        parts += name, value
    return parts


def _of_class(kind):
    """A class of ours, such as a pass of the compiler: its methods and its switches."""
    if _is_versioned(kind):
        return [kind.__module__, kind.__qualname__]
    # the compiler numbers its passes in the order of their registration: no integers
    wanted = types.FunctionType, staticmethod, classmethod, property, type, bool, str
    names = [n for n in sorted(vars(kind)) if not n.startswith("__") or n == "__init__"]
    members = [(n, vars(kind)[n]) for n in names if isinstance(vars(kind)[n], wanted)]
    return [kind.__qualname__, kind.__bases__, members]


def _of_dispatcher(dispatcher):
    # options, passes, and what the types of arguments are made of
    options, compiler = dispatcher.targetoptions, dispatcher._compiler.pipeline_class
    return [dispatcher.py_func, options, compiler, type(dispatcher).get_call_template]


_KINDS = [
    (types.FunctionType, _of_function),
    (types.CodeType, _of_code),
    (Dispatcher, _of_dispatcher),
    (_Intrinsic, lambda intrinsic: [intrinsic._defn]),
    (type, _of_class),
    (types.ModuleType, lambda module: [module.__name__]),
    ((tuple, list, set, frozenset), list),
    (dict, lambda mapping: list(mapping.items())),
    (np.ndarray, lambda array: [repr(array.dtype), array.shape, array.tobytes()]),
    (np.generic, lambda scalar: [repr(scalar.dtype), scalar.tobytes()]),
    (np.dtype, lambda dtype: [repr(dtype)]),
    (Type, lambda kind: [str(kind)]),
    (_NAMED, lambda function: [function.__qualname__]),
    ((staticmethod, classmethod), lambda method: [method.__func__]),
    (property, lambda method: [method.fget]),
    (functools._lru_cache_wrapper, lambda cached: [cached.__wrapped__]),
]
"""What is looked at in a value of each kind."""
