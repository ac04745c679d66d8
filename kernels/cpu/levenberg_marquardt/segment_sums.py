"""Least squares of a univariate net 1 → H → 1 with (leaky) ReLU at a cost that does not ask for N.

Between two breakpoints f and every ∂f/∂θ are affine in x. With x sorted, a segment holds a range of
rows, and prefix sums give its weight n, means x̄, ȳ and centred sums Sxx, Sxy, Syy. The rows of the
segment then count as two, J(x̄)·√n and J'·√Sxx, with the residuals (f(x̄) − ȳ)·√n and
(f' − Sxy/Sxx)·√Sxx, and what no affine function removes, Syy − Sxy²/Sxx. JᵀJ, Jᵀr, R and the sum of
squares are those of all rows.
"""

import math

import numpy as np

from ..layers.jacobian import parts
from ..machine.jit import inner, named
from ..numbers.block_activations import LEAKY_RELU
from ..numbers.linalg import dot
from ..numbers.tile import TILE
from ..subnet.jacobian import NUMBERS
from .steps import LOSS, take_rows

N_SUMS = 6
"""Of w, w·x, w·y, w·x², w·x·y, w·y², with the weights w of the rows, x and y centred."""


@inner
def _first_active_row(x, w, b):
    """Where the sign of w·x + b changes in sorted x: the number of rows below the breakpoint."""
    low, high = 0, x.size
    while low < high:
        middle = (low + high) // 2
        z = w * x[middle] + b
        below = z <= 0 if w > 0 else z > 0
        if below:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _segment_rows(net, reals, theta, x, sums, centre, first, last, rows, at, residual):
    """Write the two rows of the segment [first, last) at column ``at``; return what is left."""
    widths, biases, codes = parts(net, 2)
    n_hidden, bias1, bias2 = widths[1], biases[0], biases[1]
    below = named(reals, NUMBERS).slope if codes[0] == LEAKY_RELU else 0.0
    at_v = n_hidden * (1 + bias1)
    stride = x.size + 1
    weight = sums[last] - sums[first]
    sum_x = sums[stride + last] - sums[stride + first]
    sum_y = sums[2 * stride + last] - sums[2 * stride + first]
    inverse = 1.0 / weight if weight > 0 else 0.0
    x_mean, y_mean = sum_x * inverse, sum_y * inverse
    s_xx = sums[3 * stride + last] - sums[3 * stride + first] - sum_x * x_mean
    s_xy = sums[4 * stride + last] - sums[4 * stride + first] - sum_x * y_mean
    s_yy = sums[5 * stride + last] - sums[5 * stride + first] - sum_y * y_mean
    if last - first < 2 or not s_xx > 0:
        s_xx = s_xy = 0.0
    slope = s_xy / s_xx if s_xx > 0 else 0.0
    heavy, wide = math.sqrt(weight), math.sqrt(s_xx)
    point = x_mean + centre[0]
    middle = x[(first + last) // 2]
    value, derivative = theta[at_v + n_hidden] if bias2 else 0.0, 0.0
    for k in range(n_hidden):
        w, b, v = theta[k], theta[n_hidden + k] if bias1 else 0.0, theta[at_v + k]
        s = 1.0 if w * middle + b > 0 else below
        value += v * s * (w * point + b)
        derivative += v * s * w
        rows[k * TILE + at] = heavy * v * s * point
        rows[k * TILE + at + 1] = wide * v * s
        if bias1:
            rows[(n_hidden + k) * TILE + at] = heavy * v * s
            rows[(n_hidden + k) * TILE + at + 1] = 0.0
        rows[(at_v + k) * TILE + at] = heavy * s * (w * point + b)
        rows[(at_v + k) * TILE + at + 1] = wide * s * w
    if bias2:
        rows[(at_v + n_hidden) * TILE + at] = heavy
        rows[(at_v + n_hidden) * TILE + at + 1] = 0.0
    residual[at] = heavy * (value - (y_mean + centre[1]))
    residual[at + 1] = wide * (derivative - slope)
    return max(s_yy - slope * s_xy, 0.0)


@inner
def evaluate_segments(ask, net, reals, theta, p, ld, at, x, sums, centre, factor, rotated):
    """The sum of squares of all rows; adds JᵀJ and Jᵀr, or folds the rows into R and Qᵀr.

    Of R only the columns from ``at`` on. ``sums`` [N_SUMS, N + 1]: prefix sums of what is centred
    at ``centre``.
    """
    widths, biases, _ = parts(net, 2)
    n_hidden, bias = widths[1], biases[0]
    cuts = np.empty(n_hidden + 2, np.int64)
    for k in range(n_hidden):
        cuts[k] = _first_active_row(x, theta[k], theta[n_hidden + k] if bias else 0.0)
    cuts[n_hidden], cuts[n_hidden + 1] = 0, x.size
    for i in range(1, cuts.size):
        cut, j = cuts[i], i
        while j > 0 and cuts[j - 1] > cut:
            cuts[j] = cuts[j - 1]
            j -= 1
        cuts[j] = cut
    rows, residual = np.zeros(ld * TILE), np.zeros(TILE)
    total, n = 0.0, 0
    for i in range(cuts.size):
        is_end = i == cuts.size - 1
        if not is_end and cuts[i + 1] > cuts[i]:
            total += _segment_rows(
                net, reals, theta, x, sums, centre, cuts[i], cuts[i + 1], rows, n, residual
            )
            n += 2
        if n > 0 and (is_end or n + 2 > TILE):
            total += dot(residual[:n], residual[:n])
            if ask != LOSS:
                take_rows(ask, rows, n, p, ld, at, residual, factor, rotated)
            n = 0
    return total
