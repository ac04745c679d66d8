"""Fully connected layers of many models at once, a model a lane: the verbs of `loop.py`.

A model is a chain of layers over items, of which a row has some: one for a net of rows, one a
number for a subnet of numbers. Layer by layer, z = W·h + b, h' = σ(z); a read-out takes the outputs
of a row's items as one item. So the memory of a block is [items, width] vectors, layer after layer,
and a read-out is a layer whose items are fewer and wider.

Four items share the loads of a weight in the products; of a gradient, three weights its loads, or
two outputs that of an input.
"""

import numpy as np

from ..machine.jit import array_at, fma, inner, select
from ..machine.vectors import LANE_BYTES, lanes_of, load, splat, store
from ..numbers.philox import MASKS_PER_BLOCK, draw_factors, draw_lane_words
from .activations import activate, chain

LAYER = np.dtype(
    [
        ("items", np.int64),  # in a row
        ("nets", np.int64),  # layers side by side, each for its own items of a row
        ("wide", np.int64),  # inputs of an item
        ("width", np.int64),  # outputs
        ("weight", np.int64),  # the first of its parameters
        ("bias", np.int64),  # the like, or -1
        ("activation", np.int64),
        ("rectifies", np.int64),  # whether the products of the next layers know a ReLU by its zeros
        ("values", np.int64),  # places in a block's memory, in vectors: of its outputs
        ("slopes", np.int64),  # of σ'; of what rectifies, its outputs
        ("factors", np.int64),  # of the dropout factors, [items, width]
        ("p", np.float64),  # of dropping an output
        ("stream", np.int64),  # where its masks are in `philox.py`: layer,
        ("mask", np.int64),  # and mask of the first output
    ]
)
"""What the verbs know of a layer. The first is no layer: its outputs are the model's inputs."""

B = LANE_BYTES


@inner
def _rectified(z, rectifies, real):
    """relu(z) if ``rectifies``."""
    if rectifies:
        # NaN is passed on
        z = select(z <= real(0), real(0), z)
    return z


@inner
def _apply(layer, theta, h, z, n_items, real):
    """z = W·h + b, rectified where the layer is."""
    wide, width, nets = layer.wide, layer.width, layer.nets
    rectifies = layer.rectifies != 0
    h_step, z_step = nets * wide * B, nets * width * B
    for net in range(nets):
        w_net = theta + (layer.weight + net * width * wide) * B
        b_net = theta + (layer.bias + net * width) * B
        n = n_items // nets
        h0, z0 = h + net * wide * B, z + net * width * B
        while n >= 4:
            h1, h2, h3 = h0 + h_step, h0 + 2 * h_step, h0 + 3 * h_step
            w = w_net
            for o in range(width):
                a0 = splat(real(0), real)
                if layer.bias >= 0:
                    a0 = load(b_net + o * B, real)
                a1 = a2 = a3 = a0
                for i in range(0, wide * B, B):
                    wi = load(w + i, real)
                    a0 = fma(wi, load(h0 + i, real), a0)
                    a1 = fma(wi, load(h1 + i, real), a1)
                    a2 = fma(wi, load(h2 + i, real), a2)
                    a3 = fma(wi, load(h3 + i, real), a3)
                at = z0 + o * B
                store(at, _rectified(a0, rectifies, real))
                store(at + z_step, _rectified(a1, rectifies, real))
                store(at + 2 * z_step, _rectified(a2, rectifies, real))
                store(at + 3 * z_step, _rectified(a3, rectifies, real))
                w += wide * B
            h0, z0, n = h0 + 4 * h_step, z0 + 4 * z_step, n - 4
        while n > 0:
            w = w_net
            for o in range(width):
                a0 = splat(real(0), real)
                if layer.bias >= 0:
                    a0 = load(b_net + o * B, real)
                for i in range(0, wide * B, B):
                    a0 = fma(load(w + i, real), load(h0 + i, real), a0)
                store(z0 + o * B, _rectified(a0, rectifies, real))
                w += wide * B
            h0, z0, n = h0 + h_step, z0 + z_step, n - 1


@inner
def _where_active(g, h, rectified, real):
    """g, and 0 if ``rectified`` where the output at h is 0."""
    if rectified:
        # not a product: PyTorch drops an infinite g here too
        g = select(load(h, real) == real(0), real(0), g)
    return g


