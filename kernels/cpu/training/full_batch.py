"""Full-batch least squares of a univariate piecewise-linear net, at a cost independent of N.

The net is a chain of layers 1 → H₁ → … → 1, with z > 0 ? z : α·z between (ReLU: α = 0). Inside one
of its segments it is a line f(x) = f₀ + f₁·(x − m), and so is every hidden unit; so the sums of
1, x, x², y, xy and y² over the points inside are all that loss and gradient need:

    loss = mean (f − y)²,  G₀ = Σ 2(f − y)/N,  G₁ = Σ 2(f − y)·(x − m)/N over a segment,
    ∂loss/∂W_ij = Σ_segments u_i·(h₀_j·G₀ + h₁_j·G₁),  ∂loss/∂b_i = Σ_segments u_i·G₀,

with u = ∂f/∂z, constant in a segment, and h = h₀ + h₁·(x − m) the units of the layer before. With x
sorted the sums are differences of prefix sums, taken about the means of x and y, in float64 and
compensated. What is left of rounding is about ε·Var(y) in the loss: a fit with residuals below
1e-7 of y's deviation is at the end of what these sums can tell.

Points on a breakpoint are a segment of their own, for there the derivative is that of z = 0.

The seam: :class:`FullBatch` once a data set, then :func:`of_sums` in the loop of `loop.py`, or
`FullBatch.value_and_gradient`. Parameters are one flat vector, W row by row and then b, layer after
layer, as `nn.Linear` holds them; the arithmetic is in float64, on zeros where there is no bias.
"""

import numpy as np
import torch

from ..machine.jit import array_at, entry, inner, inner_in_order

MOMENTS = 6
"""Sums kept for every prefix: of 1, x, x², y, xy and y², with x and y about their means."""

LEAST_LOSS = 1e-10
"""Of the variance of y: below, rounding of the sums would show in the gradient."""


def applies(n_points, widths):
    """Whether the sums are cheaper than the points.

    The segments are about as many as the units, and each costs as much as all parameters. Measured
    crossings: 10 units at fewer than 1 000 points, 3 × 10 at some 700, 64 at 2 000, 256 at 30 000.
    """
    n_units = sum(widths[1:-1])
    return n_points >= POINTS_PER_UNIT * n_units + n_units * n_units // 2


POINTS_PER_UNIT = 16
"""From here on the sums are the cheaper ones, whatever the depth."""


@inner_in_order
def _prefix_sums(x, y, mean_x, mean_y, prefix):
    """prefix[i] = the six sums over the first i points, each compensated."""
    total, carry, term = np.zeros(MOMENTS), np.zeros(MOMENTS), np.zeros(MOMENTS)
    prefix[:MOMENTS] = 0.0
    for i in range(x.size):
        u, v = x[i] - mean_x, y[i] - mean_y
        term[0], term[1], term[2] = 1.0, u, u * u
        term[3], term[4], term[5] = v, u * v, v * v
        for q in range(MOMENTS):
            value = term[q] - carry[q]
            new = total[q] + value
            carry[q] = (new - total[q]) - value
            total[q] = new
            prefix[(i + 1) * MOMENTS + q] = new


@inner
def _count(x, t, inclusive):
    """How many of the sorted x are below t, or at most t."""
    low, high = 0, x.size
    while low < high:
        middle = (low + high) // 2
        if x[middle] < t or (inclusive and x[middle] == t):
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _cut_segments(theta, widths, alpha, lo, hi):
    """Ends of the net's segments between lo and hi, sorted: [lo, …, hi]."""
    n_layers = widths.size - 1
    edges = np.empty(2)
    edges[0], edges[1] = lo, hi
    # of the layer before, at the ends of every segment, from inside
    left, right = np.empty((1, 1)), np.empty((1, 1))
    left[0, 0], right[0, 0] = lo, hi
    at = 0
    for layer in range(n_layers - 1):
        n_in, n_out = widths[layer], widths[layer + 1]
        weight = theta[at : at + n_in * n_out]
        bias = theta[at + n_in * n_out : at + n_in * n_out + n_out]
        at += n_in * n_out + n_out
        n = edges.size - 1
        z_left, z_right = np.empty((n, n_out)), np.empty((n, n_out))
        cuts = np.empty((n, n_out))
        n_cuts = np.zeros(n, np.int64)
        total = n
        for s in range(n):
            a, b = edges[s], edges[s + 1]
            for i in range(n_out):
                zl = zr = bias[i]
                for j in range(n_in):
                    w = weight[i * n_in + j]
                    zl += w * left[s, j]
                    zr += w * right[s, j]
                z_left[s, i], z_right[s, i] = zl, zr
                if (zl > 0 and zr < 0) or (zl < 0 and zr > 0):
                    t = a + (b - a) * (zl / (zl - zr))
                    if a < t < b:
                        # kept in order, each once
                        k = n_cuts[s]
                        while k > 0 and cuts[s, k - 1] > t:
                            k -= 1
                        if k == 0 or cuts[s, k - 1] != t:
                            for q in range(n_cuts[s], k, -1):
                                cuts[s, q] = cuts[s, q - 1]
                            cuts[s, k] = t
                            n_cuts[s] += 1
                            total += 1
        new_edges = np.empty(total + 1)
        left, right = np.empty((total, n_out)), np.empty((total, n_out))
        new_edges[0] = lo
        q = 0
        for s in range(n):
            a, b = edges[s], edges[s + 1]
            start = a
            for k in range(n_cuts[s] + 1):
                stop = cuts[s, k] if k < n_cuts[s] else b
                new_edges[q + 1] = stop
                for i in range(n_out):
                    zl, zr = z_left[s, i], z_right[s, i]
                    slope = (zr - zl) / (b - a) if b > a else 0.0
                    zs = zl + slope * (start - a) if start > a else zl
                    ze = zr - slope * (b - stop) if stop < b else zr
                    # one side, decided in the middle
                    factor = 1.0 if zs + ze > 0 else alpha
                    left[q, i], right[q, i] = factor * zs, factor * ze
                start = stop
                q += 1
        edges = new_edges
    return edges


