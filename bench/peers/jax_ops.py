"""The ops as JAX programs, jit-compiled: value, gradients and a training step. float32."""

import jax
import jax.numpy as jnp

from .jax_fit import _adamw


def _subnet(p, x):
    hidden = jax.nn.relu(x[..., None] * p["fc1.weight"][:, 0] + p["fc1.bias"])
    return hidden @ p["fc2.weight"][0] + p["fc2.bias"]


def _additive(p, x):
    return _subnet(p, x) @ p["fc3.weight"].T + p["fc3.bias"]


def _sine(scale):
    return lambda p, x: jnp.mean(jnp.sin((scale * x)[..., None] * p["w"]), axis=-1)


_ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


def _mlp(activation, output_activation, names):
    def predict(p, x):
        values = [p[name] for name in names]  # layer by layer: JAX sorts a dictionary's keys
        for i in range(0, len(values), 2):
            x = x @ values[i].T + values[i + 1]
            name = activation if i + 2 < len(values) else output_activation
            x = x if name is None else _ACTIVATIONS[name](x)
        return x

    return predict


def predictor(op, plain):
    """What a plain module computes, as a function of (its weights by name, x)."""
    if op == "mlp":
        names = [name for name, _ in plain.named_parameters()]
        return _mlp(plain.activation, plain.output_activation, names)
    if op == "sine_sum":
        return _sine(plain.scale)
    return {"additive_mlp": _additive, "elementwise_mlp": _subnet}[op]


class Program:
    """One op's programs, with the weights of a plain module.

    Args:
        op: Name of the op.
        plain: The module that has its weights.
    """

    def __init__(self, op, plain):
        self._predict = predictor(op, plain)
        self._theta = {n: jnp.asarray(p.detach().numpy()) for n, p in plain.named_parameters()}

    def make_step(self, x, dy, mode):
        """The function to time, as `common.make_step` gives one for a PyTorch module."""
        predict, theta = self._predict, self._theta
        with_x = x.requires_grad
        x, dy = jnp.asarray(x.detach().numpy()), jnp.asarray(dy.numpy())
        if mode == "training_step":
            return self._training_step(x, dy)
        if mode != "forward_backward":
            forward = jax.jit(predict)
            return lambda: {"y": forward(theta, x).block_until_ready()}

        @jax.jit
        def both(theta, x, dy):
            if with_x:
                y, pull = jax.vjp(predict, theta, x)
                gradients, dx = pull(dy)
                return {"y": y, **gradients, "x": dx}
            y, pull = jax.vjp(lambda theta: predict(theta, x), theta)
            return {"y": y, **pull(dy)[0]}

        return lambda: jax.block_until_ready(both(theta, x, dy))

    def _training_step(self, x, y):
        def loss(theta):
            return jnp.mean((self._predict(theta, x) - y) ** 2)

        @jax.jit
        def advance(theta, state):
            value, gradients = jax.value_and_grad(loss)(theta)
            return *_adamw(theta, gradients, state, 1e-4, 0.0), value

        zeros = jax.tree.map(jnp.zeros_like, self._theta)
        now = [self._theta, (zeros, zeros, 0.0)]

        def step():
            *now[:], value = jax.block_until_ready(advance(*now))
            return {"loss": value}

        return step
