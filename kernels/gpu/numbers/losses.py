"""Losses of a batch and their slopes."""

import triton
import triton.language as tl

from ...runs import LOSSES
from ...spec import for_each

for_each(LOSSES, ("mse", "sse", "l1", "huber", "bce_with_logits"), "loss")


@triton.jit
def loss_and_slope(y_hat, y, LOSS: tl.constexpr):
    """ℓ(ŷ, y) and ∂ℓ/∂ŷ; Huber's δ is 1."""
    d = y_hat - y
    if LOSS == "mse" or LOSS == "sse":
        return d * d, d + d
    elif LOSS == "l1":
        # NaN stays NaN, 0 stays 0
        return tl.abs(d), tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, d))
    elif LOSS == "huber":
        far = tl.abs(d) > 1.0
        slope = tl.where(far, tl.where(d > 0.0, 1.0, -1.0), d)
        return tl.where(far, tl.abs(d) - 0.5, 0.5 * d * d), slope
    else:
        t = tl.exp(-tl.abs(y_hat))
        slope = tl.where(y_hat >= 0.0, 1.0, t) / (1.0 + t) - y
        return tl.where(y_hat >= 0.0, y_hat, y_hat * 0.0) - y_hat * y + log1p(t), slope


@triton.jit
def log1p(t):
    """log(1 + t) for 0 ≤ t ≤ 1 with small t right: log(u)·t/(u − 1), u = 1 + t rounded."""
    u = 1.0 + t
    return tl.where(u == 1.0, t, tl.log(u) * (t / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def loss_and_gradient(y_hat, y, weight, wanted, scale, LOSS: tl.constexpr):
    """Σ w·ℓ(ŷ, y) over what is wanted of a tile, in float64, and scale·w·∂ℓ/∂ŷ, 0 elsewhere."""
    loss, slope = loss_and_slope(y_hat, y, LOSS)
    total = tl.sum(tl.where(wanted, weight * loss, 0.0).to(tl.float64))
    return total, tl.where(wanted, scale * weight * slope, 0.0)
