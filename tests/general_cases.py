"""Subnets of any activation, with dropout or one a feature: cases, and the sizes of their terms."""

import pytest
import torch
from op_contract import OpContract, evaluate
from subnet_cases import subnet

from fastmlp import functional, reference
from fastmlp.dropout import dropout_masks

# a seed whose both words count
SEED = torch.tensor([0x1234_5678_9ABC_DEF0])


def _options(activation, dropout=(0.0, 0.0, 0.0)):
    seed = None if dropout == (0.0, 0.0, 0.0) else SEED
    return {"activation": activation, "dropout": dropout, "seed": seed}


SETTINGS = {
    **{name: _options(name) for name in reference.ACTIVATIONS},
    "relu_dropout": _options("relu", (0.25, 0.2, 0.1)),
    "tanh_dropout_of_hidden": _options("tanh", (0.0, 0.5, 0.0)),
    "relu_dropout_of_input": _options("relu", (0.3, 0.0, 0.0)),
    "sin_dropout_of_output": _options("sin", (0.0, 0.0, 0.3)),
    "dropout_of_all": _options("gelu", (1.0, 1.0, 1.0)),
    # dropped with a probability that rounds to 0
    "dropout_of_almost_none": _options("relu", (1e-6, 1e-6, 1e-6)),
}


def general_terms(dy, x, *arguments):
    """Sizes of the summed terms of both ops, by name; all float64.

    ``arguments`` are the parameters, four for `elementwise_mlp`, six for `additive_mlp`, then
    activation, dropout and seed. A value σ(z) has the size |σ(z)| + |σ'(z)|·(|w1 x| + |b1|), the
    rounding of z in it; a slope σ'(z) the like with σ''.
    """
    names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "fc3_weight", "fc3_bias")
    *parameters, activation, dropout, seed = arguments
    given = dict(zip(names, parameters, strict=False))
    v = given.get("fc3_weight")
    v = x.new_ones(1, 1) if v is None else v.abs()
    n_out, n_in = v.shape
    x2, dy_abs = x.reshape(-1, n_in), dy.abs().reshape(-1, n_out)
    w1, w2 = given["fc1_weight"].squeeze(-1), given["fc2_weight"].squeeze(-2).abs()  # [F or 1, H]
    b1 = torch.zeros_like(w1) if given["fc1_bias"] is None else given["fc1_bias"]
    n_hidden = w1.shape[-1]
    masks = (None,) * 3
    if seed is not None:
        masks = dropout_masks(seed.cpu(), x.numel(), n_hidden, dropout, x.dtype)
    m_in, m_hidden, m_out = (
        x.new_ones(()) if m is None else m.reshape(*x2.shape, *m.shape[1:]) for m in masks
    )
    x2 = x2 * m_in
    product = x2.unsqueeze(-1) * w1  # [N, F, H]
    z = (product + b1).detach().requires_grad_()
    size = product.abs() + b1.abs()
    with torch.enable_grad():
        value = reference.ACTIVATIONS[activation](z)
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        curvature = torch.zeros_like(z)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), z)
    value, slope, curvature = (t.detach().abs() for t in (value, slope, curvature))
    # where all is flat no rounding shows, not even of NaN
    value_size = (value + torch.where(slope == 0, 0, slope * size)) * m_hidden
    slope_size = (slope + torch.where(curvature == 0, 0, curvature * size)) * m_hidden
    b2 = x.new_zeros(1) if given["fc2_bias"] is None else given["fc2_bias"].abs()
    f = ((value_size * w2).sum(-1) + b2.reshape(-1)) * m_out
    g = (dy_abs @ v) * m_out
    dz = torch.where(slope == 0, 0, g.unsqueeze(-1) * slope_size * w2)
    per_unit = {
        "fc1_weight": dz * x2.unsqueeze(-1).abs(),
        "fc1_bias": dz,
        "fc2_weight": g.unsqueeze(-1) * value_size,
        "fc2_bias": g.unsqueeze(-1),
    }
    terms = {
        "y": f @ v.T,
        "x": ((dz * w1.abs()).sum(-1) * m_in).reshape(x.shape),
        "fc3_weight": dy_abs.T @ f,
        "fc3_bias": dy_abs.sum(0),
    }
    for name, t in per_unit.items():
        t = t.sum(0)  # [F, H]
        if given[name] is not None:
            terms[name] = (t if w1.dim() == 2 else t.sum(0)).reshape(given[name].shape)
    if given.get("fc3_bias") is not None:
        terms["y"] = terms["y"] + given["fc3_bias"].abs()
    terms["y"] = terms["y"].reshape(dy.shape)
    return terms


def on_device(options, device):
    """The options with the seed there."""
    seed = options["seed"]
    return {**options, "seed": seed if seed is None else seed.to(device)}


def stacked_subnets(draw, n_in, n_hidden, biases=("fc1_bias", "fc2_bias")):
    """Parameters of a subnet 1 → H → 1 for each of ``n_in`` features, by name, in float64."""
    nets = [subnet(draw, n_hidden, biases) for _ in range(n_in)]
    return {
        name: None if t is None else torch.stack([net[name] for net in nets])
        for name, t in nets[0].items()
    }


class GeneralContract(OpContract):
    """Tests of subnets with options; for a subclass that says what op and which options.

    Attributes of a subclass: ``name``, ``options`` and, for `additive_mlp`, ``stacked``.
    """

    terms = staticmethod(general_terms)
    stacked = False

    def make(self, draw, shape=(7, 5), n_hidden=5, n_out=1, n=None, small=False,
             biases=("fc1_bias", "fc2_bias", "fc3_bias")):  # fmt: skip
        if small:
            shape, n_hidden, n_out = (2, 2), 3, 2
        if n is not None:
            shape = (n // 5, 5)
        if self.name == "elementwise_mlp":
            return {"x": draw(*shape), **subnet(draw, n_hidden, biases)}
        n_in = shape[-1]
        if self.stacked:
            parameters = stacked_subnets(draw, n_in, n_hidden, biases)
        else:
            parameters = subnet(draw, n_hidden, biases)
        return {
            "x": draw(*shape),
            **parameters,
            "fc3_weight": draw(n_out, n_in),
            "fc3_bias": draw(n_out) if "fc3_bias" in biases else None,
        }

    @pytest.fixture(autouse=True)
    def _seed_on_the_device(self, request):
        for name in {"backend", "kernel_backend"} & set(request.fixturenames):
            self.options = on_device(self.options, request.getfixturevalue(name).device)

    def ours(self, inputs, dy=None, wanted=()):
        options = on_device(self.options, inputs["x"].device)
        return evaluate(self.function(functional), inputs, options, dy, wanted)

    def plain(self, inputs, dy=None, wanted=()):
        options = on_device(self.options, inputs["x"].device)
        return evaluate(self.function(reference), inputs, options, dy, wanted)
