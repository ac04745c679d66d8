"""What Levenberg–Marquardt asks of many models at once: Σr², JᵀJ and Jᵀr, or rows of [J, r].

One program a model and piece of rows walks over tiles of rows. It writes the columns of [J, r] of a
slab of rows to memory of its own, some 100 KB that stay in the caches, and multiplies them there:
the whole Jacobian is never in memory. Pieces depend on the shape alone and are added in their
order, without atomics: the bits are the same in every run. Float64 throughout; x and y may be
float32.
"""

import torch
import triton
import triton.language as tl

from ..machine.launch import block_of, device_of
from ..machine.pieces import cut
from ..models import jacobian_of

SLAB_NUMBERS = 1 << 14
"""Numbers of [J, r] that a program keeps before it multiplies them, about."""

MAX_GRAM_COLUMNS = 256
"""Columns of [J, r] up to which JᵀJ is taken where the rows are made; of more by cuBLAS."""

TILE_BYTES = 1 << 26
"""Of the rows of [J, r] of all models that are in memory at a time."""

MAX_TILE_PIECES = 1 << 15
"""Programs of a model that write rows: the second dimension of a grid has 65 535 at most."""

BLOCK_K = 16
"""Rows of a product on chip at a time."""


@triton.jit
def residuals(
    theta_ptr, x_ptr, y_ptr, weight_ptr, rows, stop, m, out_ptr, places, stride,
    N_OUT: tl.constexpr, MODEL: tl.constexpr, SIZES: tl.constexpr, ACTS: tl.constexpr,
    NUMBERS: tl.constexpr,
):  # fmt: skip
    """√w·(f_m − y_m), 0 from row ``stop`` on; writes J likewise unless ``out_ptr`` is None."""
    inside = rows < stop
    # without weight nothing counts
    root = inside.to(tl.float64)
    if weight_ptr is not None:
        root = tl.load(weight_ptr + rows, mask=inside, other=0.0)
    f = MODEL(theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride, SIZES, ACTS, NUMBERS)
    y = tl.load(y_ptr + rows * N_OUT + m, mask=inside, other=0.0).to(tl.float64)
    return (f - y) * root


