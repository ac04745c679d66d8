"""Models that the kernels of Levenberg–Marquardt know, and their Jacobians by torch.func."""

import itertools

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

import fastmlp
from fastmlp.training.levenberg_marquardt import flat
from fastmlp.training.structures import describe


def mlp(*sizes, activation=nn.Tanh, bias=True, last=None):
    layers = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1], *([] if last is None else [last()])).double()


def additive(activation, n_in=5, n_out=1, bias=True):
    net = fastmlp.reference.AdditiveMLP(n_in, 6, n_out, activation=activation, bias=bias)
    return net.double()


MODELS = {
    "linear": lambda: mlp(3, 2),
    "xor": lambda: mlp(2, 5, 1, activation=nn.Sigmoid, last=nn.Sigmoid),
    "two_linear_layers": lambda: mlp(6, 6, 10, activation=nn.Identity, bias=False),
    "deep_tanh": lambda: mlp(3, 7, 5, 4, 2),
    "relu": lambda: mlp(2, 9, 9, 3, activation=nn.ReLU),
    "leaky_relu": lambda: mlp(2, 9, 1, activation=lambda: nn.LeakyReLU(0.2)),
    "silu": lambda: mlp(2, 4, 1, activation=nn.SiLU),
    "gelu": lambda: mlp(2, 4, 1, activation=nn.GELU, last=nn.GELU),
    "softplus": lambda: mlp(2, 4, 1, activation=nn.Softplus, last=nn.Softplus),
    "mixed_biases": lambda: nn.Sequential(
        nn.Linear(2, 3, bias=False), nn.Sigmoid(), nn.Sequential(nn.Linear(3, 2))
    ).double(),
    "fastmlp_mlp": lambda: fastmlp.MLP(
        2, [5, 4], 2, activation="sin", output_activation="tanh", dtype=torch.float64
    ),
    "elementwise": lambda: fastmlp.ElementwiseMLP(10, dtype=torch.float64),
    "additive": lambda: fastmlp.AdditiveMLP(11, 6, dtype=torch.float64),
    "additive_two_outputs": lambda: additive("relu", n_in=3, n_out=2),
    "additive_without_bias": lambda: additive("relu", bias=False),
    "additive_sigmoid": lambda: additive("sigmoid", n_out=2),
    "additive_sin": lambda: additive("sin"),
    "additive_leaky_relu": lambda: additive("leaky_relu"),
    "sine_sum": lambda: fastmlp.SineSum(5, dtype=torch.float64),
    "sine_sum_of_all": lambda: fastmlp.SineSum(
        5, scale=1.3, reduction="sum", learn_amplitude=True, learn_phase=True, dtype=torch.float64
    ),
}


def linearised(model, draw, n_rows):
    """The model, rows of inputs, its outputs [rows, M] and the Jacobian [rows, M, P]."""
    x = 2 * draw(n_rows, describe(model).n_in)
    x[7] = 0.0
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def row(theta, xi):
        parts = zip(names, theta.split(sizes), shapes, strict=True)
        values = {name: part.view(shape) for name, part, shape in parts}
        return functional_call(model, values, (xi.unsqueeze(0),)).reshape(-1)

    exact = vmap(jacrev(row), in_dims=(None, 0))(flat(model), x)
    return model, x, model(x).detach(), exact