@inner
def _forward_line(theta, widths, alpha, m, values, slopes, factors):
    """All units as lines about m: values and slopes of h, flat over layers, and each unit's slope
    of the activation."""
    n_layers = widths.size - 1
    values[0], slopes[0] = m, 1.0
    at = of = 0
    for layer in range(n_layers):
        n_in, n_out = widths[layer], widths[layer + 1]
        to = of + n_in
        for i in range(n_out):
            row = theta[at + i * n_in : at + (i + 1) * n_in]
            value, slope = theta[at + n_in * n_out + i], 0.0
            for j in range(n_in):
                value += row[j] * values[of + j]
                slope += row[j] * slopes[of + j]
            factor = 1.0 if layer == n_layers - 1 or value > 0 else alpha
            factors[to + i] = factor
            values[to + i], slopes[to + i] = factor * value, factor * slope
        at += n_in * n_out + n_out
        of = to
    return of


@inner
def _add_gradient(theta, widths, values, slopes, factors, g0, g1, u, gradient):
    """gradient += u_i·(h₀_j·g0 + h₁_j·g1) for all weights, from the last layer to the first."""
    n_layers = widths.size - 1
    at, of = theta.size, 0
    for layer in range(n_layers):
        of += widths[layer]
    u[of] = 1.0
    for step in range(n_layers):
        layer = n_layers - 1 - step
        n_in, n_out = widths[layer], widths[layer + 1]
        at -= n_in * n_out + n_out
        before = of - n_in
        u[before : before + n_in] = 0.0
        for i in range(n_out):
            ui = u[of + i] * factors[of + i]
            if ui == 0.0:
                continue
            row = at + i * n_in
            for j in range(n_in):
                gradient[row + j] += ui * (values[before + j] * g0 + slopes[before + j] * g1)
                u[before + j] += ui * theta[row + j]
            gradient[at + n_in * n_out + i] += ui * g0
        of = before


@inner
def value_and_gradient(theta, widths, alpha, x, prefix, mean_x, mean_y, gradient):
    """The mean squared error over all points; its gradient is written to ``gradient``.

    Args:
        theta: Flat parameters.
        widths: Of all layers, input and output included: [1, H₁, …, 1], int64.
        alpha: Slope of the activation where it is inactive.
        x: Sorted points.
        prefix: Their prefix sums, flat.
        mean_x: About which the sums are taken.
        mean_y: Likewise.
        gradient: Shape of theta.
    """
    n_units = 0
    for layer in range(widths.size):
        n_units += widths[layer]
    values, slopes = np.zeros(n_units), np.zeros(n_units)
    factors, u = np.ones(n_units), np.zeros(n_units)
    gradient[:] = 0.0
    n = x.size
    edges = _cut_segments(theta, widths, alpha, x[0], x[n - 1])
    loss = 0.0
    first = 0
    for s in range(edges.size):
        for on_edge in (False, True):
            last = _count(x, edges[s], on_edge)
            if last <= first:
                continue
            m = edges[s] if on_edge else 0.5 * (edges[s - 1] + edges[s])
            out = _forward_line(theta, widths, alpha, m, values, slopes, factors)
            i, j = np.uintp(first * MOMENTS), np.uintp(last * MOMENTS)
            s1, sx = prefix[j] - prefix[i], prefix[j + np.uintp(1)] - prefix[i + np.uintp(1)]
            sxx = prefix[j + np.uintp(2)] - prefix[i + np.uintp(2)]
            sy = prefix[j + np.uintp(3)] - prefix[i + np.uintp(3)]
            sxy = prefix[j + np.uintp(4)] - prefix[i + np.uintp(4)]
            syy = prefix[j + np.uintp(5)] - prefix[i + np.uintp(5)]
            # about the segment's own means: what is subtracted below is then small
            ax, ay = sx / s1, sy / s1
            cxx, cxy, cyy = sxx - ax * sx, sxy - ax * sy, syy - ay * sy
            p = slopes[out]
            # f − y at the mean point, and the mean point's distance from m
            distance = (ax + mean_x) - m
            off = values[out] + p * distance - (ay + mean_y)
            loss += s1 * off * off + max(cyy - p * (2.0 * cxy - p * cxx), 0.0)
            g0 = 2.0 * s1 * off / n
            g1 = 2.0 * (p * cxx - cxy) / n + g0 * distance
            _add_gradient(theta, widths, values, slopes, factors, g0, g1, u, gradient)
            first = last
    return loss / n


