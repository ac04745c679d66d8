"""Training runs as JAX programs: `jit` of `scan` over epochs and batches, `vmap` over models.

Each function gets weights and data as NumPy arrays and returns ``(run, compile_seconds)``, where
``run()`` trains from the start and returns the weights and the loss of each epoch as NumPy arrays.
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


def _trainer(predict, x, y, batch_size, epochs, lr, weight_decay):
    """Function of one model's weights; the batches come in order."""
    n_batches = len(x) // batch_size
    xs = x[: n_batches * batch_size].reshape(n_batches, batch_size, *x.shape[1:])
    ys = y[: n_batches * batch_size].reshape(n_batches, batch_size, *y.shape[1:])

    def loss(theta, xb, yb):
        return jnp.mean((predict(theta, xb) - yb) ** 2)

    def step(carry, batch):
        theta, state = carry
        value, grads = jax.value_and_grad(loss)(theta, *batch)
        return _adamw(theta, grads, state, lr, weight_decay), value

    def epoch(carry, _):
        carry, losses = lax.scan(step, carry, (xs, ys))
        return carry, losses.mean()

    def train(theta):
        zeros = jax.tree.map(jnp.zeros_like, theta)
        (theta, _), losses = lax.scan(epoch, (theta, (zeros, zeros, 0.0)), length=epochs)
        return theta, losses

    return train


def _compiled(function, *arguments):
    began = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - began

    def run():
        return jax.tree.map(np.asarray, program(*arguments))

    return run, seconds


def sine_sum(w, x, y, *, batch_size, epochs, lr, weight_decay):
    """Restarts of y = mean_i sin(π w_i x). Shapes: w [models, width]; x, y [N]."""

    def predict(w, x):
        return jnp.mean(jnp.sin(jnp.pi * x[:, None] * w), axis=-1)

    train = _trainer(predict, jnp.asarray(x), jnp.asarray(y), batch_size, epochs, lr, weight_decay)
    return _compiled(jax.vmap(train), jnp.asarray(w))


def additive_mlp(theta, x, y, *, batch_size, epochs, lr, weight_decay):
    """Σ_j V_j f(x_j) + c with one ReLU subnet. ``theta``: the parameters' arrays by name, each with
    a first dimension of models."""

    def predict(p, x):
        hidden = jax.nn.relu(x[..., None] * p["fc1.weight"][:, 0] + p["fc1.bias"])
        f = hidden @ p["fc2.weight"][0] + p["fc2.bias"]
        return f @ p["fc3.weight"].T + p["fc3.bias"]

    train = _trainer(predict, jnp.asarray(x), jnp.asarray(y), batch_size, epochs, lr, weight_decay)
    return _compiled(jax.vmap(train), {k: jnp.asarray(v) for k, v in theta.items()})