@inner
def _apply_transposed(layer, theta, g, below, h, rectified, n_items, real):
    """below = Wᵀ·g, times the slopes of the layer below if that rectifies, of its outputs h."""
    wide, width, nets = layer.wide, layer.width, layer.nets
    rectified, h = rectified != 0, h - below
    h_step, g_step, w_step = nets * wide * B, nets * width * B, wide * B
    for net in range(nets):
        w_net = theta + (layer.weight + net * width * wide) * B
        n = n_items // nets
        h0, g0 = below + net * wide * B, g + net * width * B
        while n >= 4:
            g1, g2, g3 = g0 + g_step, g0 + 2 * g_step, g0 + 3 * g_step
            for i in range(0, wide * B, B):
                a0 = a1 = a2 = a3 = splat(real(0), real)
                w = w_net + i
                for o in range(0, width * B, B):
                    wi = load(w, real)
                    a0 = fma(wi, load(g0 + o, real), a0)
                    a1 = fma(wi, load(g1 + o, real), a1)
                    a2 = fma(wi, load(g2 + o, real), a2)
                    a3 = fma(wi, load(g3 + o, real), a3)
                    w += w_step
                at = h0 + i
                store(at, _where_active(a0, at + h, rectified, real))
                at += h_step
                store(at, _where_active(a1, at + h, rectified, real))
                at += h_step
                store(at, _where_active(a2, at + h, rectified, real))
                at += h_step
                store(at, _where_active(a3, at + h, rectified, real))
            h0, g0, n = h0 + 4 * h_step, g0 + 4 * g_step, n - 4
        while n > 0:
            for i in range(0, wide * B, B):
                a0 = splat(real(0), real)
                w = w_net + i
                for o in range(0, width * B, B):
                    a0 = fma(load(w, real), load(g0 + o, real), a0)
                    w += w_step
                store(h0 + i, _where_active(a0, h0 + i + h, rectified, real))
            h0, g0, n = h0 + h_step, g0 + g_step, n - 1


@inner
def _add_gradients(layer, grad, g, h, n_items, _, real):
    """dW += Σ_items g·hᵀ, db += Σ_items g."""
    wide, width, nets = layer.wide, layer.width, layer.nets
    h_step, g_step = nets * wide * B, nets * width * B
    for net in range(nets):
        n = n_items // nets
        o = 0
        while o < width:
            is_pair = o + 1 < width
            w = grad + (layer.weight + (net * width + o) * wide) * B
            g_at, h_at = g + (net * width + o) * B, h + net * wide * B
            a0, total0 = load(w, real), splat(real(0), real)
            if is_pair:
                a1, total1 = load(w + wide * B, real), total0
                for _ in range(n):
                    hi, gi, gj = load(h_at, real), load(g_at, real), load(g_at + B, real)
                    total0 += gi
                    total1 += gj
                    a0, a1 = fma(gi, hi, a0), fma(gj, hi, a1)
                    g_at += g_step
                    h_at += h_step
                store(w + wide * B, a1)
            else:
                total1 = total0
                for _ in range(n):
                    gi = load(g_at, real)
                    total0 += gi
                    a0 = fma(gi, load(h_at, real), a0)
                    g_at += g_step
                    h_at += h_step
            store(w, a0)
            if layer.bias >= 0:
                b = grad + (layer.bias + net * width + o) * B
                store(b, load(b, real) + total0)
                if is_pair:
                    store(b + B, load(b + B, real) + total1)
            o += 2
        for o in range(width):
            w = grad + (layer.weight + (net * width + o) * wide) * B
            g0, h0 = g + (net * width + o) * B, h + net * wide * B
            i = 1
            while i + 3 <= wide:
                at = w + i * B
                a0, a1, a2 = load(at, real), load(at + B, real), load(at + 2 * B, real)
                g_at, h_at = g0, h0 + i * B
                for _ in range(n):
                    gi = load(g_at, real)
                    a0 = fma(gi, load(h_at, real), a0)
                    a1 = fma(gi, load(h_at + B, real), a1)
                    a2 = fma(gi, load(h_at + 2 * B, real), a2)
                    g_at += g_step
                    h_at += h_step
                store(at, a0)
                store(at + B, a1)
                store(at + 2 * B, a2)
                i += 3
            while i < wide:
                at = w + i * B
                a0 = load(at, real)
                g_at, h_at = g0, h0 + i * B
                for _ in range(n):
                    a0 = fma(load(g_at, real), load(h_at, real), a0)
                    g_at += g_step
                    h_at += h_step
                store(at, a0)
                i += 1


@inner
def _draw(layer, at, place, n_rows, values, out, real):
    """Draw the factors of a layer's outputs; out = values·factors."""
    n = lanes_of(real)
    keys, base = array_at(at.keys, n, np.int64), array_at(at.base, n, np.int64)
    n_numbers, target = n_rows * layer.items * layer.width, at.kept + layer.factors * B
    words, elements = np.empty((4, n), np.uint32), np.empty(n, np.int64)
    factors = array_at(target, n_numbers * n, real)
    first = 0
    for item in range(n_rows * layer.items):
        for l in range(n):
            elements[l] = (base[l] + place) * layer.items + item
        for o in range(layer.width):
            mask = layer.mask + o
            if o == 0 or mask % MASKS_PER_BLOCK == 0:
                block = mask // MASKS_PER_BLOCK
                draw_lane_words(keys, elements, block, words, layer.stream)
            draw_factors(words, mask, layer.p, n, factors[first : first + n], real)
            first += n
    _multiply(values, target, out, n_numbers, real)


