"""Small dense least squares in compiled code: Gram matrices, Cholesky, a triangular factor grown by
Householder reflections. Called by threads without the interpreter's lock, where LAPACK is not at
hand; matrices of some hundred columns at most.

Matrices [P, P] are row by row with a stride ``ld``, P rounded up to a multiple of four; tiles are
column by column, see `models.py`.
"""

import math

import numpy as np

from ...lm import UNSEEN
from ..machine.jit import array_at, inner, inner_vectorized, kernel, wide_vectors

LEAST_SQUARE = 2.0**-960
"""Sums of squares from here to its inverse lose nothing to denormals or to infinity."""


@inner_vectorized
def add_gram(jacobian, tile, n, ld, gram):
    """gram += JᵀJ, lower triangle in blocks of 4 × 4; J [ld, tile], n rows of it count."""
    wide_vectors()
    for p in range(0, ld, 4):
        a0, a1 = jacobian[p * tile :][:n], jacobian[(p + 1) * tile :][:n]
        a2, a3 = jacobian[(p + 2) * tile :][:n], jacobian[(p + 3) * tile :][:n]
        for q in range(0, p + 4, 4):
            b0, b1 = jacobian[q * tile :][:n], jacobian[(q + 1) * tile :][:n]
            b2, b3 = jacobian[(q + 2) * tile :][:n], jacobian[(q + 3) * tile :][:n]
            s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = 0.0
            s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = 0.0
            for e in range(n):
                s00 += a0[e] * b0[e]
                s01 += a0[e] * b1[e]
                s02 += a0[e] * b2[e]
                s03 += a0[e] * b3[e]
                s10 += a1[e] * b0[e]
                s11 += a1[e] * b1[e]
                s12 += a1[e] * b2[e]
                s13 += a1[e] * b3[e]
                s20 += a2[e] * b0[e]
                s21 += a2[e] * b1[e]
                s22 += a2[e] * b2[e]
                s23 += a2[e] * b3[e]
                s30 += a3[e] * b0[e]
                s31 += a3[e] * b1[e]
                s32 += a3[e] * b2[e]
                s33 += a3[e] * b3[e]
            row = gram[p * ld + q :]
            row[0] += s00
            row[1] += s01
            row[2] += s02
            row[3] += s03
            row = gram[(p + 1) * ld + q :]
            row[0] += s10
            row[1] += s11
            row[2] += s12
            row[3] += s13
            row = gram[(p + 2) * ld + q :]
            row[0] += s20
            row[1] += s21
            row[2] += s22
            row[3] += s23
            row = gram[(p + 3) * ld + q :]
            row[0] += s30
            row[1] += s31
            row[2] += s32
            row[3] += s33


@inner
def add_products(jacobian, tile, n, p, residual, products):
    """products += Jᵀr."""
    r = residual[:n]
    for i in range(p):
        column = jacobian[i * tile :][:n]
        total = 0.0
        for e in range(n):
            total += column[e] * r[e]
        products[i] += total


@inner
def _rescale(v, alpha):
    """Multiply v by the power of two that makes the largest of it and alpha about 1; returns it."""
    largest = abs(alpha)
    for e in range(v.size):
        largest = max(largest, abs(v[e]))
    # two to the power of 1023 is the last that there is
    unit = 2.0 ** min(1023, -math.frexp(largest)[1])
    for e in range(v.size):
        v[e] *= unit
    return unit


@inner_vectorized
def fold(rows, tile, n, p, ld, residual, factor, rotated, staircase):
    """Fold rows into a triangular factor: Q [R z; J r] → [R z; 0 ·], R upper triangular.

    ``rows`` [p, tile] is J, ``residual`` r; both are destroyed. ``factor`` is R, ``rotated`` z.
    With ``staircase`` J is upper triangular with n = p rows, and its zeros are skipped.

    Any multiple of a vector gives the same reflection: where the squares leave the range of the
    numbers it is rescaled, as LAPACK's dlarfg does.
    """
    wide_vectors()
    for k in range(p):
        height = min(n, k + 1) if staircase else n
        v = rows[k * tile :][:height]
        below = 0.0
        for e in range(height):
            below += v[e] * v[e]
        alpha, unit = factor[k * ld + k], 1.0
        square = alpha * alpha + below
        # squares that are denormal or infinite tell no norm; false for NaN, which goes on
        if square < LEAST_SQUARE or square > 1.0 / LEAST_SQUARE:
            unit = _rescale(v, alpha)
            alpha *= unit
            below = dot(v, v)
            square = alpha * alpha + below
        if below == 0:
            continue
        norm = math.sqrt(square)
        beta = -norm if alpha >= 0 else norm
        head = alpha - beta
        tau = 2.0 / (head * head + below)
        factor[k * ld + k] = beta / unit
        row = factor[k * ld :]
        j = k + 1
        while j + 4 <= p:
            c0, c1 = rows[j * tile :][:height], rows[(j + 1) * tile :][:height]
            c2, c3 = rows[(j + 2) * tile :][:height], rows[(j + 3) * tile :][:height]
            t0, t1, t2, t3 = head * row[j], head * row[j + 1], head * row[j + 2], head * row[j + 3]
            for e in range(height):
                t0 += v[e] * c0[e]
                t1 += v[e] * c1[e]
                t2 += v[e] * c2[e]
                t3 += v[e] * c3[e]
            t0, t1, t2, t3 = tau * t0, tau * t1, tau * t2, tau * t3
            row[j] -= t0 * head
            row[j + 1] -= t1 * head
            row[j + 2] -= t2 * head
            row[j + 3] -= t3 * head
            for e in range(height):
                c0[e] -= t0 * v[e]
                c1[e] -= t1 * v[e]
                c2[e] -= t2 * v[e]
                c3[e] -= t3 * v[e]
            j += 4
        while j < p:
            c0 = rows[j * tile :][:height]
            t0 = head * row[j]
            for e in range(height):
                t0 += v[e] * c0[e]
            t0 *= tau
            row[j] -= t0 * head
            for e in range(height):
                c0[e] -= t0 * v[e]
            j += 1
        r = residual[:height]
        t0 = head * rotated[k]
        for e in range(height):
            t0 += v[e] * r[e]
        t0 *= tau
        rotated[k] -= t0 * head
        for e in range(height):
            r[e] -= t0 * v[e]


