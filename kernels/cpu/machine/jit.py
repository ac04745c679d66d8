"""Compile the kernels with Numba, keep them by :mod:`.cache`, and read addresses.

An array argument of a compiled function costs 1–3 µs a call, an integer 30 ns: so entry points
take addresses and sizes, and see arrays through :func:`array_at`.
"""

import contextlib

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import _dynfunc
from numba.core import cgutils, sigutils, types
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering
from numba.extending import intrinsic

from .cache import KernelCache
from .digest import digest
from .forks import guard_forks

if numba.config.DISABLE_JIT:
    raise ImportError("kernels need Numba's compiler, which NUMBA_DISABLE_JIT switches off")

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


def _name_by_content(state):
    """Give a function's symbols a name that no other code has.

    Numba numbers functions in the order in which a process compiles them. Two processes may number
    different closures of one name alike, and a third may load the machine code of both.
    """
    identity = state.func_id
    with contextlib.suppress(TypeError):  # as in the cache, which keeps no such function
        identity.unique_id = digest(identity.func)[:16]
    identity.unique_name = f"{identity.func_qualname}${identity.unique_id}"


def _compiler(lowering):
    class Compiler(CompilerBase):
        def define_pipelines(self):
            _name_by_content(self.state)
            manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
            manager.add_pass_after(lowering, NativeLowering)
            manager.passes = [step for step in manager.passes if step[0] is not NativeLowering]
            manager.finalize()
            return [manager]

    return Compiler


class _Inner(CPUDispatcher):
    """A function of which entry points are made, compiled once whatever numbers it is given.

    Numba compiles one anew for each constant that is an argument, and each combination: of a first
    call to `fit` a third. LLVM sees the constants all the same, where it inlines.
    """

    def get_call_template(self, args, kws):
        args = tuple(types.unliteral(kind) for kind in args)
        kws = {name: types.unliteral(kind) for name, kind in kws.items()}
        return super().get_call_template(args, kws)


def _inner(compiler, fastmath=FASTMATH, dispatcher=_Inner):
    options = {**_OPTIONS, "fastmath": fastmath, "nopython": True}
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return lambda function: dispatcher(function, {}, dict(options), compiler)


_InnerCompiler = _compiler(_InnerLowering)

inner = _inner(_InnerCompiler)
"""Decorator of the functions that entry points are made of: compiled into their callers, never
called from Python. That halves the time of a first call."""

inner_in_order = _inner(_InnerCompiler, FASTMATH - {"reassoc"})
"""The same for arithmetic whose order matters."""

inner_vectorized = _inner(_compiler(_VectorizedLowering), dispatcher=CPUDispatcher)
"""The same for loops that LLVM vectorizes only where it sees them alone, before it inlines them;
compiled for each constant among the arguments, which LLVM would not see."""


class _EntryCompiler(CompilerBase):
    def define_pipelines(self):
        _name_by_content(self.state)
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


class _Kernel(CPUDispatcher):
    """A function that Python calls, or other kernels."""

    def compile(self, sig):
        with global_compiler_lock:
            try:
                return super().compile(sig)
            finally:
                self._cache.release()


class _Callback(CFunc):
    """A function that other programs call by its address."""

    def compile(self):
        with global_compiler_lock:
            try:
                super().compile()
            finally:
                self._cache.release()


DTYPES = {np.float32: torch.float32, np.float64: torch.float64}
"""The compute dtypes, by what a kernel calls them."""


def entry(build):
    """Make the entry points of one kernel: a dict from compute dtype to compiled function.

    Args:
        build: Function of the NumPy scalar type that returns the Python function to compile. The
            function takes integers (addresses, sizes) and floats only.
    """
    return {dtype: kernel(build(real)) for real, dtype in DTYPES.items()}


def kernel(function):
    """The entry point of one function, compiled on its first call and kept."""
    guard_forks()
    dispatcher = _Kernel(function, {}, dict(_OPTIONS, nopython=True), _EntryCompiler)
    dispatcher._cache = KernelCache(_file_name(function), dispatcher)
    return dispatcher


def callback(function, signature):
    """Compile a function that other programs call by its address; kept as :func:`entry` does."""
    guard_forks()
    options = dict(_OPTIONS, nopython=True)
    compiled = _Callback(function, sigutils.normalize_signature(signature), {}, options)
    compiled._cache = KernelCache(_file_name(function), "callback", function, options)
    compiled.compile()
    return compiled