@inner
def _multiply(a, b, out, n, real):
    for e in range(0, n * B, B):
        store(out + e, load(a + e, real) * load(b + e, real))


@inner
def _drops(layer, place):
    """Whether a layer drops outputs: not of a model that is evaluated, whose place is below 0."""
    return layer.p > 0 and place >= 0


def layers_forward(real):
    """The verb forward of layers."""
    activate_all = activate(real)

    @inner
    def lanes_forward(at, x, n_rows, net_at, n_net, place):
        """Fill a block's memory; returns where the outputs [rows, out] are."""
        theta, kept = at.theta, at.kept
        layers = array_at(net_at, n_net, LAYER)
        h = x
        if _drops(layers[0], place):
            h = kept + layers[0].values * B
            _draw(layers[0], at, place, n_rows, x, h, real)
        for i in range(1, n_net):
            layer = layers[i]
            values, slopes = kept + layer.values * B, kept + layer.slopes * B
            n_items = n_rows * layer.items
            _apply(layer, theta, h, values, n_items, real)
            if layer.rectifies == 0:
                activate_all(layer.activation, values, slopes, n_items * layer.width)
            if _drops(layer, place):
                _draw(layer, at, place, n_rows, values, values, real)
            h = values
        return h

    return lanes_forward


@inner
def _add_rows(layer, rows, g, h, n_items, stride, real):
    """Of each row Σ_items g·hᵀ and Σ_items g, rows ``stride`` bytes apart; one net alone."""
    items, wide, width = layer.items, layer.wide, layer.width
    for _ in range(n_items // items):
        for o in range(width):
            w = rows + (layer.weight + o * wide) * B
            for i in range(wide):
                a = load(g + o * B, real) * load(h + i * B, real)
                for item in range(1, items):
                    gi = load(g + (item * width + o) * B, real)
                    a = fma(gi, load(h + (item * wide + i) * B, real), a)
                store(w + i * B, a)
            if layer.bias >= 0:
                a = load(g + o * B, real)
                for item in range(1, items):
                    a += load(g + (item * width + o) * B, real)
                store(rows + (layer.bias + o) * B, a)
        rows, g, h = rows + stride, g + items * width * B, h + items * wide * B


def _down(real, take):
    """Function that takes dy down through the layers, and has ``take`` see each layer's."""
    chain_all = chain(real)

    @inner
    def go_down(at, x, n_rows, net_at, n_net, place, target, stride):
        theta, kept = at.theta, at.kept
        layers = array_at(net_at, n_net, LAYER)
        g, below = at.dy, at.spare
        for i in range(n_net - 1, 0, -1):
            layer = layers[i]
            n_items = n_rows * layer.items
            n = n_items * layer.width
            if _drops(layer, place):
                _multiply(g, kept + layer.factors * B, g, n, real)
            # the slopes of what rectifies are in g already
            if layer.rectifies == 0 or i == n_net - 1:
                chain_all(layer.activation, kept + layer.slopes * B, g, n)
            h = kept + layers[i - 1].values * B
            if i == 1 and not _drops(layers[0], place):
                h = x
            take(layer, target, g, h, n_items, stride, real)
            if i > 1:
                _apply_transposed(layer, theta, g, below, h, layers[i - 1].rectifies, n_items, real)
                g, below = below, g

    return go_down


def layers_backward(real):
    """The verb backward of layers."""
    go_down = _down(real, _add_gradients)

    @inner
    def lanes_backward(at, x, n_rows, net_at, n_net, place, grad):
        """Add to ``grad``; writes over ``at.dy`` and ``at.spare``."""
        go_down(at, x, n_rows, net_at, n_net, place, grad, 0)

    return lanes_backward


def layers_jacobian(real):
    """The verb jacobian of layers, see `least_squares.py`."""
    go_down = _down(real, _add_rows)

    @inner
    def lanes_jacobian(at, x, n_rows, net_at, n_net, m, rows, stride):
        """Write ∂y_m/∂θ of each row; writes over ``at.dy`` and ``at.spare``."""
        last = array_at(net_at, n_net, LAYER)[n_net - 1]
        for e in range(n_rows * last.width):
            store(at.dy + e * B, splat(real(e % last.width == m), real))
        go_down(at, x, n_rows, net_at, n_net, -1, rows, stride)

    return lanes_jacobian
