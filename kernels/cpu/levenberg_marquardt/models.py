"""Outputs and rows of ∂y/∂θ of every model, a tile of rows at a time, in float64.

A tile holds ``TILE`` rows and is stored column by column: inputs x [F, TILE], outputs f [M, TILE]
and the Jacobian of one output J [P, TILE] are flat, so that every inner loop runs over rows and
vectorises. θ is flat, in the order of ``module.parameters()``. Two verbs a model: *forward* fills f
and a workspace, *jacobian* turns the workspace into the rows ∂f_m/∂θ of one output m.

A model is described by integers ``net`` and numbers ``reals``:

==========  =================================================================  ===================
model       net                                                                reals
==========  =================================================================  ===================
MLP         [MLP, L, n_0 … n_L, has_bias_1 … has_bias_L, σ_1 … σ_L]            slope of σ_1 … σ_L
AdditiveMLP [ADDITIVE, F, H, M, has_bias, σ]                                   slope of σ
SineSum     [SINE, 1, W, 1, has_amplitude, has_phase]                          turns, factor
==========  =================================================================  ===================

The slope is that of leaky ReLU, unused elsewhere. An ElementwiseMLP is the MLP 1 → H → 1.
"""

import math

import numpy as np

from ... import spec
from ...spec import ADDITIVE, CODES, MLP, SINE
from ..machine.jit import inner, inner_vectorized, wide_vectors
from ..numbers.activations import ACTIVATIONS
from ..numbers.block_activations import IDENTITY, LEAKY_RELU, RELU
from ..numbers.sine import COS, SIN, frequencies, reduced

TILE = 128
"""Rows of a tile: the Jacobian of 108 parameters is 110 KB, in a level-2 cache."""

