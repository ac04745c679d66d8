"""Compile the kernels with Numba, keep them in the user's cache directory, and read addresses.

An array argument of a compiled function costs 1–3 µs a call, an integer 30 ns: so entry points
take addresses and sizes, and see arrays through :func:`array_at`.
"""

import contextlib
import hashlib
import os
import pickle
import sys
from functools import cache
from pathlib import Path

import numba
import numpy as np
import torch
from numba import _dynfunc
from numba.core import sigutils, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.runtime import rtsys
from numba.core.typed_passes import NativeLowering
from numba.extending import intrinsic

# named, without nnan and ninf: NaN and infinity in the input must come out
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
_OPTIONS = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}


class _InnerLibrary(JITCodeLibrary):
    """LLVM code for other kernels to link: no machine code, and optimized once, with its callers.

    Numba optimizes and assembles every function by itself, and again within each caller.
    """

    optimized_alone = False

    def _optimize_final_module(self):
        if self.optimized_alone:
            super()._optimize_final_module()

    def _finalize_final_module(self):
        self._finalized = True


class _VectorizedLibrary(_InnerLibrary):
    optimized_alone = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _InnerLowering(NativeLowering):
    """Numba's last pass, without the function that Python would call."""

    library_class = _InnerLibrary
    _name = "inner_lowering"

    def run_pass(self, state):
        name = state.func_id.func_qualname
        state.library = self.library_class(state.targetctx.codegen(), name)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state.cr
        # Numba finds the code of a callee by the function object that Python would call
        module, kept = lowered.fndesc.lookup_module(), (state.library,)
        key = _dynfunc.make_function(module, name, "", 0, lowered.env, kept)
        state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
        state.cr = lowered._replace(cfunc=key)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _VectorizedLowering(_InnerLowering):
    library_class = _VectorizedLibrary
    _name = "vectorized_lowering"


def _compiler(lowering):
    class Compiler(CompilerBase):
        def define_pipelines(self):
            manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
            manager.add_pass_after(lowering, NativeLowering)
            manager.passes = [step for step in manager.passes if step[0] is not NativeLowering]
            manager.finalize()
            return [manager]

    return Compiler


def _inner(compiler, fastmath=FASTMATH):
    return numba.njit(
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
        pipeline_class=compiler,
        **{**_OPTIONS, "fastmath": fastmath},
    )


_InnerCompiler = _compiler(_InnerLowering)

inner = _inner(_InnerCompiler)
"""Decorator of the functions that entry points are made of: compiled into their callers, never
called from Python. That halves the time of a first call."""

inner_in_order = _inner(_InnerCompiler, FASTMATH - {"reassoc"})
"""The same for arithmetic whose order matters."""

inner_vectorized = _inner(_compiler(_VectorizedLowering))
"""The same for loops that LLVM vectorizes only where it sees them alone, before it inlines them."""


def user_cache_directory():
    """Where compiled kernels are kept, or ``None`` where there is no such place."""
    try:
        if numba.config.CACHE_DIR:
            return Path(numba.config.CACHE_DIR) / "fastmlp"
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home directory
        return None
    return base / "fastmlp"


