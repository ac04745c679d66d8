"""Least squares of least norm, where the columns of a triangular factor depend on each other.

A complete orthogonal decomposition: R·Π = Q·[T S; 0 0], [T S]ᵀ = Z·[U; 0], and then
s = Π·Z·[U⁻ᵀ·z; 0] with z the first numbers of Qᵀ·b.

Source: Golub and Van Loan, Matrix Computations, 4th ed., section 5.5.
"""

import math

import numpy as np

from ..machine.jit import inner
from .linalg import all_zero, dot

EPSILON = float(np.finfo(np.float64).eps)


@inner
def _reflect(columns, k, n_rows, n_columns, ld, diagonal, tau):
    """The reflection that makes column k zero below its diagonal, on that and later columns.

    The column keeps its vector, :func:`_apply` takes it from there; ``diagonal`` gets the entry.
    """
    v = columns[k * ld + k :][: n_rows - k]
    head, below = v[0], dot(v[1:], v[1:])
    diagonal[k] = -math.copysign(math.sqrt(head * head + below), head) if below > 0 else head
    v[0] = head - diagonal[k]
    tau[k] = 2.0 / (v[0] * v[0] + below) if below > 0 else 0.0
    for j in range(k + 1, n_columns):
        _apply(v, tau[k], columns[j * ld + k :][: n_rows - k])


@inner
def _apply(v, tau, b):
    """b − tau·v·(vᵀb) in place."""
    factor = tau * dot(v, b)
    for e in range(v.size):
        b[e] -= factor * v[e]


@inner
def _pivoted(columns, p, ld, order, diagonal, tau, b):
    """QR with column pivoting in place, of b too; returns the rank."""
    for k in range(p):
        most, at = 0.0, k
        for j in range(k, p):
            rest = columns[j * ld + k :][: p - k]
            size = dot(rest, rest)
            if size > most:
                most, at = size, j
        if most == 0 or (k > 0 and math.sqrt(most) <= p * EPSILON * abs(diagonal[0])):
            return k
        order[k], order[at] = order[at], order[k]
        one, other = columns[k * ld :][:p], columns[at * ld :][:p]
        for i in range(p):
            one[i], other[i] = other[i], one[i]
        _reflect(columns, k, p, p, ld, diagonal, tau)
        _apply(columns[k * ld + k :][: p - k], tau[k], b[k:p])
    return p


@inner
def solve_least_norm(factor, p, ld, step):
    """step ← of all s that minimise ‖R·s − step‖² the one of least norm, R upper triangular.

    Returns how much of ‖step‖² that takes away.
    """
    largest = 0.0
    for i in range(p):
        for j in range(i, p):
            largest = max(largest, abs(factor[i * ld + j]))
    if largest == 0:
        all_zero(step)
        return 0.0
    # both column by column
    matrix, turned, order = np.zeros(p * ld), np.zeros(p * ld), np.arange(p)
    diagonal, tau, z = np.empty(p), np.empty(p), np.zeros(p)
    for i in range(p):
        for j in range(i, p):
            matrix[j * ld + i] = factor[i * ld + j] / largest  # squares stay in range
    rank = _pivoted(matrix, p, ld, order, diagonal, tau, step)
    inside = dot(step[:rank], step[:rank])
    for i in range(rank):
        turned[i * ld + i] = diagonal[i]
        for j in range(i + 1, p):
            turned[i * ld + j] = matrix[j * ld + i]
    for k in range(rank):
        _reflect(turned, k, p, rank, ld, diagonal, tau)
    for i in range(rank):
        z[i] = (step[i] - dot(turned[i * ld :][:i], z[:i])) / diagonal[i]
    for k in range(rank - 1, -1, -1):
        _apply(turned[k * ld + k :][: p - k], tau[k], z[k:p])
    for j in range(p):
        step[order[j]] = z[j] / largest
    return inside
