"""Outputs and rows of ∂y/∂θ of layers: see `models.py`."""

from ...spec import LayerWords, layers_of
from ..machine.jit import inner, named, record
from ..numbers.tile import TILE, activate

WORDS = record(LayerWords)

parts = inner(layers_of)
"""Widths, biases and activations of a net's words."""


@inner
def mlp_forward(net, reals, theta, x, n, work, f):
    """Work: outputs and derivatives of every layer, [Σ n_l, TILE] each, then two rows of δ."""
    n_layers = named(net, WORDS).n_layers
    widths, biases, codes = parts(net, n_layers)
    at_theta, at_work = 0, 0
    source = x[:]
    for l in range(n_layers):
        n_in, n_out = widths[l], widths[l + 1]
        at_bias = at_theta + n_in * n_out
        for i in range(n_out):
            z = work[at_work + i * TILE :][:n]
            bias = theta[at_bias + i] if biases[l] else 0.0
            for e in range(n):
                z[e] = bias
            for j in range(n_in):
                weight, column = theta[at_theta + i * n_in + j], source[j * TILE :][:n]
                for e in range(n):
                    z[e] += weight * column[e]
            s = work[at_work + (n_out + i) * TILE :][:n]
            activate(codes[l], reals[l], z, s)
        source = work[at_work : at_work + n_out * TILE]
        at_theta = at_bias + (n_out if biases[l] else 0)
        at_work += 2 * n_out * TILE
    for e in range(widths[n_layers] * TILE):
        f[e] = source[e]


@inner
def mlp_jacobian(net, theta, x, n, work, m, jacobian):
    n_layers = named(net, WORDS).n_layers
    widths, biases, _ = parts(net, n_layers)
    widest, at_work, at_theta = 0, 0, 0
    for l in range(n_layers):
        widest = max(widest, widths[l + 1])
        at_work += 2 * widths[l + 1] * TILE
        at_theta += widths[l + 1] * (widths[l] + (1 if biases[l] else 0))
    deltas = work[at_work : at_work + widest * TILE]
    earlier = work[at_work + widest * TILE : at_work + 2 * widest * TILE]
    for l in range(n_layers - 1, -1, -1):
        n_in, n_out = widths[l], widths[l + 1]
        has_bias = biases[l] != 0
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