@cache
def _source_digest():
    """Digest of every file of this wing and of what the wings share: an entry point is compiled
    together with all it uses."""
    digest = hashlib.sha256()
    wing = Path(__file__).parent
    for path in sorted([*wing.glob("*.py"), *wing.parent.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _UserCacheLocator(_CacheLocator):
    """Finds the cache of one installation: a folder of its own, so that two do not evict each
    other's kernels."""

    def __init__(self, py_func, directory):
        self._py_file = py_func.__code__.co_filename  # Numba's warnings name it
        self._disambiguator = str(py_func.__code__.co_firstlineno)
        installation = hashlib.sha256(str(Path(__file__).parent).encode()).hexdigest()[:16]
        self._path = directory / installation

    def get_cache_path(self):
        return str(self._path)

    def get_source_stamp(self):
        return _source_digest()

    def get_disambiguator(self):
        return self._disambiguator

    @classmethod
    def from_function(cls, py_func, py_file):
        directory = user_cache_directory()
        if directory is None:
            return None
        locator = cls(py_func, directory)
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _UserCacheImpl(CompileResultCacheImpl):
    _locator_classes = (_UserCacheLocator,)


class _UserCache(FunctionCache):
    _impl_class = _UserCacheImpl

    def __init__(self, py_func, variant):
        super().__init__(py_func)
        self._variant = variant

    def _index_key(self, sig, codegen):
        # not the closure's own hash: an inner function in it has another one in every process
        return sig, codegen.magic_tuple(), self._variant

    def load_overload(self, sig, target_context):
        # super().load_overload would first import all that a compilation needs (0.4 s); loaded
        # code needs the runtime for its allocations, nothing else
        rtsys.initialize(target_context)
        try:
            return self._load_overload(sig, target_context)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            # unreadable or truncated: compile again, into an index that can be read
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig, data):
        # a full or vanished disk costs the next process a compilation, nothing else
        with contextlib.suppress(OSError, EOFError, ValueError, pickle.UnpicklingError):
            super().save_overload(sig, data)


def entry(build, *variant):
    """Make the entry points of one kernel: a dict from compute dtype to compiled function.

    Args:
        build: Function of the NumPy scalar type that returns the Python function to compile. The
            function takes integers (addresses, sizes) and floats only.
        *variant: Strings that tell apart, in the cache, what the same ``build`` makes of different
            inner functions.
    """
    return {
        torch.float32: _compile(build, np.float32, variant),
        torch.float64: _compile(build, np.float64, variant),
    }


def _compile(build, real, variant):
    function = build(real)
    dispatcher = numba.njit(**_OPTIONS)(function)
    with contextlib.suppress(RuntimeError):  # no place to keep it: each process compiles
        dispatcher._cache = _UserCache(function, (real.__name__, *variant))
    return dispatcher


def callback(function, signature, *variant):
    """Compile a function that other programs call by its address; cached as :func:`entry` is."""
    arguments, returned = sigutils.normalize_signature(signature)
    compiled = CFunc(function, (arguments, returned), {}, dict(_OPTIONS, nopython=True))
    with contextlib.suppress(RuntimeError):
        compiled._cache = _UserCache(function, variant)
    compiled.compile()
    return compiled


@intrinsic
def _pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@inner
def array_at(address, size, real):
    """The ``size`` numbers of scalar type ``real`` at an address, as an array; no copy."""
    return numba.carray(_pointer(address), (size,), real)


@intrinsic
def address_of(typingctx, array):
    """Where an array's first number lies; ``array.ctypes.data`` would keep kernels uncached."""

    def codegen(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.int64))

    return types.int64(array), codegen


@inner
def vector_at(address, size, real):
    """The numbers at an address, not to be written to; zeros where the address is 0."""
    if address == 0:
        return np.zeros(size, real)
    return array_at(address, size, real)


@inner
def copy(source, target):
    """target[:] = source, which would compile two seconds of messages about shapes."""
    for i in range(source.size):
        target[i] = source[i]


@intrinsic
def fma(typingctx, a, b, c):
    """a·b + c with one rounding."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic
def rint(typingctx, a):
    """The nearest integer, ties to even; one vector instruction."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        function = builder.module.declare_intrinsic("llvm.rint", [kind])
        return builder.call(function, args)

    return a(a), codegen


_SAME_SIZE = {
    types.float32: types.int32,
    types.float64: types.int64,
    types.int32: types.float32,
    types.int64: types.float64,
}


@intrinsic
def bitcast(typingctx, a):
    """The float with the bits of an integer of its size, or the integer with those of a float."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return _SAME_SIZE[a](a), codegen


@intrinsic
def estimated_quotients(typingctx):
    """In the calling function, divide float32 by an estimated reciprocal and one Newton step.

    Two ulp at most, and a third of the time of a division (2.8 GHz Ice Lake Xeon, 2026-11).
    """

    def codegen(context, builder, signature, args):
        set.add(builder.function.attributes, '"reciprocal-estimates"="vec-divf:1,divf:1"')
        return context.get_dummy_value()

    return types.none(), codegen


def _vector_width(preferred, legal):
    @intrinsic
    def choose(typingctx):
        def codegen(context, builder, signature, args):
            attributes = builder.function.attributes
            set.add(attributes, f'"prefer-vector-width"="{preferred}"')
            set.add(attributes, f'"min-legal-vector-width"="{legal}"')
            return context.get_dummy_value()

        return types.none(), codegen

    return choose


wide_vectors = _vector_width(512, 512)
"""Ask LLVM for 512-bit vectors in the function that calls this, if the processor has them.

LLVM prefers 256 bits. Loops of multiplications and additions alone gain: sines 2.2 x; those that
compare or take a maximum do not (2.8 GHz Ice Lake Xeon, 2026-11).
"""

narrow_vectors = _vector_width(256, 0)
"""Keep 512-bit instructions out of the function that calls this.

LLVM computes indices of 256-bit loops in 512 bits. A handful of them, once a call, slows all that
runs in the 50 µs after by a fifth (2.8 GHz Ice Lake Xeon, 2026-11).
"""
