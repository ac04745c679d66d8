"""Normal equations of many models at once, a model a lane; float64.

A symmetric matrix of vectors is its lower triangle, row by row. The sums of products of [J r], row
and column P those of r, are JᵀJ, Jᵀr and the sum of squares in one.
"""

import math

import numpy as np

from ..machine.jit import fma, inner, select
from ..machine.vectors import LANE_BYTES, load, splat, store

real = np.float64
B = LANE_BYTES


@inner
def place(i, j):
    """Where entry (i, j ≤ i) of a lower triangle is, in bytes."""
    return (i * (i + 1) // 2 + j) * B


@inner
def add_products(rows, n, columns, stride, sums):
    """sums += Σ_rows of the products of all pairs of columns, rows ``stride`` bytes apart.

    Two by two: four sums share the loads. An odd number of columns has one of zeros behind it.
    """
    for i in range(0, columns, 2):
        is_pair = i + 1 < columns
        for j in range(0, i + 1, 2):
            upper, lower = sums + place(i, j), sums + place(i + 1, j)
            a00 = load(upper, real)
            a01 = a10 = a11 = splat(0.0, real)
            if j < i:
                a01 = load(upper + B, real)
            if is_pair:
                a10, a11 = load(lower, real), load(lower + B, real)
            x, y = rows + i * B, rows + j * B
            for _ in range(n):
                x0, x1, y0, y1 = load(x, real), load(x + B, real), load(y, real), load(y + B, real)
                a00, a01 = fma(x0, y0, a00), fma(x0, y1, a01)
                a10, a11 = fma(x1, y0, a10), fma(x1, y1, a11)
                x += stride
                y += stride
            store(upper, a00)
            if j < i:
                store(upper + B, a01)
            if is_pair:
                store(lower, a10)
                store(lower + B, a11)


@inner
def _eliminate(sums, inverse, low, p, j, scale):
    """Column j of the factor, below its diagonal, whose reciprocal is ``scale`` by then."""
    pivot_row = low + place(j, 0)
    factor = load(inverse + j * B, real)
    i = j + 1
    while i <= p:
        n = 4 if i + 3 <= p else 1
        l0 = low + place(i, 0)
        a0 = load(sums + place(i, j), real) * load(inverse + i * B, real) * factor
        if n == 4:
            l1, l2, l3 = low + place(i + 1, 0), low + place(i + 2, 0), low + place(i + 3, 0)
            a1 = load(sums + place(i + 1, j), real) * load(inverse + (i + 1) * B, real) * factor
            a2 = load(sums + place(i + 2, j), real) * load(inverse + (i + 2) * B, real) * factor
            a3 = load(sums + place(i + 3, j), real) * load(inverse + (i + 3) * B, real) * factor
            for k in range(0, j * B, B):
                minus = -load(pivot_row + k, real)
                a0 = fma(load(l0 + k, real), minus, a0)
                a1 = fma(load(l1 + k, real), minus, a1)
                a2 = fma(load(l2 + k, real), minus, a2)
                a3 = fma(load(l3 + k, real), minus, a3)
            store(l1 + j * B, a1 * scale)
            store(l2 + j * B, a2 * scale)
            store(l3 + j * B, a3 * scale)
        else:
            for k in range(0, j * B, B):
                a0 = fma(load(l0 + k, real), -load(pivot_row + k, real), a0)
        store(l0 + j * B, a0 * scale)
        i += n


@inner
def solve_damped(sums, inverse, damping, p, low, step):
    """s = −(D⁻¹·JᵀJ·D⁻¹ + λI)⁻¹·D⁻¹·Jᵀr by Cholesky, with Jᵀr as one more row of the factor.

    Args:
        sums: Products of [J r].
        inverse: Of the entries of D; −1 behind them.
        damping: Vector of λ.
        p: Columns of J.
        low: Room for a triangle of p + 1 rows.
        step: Gets s.

    Returns:
        Where all pivots are positive; what λ = 0 takes away from the sum of squares; ‖s‖².
    """
    ok = splat(1.0, real) > 0
    for j in range(p):
        row = low + place(j, 0)
        factor = load(inverse + j * B, real)
        pivot = fma(load(sums + place(j, j), real) * factor, factor, damping)
        for k in range(0, j * B, B):
            l = load(row + k, real)
            pivot = fma(l, -l, pivot)
        is_positive = pivot > 0
        ok = ok & is_positive
        scale = 1.0 / math.sqrt(select(is_positive, pivot, 1.0))
        store(row + j * B, scale)
        _eliminate(sums, inverse, low, p, j, scale)
    z = low + place(p, 0)
    inside = norm = splat(0.0, real)
    for i in range(0, p * B, B):
        inside = fma(load(z + i, real), load(z + i, real), inside)
    for i in range(p - 1, -1, -1):
        row = low + place(i, 0)
        s = load(z + i * B, real) * load(row + i * B, real)
        store(step + i * B, s)
        norm = fma(s, s, norm)
        for k in range(0, i * B, B):
            store(z + k, fma(load(row + k, real), -s, load(z + k, real)))
    return ok, inside, norm