@inner
def _copy_layers(widths, has_bias, source, target, to_wide):
    """Between parameters as the module has them and the same with zeros for absent biases."""
    narrow = wide = 0
    for layer in range(widths.size - 1):
        n_weights = widths[layer] * widths[layer + 1]
        n = n_weights + (widths[layer + 1] if has_bias else 0)
        for e in range(n):
            if to_wide:
                target[wide + e] = source[narrow + e]
            else:
                target[narrow + e] = source[wide + e]
        narrow += n
        wide += n_weights + widths[layer + 1]


@inner
def of_sums(data_at, n, widths, has_bias, alpha, theta, grad):
    """The sum of squares over all points; its gradient, divided by their number, into ``grad``.

    −1 where the loss is too small for sums to tell, or NaN; ``grad`` is then left alone.

    Args:
        data_at: Address of :attr:`FullBatch.data`.
        n: Points.
        widths: Of all layers, int64.
        has_bias: Of all layers.
        alpha: Slope of the activation where it is inactive.
        theta: The module's parameters, in its dtype.
        grad: Shape of theta.
    """
    x, prefix = (
        array_at(data_at, n, np.float64),
        array_at(data_at + 8 * n, (n + 1) * MOMENTS, np.float64),
    )
    means = array_at(data_at + 8 * (n + (n + 1) * MOMENTS), 2, np.float64)
    n_wide = 0
    for layer in range(widths.size - 1):
        n_wide += widths[layer + 1] * (widths[layer] + 1)
    wide, gradient = np.zeros(n_wide), np.empty(n_wide)
    _copy_layers(widths, has_bias, theta, wide, True)
    loss = value_and_gradient(wide, widths, alpha, x, prefix, means[0], means[1], gradient)
    if not loss * n >= LEAST_LOSS * prefix[n * MOMENTS + 5]:
        return -1.0
    _copy_layers(widths, has_bias, gradient, grad, False)
    return loss * n


@inner
def no_sums(data_at, n, widths, has_bias, alpha, theta, grad):
    """What stands for :func:`of_sums` in the loop of a model that has none."""
    return -1.0


@entry
def _prepare(real):
    def least_squares_prepare(x_at, y_at, n, mean_x, mean_y, prefix_at):
        x, y = array_at(x_at, n, np.float64), array_at(y_at, n, np.float64)
        _prefix_sums(x, y, mean_x, mean_y, array_at(prefix_at, (n + 1) * MOMENTS, np.float64))

    return least_squares_prepare


@entry
def _step(real):
    def least_squares_step(
        data_at, n, widths_at, n_widths, has_bias, alpha, theta_at, n_theta, loss_at, grad_at
    ):
        widths = array_at(widths_at, n_widths, np.int64)
        theta, grad = array_at(theta_at, n_theta, real), array_at(grad_at, n_theta, real)
        loss = array_at(loss_at, 1, np.float64)
        loss[0] = of_sums(data_at, n, widths, has_bias != 0, alpha, theta, grad)

    return least_squares_step


class FullBatch:
    """The sums of one data set, for any number of steps of any number of nets.

    Attribute ``data``: sorted x [N], prefix sums [N + 1, 6], the two means; float64.

    Args:
        x: Points, of any shape with N ≥ 1 numbers, finite.
        y: Targets, likewise.
    """

    def __init__(self, x, y):
        x, order = torch.sort(x.detach().reshape(-1).double(), stable=True)
        y = y.detach().reshape(-1).double()[order].contiguous()
        self.n = len(x)
        self.data = torch.empty(
            self.n + (self.n + 1) * MOMENTS + 2, dtype=torch.float64, device="cpu"
        )
        self.data[: self.n] = x
        # NumPy's sums do not depend on the number of threads
        means = [float(np.mean(t.numpy())) for t in (x, y)]
        self.data[-2], self.data[-1] = means
        prefix_at = self.data.data_ptr() + 8 * self.n
        _prepare[torch.float64](x.data_ptr(), y.data_ptr(), self.n, *means, prefix_at)

    def value_and_gradient(self, theta, widths, alpha, has_bias=True):
        """Loss and gradient of one net: a tensor of one number, and one like theta; the loss is
        negative where it is too small for sums to tell.

        Args:
            theta: Flat parameters, float32 or float64.
            widths: Of all layers, int64, ``[1, H₁, …, 1]``.
            alpha: Slope of the activation where it is inactive.
            has_bias: Whether theta has biases.
        """
        loss, grad = torch.empty(1, dtype=torch.float64, device="cpu"), torch.empty_like(theta)
        _step[theta.dtype](
            self.data.data_ptr(), self.n, widths.data_ptr(), len(widths), has_bias, alpha,
            theta.data_ptr(), len(theta), loss.data_ptr(), grad.data_ptr(),
        )  # fmt: skip
        return loss / self.n, grad
