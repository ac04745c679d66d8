"""Outputs and rows of ∂y/∂θ of a shared subnet and a read-out, as `levenberg_marquardt` wants."""

from typing import NamedTuple

import numpy as np

from ...spec import AdditiveWords, subnet_places
from ..machine.jit import inner, named, record
from ..numbers.block_activations import RELU
from ..numbers.tile import TILE, activate


class Numbers(NamedTuple):
    """The slope of leaky ReLU below 0."""

    slope: float


WORDS, NUMBERS = record(AdditiveWords), record(Numbers, np.float64)


_places = inner(subnet_places)


@inner
def additive_forward(net, reals, theta, x, n, work, f):
    """Work: f(x_j) [F, TILE], then rows for z, σ', and the sums of a unit."""
    model = named(net, WORDS)
    n_in, n_hidden, n_out, bias = model.n_in, model.n_hidden, model.n_out, model.bias
    code, slope = model.activation, named(reals, NUMBERS).slope
    at_b, at_v, at_d, at_readout, at_c = _places(1, n_hidden, bias, n_out * n_in)
    z, s = work[n_in * TILE :][:n], work[(n_in + 1) * TILE :][:n]
    for j in range(n_in):
        xj, fj = x[j * TILE :][:n], work[j * TILE :][:n]
        d = theta[at_d] if bias else 0.0
        for e in range(n):
            fj[e] = d
        for k in range(n_hidden):
            w, b, v = theta[k], theta[at_b + k] if bias else 0.0, theta[at_v + k]
            if code == RELU:
                for e in range(n):
                    a = w * xj[e] + b
                    fj[e] += v * (0.0 if a <= 0 else a)
            else:
                for e in range(n):
                    z[e] = w * xj[e] + b
                activate(code, slope, z, s)
                for e in range(n):
                    fj[e] += v * z[e]
    for m in range(n_out):
        out = f[m * TILE :][:n]
        c = theta[at_c + m] if bias else 0.0
        for e in range(n):
            out[e] = c
        for j in range(n_in):
            weight, fj = theta[at_readout + m * n_in + j], work[j * TILE :][:n]
            for e in range(n):
                out[e] += weight * fj[e]


@inner
def _add_active(x, weights, j, n, w, b, a_sum, b_sum):
    """a_sum, b_sum += Σ V·[active], Σ V·x·[active] over the features j … j + 3."""
    x0, x1 = x[j * TILE :][:n], x[(j + 1) * TILE :][:n]
    x2, x3 = x[(j + 2) * TILE :][:n], x[(j + 3) * TILE :][:n]
    v0, v1, v2, v3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
    for e in range(n):
        g0 = v0 if w * x0[e] + b > 0 else 0.0
        g1 = v1 if w * x1[e] + b > 0 else 0.0
        g2 = v2 if w * x2[e] + b > 0 else 0.0
        g3 = v3 if w * x3[e] + b > 0 else 0.0
        a_sum[e] += (g0 + g1) + (g2 + g3)
        b_sum[e] += (g0 * x0[e] + g1 * x1[e]) + (g2 * x2[e] + g3 * x3[e])


@inner
def additive_jacobian(net, reals, theta, x, n, work, m, jacobian):
    """With A = Σ_j V_mj σ'(z_kj), B = Σ_j V_mj x_j σ'(z_kj): ∂w = v·B, ∂b = v·A, ∂v = Σ V σ."""
    model = named(net, WORDS)
    n_in, n_hidden, n_out, bias = model.n_in, model.n_hidden, model.n_out, model.bias
    code, slope = model.activation, named(reals, NUMBERS).slope
    at_b, at_v, at_d, at_readout, at_c = _places(1, n_hidden, bias, n_out * n_in)
    z, s = work[n_in * TILE :][:n], work[(n_in + 1) * TILE :][:n]
    a_sum = work[(n_in + 2) * TILE :][:n]
    weights = theta[at_readout + m * n_in :][:n_in]
    for k in range(n_hidden):
        w, b, v = theta[k], theta[at_b + k] if bias else 0.0, theta[at_v + k]
        b_sum, values = jacobian[k * TILE :][:n], jacobian[(at_v + k) * TILE :][:n]
        for e in range(n):
            a_sum[e] = 0.0
            b_sum[e] = 0.0
            values[e] = 0.0
        j = 0
        while code == RELU and j + 4 <= n_in:
            _add_active(x, weights, j, n, w, b, a_sum, b_sum)
            j += 4
        if code == RELU:
            # relu(z) = z·[z > 0]
            for e in range(n):
                values[e] = w * b_sum[e] + b * a_sum[e]
        while j < n_in:
            xj, weight = x[j * TILE :][:n], weights[j]
            for e in range(n):
                z[e] = w * xj[e] + b
            activate(code, slope, z, s)
            for e in range(n):
                g = weight * s[e]
                a_sum[e] += g
                b_sum[e] += g * xj[e]
                values[e] += weight * z[e]
            j += 1
        for e in range(n):
            b_sum[e] *= v
        if bias:
            out = jacobian[(at_b + k) * TILE :][:n]
            for e in range(n):
                out[e] = v * a_sum[e]
    for j in range(n_out * n_in):
        out, fj = jacobian[(at_readout + j) * TILE :][:n], work[(j % n_in) * TILE :][:n]
        own = 1.0 if j // n_in == m else 0.0
        for e in range(n):
            out[e] = own * fj[e]
    if bias:
        total = 0.0
        for j in range(n_in):
            total += weights[j]
        out = jacobian[at_d * TILE :][:n]
        for e in range(n):
            out[e] = total
        for i in range(n_out):
            out = jacobian[(at_c + i) * TILE :][:n]
            for e in range(n):
                out[e] = 1.0 if i == m else 0.0
