"""What every launcher of this wing needs: dtypes, contiguous tensors, sizes of pieces."""

from array import array
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
import torch

from . import pool, team
from .jit import add, array_at, copy, entry, inner

PIECE = 1 << 20
"""Work in a piece, in ReLU units applied to a number: about 0.1 ms of one core, far above the cost
of dealing it out (5 µs)."""

_COMPUTED = torch.float32, torch.float64
_data_ptr = torch.Tensor.data_ptr

MAX_PIECES = 4096
"""Bounds the memory of the partial sums, one vector of parameter gradients a piece."""


PIECES_AT_ONCE, NUMBERS_AT_ONCE, MIN_AT_ONCE = 64, 1 << 24, 8
"""Pieces whose rows are in the compute dtype at a time, where the tensors are of another: so many,
fewer of large ones, but enough for a few threads."""


class Staged(NamedTuple):
    """A tensor [n_rows, …] that a kernel reads or writes by way of a copy of some rows.

    A copy of the whole would take two or three times the memory of 16-bit numbers.
    """

    tensor: torch.Tensor
    compute: torch.dtype
    is_result: bool


def prepare(x, *parameters):
    """Bring the arguments of a forward launcher into one dtype and into contiguous memory.

    Returns the output's dtype (the promoted one), the dtype to compute in, the tensors (themselves,
    where nothing had to change) and what a kernel is given for each: an address, 0 for ``None``,
    :class:`Staged` for an x of another dtype. They hold as long as the tensors returned live.
    """
    dtype, tensors = x.dtype, (x, *parameters)
    if dtype in _COMPUTED and (addresses := _addresses(dtype, tensors)) is not None:
        return dtype, dtype, tensors, addresses
    for t in tensors:
        if t is not None and t.dtype is not dtype:
            dtype = reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))
            break
    return dtype, *_prepare_as(dtype, tensors, 1)


def prepare_as(dtype, dy, x, *parameters):
    """The same for a backward launcher, where the output's dtype is known."""
    return _prepare_as(dtype, (dy, x, *parameters), 2)


def _prepare_as(dtype, tensors, n_data):
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    addresses = _addresses(compute, tensors)
    if addresses is not None:
        return compute, tensors, addresses
    for t in tensors:
        if t is not None and t.data_ptr() == 0:
            _null(t)
    data = [t.detach().contiguous() for t in tensors[:n_data]]
    parameters = [t if t is None else t.detach().to(compute).contiguous() for t in tensors[n_data:]]
    addresses = [t.data_ptr() if t.dtype is compute else Staged(t, compute, False) for t in data]
    addresses += [0 if t is None else t.data_ptr() for t in parameters]
    return compute, [*data, *parameters], addresses


def result_at(tensor, compute):
    """What a kernel is given for a tensor to write; 0 for ``None``."""
    if tensor is None:
        return 0
    return tensor.data_ptr() if tensor.dtype is compute else Staged(tensor, compute, True)


def _addresses(compute, tensors):
    """Addresses of the tensors, or ``None`` where one is of another dtype or not contiguous."""
    addresses = []
    for t in tensors:
        if t is None:
            addresses.append(0)
        elif t.dtype is compute and t.is_contiguous():
            addresses.append(t.data_ptr() or _null(t))
        else:
            return None
    return addresses


def _null(t):
    """Address 0, which stands for no tensor, of one without elements."""
    if t.numel():
        raise ValueError("a tensor cannot be read: its memory has been freed")
    return 0


