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

The seam: `prepare` once a data set, then `value_and_gradient` (an inner function, for the loop of
`training`) or `least_squares_step` (its entry point) once a step. Parameters are one flat float64
vector, W row by row and then b, layer after layer, as `nn.Linear` holds them; a layer without bias
keeps its zeros, and the caller ignores their gradient.
"""

import numpy as np
import torch

from .jit import array_at, entry, inner, inner_in_order

MOMENTS = 6
"""Sums kept for every prefix: of 1, x, x², y, xy and y², with x and y about their means."""


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
def _below(x, t):
    """How many of the sorted x are at most t."""
    low, high = 0, x.size
    while low < high:
        middle = (low + high) // 2
        if x[middle] <= t:
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
    for s in range(edges.size - 1):
        last = n if s == edges.size - 2 else _below(x, edges[s + 1])
        if last <= first:
            continue
        m = 0.5 * (edges[s] + edges[s + 1])
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


@entry
def _prepare(real):
    def least_squares_prepare(x_at, y_at, n, mean_x, mean_y, prefix_at):
        x, y = array_at(x_at, n, np.float64), array_at(y_at, n, np.float64)
        _prefix_sums(x, y, mean_x, mean_y, array_at(prefix_at, (n + 1) * MOMENTS, np.float64))

    return least_squares_prepare


@entry
def _step(real):
    def least_squares_step(
        theta_at, n_theta, widths_at, n_widths, alpha, x_at, n, prefix_at, mean_x, mean_y,
        loss_at, gradient_at,
    ):  # fmt: skip
        theta = array_at(theta_at, n_theta, np.float64)
        loss = array_at(loss_at, 1, np.float64)
        loss[0] = value_and_gradient(
            theta,
            array_at(widths_at, n_widths, np.int64),
            alpha,
            array_at(x_at, n, np.float64),
            array_at(prefix_at, (n + 1) * MOMENTS, np.float64),
            mean_x,
            mean_y,
            array_at(gradient_at, n_theta, np.float64),
        )

    return least_squares_step


class FullBatch:
    """The sums of one data set, for any number of steps of any number of nets.

    Args:
        x: Points, float64. Shape ``[N]``, N ≥ 1, finite.
        y: Targets, float64. Shape ``[N]``, finite.
    """

    def __init__(self, x, y):
        self.x, order = torch.sort(x.detach().reshape(-1).double(), stable=True)
        y = y.detach().reshape(-1).double()[order].contiguous()
        self.mean_x, self.mean_y = self.x.mean().item(), y.mean().item()
        n = len(self.x)
        self.prefix = torch.empty((n + 1) * MOMENTS, dtype=torch.float64)
        _prepare[torch.float64](
            self.x.data_ptr(), y.data_ptr(), n, self.mean_x, self.mean_y, self.prefix.data_ptr()
        )

    def value_and_gradient(self, theta, widths, alpha):
        """Loss and gradient of one net: a tensor of one number, and one of the shape of theta.

        Args:
            theta: Flat parameters, float64.
            widths: Of all layers, int64, ``[1, H₁, …, 1]``.
            alpha: Slope of the activation where it is inactive.
        """
        loss, gradient = torch.empty(1, dtype=torch.float64), torch.empty_like(theta)
        _step[torch.float64](
            theta.data_ptr(), len(theta), widths.data_ptr(), len(widths), alpha,
            self.x.data_ptr(), len(self.x), self.prefix.data_ptr(), self.mean_x, self.mean_y,
            loss.data_ptr(), gradient.data_ptr(),
        )  # fmt: skip
        return loss, gradient
