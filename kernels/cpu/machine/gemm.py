"""Products of small matrices in a cache, and transposes, in explicit vectors.

LLVM vectorises inner loops; a matrix product wants the loop over rows in vectors *around* the loop
over the sum, with a tile of C in registers. So the tile is written in vectors here:

    C[i, j] = start[i, j] + Σ_k A[i, k]·B[k, j]

for up to :data:`TILE` rows i and two vectors of columns j. Each step of the sum loads two vectors
of B and one number a row of A, for 2·TILE fused multiply-adds. A has any strides, B and C have
dense rows. The sum runs over k in order whatever the vectors' size: results do not depend on it.

Where C is small and the sum long, its vectors run along the sum instead,

    C[i, j] += Σ_k A[i, k]·B[j, k],

with a vector of partial sums for each number of C, added up by :func:`sum_lanes` in the end.
"""

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import inner

_FEATURES = dict(binding.get_host_cpu_features())
_AVX = _FEATURES.get("avx2") or _FEATURES.get("avx")

VECTOR = 64 if _FEATURES.get("avx512f") else 32 if _AVX else 16
"""Bytes of a vector."""

TILE = 6 if _AVX and VECTOR == 32 else 8
"""Rows of a tile: with two vectors a row, half to three quarters of the registers."""

DOTS = 5 if VECTOR == 64 else 3
"""Rows and columns of a tile of vectors of partial sums."""


def _vectors(context, builder, real):
    """The types of a number and a vector, and functions that load, store and multiply."""
    number = context.get_value_type(real)
    size = 4 if real == types.float32 else 8
    vector = ir.VectorType(number, VECTOR // size)

    def load(kind, address, offset=0):
        if offset:
            address = builder.add(address, address.type(offset))
        return builder.load(builder.inttoptr(address, kind.as_pointer()), align=size)

    def store(value, address, offset=0):
        if offset:
            address = builder.add(address, address.type(offset))
        builder.store(value, builder.inttoptr(address, vector.as_pointer()), align=size)

    return number, vector, size, load, store


@intrinsic
def size_of(typingctx, number):
    """Bytes of a number."""

    def codegen(context, builder, signature, args):
        return context.get_constant(types.int64, 4 if number == types.float32 else 8)

    return types.int64(number), codegen


def _fma(builder, vector):
    """Function of three vectors that emits a·b + c."""
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(vector, [vector] * 3),
        f"llvm.fma.v{vector.count}{vector.element.intrinsic_name}",
    )
    return lambda *vectors: builder.call(function, vectors)


