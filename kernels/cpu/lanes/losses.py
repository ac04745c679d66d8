"""Losses of a block of outputs, a model a lane, with their derivatives."""

from ...runs import LOSSES
from ...spec import for_each
from ..machine.jit import fma, inner, select, widened
from ..machine.vectors import LANE_BYTES, load, splat, store
from ..numbers.activations import artanh_of, exponential_of

MSE, L1, HUBER, BCE, SSE = range(len(LOSSES))
for_each(LOSSES, ("mse", "l1", "huber", "bce_with_logits", "sse"), "loss")

B = LANE_BYTES


def losses(real):
    """Function of outputs: Σ w·ℓ(ŷ, y) of each lane in float64; writes dy = scale·w·∂ℓ/∂ŷ."""
    exponential = exponential_of(real)
    zero, half, one = real(0), real(0.5), real(1)
    rest = artanh_of(real)

    @inner
    def log1p(t):
        s = t / (t + real(2))
        q = s * s
        return real(2) * fma(s * q, rest(q), s)

    @inner
    def loss_and_slope(kind, y_hat, y):
        d = y_hat - y
        size = abs(d)
        sign = select(d > zero, one, -one)
        if kind == L1:
            # NaN stays NaN, 0 stays 0
            return size, select(size > zero, sign, d)
        if kind == HUBER:
            is_far = size > one
            return select(is_far, size - half, half * d * d), select(is_far, sign, d)
        if kind == BCE:
            t = exponential(-abs(y_hat))[0]
            is_up = y_hat >= zero
            above = select(is_up, y_hat, y_hat * zero)
            return above - y_hat * y + log1p(t), select(is_up, one, t) / (one + t) - y
        return d * d, d + d

    @inner
    def add_loss(kind, y_hat, y, weight, n_rows, n_out, scale, dy):
        """``weight`` is an address of one vector a row, or 0."""
        total = widened(splat(zero, real))
        at = 0
        for row in range(n_rows):
            if weight != 0:
                w = load(weight + row * B, real)
                factor = w * scale
                for _ in range(n_out):
                    loss, slope = loss_and_slope(kind, load(y_hat + at, real), load(y + at, real))
                    store(dy + at, slope * factor)
                    total = fma(widened(loss), widened(w), total)
                    at += B
            else:
                for _ in range(n_out):
                    loss, slope = loss_and_slope(kind, load(y_hat + at, real), load(y + at, real))
                    store(dy + at, slope * scale)
                    total += widened(loss)
                    at += B
        return total

    return add_loss
