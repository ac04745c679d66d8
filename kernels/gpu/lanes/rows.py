"""Rows of a batch, an item at a time: all lanes read the same, or each lane its own."""

import triton
import triton.language as tl

from ..numbers.order import MIN_BITS, permuted


@triton.jit
def halves_of(n_rows):
    """Bits of the left and of the right half of a row's number, as an epoch's order mixes them."""
    bits = tl.full((), MIN_BITS, tl.uint32)
    while (tl.full((), 1, tl.int64) << bits.to(tl.int64)) < n_rows:
        bits += 1
    return bits >> 1, bits - (bits >> 1)


@triton.jit
def row_at(position, keys, halves, n_rows, SHUFFLE: tl.constexpr, LANES: tl.constexpr):
    """The row at a position of an epoch's order, int64; with an order one for each lane."""
    if SHUFFLE:
        n = n_rows.to(tl.uint32)
        left_bits, right_bits = halves
        start = tl.zeros((LANES,), tl.uint32) + position.to(tl.uint32)
        row = permuted(start, keys, left_bits, right_bits)
        while tl.max((row >= n).to(tl.int32)) > 0:
            row = tl.where(row >= n, permuted(row, keys, left_bits, right_bits), row)
        return row.to(tl.int64)
    else:
        return position.to(tl.int64)


@triton.jit
def load_item(ptr, at, inside, WIDTH: tl.constexpr):
    """The numbers of an item one by one, 0 if it is not inside."""
    numbers = ()
    for i in tl.static_range(WIDTH):
        number = tl.load(ptr + at * WIDTH + i, mask=inside, other=0.0)
        numbers = numbers + (number,)  # noqa: RUF005
    return numbers


@triton.jit
def zero_numbers(N: tl.constexpr, COMPUTE: tl.constexpr, LANES: tl.constexpr):
    """A tensor of zeros for each of N numbers."""
    numbers = ()
    for _ in tl.static_range(N):
        numbers = numbers + (tl.zeros((LANES,), COMPUTE),)  # noqa: RUF005
    return numbers


@triton.jit
def shifted(numbers, last, N: tl.constexpr):
    """The tuple without its first number, and one more behind."""
    rest = ()
    for k in tl.static_range(1, N):
        rest = rest + (numbers[k],)  # noqa: RUF005
    return rest + (last,)  # noqa: RUF005


# One load or store in a loop: of each Triton 3.7 looks at all that it has to do with, the whole
# kernel, and took 19 of 23 s for three of each of 31 parameters.


@triton.jit
def load_numbers(ptr, here, N: tl.constexpr, LANES: tl.constexpr):
    """Of each lane's vector in memory the N numbers, a tensor each; 0 where no model is."""
    numbers = zero_numbers(N, ptr.dtype.element_ty, LANES)
    for _ in range(N):
        numbers = shifted(numbers, tl.load(ptr, mask=here, other=0.0), N)
        ptr += 1
    return numbers


@triton.jit
def store_numbers(ptr, numbers, here, N: tl.constexpr):
    """Write each lane's vector, where ``here``."""
    for _ in range(N):
        tl.store(ptr, numbers[0], mask=here)
        numbers = shifted(numbers, numbers[0], N)
        ptr += 1
