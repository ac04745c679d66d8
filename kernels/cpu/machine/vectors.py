"""Vectors of numbers, one a lane, as a type that compiled functions compute with.

A vector has :data:`LANE_BYTES` bytes, whatever the processor: LLVM makes of each operation as many
instructions as it takes. So nothing hangs on LLVM's vectorizer, which may take one loop and leave
another, and every lane has the same instructions: a lane's bits do not depend on which it is, nor
on what the others hold.

The operators ``+ - * /``, comparisons, ``abs``, ``math.sqrt``, :func:`.jit.fma`,
:func:`.jit.rint` and :func:`.jit.select` take vectors, and numbers beside them: what is written
with these for a number is right for a vector. Vectors of uint32 and uint64 have
``+ * & | ^ >> >=``.
"""

import math
import operator

from llvmlite import ir
from numba.core import types
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from .jit import call_intrinsic

LANE_BYTES = 64


class Lanes(types.Type):
    """A vector of ``count`` numbers of a Numba type."""

    def __init__(self, element, count):
        self.element, self.count = element, count
        super().__init__(name=f"lanes({element}, {count})")

    def of(self, element):
        """As many numbers of another type."""
        return Lanes(element, self.count)

    def unify(self, typingctx, other):
        return self if other == self.element else None

    def can_convert_from(self, typingctx, other):
        return Conversion.safe if other == self.element else None


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        element = ir.IntType(1)
        if kind.element != types.boolean:
            element = manager.lookup(kind.element).get_value_type()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))


