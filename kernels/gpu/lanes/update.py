"""One step of an optimizer, a model a lane."""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import runs
from ...spec import for_each
from ..training.loop import (
    BETA1,
    BETA2,
    CLIP_NORM,
    DAMPENING,
    EPS,
    MOMENTUM,
    NESTEROV,
    WEIGHT_DECAY,
)


@triton.jit
def sgd_settings(hyper, COMPUTE: tl.constexpr):
    """Decay, momentum, what is taken of a gradient, and whether Nesterov's rule holds."""
    return (
        hyper[WEIGHT_DECAY].to(COMPUTE),
        hyper[MOMENTUM].to(COMPUTE),
        (1.0 - hyper[DAMPENING]).to(COMPUTE),
        hyper[NESTEROV].to(COMPUTE),
    )


@triton.jit
def sgd_step(settings, lr, updates, power1, power2, COMPUTE: tl.constexpr):
    """What all numbers of a model share in a step."""
    decay, momentum, rest, nesterov = settings
    return decay, momentum, rest, nesterov, lr.to(COMPUTE), updates


@triton.jit
def sgd_number(p, g, m, v, step, MOMENTS: tl.constexpr):
    """torch.optim.SGD: its buffer starts as the first gradient."""
    decay, momentum, rest, nesterov, rate, updates = step
    g += decay * p
    if MOMENTS == 0:
        return p - rate * g, m, v
    else:
        m = tl.where(momentum == 0.0, g, tl.where(updates == 1, g, momentum * m + rest * g))
        moved = tl.where(nesterov != 0.0, g + momentum * m, m)
        return p - rate * moved, tl.where(momentum == 0.0, 0.0, m), v


@triton.jit
def adam_settings(hyper, COMPUTE: tl.constexpr):
    """Decay in float64, 1 - β1, β2, 1 - β2 and ε."""
    beta2 = hyper[BETA2]
    return (
        hyper[WEIGHT_DECAY],
        (1.0 - hyper[BETA1]).to(COMPUTE),
        beta2.to(COMPUTE),
        (1.0 - beta2).to(COMPUTE),
        hyper[EPS].to(COMPUTE),
    )


@triton.jit
def adam_step(settings, lr, updates, power1, power2, COMPUTE: tl.constexpr):
    """What all numbers of a model share in a step, Adam's decay and AdamW's shrinking among it."""
    decay, rest1, beta2, rest2, eps = settings
    size = lr.to(COMPUTE) / (1.0 - power1).to(COMPUTE)
    root = 1.0 / tl.sqrt((1.0 - power2).to(COMPUTE))
    shrink = (1.0 - lr * decay).to(COMPUTE)
    return decay.to(COMPUTE), shrink, rest1, beta2, rest2, eps, size, root


@triton.jit
def adam_number(p, g, m, v, step, MOMENTS: tl.constexpr):
    """torch.optim.Adam: decay joins the gradient."""
    decay, _, rest1, beta2, rest2, eps, size, root = step
    return adam_moved(p, g + decay * p, m, v, rest1, beta2, rest2, eps, size, root)


@triton.jit
def adamw_number(p, g, m, v, step, MOMENTS: tl.constexpr):
    """torch.optim.AdamW: decay shrinks the parameters."""
    _, shrink, rest1, beta2, rest2, eps, size, root = step
    return adam_moved(p * shrink, g, m, v, rest1, beta2, rest2, eps, size, root)


@triton.jit
def adam_moved(p, g, m, v, rest1, beta2, rest2, eps, size, root):
    m += rest1 * (g - m)
    v = beta2 * v + rest2 * (g * g)
    return p - size * (m / (tl.sqrt(v) * root + eps)), m, v


@triton.jit
def clip_factor(grad, scale, hyper, TRAINED: tl.constexpr, N: tl.constexpr, COMPUTE: tl.constexpr):
    """min(1, clip_norm / (‖scale·g‖ + 1e-6)), as torch.nn.utils.clip_grad_norm_."""
    norm = scale * tl.sqrt(squared_norm(grad, TRAINED, N).to(COMPUTE))
    bound = hyper[CLIP_NORM].to(COMPUTE)
    return tl.minimum(1.0, bound / (norm + 1e-6))


@triton.jit
def squared_norm(grad, TRAINED: tl.constexpr, N: tl.constexpr):
    """‖g‖² of what is trained, float64."""
    total = tl.zeros_like(grad[0]).to(tl.float64)
    for k in tl.static_range(N):
        if TRAINED[k]:
            g = grad[k].to(tl.float64)
            total += g * g
    return total


@triton.jit
def updated(
    theta, grad, m, v, factor, step, moves, NUMBER: tl.constexpr, TRAINED: tl.constexpr,
    MOMENTS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Parameters and moments after a step with ``factor``·grad, of the lanes that move."""
    new_theta = ()
    new_m = ()
    new_v = ()
    for k in tl.static_range(N):
        p = theta[k]
        first = m[k] if MOMENTS > 0 else p
        second = v[k] if MOMENTS > 1 else p
        if TRAINED[k]:
            p, new_first, new_second = NUMBER(p, grad[k] * factor, first, second, step, MOMENTS)
            p = tl.where(moves, p, theta[k])
            first = tl.where(moves, new_first, first)
            second = tl.where(moves, new_second, second)
        new_theta = new_theta + (p,)  # noqa: RUF005
        if MOMENTS > 0:
            new_m = new_m + (first,)  # noqa: RUF005
        if MOMENTS > 1:
            new_v = new_v + (second,)  # noqa: RUF005
    return new_theta, new_m, new_v


class Update(NamedTuple):
    """An optimizer: functions of its settings, of a step, of a number, and arrays of moments."""

    settings: object
    step: object
    number: object
    moments: int


OPTIMIZERS = {
    "sgd": Update(sgd_settings, sgd_step, sgd_number, 1),
    "adam": Update(adam_settings, adam_step, adam_number, 2),
    "adamw": Update(adam_settings, adam_step, adamw_number, 2),
}
for_each(runs.OPTIMIZERS, OPTIMIZERS, "optimizer")