@inner
def cholesky(matrix, p, ld):
    """Factor the lower triangle in place, A = L·Lᵀ; false where a pivot is not positive."""
    for i in range(p):
        row_i = matrix[i * ld :][:p]
        for j in range(i + 1):
            row_j = matrix[j * ld :][:p]
            total = 0.0
            for k in range(j):
                total += row_i[k] * row_j[k]
            value = row_i[j] - total
            if i == j:
                # the diagonal of a scaled matrix is near 1: below this a pivot is rounding
                if not value > 0:
                    return False
                row_i[i] = math.sqrt(value)
            else:
                row_i[j] = value / row_j[j]
    return True


@inner
def solve_lower(matrix, p, ld, b):
    """b = L⁻¹ b in place."""
    for i in range(p):
        row = matrix[i * ld :][:p]
        total = 0.0
        for k in range(i):
            total += row[k] * b[k]
        b[i] = (b[i] - total) / row[i]


@inner
def solve_lower_transposed(matrix, p, ld, b):
    """b = L⁻ᵀ b in place."""
    for i in range(p - 1, -1, -1):
        row = matrix[i * ld :][:p]
        b[i] /= row[i]
        value = b[i]
        for k in range(i):
            b[k] -= value * row[k]


@inner
def solve_upper(matrix, p, ld, b):
    """b = R⁻¹ b in place."""
    for i in range(p - 1, -1, -1):
        row = matrix[i * ld :][:p]
        total = 0.0
        for k in range(i + 1, p):
            total += row[k] * b[k]
        b[i] = (b[i] - total) / row[i]


@inner
def solve_damped(factor, p, ld, scale, root, damped, step):
    """step ← argmin_s ‖R·D⁻¹·s − step‖² + ‖root·s‖², D = diag(scale).

    Returns how much of ‖step‖² that takes away from both; ``damped`` is left with the triangular
    factor.
    """
    rows, below = np.zeros(ld * ld), np.zeros(p)
    for i in range(p):
        row, out = factor[i * ld :][:p], damped[i * ld :][:p]
        for j in range(i, p):
            out[j] = row[j] / scale[j]
        rows[i * ld + i] = root
    fold(rows, ld, p, p, ld, below, damped, step, True)
    inside = dot(step[:p], step[:p])
    solve_upper(damped, p, ld, step)
    return inside


@inner
def column_norms(factor, p, ld, norms):
    """Norms of the columns of an upper triangular matrix."""
    all_zero(norms)
    for i in range(p):
        row = factor[i * ld :][:p]
        for j in range(i, p):
            norms[j] += row[j] * row[j]
    for j in range(p):
        unit = 1.0
        if norms[j] < LEAST_SQUARE or norms[j] > 1.0 / LEAST_SQUARE:
            column = np.empty(j + 1)
            for i in range(j + 1):
                column[i] = factor[i * ld + j]
            unit = _rescale(column, 0.0)
            norms[j] = dot(column, column)
        norms[j] = math.sqrt(norms[j]) / unit


@inner
def column_scales(factor, p, ld, scale):
    """Norms of the columns of an upper triangular matrix, 1 for a column of zeros."""
    column_norms(factor, p, ld, scale)
    for j in range(p):
        if scale[j] == 0:
            scale[j] = 1.0


@inner
def least_squares(factor, rotated, p, ld, x):
    """x ← argmin ‖R·x − z‖², R upper triangular; of directions that R does not see, nearly 0."""
    scale, damped = np.empty(p), np.empty(ld * ld)
    column_scales(factor, p, ld, scale)
    for j in range(p):
        x[j] = rotated[j]
    solve_damped(factor, p, ld, scale, UNSEEN, damped, x)
    for j in range(p):
        x[j] /= scale[j]


def _linalg_least_squares(matrices_at, targets_at, n_sets, n_rows, p, solutions_at, errors_at):
    """Least squares of many matrices [p, n_rows], column by column, and targets [n_rows].

    Writes solutions [p] and sums of squares; destroys the matrices and targets.
    """
    solutions = array_at(solutions_at, n_sets * p, np.float64)
    errors = array_at(errors_at, n_sets, np.float64)
    factor, rotated = np.empty(p * p), np.empty(p)
    for i in range(n_sets):
        matrix = array_at(matrices_at + 8 * i * p * n_rows, p * n_rows, np.float64)
        target = array_at(targets_at + 8 * i * n_rows, n_rows, np.float64)
        all_zero(factor)
        all_zero(rotated)
        fold(matrix, n_rows, n_rows, p, p, target, factor, rotated, False)
        least_squares(factor, rotated, p, p, solutions[i * p : (i + 1) * p])
        errors[i] = dot(target, target)


linalg_least_squares = kernel(_linalg_least_squares)


@inner
def dot(a, b):
    """Σ a·b."""
    total = 0.0
    for e in range(a.size):
        total += a[e] * b[e]
    return total


@inner
def all_zero(a):
    """Set an array to 0."""
    for e in range(a.size):
        a[e] = np.float64(0)