# what the choices below have branches for
spec.for_each(spec.MODELS, (MLP, ADDITIVE, SINE), "model")
spec.for_each(
    spec.ACTIVATIONS, ("identity", "relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "sin")
)

_SIGMOID, _TANH, _SILU, _GELU = (CODES[name] for name in ("sigmoid", "tanh", "silu", "gelu"))
_SIN = CODES["sin"]

_TURNS_PER_RADIAN = 1 / (2 * math.pi)
_sin_turns, _cos_turns = SIN[np.float64], COS[np.float64]


_sigmoid, _tanh, _silu, _gelu, _sin = (
    ACTIVATIONS[name][np.float64].value_and_derivative
    for name in ("sigmoid", "tanh", "silu", "gelu", "sin")
)


@inner
def _activate(code, slope, z, s):
    """z, s = σ(z), σ'(z) on a row of a tile, in place; ReLU's derivative at 0 is 0."""
    if code == IDENTITY:
        for e in range(z.size):
            s[e] = 1.0
    elif code in (RELU, LEAKY_RELU):
        below = slope if code == LEAKY_RELU else 0.0
        for e in range(z.size):
            s[e] = 1.0 if z[e] > 0 else below
            z[e] = below * z[e] if z[e] <= 0 else z[e]
    elif code == _SIGMOID:
        for e in range(z.size):
            z[e], s[e] = _sigmoid(z[e])
    elif code == _TANH:
        for e in range(z.size):
            z[e], s[e] = _tanh(z[e])
    elif code == _SILU:
        for e in range(z.size):
            z[e], s[e] = _silu(z[e])
    elif code == _GELU:
        for e in range(z.size):
            z[e], s[e] = _gelu(z[e])
    elif code == _SIN:
        for e in range(z.size):
            z[e], s[e] = _sin(z[e])
    else:  # no activation: whatever is made of it is seen not to be finite
        z[:] = np.nan
        s[:] = np.nan


@inner
def _mlp_forward(net, reals, theta, x, n, work, f):
    """Work: outputs and derivatives of every layer, [Σ n_l, TILE] each, then two rows of δ."""
    n_layers = net[1]
    at_theta, at_work = 0, 0
    source = x[:]
    for l in range(n_layers):
        n_in, n_out = net[2 + l], net[3 + l]
        at_bias = at_theta + n_in * n_out
        for i in range(n_out):
            z = work[at_work + i * TILE :][:n]
            bias = theta[at_bias + i] if net[3 + n_layers + l] else 0.0
            for e in range(n):
                z[e] = bias
            for j in range(n_in):
                weight, column = theta[at_theta + i * n_in + j], source[j * TILE :][:n]
                for e in range(n):
                    z[e] += weight * column[e]
            s = work[at_work + (n_out + i) * TILE :][:n]
            _activate(net[3 + 2 * n_layers + l], reals[l], z, s)
        source = work[at_work : at_work + n_out * TILE]
        at_theta = at_bias + (n_out if net[3 + n_layers + l] else 0)
        at_work += 2 * n_out * TILE
    for e in range(net[2 + n_layers] * TILE):
        f[e] = source[e]


@inner
def _mlp_jacobian(net, theta, x, n, work, m, jacobian):
    n_layers = net[1]
    widest, at_work, at_theta = 0, 0, 0
    for l in range(n_layers):
        widest = max(widest, net[3 + l])
        at_work += 2 * net[3 + l] * TILE
        at_theta += net[3 + l] * (net[2 + l] + (1 if net[3 + n_layers + l] else 0))
    deltas = work[at_work : at_work + widest * TILE]
    earlier = work[at_work + widest * TILE : at_work + 2 * widest * TILE]
    for l in range(n_layers - 1, -1, -1):
        n_in, n_out = net[2 + l], net[3 + l]
        has_bias = net[3 + n_layers + l] != 0
        at_work -= 2 * n_out * TILE
        at_theta -= n_out * (n_in + (1 if has_bias else 0))
        at_bias = at_theta + n_in * n_out
        below = x[:] if l == 0 else work[at_work - 2 * n_in * TILE : at_work]
        for i in range(n_out):
            delta, s = deltas[i * TILE :][:n], work[at_work + (n_out + i) * TILE :][:n]
            top = l == n_layers - 1
            for e in range(n):
                delta[e] = s[e] * ((1.0 if i == m else 0.0) if top else delta[e])
            for j in range(n_in):
                column = below[j * TILE :][:n]
                out = jacobian[(at_theta + i * n_in + j) * TILE :][:n]
                for e in range(n):
                    out[e] = delta[e] * column[e]
            if has_bias:
                out = jacobian[(at_bias + i) * TILE :][:n]
                for e in range(n):
                    out[e] = delta[e]
        if l > 0:
            for j in range(n_in):
                out = earlier[j * TILE :][:n]
                for e in range(n):
                    out[e] = 0.0
                for i in range(n_out):
                    weight, delta = theta[at_theta + i * n_in + j], deltas[i * TILE :][:n]
                    for e in range(n):
                        out[e] += weight * delta[e]
            deltas, earlier = earlier, deltas


@inner
def _additive_layout(net):
    """Where b, v, d, V and c begin in θ (w begins at 0); without biases b, d and c are empty."""
    n_in, n_hidden, n_out, bias = net[1], net[2], net[3], net[4]
    at_b = n_hidden
    at_v = at_b + n_hidden * bias
    at_d = at_v + n_hidden
    at_readout = at_d + bias
    return at_b, at_v, at_d, at_readout, at_readout + n_out * n_in


@inner
def _additive_forward(net, reals, theta, x, n, work, f):
    """Work: f(x_j) [F, TILE], then rows for z, σ', and the sums of a unit."""
    n_in, n_hidden, n_out, bias, code = net[1], net[2], net[3], net[4], net[5]
    at_b, at_v, at_d, at_readout, at_c = _additive_layout(net)
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
                _activate(code, reals[0], z, s)
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
def _additive_jacobian(net, reals, theta, x, n, work, m, jacobian):
    """With A = Σ_j V_mj σ'(z_kj), B = Σ_j V_mj x_j σ'(z_kj): ∂w = v·B, ∂b = v·A, ∂v = Σ V σ."""
    n_in, n_hidden, n_out, bias, code = net[1], net[2], net[3], net[4], net[5]
    at_b, at_v, at_d, at_readout, at_c = _additive_layout(net)
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
            _activate(code, reals[0], z, s)
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


@inner_vectorized
def _sine_forward(net, reals, theta, x, n, work, f):
    """Work: sine and cosine of every unit, [W, TILE] each."""
    wide_vectors()
    width, has_amplitude, has_phase = net[2], net[4], net[5]
    turns, factor = reals[0], reals[1]
    hi, lo = frequencies(theta[:width], turns, np.float64)
    out, column = f[:n], x[:n]
    for e in range(n):
        out[e] = 0.0
    for i in range(width):
        phi = theta[width * (1 + has_amplitude) + i] * _TURNS_PER_RADIAN if has_phase else 0.0
        a = factor * (theta[width + i] if has_amplitude else 1.0)
        hi_i, lo_i = hi[i], lo[i]
        sines, cosines = work[i * TILE :][:n], work[(width + i) * TILE :][:n]
        for e in range(n):
            r = reduced(hi_i, lo_i, phi, column[e])
            sines[e] = _sin_turns(r)
            cosines[e] = _cos_turns(r)
            out[e] += a * sines[e]


@inner
def _sine_jacobian(net, reals, theta, x, n, work, jacobian):
    width, has_amplitude, has_phase = net[2], net[4], net[5]
    scale, factor = reals[0] / _TURNS_PER_RADIAN, reals[1]
    column = x[:n]
    for i in range(width):
        a = factor * (theta[width + i] if has_amplitude else 1.0)
        sines, cosines = work[i * TILE :][:n], work[(width + i) * TILE :][:n]
        out = jacobian[i * TILE :][:n]
        for e in range(n):
            out[e] = a * scale * column[e] * cosines[e]
        if has_amplitude:
            out = jacobian[(width + i) * TILE :][:n]
            for e in range(n):
                out[e] = factor * sines[e]
        if has_phase:
            out = jacobian[(width * (1 + has_amplitude) + i) * TILE :][:n]
            for e in range(n):
                out[e] = a * cosines[e]


@inner
def workspace_rows(net):
    """Rows of the workspace."""
    if net[0] == MLP:
        total, widest = 0, 0
        for l in range(net[1]):
            total += net[3 + l]
            widest = max(widest, net[3 + l])
        return 2 * total + 2 * widest
    if net[0] == ADDITIVE:
        return net[1] + 3
    return 2 * net[2]


@inner
def sizes(net):
    """Inputs F and outputs M of a model."""
    if net[0] == MLP:
        return net[2], net[2 + net[1]]
    return net[1], net[3]


@inner
def forward(net, reals, theta, x, n, work, f):
    """f(x; θ) of the first n rows of a tile."""
    if net[0] == MLP:
        _mlp_forward(net, reals, theta, x, n, work, f)
    elif net[0] == ADDITIVE:
        _additive_forward(net, reals, theta, x, n, work, f)
    else:
        _sine_forward(net, reals, theta, x, n, work, f)


@inner
def jacobian(net, reals, theta, x, n, work, m, out):
    """∂f_m/∂θ of the first n rows of the tile that :func:`forward` has just seen."""
    if net[0] == MLP:
        _mlp_jacobian(net, theta, x, n, work, m, out)
    elif net[0] == ADDITIVE:
        _additive_jacobian(net, reals, theta, x, n, work, m, out)
    else:
        _sine_jacobian(net, reals, theta, x, n, work, out)
