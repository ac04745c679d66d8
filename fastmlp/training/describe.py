"""The models whose Jacobians the kernels know, as integers and numbers."""

import math
from typing import NamedTuple

from fastmlp.kernels.spec import (
    ADDITIVE,
    CODES,
    KINK_SLOPES,
    MLP,
    SINE,
    Layers,
    Sines,
    Subnet,
    layers_of,
    model_of,
)
from fastmlp.models import spec_of


class Description(NamedTuple):
    """A model in the words of `kernels/cpu/levenberg_marquardt/models.py`.

    Equal descriptions mean the same function of (θ, x). ``elementwise`` models take any shape.
    """

    net: tuple
    reals: tuple
    n_in: int
    n_out: int
    n_parameters: int
    elementwise: bool


def describe(module):
    """The :class:`Description` of a module, or ``None`` where the kernels do not know it.

    Frozen or tied parameters are left to PyTorch, and so is a module with hooks, for those may
    change what it computes.
    """
    spec = spec_of(module)
    if spec.obstacle or spec.layout or spec.active or spec.record is None:
        return None
    named = dict(module.named_parameters())
    # pruning and the like register a weight anew, behind its bias
    if tuple(named) != spec.names or not all(p.requires_grad for p in named.values()):
        return None
    return _BUILDERS[type(spec.record)](spec.record)


def is_hinge_net(description):
    """Whether this is a net 1 → H → 1 with ReLU or leaky ReLU: linear between breakpoints."""
    model = model_of(description.net)
    if model.model != MLP or model.n_layers != 2:
        return False
    (n_in, _, n_out), _, (hidden, last) = layers_of(description.net, model.n_layers)
    hinges, linear = (CODES["relu"], CODES["leaky_relu"]), CODES["identity"]
    return n_in == n_out == 1 and hidden in hinges and last == linear


def has_biases(description):
    """Whether both layers of a hinge net have a bias."""
    _, biases, _ = layers_of(description.net, 2)
    return all(biases)


def hidden_units(description):
    """Hidden units of a hinge net."""
    (_, n_hidden, _), _, _ = layers_of(description.net, 2)
    return n_hidden


def n_readout(description):
    """Parameters of the last layer, the last ones, if the outputs are linear in them; else 0."""
    model = model_of(description.net)
    if model.model == ADDITIVE:
        return model.n_out * (model.n_in + model.bias)
    if model.model == MLP:
        widths, biases, codes = layers_of(description.net, model.n_layers)
        if codes[-1] == CODES["identity"]:
            return widths[-1] * (widths[-2] + biases[-1])
    return 0


def widest_layer(description):
    """Numbers in the widest layer of an MLP, its input among them; 0 for the other models."""
    model = model_of(description.net)
    if model.model != MLP:
        return 0
    widths, _, _ = layers_of(description.net, model.n_layers)
    return max(widths)


def below_zero(description):
    """The slope of a hinge net's activation below 0."""
    _, _, (hidden, _) = layers_of(description.net, 2)
    slope, _ = description.reals
    return slope if hidden == CODES["leaky_relu"] else 0.0


def _layers(record):
    codes = [CODES[name] for name in record.activations]
    return Description(
        (MLP, len(codes), *record.widths, *map(int, record.biases), *codes),
        record.slopes,
        record.widths[0],
        record.widths[-1],
        _n_parameters(record),
        record.elementwise,
    )


def _subnet(record):
    if not record.shared or len({*record.biases}) > 1:
        return None  # PyTorch differentiates a subnet for every feature
    sizes = record.n_in, record.n_hidden, record.n_out
    return Description(
        (ADDITIVE, *sizes, int(record.biases[0]), CODES[record.activation]),
        (KINK_SLOPES["leaky_relu"],),
        record.n_in,
        record.n_out,
        _n_parameters(record),
        False,
    )


def _sines(record):
    return Description(
        (SINE, 1, record.width, 1, int(record.amplitude), int(record.phase)),
        (record.scale, record.factor),
        1,
        1,
        _n_parameters(record),
        True,
    )


def _n_parameters(record):
    return sum(map(math.prod, record.shapes))


_BUILDERS = {Layers: _layers, Subnet: _subnet, Sines: _sines}