def _file_name(function):
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


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


def record(names, real=np.int64):
    """The type of a record of numbers, from a NamedTuple that names them."""
    return np.dtype([(name, real) for name in names._fields])


@inner
def named(numbers, kind):
    """The first numbers of an array by the names of a :func:`record`; no copy."""
    return array_at(address_of(numbers), 1, kind)[0]


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


@inner
def address(a):
    """Where an array begins; 0 for an empty one."""
    return np.int64(a.ctypes.data) if a.size > 0 else np.int64(0)


@inner
def add(sums, grad, real):
    for i in range(grad.size):
        grad[i] += real(sums[i])


def call_intrinsic(builder, name, args):
    """LLVM's own function of numbers, or vectors, of one type."""
    kind = args[0].type
    is_vector = isinstance(kind, ir.VectorType)
    suffix = f"v{kind.count}{kind.element.intrinsic_name}" if is_vector else kind.intrinsic_name
    called = ir.FunctionType(kind, [kind] * len(args))
    function = cgutils.get_or_insert_function(builder.module, called, f"{name}.{suffix}")
    return builder.call(function, args)


@intrinsic
def fma(typingctx, a, b, c):
    """a·b + c with one rounding; of numbers, or of vectors and numbers (``vectors.py``)."""
    widest = next((kind for kind in (a, b, c) if not isinstance(kind, types.Float)), a)

    def codegen(context, builder, signature, args):
        return call_intrinsic(builder, "llvm.fma", args)

    return widest(widest, widest, widest), codegen


@intrinsic
def rint(typingctx, a):
    """The nearest integer, ties to even; one vector instruction."""

    def codegen(context, builder, signature, args):
        return call_intrinsic(builder, "llvm.rint", args)

    return a(a), codegen


@intrinsic
def select(typingctx, condition, a, b):
    """``a if condition else b`` of numbers, or lane by lane of vectors and numbers."""
    widest = next((kind for kind in (a, b) if not isinstance(kind, types.Float)), a)
    if isinstance(widest, types.Float) and not isinstance(condition, types.Boolean):
        widest = condition.of(widest)

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return widest(condition, widest, widest), codegen


def _integers_of(kind):
    """The LLVM type of integers as long as the floats of a type, and a function of a constant."""
    is_vector = isinstance(kind, ir.VectorType)
    element = kind.element if is_vector else kind
    integer = ir.IntType(32 if isinstance(element, ir.FloatType) else 64)
    if not is_vector:
        return integer, integer
    vector = ir.VectorType(integer, kind.count)
    return vector, lambda value: vector([integer(value)] * kind.count)


def exponents(offset, digits):
    """Intrinsic: the float with the bits (bits of a float + offset)·2^digits."""

    @intrinsic
    def exponent(typingctx, a):
        def codegen(context, builder, signature, args):
            kind, number = _integers_of(args[0].type)
            bits = builder.add(builder.bitcast(args[0], kind), number(offset))
            return builder.bitcast(builder.shl(bits, number(digits)), args[0].type)

        return a(a), codegen

    return exponent


@intrinsic
def sign_of_odd(typingctx, a):
    """−1 where the last bit of a float is set, else 1."""
    size = getattr(a, "element", a).bitwidth

    def codegen(context, builder, signature, args):
        kind, number = _integers_of(args[0].type)
        sign = builder.shl(builder.bitcast(args[0], kind), number(size - 1))
        one = number(127 << 23 if size == 32 else 1023 << 52)
        return builder.bitcast(builder.or_(sign, one), args[0].type)

    return a(a), codegen


@intrinsic
def widened(typingctx, a):
    """The same number, or vector of numbers, in float64."""
    wide = types.float64 if isinstance(a, types.Float) else a.of(types.float64)

    def codegen(context, builder, signature, args):
        return args[0] if wide == a else builder.fpext(args[0], context.get_value_type(wide))

    return wide(a), codegen


@intrinsic
def narrowed(typingctx, a, real):
    """A number of float64, or a vector of them, rounded to the scalar type ``real``."""
    narrow = real.instance_type
    narrow = narrow if isinstance(a, types.Float) else a.of(narrow)

    def codegen(context, builder, signature, args):
        return args[0] if narrow == a else builder.fptrunc(args[0], context.get_value_type(narrow))

    return narrow(a, real), codegen


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
