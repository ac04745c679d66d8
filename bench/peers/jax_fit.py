"""Training runs as JAX programs: `jit` of `scan` over epochs and batches, `vmap` over models.

float32, as JAX has it by default.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EPS = 1e-8


def _adamw(theta, grads, state, lr, weight_decay, beta1=0.9, beta2=0.999):
    m, v, step = state
    step = step + 1
    correct1, correct2 = 1 - beta1**step, 1 - beta2**step

    def update(p, g, m, v):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p * (1 - lr * weight_decay)
        return p - lr / correct1 * m / (jnp.sqrt(v) / jnp.sqrt(correct2) + EPS), m, v

    out = jax.tree.map(update, theta, grads, m, v)
    pick = lambda i: jax.tree.map(lambda t: t[i], out, is_leaf=lambda t: isinstance(t, tuple))  # noqa: E731
    return pick(0), (pick(1), pick(2), step)


def _sgd(theta, grads, state, lr, weight_decay):
    return jax.tree.map(lambda p, g: p - lr * (g + weight_decay * p), theta, grads), state


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}


def _trainer(predict, x, y, batch_size, epochs, lr, weight_decay, optimizer="adamw"):
    """Function of one model's weights; the batches come in order."""
    n_batches = len(x) // batch_size
    xs = x[: n_batches * batch_size].reshape(n_batches, batch_size, *x.shape[1:])
    ys = y[: n_batches * batch_size].reshape(n_batches, batch_size, *y.shape[1:])

    def loss(theta, xb, yb):
        return jnp.mean((predict(theta, xb) - yb) ** 2)

    def step(carry, batch):
        theta, state = carry
        value, grads = jax.value_and_grad(loss)(theta, *batch)
        return OPTIMIZERS[optimizer](theta, grads, state, lr, weight_decay), value

    def epoch(carry, _):
        carry, losses = lax.scan(step, carry, (xs, ys))
        return carry, losses.mean()

    def train(theta):
        zeros = jax.tree.map(jnp.zeros_like, theta)
        (theta, _), losses = lax.scan(epoch, (theta, (zeros, zeros, 0.0)), length=epochs)
        return theta, losses

    return train


def compiled(predict, theta, x, y, **options):
    """Train models from their weights ``theta``, arrays by name with a first dimension of models.

    Args:
        predict: Function of (one model's weights, a batch).
        theta: NumPy arrays.
        x: Inputs, a NumPy array.
        y: Targets, likewise.
        options: ``batch_size``, ``epochs``, ``lr``, ``weight_decay``, ``optimizer``.

    Returns:
        ``run`` and the seconds that compiling took; ``run()`` returns the weights and the loss of
        each epoch as NumPy arrays.
    """
    train = jax.vmap(_trainer(predict, jnp.asarray(x), jnp.asarray(y), **options))
    theta = {name: jnp.asarray(value) for name, value in theta.items()}
    began = time.perf_counter()
    program = jax.jit(train).lower(theta).compile()
    seconds = time.perf_counter() - began

    def run():
        return jax.tree.map(np.asarray, program(theta))

    return run, seconds