def _splat(builder, value, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _emit_sums(builder, n_steps, moving, starts, step):
    """Emit a loop of ``n_steps`` ≥ 1, of type i64; returns the sums, the builder behind the loop.

    ``moving`` are pairs of an address and its step; ``step(addresses, sums)`` emits one turn and
    returns the next sums, of which ``starts`` are the first.
    """
    i64 = n_steps.type
    before = builder.block
    loop = builder.append_basic_block("sum")
    after = builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    left = builder.phi(i64)
    addresses = [builder.phi(i64) for _ in moving]
    sums = [builder.phi(start.type) for start in starts]
    ends = step(addresses, sums)
    next_left = builder.sub(left, i64(1))
    moved = [builder.add(at, by) for at, (_, by) in zip(addresses, moving, strict=True)]
    firsts = [first for first, _ in moving]
    for phi, first, later in (
        (left, n_steps, next_left),
        *zip(addresses, firsts, moved, strict=True),
        *zip(sums, starts, ends, strict=True),
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(later, loop)
    builder.cbranch(builder.icmp_signed(">", next_left, i64(0)), loop, after)
    builder.position_at_end(after)
    return ends


def _emit_tiles(builder, n_rows, n_columns, most_rows, most_columns, emit):
    """``emit(rows, columns)`` for every shape of a tile; at run time the one that is asked for."""
    i64, end = n_rows.type, builder.append_basic_block("done")
    choice = builder.add(builder.mul(n_rows, i64(most_columns + 1)), n_columns)
    switch = builder.switch(choice, end)
    for rows in range(1, most_rows + 1):
        for columns in range(1, most_columns + 1):
            block = builder.append_basic_block(f"tile_{rows}_{columns}")
            switch.add_case(i64((most_columns + 1) * rows + columns), block)
            builder.position_at_end(block)
            emit(rows, columns)
            builder.branch(end)
    builder.position_at_end(end)


def _tile(from_c):
    @intrinsic
    def tile(typingctx, zero, n_rows, n_vectors, a, a_row, a_step, b, b_step, c, c_row, bias, k):
        def codegen(context, builder, signature, args):
            _, n_rows, n_vectors, a, a_row, a_step, b, b_step, c, c_row, bias, k = args
            number, vector, size, load, store = _vectors(context, builder, zero)
            fma, i64 = _fma(builder, vector), a.type

            def emit(n_rows, n_vectors):
                rows = [builder.mul(a_row, i64(i)) for i in range(n_rows)]
                c_at = [builder.add(c, builder.mul(c_row, i64(i))) for i in range(n_rows)]
                places = [(i, j) for i in range(n_rows) for j in range(n_vectors)]

                def step(addresses, sums):
                    a_at, b_at = addresses
                    columns = [load(vector, b_at, j * VECTOR) for j in range(n_vectors)]
                    ends = []
                    for i in range(n_rows):
                        factor = _splat(builder, load(number, builder.add(a_at, rows[i])), vector)
                        for j in range(n_vectors):
                            ends.append(fma(factor, columns[j], sums[i * n_vectors + j]))
                    return ends

                if from_c:
                    starts = [load(vector, c_at[i], j * VECTOR) for i, j in places]
                else:
                    biases = [load(number, bias, i * size) for i in range(n_rows)]
                    biases = [_splat(builder, value, vector) for value in biases]
                    starts = [biases[i] for i, _ in places]
                ends = _emit_sums(builder, k, [(a, a_step), (b, b_step)], starts, step)
                for (i, j), value in zip(places, ends, strict=True):
                    store(value, c_at[i], j * VECTOR)

            _emit_tiles(builder, n_rows, n_vectors, TILE, 2, emit)
            return context.get_dummy_value()

        return types.none(zero, *[types.int64] * 11), codegen

    return tile


_tile_from_bias = _tile(False)
_tile_from_c = _tile(True)


@inner
def _share(left, groups):
    """Of what is left, the next group's: equal as can be, a thin one would wait for its sums."""
    return (left + groups - 1) // groups


@inner
def multiply(zero, a, a_row, a_step, b, b_step, c, c_row, bias, n_rows, n_vectors, k):
    """C = bias + A·B on ``n_rows`` rows and ``n_vectors`` vectors of columns, k ≥ 1.

    Addresses of numbers of the type of ``zero``, ``bias`` one a row; strides in bytes.
    """
    n_groups = (n_rows + TILE - 1) // TILE
    for j in range(0, n_vectors, 2):
        width, column = min(2, n_vectors - j), j * VECTOR
        row = 0
        for group in range(n_groups):
            rows = _share(n_rows - row, n_groups - group)
            _tile_from_bias(
                zero, rows, width, a + row * a_row, a_row, a_step, b + column, b_step,
                c + row * c_row + column, c_row, bias + row * size_of(zero), k,
            )  # fmt: skip
            row += rows


@inner
def add_product(zero, a, a_row, a_step, b, b_step, c, c_row, n_rows, n_vectors, k):
    """C += A·B, as :func:`multiply`."""
    n_groups = (n_rows + TILE - 1) // TILE
    for j in range(0, n_vectors, 2):
        width, column = min(2, n_vectors - j), j * VECTOR
        row = 0
        for group in range(n_groups):
            rows = _share(n_rows - row, n_groups - group)
            _tile_from_c(
                zero, rows, width, a + row * a_row, a_row, a_step, b + column, b_step,
                c + row * c_row + column, c_row, 0, k,
            )  # fmt: skip
            row += rows


@intrinsic
def _dots_tile(typingctx, zero, n_rows, n_columns, a, a_row, b, b_row, c, c_row, n_vectors):
    def codegen(context, builder, signature, args):
        _, n_rows, n_columns, a, a_row, b, b_row, c, c_row, n_vectors = args
        _, vector, _, load, store = _vectors(context, builder, zero)
        fma, i64 = _fma(builder, vector), a.type

        def emit(n_rows, n_columns):
            a_rows = [builder.mul(a_row, i64(i)) for i in range(n_rows)]
            b_rows = [builder.mul(b_row, i64(j)) for j in range(n_columns)]
            c_at = [builder.add(c, builder.mul(c_row, i64(i))) for i in range(n_rows)]
            places = [(i, j) for i in range(n_rows) for j in range(n_columns)]

            def step(addresses, sums):
                a_at, b_at = addresses
                rows = [load(vector, builder.add(a_at, row)) for row in a_rows]
                columns = [load(vector, builder.add(b_at, row)) for row in b_rows]
                return [fma(rows[i], columns[j], s) for (i, j), s in zip(places, sums, strict=True)]

            starts = [load(vector, c_at[i], j * VECTOR) for i, j in places]
            moving = [(a, i64(VECTOR)), (b, i64(VECTOR))]
            ends = _emit_sums(builder, n_vectors, moving, starts, step)
            for (i, j), value in zip(places, ends, strict=True):
                store(value, c_at[i], j * VECTOR)

        _emit_tiles(builder, n_rows, n_columns, DOTS, DOTS, emit)
        return context.get_dummy_value()

    return types.none(zero, *[types.int64] * 9), codegen


@inner
def add_dots(zero, a, a_row, b, b_row, c, n_rows, n_columns, n_vectors):
    """C[i, j] += A[i]·B[j] for rows of ``n_vectors`` vectors; C [n_rows, n_columns] of vectors."""
    n_row_groups, n_column_groups = (n_rows + DOTS - 1) // DOTS, (n_columns + DOTS - 1) // DOTS
    c_row = n_columns * VECTOR
    row = 0
    for row_group in range(n_row_groups):
        rows = _share(n_rows - row, n_row_groups - row_group)
        column = 0
        for column_group in range(n_column_groups):
            columns = _share(n_columns - column, n_column_groups - column_group)
            _dots_tile(
                zero, rows, columns, a + row * a_row, a_row, b + column * b_row, b_row,
                c + row * c_row + column * VECTOR, c_row, n_vectors,
            )  # fmt: skip
            column += columns
        row += rows


def _interleaving(n):
    """Two shuffles of two vectors of ``n`` numbers: their lower halves in turn, the upper ones."""
    kind = ir.VectorType(ir.IntType(32), n)
    return [
        ir.Constant(kind, [half + i // 2 + n * (i % 2) for i in range(n)]) for half in (0, n // 2)
    ]


@intrinsic
def sum_lanes(typingctx, zero, source, target):
    """A vector of the sums of as many vectors, one after the other, as it has numbers."""

    def codegen(context, builder, signature, args):
        _, source, target = args
        _, vector, _, load, store = _vectors(context, builder, zero)
        masks = _interleaving(vector.count)
        rows = [load(vector, source, i * VECTOR) for i in range(vector.count)]
        # as in a transpose; what its rounds would lay side by side is added
        while len(rows) > 1:
            half = len(rows) // 2
            pairs = zip(rows[:half], rows[half:], strict=True)
            rows = [
                builder.fadd(*(builder.shuffle_vector(*pair, mask) for mask in masks))
                for pair in pairs
            ]
        store(rows[0], target)
        return context.get_dummy_value()

    return types.none(zero, types.int64, types.int64), codegen


@intrinsic
def _transpose_square(typingctx, zero, source, source_row, target, target_row):
    """target = source^T for as many rows as a vector has numbers."""

    def codegen(context, builder, signature, args):
        _, source, source_row, target, target_row = args
        _, vector, _, load, store = _vectors(context, builder, zero)
        n, i64 = vector.count, source.type
        rows = [
            load(vector, builder.add(source, builder.mul(source_row, i64(i)))) for i in range(n)
        ]
        masks = _interleaving(n)
        # each round interleaves row i with row i + n/2; log2(n) of them exchange rows and columns
        for _ in range(n.bit_length() - 1):
            pairs = [(rows[i], rows[i + n // 2]) for i in range(n // 2)]
            rows = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
        for i, row in enumerate(rows):
            store(row, builder.add(target, builder.mul(target_row, i64(i))))
        return context.get_dummy_value()

    return types.none(zero, *[types.int64] * 4), codegen


@intrinsic
def _move(typingctx, zero, source, target):
    """Copy one number."""

    def codegen(context, builder, signature, args):
        kind = context.get_value_type(zero).as_pointer()
        builder.store(
            builder.load(builder.inttoptr(args[1], kind)), builder.inttoptr(args[2], kind)
        )
        return context.get_dummy_value()

    return types.none(zero, types.int64, types.int64), codegen


@intrinsic
def _copy(typingctx, source, target, n_bytes):
    def codegen(context, builder, signature, args):
        source, target = (builder.inttoptr(at, cgutils.voidptr_t) for at in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 3), codegen


@inner
def transpose(zero, source, source_row, n_rows, n_columns, target, target_row):
    """target [n_columns, n_rows] = source [n_rows, n_columns]^T; row strides in bytes."""
    size = size_of(zero)
    lanes = VECTOR // size
    if (n_columns == 1 and source_row == size) or (n_rows == 1 and target_row == size):
        _copy(source, target, n_rows * n_columns * size)
        return
    whole_rows, whole_columns = n_rows // lanes * lanes, n_columns // lanes * lanes
    for i in range(0, whole_rows, lanes):
        for j in range(0, whole_columns, lanes):
            _transpose_square(
                zero, source + i * source_row + j * size, source_row,
                target + j * target_row + i * size, target_row,
            )  # fmt: skip
    for i in range(n_rows):
        for j in range(whole_columns if i < whole_rows else 0, n_columns):
            _move(zero, source + i * source_row + j * size, target + j * target_row + i * size)
