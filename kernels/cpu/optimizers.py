"""One step of an optimizer on flat parameters: what `training.py` does after a batch's gradient,
and what a plain loop does with all parameters of a group."""

import math

import numpy as np

from ..runs import OPTIMIZERS
from .jit import array_at, entry, estimated_quotients, inner

SGD, ADAM, ADAMW = (OPTIMIZERS.index(name) for name in ("sgd", "adam", "adamw"))


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
def _adam(p, g, m, v, lr, power1, power2, beta1, beta2, eps, weight_decay, decoupled, real):
    """torch.optim.Adam, or AdamW if ``decoupled``; the powers are β₁ⁿ and β₂ⁿ of step n."""
    estimated_quotients()
    step_size, root_scale = real(lr / (1 - power1)), real(1 / math.sqrt(1 - power2))
    rest1, keep2, rest2, least = real(1 - beta1), real(beta2), real(1 - beta2), real(eps)
    shrink = real(1 - lr * weight_decay if decoupled else 1.0)
    coupled = real(0.0 if decoupled else weight_decay)
    for e in range(p.size):
        pe = p[e] * shrink
        ge = g[e] + coupled * pe
        me = m[e] + rest1 * (ge - m[e])
        ve = keep2 * v[e] + rest2 * (ge * ge)
        m[e] = me
        v[e] = ve
        p[e] = pe - step_size * (me / (math.sqrt(ve) * root_scale + least))


@inner
def _norm(grad, segments):
    total = 0.0
    for s in range(segments.size // 2):
        for e in range(segments[2 * s], segments[2 * s + 1]):
            total += np.float64(grad[np.uintp(e)]) ** 2
    return math.sqrt(total)


@inner
def update(run, state, lr, theta, moment1, moment2, grad, segments, real):
    """One step of the optimizer on every parameter that is trained."""
    if run.clip_norm < math.inf:
        # torch.nn.utils.clip_grad_norm_
        factor = run.clip_norm / (_norm(grad, segments) + 1e-6)
        if factor < 1:
            for e in range(grad.size):
                grad[e] *= real(factor)
    is_first = state.updates == 0
    state.updates += 1
    state.beta1_power *= run.beta1
    state.beta2_power *= run.beta2
    for s in range(segments.size // 2):
        start, stop = segments[2 * s], segments[2 * s + 1]
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


@entry
def _adam_steps(real):
    def adam_steps(table_at, n, lr, beta1, beta2, eps, weight_decay, decoupled):
        estimated_quotients()
        table = array_at(table_at, 6 * n, np.int64)
        for i in range(n):
            size = table[6 * i + 5]
            p, g = array_at(table[6 * i], size, real), array_at(table[6 * i + 1], size, real)
            m, v = array_at(table[6 * i + 2], size, real), array_at(table[6 * i + 3], size, real)
            step = array_at(table[6 * i + 4], 1, np.float32)
            step[0] += 1
            count = np.float64(step[0])
            powers = beta1**count, beta2**count
            _adam(p, g, m, v, lr, *powers, beta1, beta2, eps, weight_decay, decoupled, real)

    return adam_steps


def adam_steps(dtype, table, lr, beta1, beta2, eps, weight_decay, decoupled):
    """One step of Adam, or of AdamW if ``decoupled``, in place on each parameter of a table.

    Its rows: addresses of the parameter, gradient, two moments and float32 count of steps, size.
    """
    address, length = table.buffer_info()
    _adam_steps[dtype](
        address, length // 6, float(lr), float(beta1), float(beta2), float(eps),
        float(weight_decay), bool(decoupled),
    )  # fmt: skip
