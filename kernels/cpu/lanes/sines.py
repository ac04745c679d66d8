"""Sums of sines of many models at once, a model a lane: the verbs of `loop.py`.

Forward leaves the cosines, and the sines where amplitudes are learned, as [width, numbers] vectors;
backward takes sums along them. The angles are those of `numbers/sine.py`.
"""

import numpy as np

from ..machine.jit import array_at, fma, inner, rint
from ..machine.vectors import LANE_BYTES, load, splat, store
from ..numbers.sine import COS, SIN, turns_per_unit

SINES = np.dtype(
    [
        ("items", np.int64),  # numbers in a row
        ("width", np.int64),
        ("amplitude", np.int64),  # the first of its parameters, or -1
        ("phase", np.int64),
        ("turns", np.float64),  # per unit of w·x
        ("factor", np.float64),  # of the sum
        ("values", np.int64),  # places in a block's memory, in vectors: of the sums
        ("cosines", np.int64),
        ("sines", np.int64),
    ]
)
"""What the verbs know of a sum of sines."""

B = LANE_BYTES
TURNS_PER_RADIAN = turns_per_unit(1.0)


def sines_forward(real):
    """The verb forward of sums of sines."""
    sin_turns, cos_turns = SIN[real], COS[real]

    @inner
    def lanes_forward(at, x, n_rows, net_at, n_net, place):
        """Fill a block's memory; returns where the outputs [rows, items] are."""
        theta, kept = at.theta, at.kept
        net = array_at(net_at, 1, SINES)[0]
        n = n_rows * net.items
        y = kept + net.values * B
        # turns in two parts: the products below keep its digits
        high = real(net.turns)
        low = real(net.turns - np.float64(high))
        is_exact = net.turns == 0.5 and net.phase < 0
        for r in range(0, n * B, B):
            store(y + r, splat(real(0), real))
        cosines, sines = kept + net.cosines * B, kept + net.sines * B
        for i in range(net.width):
            w = load(theta + i * B, real)
            hi = w * high
            lo = fma(w, high, -hi) + w * low
            shift, a = splat(real(0), real), splat(real(1), real)
            if net.phase >= 0:
                shift = load(theta + (net.phase + i) * B, real) * real(TURNS_PER_RADIAN)
            if net.amplitude >= 0:
                a = load(theta + (net.amplitude + i) * B, real)
            for r in range(0, n * B, B):
                xr = load(x + r, real)
                u = fma(hi, xr, -rint(hi * xr))
                if not is_exact:
                    u = fma(lo, xr, u) + shift
                u -= rint(u)
                sine = sin_turns(u)
                store(cosines + r, cos_turns(u))
                if net.amplitude >= 0:
                    store(sines + r, sine)
                    sine = a * sine
                store(y + r, load(y + r, real) + sine)
            cosines, sines = cosines + n * B, sines + n * B
        for r in range(0, n * B, B):
            store(y + r, load(y + r, real) * real(net.factor))
        return y

    return lanes_forward


def sines_backward(real):
    """The verb backward of sums of sines."""

    @inner
    def lanes_backward(at, x, n_rows, net_at, n_net, place, grad):
        """Add to ``grad``; writes over ``at.dy`` and ``at.spare``."""
        theta, dy, kept, spare = at.theta, at.dy, at.kept, at.spare
        net = array_at(net_at, 1, SINES)[0]
        n = n_rows * net.items
        factor = real(net.factor)
        radians = real(net.turns / TURNS_PER_RADIAN)
        for r in range(0, n * B, B):
            g = load(dy + r, real) * factor
            store(dy + r, g)
            store(spare + r, g * load(x + r, real) * radians)
        cosines, sines = kept + net.cosines * B, kept + net.sines * B
        for i in range(net.width):
            zero = splat(real(0), real)
            dw = dphase = damplitude = zero
            for r in range(0, n * B, B):
                dw = fma(load(spare + r, real), load(cosines + r, real), dw)
            if net.phase >= 0:
                for r in range(0, n * B, B):
                    dphase = fma(load(dy + r, real), load(cosines + r, real), dphase)
            if net.amplitude >= 0:
                for r in range(0, n * B, B):
                    damplitude = fma(load(dy + r, real), load(sines + r, real), damplitude)
                at = (net.amplitude + i) * B
                a = load(theta + at, real)
                dw, dphase = a * dw, a * dphase
                store(grad + at, load(grad + at, real) + damplitude)
            if net.phase >= 0:
                at = (net.phase + i) * B
                store(grad + at, load(grad + at, real) + dphase)
            store(grad + i * B, load(grad + i * B, real) + dw)
            cosines, sines = cosines + n * B, sines + n * B

    return lanes_backward


def sines_jacobian(real):
    """The verb jacobian of sums of sines, see `least_squares.py`."""

    @inner
    def lanes_jacobian(at, x, n_rows, net_at, n_net, m, rows, stride):
        """Write ∂y/∂θ of each row, of one number."""
        net = array_at(net_at, 1, SINES)[0]
        cosines, sines = at.kept + net.cosines * B, at.kept + net.sines * B
        factor = splat(real(net.factor), real)
        radians = real(net.turns / TURNS_PER_RADIAN)
        for i in range(net.width):
            a, row = factor, rows + i * B
            if net.amplitude >= 0:
                a = factor * load(at.theta + (net.amplitude + i) * B, real)
            for r in range(0, n_rows * B, B):
                slope = a * load(cosines + r, real)
                store(row, slope * (load(x + r, real) * radians))
                if net.phase >= 0:
                    store(row + net.phase * B, slope)
                if net.amplitude >= 0:
                    store(row + net.amplitude * B, factor * load(sines + r, real))
                row += stride
            cosines, sines = cosines + n_rows * B, sines + n_rows * B

    return lanes_jacobian
