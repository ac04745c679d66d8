"""The read-out y[i, m] = Σ_j V[m, j]·f[i, j] + c[m] on a block of rows, and its gradients."""

import numpy as np

from ..machine.jit import inner, inner_vectorized, narrow_vectors


@inner_vectorized
def read_out(f, readout, c, n_rows, n_in, n_out, y, start, real):
    """y[start + i, m] = Σ_j V[m, j]·f[i, j] + c[m] on a block of rows; returns a sum of 0·y."""
    narrow_vectors()
    zero = real(0)
    not_finite = zero
    width = np.uintp(n_in)
    for m in range(n_out):
        column = readout[m * n_in : (m + 1) * n_in]
        cm = c[m]
        i = 0
        while i + 4 <= n_rows:
            # four rows at a time: a row's sum alone waits for its own additions
            y0 = y1 = y2 = y3 = zero
            row = np.uintp(i * n_in)
            for j in range(n_in):
                e = row + np.uintp(j)
                v = column[j]
                y0 += v * f[e]
                y1 += v * f[e + width]
                y2 += v * f[e + width + width]
                y3 += v * f[e + width + width + width]
            y0, y1, y2, y3 = y0 + cm, y1 + cm, y2 + cm, y3 + cm
            at = (start + i) * n_out + m
            y[at], y[at + n_out], y[at + 2 * n_out], y[at + 3 * n_out] = y0, y1, y2, y3
            not_finite += (y0 + y1) * zero + (y2 + y3) * zero
            i += 4
        while i < n_rows:
            y0 = zero
            row = np.uintp(i * n_in)
            for j in range(n_in):
                y0 += column[j] * f[row + np.uintp(j)]
            y[(start + i) * n_out + m] = y0 + cm
            not_finite += (y0 + cm) * zero
            i += 1
    return not_finite


@inner
def gradient_at_f(dy, readout, n_rows, n_in, n_out, g):
    """g[i, j] = Σ_m dy[i, m]·V[m, j] on a block of rows."""
    for i in range(n_rows):
        row = g[i * n_in : (i + 1) * n_in]
        for m in range(n_out):
            dy_im = dy[i * n_out + m]
            column = readout[m * n_in : (m + 1) * n_in]
            if m == 0:
                for j in range(n_in):
                    row[j] = dy_im * column[j]
            else:
                for j in range(n_in):
                    row[j] += dy_im * column[j]


@inner
def add_readout_gradient(dy, f, n_rows, n_in, n_out, dv):
    """dv[m, j] += Σ_i dy[i, m]·f[i, j] on a block of rows."""
    for m in range(n_out):
        column = dv[m * n_in : (m + 1) * n_in]
        for i in range(n_rows):
            dy_im = dy[i * n_out + m]
            row = f[i * n_in : (i + 1) * n_in]
            for j in range(n_in):
                column[j] += dy_im * row[j]


@inner
def add_bias_gradient(dy, n_rows, n_out, dc):
    """dc[m] += Σ_i dy[i, m] on a block of rows."""
    for i in range(n_rows):
        for m in range(n_out):
            dc[m] += dy[i * n_out + m]