def _vector(number):
    return Lanes(number, LANE_BYTES * 8 // number.bitwidth)


def _splat(builder, value, kind):
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


@lower_cast(types.Number, Lanes)
def _cast(context, builder, source, target, value):
    value = context.cast(builder, value, source, target.element)
    return _splat(builder, value, context.get_value_type(target))


def _compared(sign):
    def emit(builder, a, b):
        compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        return compare(sign, a, b)

    return emit


def _by_kind(of_floats, of_integers):
    """What to emit for vectors of either kind, which share one lowering."""

    def emit(builder, a, b):
        is_integer = isinstance(a.type.element, ir.IntType)
        return (of_integers if is_integer else of_floats)(builder, a, b)

    return emit


def _at_least(builder, a, b):
    return builder.icmp_unsigned(">=", a, b)


_ARITHMETIC = {
    operator.add: _by_kind(ir.IRBuilder.fadd, ir.IRBuilder.add),
    operator.sub: ir.IRBuilder.fsub,
    operator.mul: _by_kind(ir.IRBuilder.fmul, ir.IRBuilder.mul),
    operator.truediv: ir.IRBuilder.fdiv,
    operator.iadd: ir.IRBuilder.fadd,
    operator.isub: ir.IRBuilder.fsub,
    operator.imul: ir.IRBuilder.fmul,
}
_COMPARISONS = {
    operator.lt: _compared("<"),
    operator.le: _compared("<="),
    operator.gt: _compared(">"),
    operator.ge: _by_kind(_compared(">="), _at_least),
    operator.eq: _compared("=="),
    operator.ne: _compared("!="),
}
_BITWISE = {
    operator.and_: ir.IRBuilder.and_,
    operator.or_: ir.IRBuilder.or_,
    operator.xor: ir.IRBuilder.xor,
    operator.rshift: ir.IRBuilder.lshr,
}


def _both(args):
    """The vector that one of two arguments is and the other can become, or ``None``."""
    if len(args) != 2 or not any(isinstance(a, Lanes) for a in args):
        return None
    vector = next(a for a in args if isinstance(a, Lanes))
    if all(a in (vector, vector.element) or isinstance(a, types.Integer) for a in args):
        return vector
    return None


def _register(key, emit, elements, result):
    """One operator of two vectors of elements of these types."""

    @infer_global(key)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            vector = _both(args)
            if vector is None or vector.element not in elements:
                return None
            return signature(result(vector), vector, vector)

    @lower_builtin(key, Lanes, Lanes)
    def lower(context, builder, sig, args):
        return emit(builder, *args)


_FLOATS, _INTEGERS = (types.float32, types.float64), (types.uint32, types.uint64)
_OF_INTEGERS = operator.add, operator.mul, operator.ge
for _key, _emit in _ARITHMETIC.items():
    _elements = _FLOATS + _INTEGERS if _key in _OF_INTEGERS else _FLOATS
    _register(_key, _emit, _elements, lambda vector: vector)
for _key, _emit in _COMPARISONS.items():
    _elements = _FLOATS + _INTEGERS if _key in _OF_INTEGERS else _FLOATS
    _register(_key, _emit, _elements, lambda vector: Lanes(types.boolean, vector.count))
for _key, _emit in _BITWISE.items():
    _register(_key, _emit, (types.boolean, *_INTEGERS), lambda vector: vector)


def _register_unary(key, emit):
    @infer_global(key)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 1 and isinstance(args[0], Lanes) and args[0].element in _FLOATS:
                return signature(args[0], args[0])
            return None

    @lower_builtin(key, Lanes)
    def lower(context, builder, sig, args):
        return emit(builder, args[0])


_register_unary(operator.neg, lambda builder, value: builder.fneg(value))
_register_unary(abs, lambda builder, value: call_intrinsic(builder, "llvm.fabs", [value]))
_register_unary(math.sqrt, lambda builder, value: call_intrinsic(builder, "llvm.sqrt", [value]))


@intrinsic
def lanes_of(typingctx, real):
    """How many lanes a vector of the scalar type ``real`` has."""
    count = _vector(real.instance_type).count

    def codegen(context, builder, sig, args):
        return context.get_constant(types.int64, count)

    return types.int64(real), codegen


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


@intrinsic
def load(typingctx, address, real):
    """The vector of numbers of the scalar type ``real`` at an address."""
    vector = _vector(real.instance_type)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        return builder.load(_pointer(builder, args[0], kind), align=vector.element.bitwidth // 8)

    return vector(types.int64, real), codegen


@intrinsic
def load_wide(typingctx, address, real):
    """As many numbers of float64 as a vector of ``real`` has, at an address."""
    vector = Lanes(types.float64, _vector(real.instance_type).count)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        return builder.load(_pointer(builder, args[0], kind), align=8)

    return vector(types.int64, real), codegen


@intrinsic
def load_words(typingctx, address, real):
    """As many numbers of uint32 as a vector of ``real`` has, at an address."""
    vector = _vector(real.instance_type).of(types.uint32)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        return builder.load(_pointer(builder, args[0], kind), align=4)

    return vector(types.int64, real), codegen


@intrinsic
def count_from(typingctx, first):
    """The vector first, first + 1, … of uint64."""
    vector = _vector(types.uint64)

    def codegen(context, builder, sig, args):
        kind = context.get_value_type(vector)
        return builder.add(_splat(builder, args[0], kind), kind(list(range(vector.count))))

    return vector(types.uint64), codegen


@intrinsic
def low_words(typingctx, vector):
    """The low 32 bits of each number of a vector of uint64."""
    words = vector.of(types.uint32)

    def codegen(context, builder, sig, args):
        return builder.trunc(args[0], context.get_value_type(words))

    return words(vector), codegen


@intrinsic
def store(typingctx, address, vector):
    """Write a vector to an address."""

    def codegen(context, builder, sig, args):
        size = vector.element.bitwidth // 8
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=size)
        return context.get_dummy_value()

    return types.none(types.int64, vector), codegen


@intrinsic
def splat_wide(typingctx, value, real):
    """As many numbers of float64 as a vector of ``real`` has, all of them one."""
    vector = Lanes(types.float64, _vector(real.instance_type).count)

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0], context.get_value_type(vector))

    return vector(types.float64, real), codegen


@intrinsic
def splat(typingctx, value, real):
    """A vector of ``real`` with one number in every lane."""
    vector = _vector(real.instance_type)

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0], context.get_value_type(vector))

    return vector(vector.element, real), codegen


@intrinsic
def any_lane(typingctx, mask):
    """Whether a comparison holds in some lane."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.count))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(mask), codegen


@intrinsic
def all_lanes(typingctx, mask):
    """Whether a comparison holds in every lane."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.count))
        return builder.icmp_unsigned("==", bits, bits.type((1 << mask.count) - 1))

    return types.boolean(mask), codegen
