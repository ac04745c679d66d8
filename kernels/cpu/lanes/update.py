"""One step of an optimizer on many models at once, a model a lane."""

import math

from ...runs import OPTIMIZERS
from ...spec import for_each
from ..machine.jit import fma, inner, narrowed, select, widened
from ..machine.vectors import LANE_BYTES, any_lane, load, load_wide, splat, splat_wide, store
from ..training.optimizers import ADAM, SGD, adam_number

# a branch of `update` each
for_each(OPTIMIZERS, ("sgd", "adam", "adamw"), "optimizer")

B = LANE_BYTES

HYPER = (
    "clip_norm",
    "weight_decay",
    "momentum",
    "dampening",
    "nesterov",
    "beta1",
    "beta2",
    "eps",
)
"""Settings that each model has of its own, as columns of float64."""

CLIP, DECAY, MOMENTUM, DAMPENING, NESTEROV, BETA1, BETA2, EPS = range(len(HYPER))


@inner
def lanes_norm(grad, trained, real):
    """The norm of the parts of a gradient that are trained, float64."""
    total = splat_wide(0.0, real)
    for s in range(trained.size // 2):
        for e in range(grad + trained[2 * s] * B, grad + trained[2 * s + 1] * B, B):
            g = widened(load(e, real))
            total = fma(g, g, total)
    return math.sqrt(total)


@inner
def _setting(at, column, real):
    return load_wide(at.hyper + 8 * column * at.lanes, real)


@inner
def _clip(at, trained, n, real):
    bound = _setting(at, CLIP, real)
    factor = bound / (lanes_norm(at.grad, trained, real) + 1e-6)
    factor = narrowed(select(factor < 1.0, factor, 1.0), real)
    for e in range(at.grad, at.grad + n * B, B):
        store(e, load(e, real) * factor)


@inner
def _sgd(at, trained, lr, is_first, real):
    rate = narrowed(lr, real)
    decay = narrowed(_setting(at, DECAY, real), real)
    momentum = narrowed(_setting(at, MOMENTUM, real), real)
    take = narrowed(1.0 - _setting(at, DAMPENING, real), real)
    has_momentum = momentum != 0
    is_nesterov = _setting(at, NESTEROV, real) != 0
    # the buffer starts as the first gradient
    keep, take = select(is_first, real(0), momentum), select(is_first, real(1), take)
    with_momentum = any_lane(has_momentum)
    for s in range(trained.size // 2):
        for e in range(trained[2 * s] * B, trained[2 * s + 1] * B, B):
            p = load(at.theta + e, real)
            g = load(at.grad + e, real) + decay * p
            if with_momentum:
                old = load(at.moment1 + e, real)
                m = keep * old + take * g
                store(at.moment1 + e, select(has_momentum, m, old))
                moved = select(is_nesterov, g + momentum * m, m)
                g = select(has_momentum, moved, g)
            store(at.theta + e, p - rate * g)


@inner
def _adam(at, trained, lr, power1, power2, is_coupled, real):
    beta1 = _setting(at, BETA1, real)
    beta2 = _setting(at, BETA2, real)
    decay = _setting(at, DECAY, real)
    least = narrowed(_setting(at, EPS, real), real)
    step_size = narrowed(lr / (1.0 - power1), real)
    root_scale = narrowed(1.0 / math.sqrt(1.0 - power2), real)
    rest1, keep2 = narrowed(1.0 - beta1, real), narrowed(beta2, real)
    root2 = narrowed(math.sqrt(1.0 - beta2), real)
    shrink, coupled = splat(real(1), real), splat(real(0), real)
    if is_coupled:
        coupled = narrowed(decay, real)
    else:
        shrink = narrowed(1.0 - lr * decay, real)
    for s in range(trained.size // 2):
        for e in range(trained[2 * s] * B, trained[2 * s + 1] * B, B):
            p, m, v = adam_number(
                load(at.theta + e, real), load(at.grad + e, real), load(at.moment1 + e, real),
                load(at.moment2 + e, real), shrink, coupled, rest1, keep2, root2, step_size,
                root_scale, least, real(math.inf),
            )  # fmt: skip
            store(at.theta + e, p)
            store(at.moment1 + e, m)
            store(at.moment2 + e, v)


@inner
def update(run, at, trained, moves, real):
    """A step of the lanes in ``moves``; what it does to others, the caller undoes."""
    if run.clips != 0:
        _clip(at, trained, run.n_parameters, real)
    lr, count = load_wide(at.rate, real), load_wide(at.updates, real)
    store(at.updates, count + select(moves, splat_wide(1.0, real), 0.0))
    if run.optimizer == SGD:
        _sgd(at, trained, lr, count == 0, real)
        return
    power1, power2 = load_wide(at.power1, real), load_wide(at.power2, real)
    power1 = power1 * select(moves, _setting(at, BETA1, real), 1.0)
    power2 = power2 * select(moves, _setting(at, BETA2, real), 1.0)
    store(at.power1, power1)
    store(at.power2, power2)
    _adam(at, trained, lr, power1, power2, run.optimizer == ADAM, real)