# a kernel would be compiled anew for a number that is 1 or a multiple of 16
@triton.jit(do_not_specialize=["n_rows", "piece_rows", "n_parameters"])
def lm_loss_kernel(
    asked_ptr, theta_ptr, x_ptr, y_ptr, weight_ptr, out_ptr, n_rows, piece_rows, n_parameters,
    N_OUT: tl.constexpr, MODEL: tl.constexpr, SIZES: tl.constexpr, ACTS: tl.constexpr,
    NUMBERS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """Σr² of a piece of rows of each model that is ``asked``.

    Shapes: theta [models, P]; x [n_rows, F]; y [n_rows, M]; roots of weights [n_rows]; out
    [models, pieces]. Grid: models x pieces. Reads x and y once a model.
    """
    run, piece = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    asked = tl.load(asked_ptr + run) != 0
    theta_ptr += run * n_parameters
    start = piece * piece_rows
    stop = tl.minimum(start + piece_rows, n_rows)
    total = tl.zeros((BLOCK_ROWS,), tl.float64)
    for first in range(start, tl.where(asked, stop, start), BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        for m in range(N_OUT):
            r = residuals(
                theta_ptr, x_ptr, y_ptr, weight_ptr, rows, stop, m, None, rows, 0, N_OUT, MODEL,
                SIZES, ACTS, NUMBERS,
            )  # fmt: skip
            total += r * r
    at = run * tl.num_programs(1) + piece
    tl.store(out_ptr + at, tl.sum(total), mask=asked)


@triton.jit
def add_gram(
    gram_ptr, rows_ptr, n_columns, stride, first, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Add AᵀA, of its lower triangle the blocks, of A [stride, n_columns] column by column.

    ``first``: whether there are no sums yet.
    """
    block = tl.arange(0, BLOCK_P)
    for i in range(0, n_columns, BLOCK_P):
        for j in range(0, i + BLOCK_P, BLOCK_P):
            left, right = i + block, j + block
            total = tl.zeros((BLOCK_P, BLOCK_P), tl.float64)
            for k in range(0, stride, BLOCK_K):
                places = k + tl.arange(0, BLOCK_K)
                a = tl.load(
                    rows_ptr + left[:, None] * stride + places[None, :],
                    mask=(left < n_columns)[:, None], other=0.0,
                )  # fmt: skip
                b = tl.load(
                    rows_ptr + right[None, :] * stride + places[:, None],
                    mask=(right < n_columns)[None, :], other=0.0,
                )  # fmt: skip
                total = tl.dot(a, b, total, input_precision="ieee", out_dtype=tl.float64)
            ptrs = gram_ptr + left[:, None] * n_columns + right[None, :]
            inside = (left < n_columns)[:, None] & (right < n_columns)[None, :]
            total += tl.load(ptrs, mask=inside & (first == 0), other=0.0)
            tl.store(ptrs, total, mask=inside)


@triton.jit(do_not_specialize=["first_row", "n_rows", "piece_rows", "n_parameters"])
def lm_jacobian_kernel(
    asked_ptr, theta_ptr, x_ptr, y_ptr, weight_ptr, rows_ptr, gram_ptr, first_row, n_rows,
    piece_rows, n_parameters,
    N_OUT: tl.constexpr, MODEL: tl.constexpr, SIZES: tl.constexpr, ACTS: tl.constexpr,
    NUMBERS: tl.constexpr, BLOCK_ROWS: tl.constexpr, SLAB: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[J, r]ᵀ[J, r] of a piece of rows; where ``gram_ptr`` is None, [J, r] itself.

    Shapes: theta [models, P]; x [n_rows, F]; y [n_rows, M]; gram [models, pieces, P + 1, P + 1],
    lower triangle; rows [models, pieces, P + 1, M·SLAB], a slab of a program, or
    [models, P + 1, M·pieces·SLAB], the rows from ``first_row`` on. Grid: models x pieces. Reads x
    and y once a model, and [J, r] from caches; without ``gram_ptr`` writes it.
    """
    run, piece = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    n_pieces = tl.num_programs(1)
    asked = tl.load(asked_ptr + run) != 0
    n_columns = n_parameters + 1
    theta_ptr += run * n_parameters
    start = first_row + piece * piece_rows
    end = start + piece_rows
    if gram_ptr is None:
        width = SLAB * n_pieces
        rows_ptr += run * n_columns * N_OUT * width + piece * SLAB
    else:
        end = tl.minimum(end, n_rows)
        width = SLAB
        rows_ptr += (run * n_pieces + piece) * n_columns * N_OUT * width
        gram_ptr += (run * n_pieces + piece) * n_columns * n_columns
    stride = N_OUT * width
    for slab in range(start, tl.where(asked, end, start), SLAB):
        for at in range(0, SLAB, BLOCK_ROWS):
            places = at + tl.arange(0, BLOCK_ROWS)
            for m in range(N_OUT):
                out_ptr = rows_ptr + m * width
                r = residuals(
                    theta_ptr, x_ptr, y_ptr, weight_ptr, slab + places, n_rows, m, out_ptr, places,
                    stride, N_OUT, MODEL, SIZES, ACTS, NUMBERS,
                )  # fmt: skip
                tl.store(out_ptr + tl.cast(n_parameters, tl.int64) * stride + places, r)
        if gram_ptr is not None:
            # products read what other threads have written, and are read before the next slab
            tl.debug_barrier()
            add_gram(gram_ptr, rows_ptr, n_columns, stride, slab == start, BLOCK_P, BLOCK_K)
            tl.debug_barrier()


class Sums:
    """The least-squares problem that models of one structure share.

    Args:
        net: Integers of the description, see `kernels/cpu/models.py`.
        reals: Its numbers.
        n_parameters: P.
        x: Inputs ``[N, F]``, float32 or float64, rows without gaps.
        y: Targets ``[N, M]``.
        roots: Square roots of the rows' weights ``[N]``, float64, or ``None``.
    """

    def __init__(self, net, reals, n_parameters, x, y, roots):
        self._verb = verb = jacobian_of(net, reals)
        self.p, self._data = n_parameters, (x, y, roots)
        self.n_rows, self._n_columns = len(x), n_parameters + 1
        self.rows = min(verb.rows, max(16, triton.next_power_of_2(self.n_rows)))
        self._slab = self.rows
        most = min(SLAB_NUMBERS // (self._n_columns * verb.n_out), self.n_rows)
        while 2 * self._slab <= most:
            self._slab *= 2
        self._piece_rows, self._n_pieces = cut(
            self.n_rows, self._n_columns, self._n_columns**2, self._slab
        )
        self._by_kernel = self._n_columns <= MAX_GRAM_COLUMNS
        functions = dict(zip(("SIZES", "ACTS", "NUMBERS"), verb.constants, strict=True))
        self._constants = {
            "N_OUT": verb.n_out, "MODEL": verb.function, **functions, "BLOCK_ROWS": self.rows
        }  # fmt: skip

    def launches(self):
        """Constants and warps of the kernels, by name."""
        most = self._verb.columns
        block = max(16, block_of(self._n_columns, most))
        return {
            "lm_loss": {**self._constants, "num_warps": self._verb.warps},
            "lm_jacobian": {
                **self._constants, "SLAB": self._slab, "BLOCK_P": block, "BLOCK_K": BLOCK_K,
                "num_warps": 8 if block == most else 4,
            },
        }  # fmt: skip

    @property
    def numbers_of_a_model(self):
        """Numbers of float64 that a model needs beside its state, about."""
        of_a_piece = self._n_columns**2 + self._n_columns * self._slab * self._verb.n_out
        return (self._n_pieces if self._by_kernel else 1) * of_a_piece

    def losses(self, theta, asked):
        """Σr² ``[models]`` of those models of θ ``[models, P]`` that are ``asked``."""
        x, y, roots = self._data
        out = theta.new_empty(len(theta), self._n_pieces)
        with device_of(x):
            lm_loss_kernel[out.shape](
                asked, theta, x, y, roots, out, self.n_rows, self._piece_rows, self.p,
                **self.launches()["lm_loss"],
            )  # fmt: skip
        return out.sum(1)

    def grams(self, theta, asked):
        """[J, r]ᵀ[J, r] ``[models, P + 1, P + 1]`` of those models that are ``asked``.

        The lower triangle counts.
        """
        n, shape = self._n_columns, (len(theta), self._n_pieces)
        if not self._by_kernel:
            gram = theta.new_zeros(len(theta), n, n)
            for rows in self.tiles(theta):
                gram.baddbmm_(rows, rows.mT)
            return gram
        x, y, roots = self._data
        rows = theta.new_empty(*shape, n, self._verb.n_out * self._slab)
        gram = theta.new_empty(*shape, n, n)
        with device_of(x):
            lm_jacobian_kernel[shape](
                asked, theta, x, y, roots, rows, gram, 0, self.n_rows, self._piece_rows, self.p,
                **self.launches()["lm_jacobian"],
            )  # fmt: skip
        return gram.sum(1)

    def tiles(self, theta):
        """[J, r] transposed, ``[models, P + 1, rows]``, some rows at a time; each overwrites it."""
        x, y, roots = self._data
        n_models, n_out = len(theta), self._verb.n_out
        asked = torch.ones(n_models, dtype=torch.int8, device=theta.device)
        of_rows = 8 * n_models * self._n_columns * n_out * self.rows
        most = min(max(1, TILE_BYTES // of_rows), MAX_TILE_PIECES)
        most = self.rows * min(most, triton.cdiv(self.n_rows, self.rows))
        buffer = theta.new_empty(n_models * self._n_columns * n_out * most)
        for first in range(0, self.n_rows, most):
            n_pieces = triton.cdiv(min(most, self.n_rows - first), self.rows)
            shape = n_models, self._n_columns, n_out * n_pieces * self.rows
            tile = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
            with device_of(x):
                lm_jacobian_kernel[(n_models, n_pieces)](
                    asked, theta, x, y, roots, tile, None, first, self.n_rows, self.rows, self.p,
                    **{**self.launches()["lm_jacobian"], "SLAB": self.rows},
                )  # fmt: skip
            yield tile
