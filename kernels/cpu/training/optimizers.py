"""One step of an optimizer on flat parameters: what `loop.py` does after a batch's gradient,
and what a plain loop does with all parameters of a group."""

import math

import numpy as np

from ...runs import OPTIMIZERS
from ...spec import for_each
from ..machine.jit import array_at, entry, estimated_quotients, inner, select

SGD, ADAM, ADAMW = range(len(OPTIMIZERS))
for_each(OPTIMIZERS, ("sgd", "adam", "adamw"), "optimizer")


@inner
def _sgd(p, g, m, lr, momentum, dampening, nesterov, weight_decay, is_first):
    """torch.optim.SGD: its buffer starts as the first gradient."""
    if momentum == 0:
        for e in range(p.size):
            p[e] -= lr * (g[e] + weight_decay * p[e])
        return
    keep, take = momentum, dampening
    if is_first:
        keep, take = momentum * 0, momentum / momentum
    if nesterov:
        for e in range(p.size):
            ge = g[e] + weight_decay * p[e]
            m[e] = keep * m[e] + take * ge
            p[e] -= lr * (ge + momentum * m[e])
    else:
        for e in range(p.size):
            m[e] = keep * m[e] + take * (g[e] + weight_decay * p[e])
            p[e] -= lr * m[e]


@inner
def adam_number(
    p, g, m, v, shrink, coupled, rest1, keep2, root2, step_size, root_scale, least, inf
):
    """What Adam makes of one parameter and its moments; numbers, or vectors of a model a lane."""
    p = p * shrink
    g = select(coupled != 0, g + coupled * p, g)  # 0 times an infinite p is NaN
    m = m + rest1 * (g - m)
    # not (1 − β₂)·g², of which g² overflows alone
    small = root2 * g
    v = keep2 * v + small * small
    below = math.sqrt(v) * root_scale + least
    # an estimated reciprocal of 0 is NaN
    return p - step_size * select(below != 0, m / below, m * inf), m, v


@inner
def _adam(p, g, m, v, lr, power1, power2, beta1, beta2, eps, weight_decay, decoupled, real):
    """torch.optim.Adam, or AdamW if ``decoupled``; the powers are β₁ⁿ and β₂ⁿ of step n."""
    estimated_quotients()
    step_size, root_scale = real(lr / (1 - power1)), real(1 / math.sqrt(1 - power2))
    rest1, keep2, least = real(1 - beta1), real(beta2), real(eps)
    root2, inf = real(math.sqrt(1 - beta2)), real(math.inf)
    shrink = real(1 - lr * weight_decay if decoupled else 1.0)
    coupled = real(0.0 if decoupled else weight_decay)
    for e in range(p.size):
        p[e], m[e], v[e] = adam_number(
            p[e], g[e], m[e], v[e], shrink, coupled, rest1, keep2, root2, step_size, root_scale,
            least, inf,
        )  # fmt: skip


@inner
def norm(grad, trained):
    """The norm of those parts of a gradient that are trained."""
    total = 0.0
    for s in range(trained.size // 2):
        for e in range(trained[2 * s], trained[2 * s + 1]):
            total += np.float64(grad[np.uintp(e)]) ** 2
    return math.sqrt(total)


@inner
def update(run, state, lr, theta, moment1, moment2, grad, trained, real):
    """One step of the optimizer on every parameter that is trained."""
    if run.clip_norm < math.inf:
        # torch.nn.utils.clip_grad_norm_
        factor = run.clip_norm / (norm(grad, trained) + 1e-6)
        if factor < 1:
            for e in range(grad.size):
                grad[e] *= real(factor)
    is_first = state.updates == 0
    state.updates += 1
    state.beta1_power *= run.beta1
    state.beta2_power *= run.beta2
    for s in range(trained.size // 2):
        start, stop = trained[2 * s], trained[2 * s + 1]
        p, g, m, v = theta[start:stop], grad[start:stop], moment1[start:stop], moment2[start:stop]
        if run.optimizer == SGD:
            _sgd(
                p,
                g,
                m,
                real(lr),
                real(run.momentum),
                real(1 - run.dampening),
                run.nesterov != 0,
                real(run.weight_decay),
                is_first,
            )
        else:
            _adam(
                p,
                g,
                m,
                v,
                lr,
                state.beta1_power,
                state.beta2_power,
                run.beta1,
                run.beta2,
                run.eps,
                run.weight_decay,
                run.optimizer == ADAMW,
                real,
            )


@inner
def _one_more(step):
    step[0] += 1
    return np.float64(step[0])


@inner
def _rows_apart(places, sizes, n, itemsize):
    """Number of leading rows each of whose pieces of memory is there, and apart from the others."""
    for i in range(n):
        row = places[4 * i], places[4 * i + 1], places[4 * i + 2], places[4 * n + i]
        count, length = places[4 * i + 3], sizes[2 * i] * itemsize
        for j in range(4):
            if length > 0 and row[j] == 0:
                return i
            if row[j] < count + sizes[2 * i + 1] and count < row[j] + length:
                return i
            for k in range(j):
                if abs(row[j] - row[k]) < length:
                    return i
    return n


@entry
def _adam_steps(real):
    itemsize = np.dtype(real).itemsize

    def adam_steps(places_at, sizes_at, n, numbers_at):
        estimated_quotients()
        places, sizes = array_at(places_at, 5 * n, np.int64), array_at(sizes_at, 2 * n, np.int64)
        numbers = array_at(numbers_at, 6, np.float64)
        lr, beta1, beta2 = numbers[0], numbers[1], numbers[2]
        eps, weight_decay, decoupled = numbers[3], numbers[4], numbers[5] != 0
        n_apart = _rows_apart(places, sizes, n, itemsize)
        for i in range(n_apart):
            size = sizes[2 * i]
            p, g = array_at(places[4 * i], size, real), array_at(places[4 * n + i], size, real)
            m, v = array_at(places[4 * i + 1], size, real), array_at(places[4 * i + 2], size, real)
            if sizes[2 * i + 1] == 4:
                count = _one_more(array_at(places[4 * i + 3], 1, np.float32))
            else:
                count = _one_more(array_at(places[4 * i + 3], 1, np.float64))
            powers = beta1**count, beta2**count
            _adam(p, g, m, v, lr, *powers, beta1, beta2, eps, weight_decay, decoupled, real)
        return n_apart

    return adam_steps


def adam_steps(dtype, n, places_at, sizes_at, numbers_at):
    """One step of Adam, or of AdamW if ``decoupled``, in place on ``n`` parameters.

    Returns how many it took: it stops before one that shares memory with its own gradient, moments
    or count.

    Args:
        dtype: Of parameters, gradients and moments.
        n: Number of parameters.
        places_at: Address of addresses, int64: of each parameter, its two moments and its count of
            steps; then of all gradients.
        sizes_at: Address of numbers of each parameter and bytes of its count, float32 or float64;
            int64.
        numbers_at: Address of lr, two betas, eps, weight_decay, ``decoupled``; float64.
    """
    return _adam_steps[dtype](places_at, sizes_at, n, numbers_at)