@lru_cache(256)
def cut(n_rows, work_per_row, multiple, most=MAX_PIECES):
    """Rows per piece and number of pieces, from the shape alone.

    A piece is about :data:`PIECE` of work and a whole multiple of ``multiple`` rows; there are
    ``most`` at most.
    """
    rows = max(PIECE // work_per_row, -(-n_rows // most), 1)
    rows = -(-rows // multiple) * multiple
    return rows, max(-(-n_rows // rows), 1)


def run(kernel, n_rows, rows_per_piece, n_pieces, *arguments):
    """Call ``kernel(*arguments, first_row, last_row)`` for every piece of rows.

    An argument that is a :class:`.team.Strided` has a value of its own for each piece; one that is
    :class:`Staged` is an address to the kernel. x, or dy and x, come first: where neither is
    staged, no result is.
    """
    # all twenty would take half a microsecond
    if Staged in map(type, arguments[:2]):
        numbers = max(a.tensor.numel() for a in arguments if type(a) is Staged)
        of_piece = numbers // max(n_rows, 1) * rows_per_piece
        at_once = max(MIN_AT_ONCE, min(PIECES_AT_ONCE, NUMBERS_AT_ONCE // max(of_piece, 1)))
        for first in range(0, n_pieces, at_once):
            last = min(first + at_once, n_pieces)
            _run_staged(kernel, n_rows, rows_per_piece, first, last, arguments)
    elif n_pieces == 1:
        kernel(*arguments, 0, n_rows)
    else:
        run_pieces(kernel, n_rows, rows_per_piece, 0, n_pieces, arguments)


def _run_staged(kernel, n_rows, rows_per_piece, first_piece, last_piece, arguments):
    """The pieces from the first to before the last, with copies of their rows."""
    first, last = first_piece * rows_per_piece, min(n_rows, last_piece * rows_per_piece)
    arguments, copies = list(arguments), []
    for i, argument in enumerate(arguments):
        if type(argument) is Staged:
            width = argument.tensor.numel() // max(n_rows, 1)
            rows = argument.tensor.view(-1)[first * width : last * width]
            copied = torch.empty_like(rows, dtype=argument.compute)
            if not argument.is_result:
                copied.copy_(rows)
            copies.append((argument.is_result, rows, copied))
            # where the kernel would find row 0
            arguments[i] = copied.data_ptr() - first * width * copied.element_size()
    run_pieces(kernel, n_rows, rows_per_piece, first_piece, last_piece, arguments)
    for is_result, rows, copied in copies:
        if is_result:
            rows.copy_(copied)


def run_pieces(kernel, n_rows, rows_per_piece, first, last, arguments):
    def call(piece):
        kernel(
            *(a.of(piece) if isinstance(a, team.Strided) else a for a in arguments),
            piece * rows_per_piece,
            min(n_rows, (piece + 1) * rows_per_piece),
        )

    if last - first == 1:
        call(first)
    elif not team.run(kernel, arguments, n_rows, rows_per_piece, first, last):
        pool.run_pieces(lambda i: call(first + i), last - first)


def run_summed(
    kernel, n_rows, rows_per_piece, n_pieces, parameters, needs, dtype, *arguments, packed=False
):
    """Call ``kernel(*arguments, sums, *gradients, first_row, last_row)`` for every piece, add up.

    Each piece writes its sums for all parameters, float64, one parameter after the other, at the
    address ``sums``; they are added in the order of the pieces. A single piece writes them at the
    addresses ``gradients`` instead, one for each parameter, 0 where nobody needs it. ``packed``:
    the kernel takes the address of a vector of these.

    ``parameters`` are in the compute dtype, a size in place of one that is missing; ``needs`` tells
    whose gradients are needed. Returns a gradient a parameter, shaped like it and of ``dtype``;
    ``None`` where it is not needed.
    """
    if all(needs):  # by map, which saves a microsecond
        gradients = [*map(torch.empty_like, parameters)]
        addresses = [*map(_data_ptr, gradients)]
    else:
        gradients = [
            torch.empty_like(parameter) if need else None
            for parameter, need in zip(parameters, needs, strict=True)
        ]
        addresses = [0 if gradient is None else gradient.data_ptr() for gradient in gradients]
    in_pieces = n_pieces > 1 and any(needs)
    places = [0] * len(addresses) if in_pieces else addresses
    if packed:
        vector = array("q", places)
        places = [vector.buffer_info()[0]]
    if not in_pieces:
        run(kernel, n_rows, rows_per_piece, n_pieces, *arguments, 0, *places)
    else:
        sizes = [p if isinstance(p, int) else p.numel() for p in parameters]
        partial = torch.empty((n_pieces, sum(sizes)), dtype=torch.float64, device="cpu")
        start, row_bytes = partial.data_ptr(), sum(sizes) * partial.element_size()
        sums = team.Strided(start, row_bytes)
        run(kernel, n_rows, rows_per_piece, n_pieces, *arguments, sums, *places)
        first = 0
        for gradient, address, size in zip(gradients, addresses, sizes, strict=True):
            if gradient is not None:
                total = _total[gradient.dtype]
                total(start, n_pieces, sum(sizes), first, size, address)
            first += size
    if dtype in _COMPUTED:
        return gradients
    return [None if gradient is None else gradient.to(dtype) for gradient in gradients]


@inner
def store(sums, sums_at, gradients_at, sizes, real):
    """Write a piece's sums where :func:`run_summed` wants them."""
    if sums_at != 0:
        copy(sums, array_at(sums_at, sums.size, np.float64))
    first = 0
    for p in range(len(sizes)):
        if gradients_at[p] != 0:
            gradient = array_at(gradients_at[p], sizes[p], real)
            for i in range(sizes[p]):
                gradient[i] = sums[first + i]
        first += sizes[p]


@inner
def any_needed(sums_at, gradients_at):
    """Whether somebody wants the sums."""
    needed = sums_at != 0
    for p in range(len(gradients_at)):
        needed = needed or gradients_at[p] != 0
    return needed


_AT_ONCE = 512
"""Sums of a piece that are added at a time: along the memory, in a level-1 cache."""


@entry
def _total(real):
    def total(partial_at, n_pieces, n_sums, first, size, gradient_at):
        partial = array_at(partial_at, n_pieces * n_sums, np.float64)
        gradient = array_at(gradient_at, size, real)
        totals = np.empty(min(size, _AT_ONCE), np.float64)
        for start in range(0, size, _AT_ONCE):
            part = totals[: min(_AT_ONCE, size - start)]
            part[:] = 0
            for piece in range(n_pieces):
                at = piece * n_sums + first + start
                add(partial[at : at + part.size], part, np.float64)
            copy(part, gradient[start : start + part.size])

    return total
