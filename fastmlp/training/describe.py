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
    net = description.net
    hinges, linear = (CODES["relu"], CODES["leaky_relu"]), CODES["identity"]
    return net[:3] == (MLP, 2, 1) and net[4] == 1 and net[7] in hinges and net[8] == linear


def has_biases(description):
    """Whether both layers of a hinge net have a bias."""
    return description.net[5:7] == (1, 1)


def n_readout(description):
    """Parameters of the last layer, the last ones, if the outputs are linear in them; else 0."""
    net = description.net
    if net[0] == ADDITIVE:
        return net[3] * (net[1] + net[4])
    if net[0] == MLP and net[-1] == CODES["identity"]:
        n_layers = net[1]
        return net[2 + n_layers] * (net[1 + n_layers] + net[2 + 2 * n_layers])
    return 0


def widest_layer(description):
    """Numbers in the widest layer of an MLP, its input among them; 0 for the other models."""
    net = description.net
    return max(net[2 : 3 + net[1]]) if net[0] == MLP else 0


def below_zero(description):
    """The slope of a hinge net's activation below 0."""
    return description.reals[0] if description.net[7] == CODES["leaky_relu"] else 0.0


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
