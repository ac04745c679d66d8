"""Recognise the models whose Jacobians the kernels know."""

from typing import NamedTuple

from torch import nn

from fastmlp import reference
from fastmlp.modules.additive_mlp import AdditiveMLP
from fastmlp.modules.elementwise_mlp import ElementwiseMLP
from fastmlp.modules.mlp import MLP
from fastmlp.modules.sine_sum import SineSum
from fastmlp.patterns import ACTIVATION_NAMES
from fastmlp.training.structures import KINK_SLOPES


class Description(NamedTuple):
    """A model in the words of `kernels/cpu/jacobian.py`.

    Equal descriptions mean the same function of (θ, x). ``elementwise`` models take any shape.
    """

    net: tuple
    reals: tuple
    n_in: int
    n_out: int
    n_parameters: int
    elementwise: bool


# positions in fastmlp.kernels.cpu.jacobian, which must not be imported before it is needed
_MLP, _ADDITIVE, _SINE = 0, 1, 2
_CODES = {name: code for code, name in enumerate(reference.ACTIVATIONS)}
_MODULES = {nn.Identity: "identity", **ACTIVATION_NAMES}
_SLOPE = KINK_SLOPES["leaky_relu"]


def describe(module):
    """The :class:`Description` of a module, or ``None`` where the kernels do not know it.

    Frozen or tied parameters are left to PyTorch, and so is a module with hooks, for those may
    change what it computes.
    """
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None
    # an exact type: a subclass may compute something else
    builder = _BUILDERS.get(type(module))
    description = None if builder is None else builder(module)
    if description is None or not all(p.requires_grad for p in module.parameters()):
        return None
    if sum(p.numel() for p in module.parameters()) != description.n_parameters:
        return None
    return description


def is_hinge_net(description):
    """Whether this is a net 1 → H → 1 with ReLU or leaky ReLU: linear between breakpoints."""
    net = description.net
    hinges, linear = (_CODES["relu"], _CODES["leaky_relu"]), _CODES["identity"]
    return net[:3] == (_MLP, 2, 1) and net[4] == 1 and net[7] in hinges and net[8] == linear


def has_biases(description):
    """Whether both layers of a hinge net have a bias."""
    return description.net[5:7] == (1, 1)


def n_readout(description):
    """Parameters of the last layer, the last ones, if the outputs are linear in them; else 0."""
    net = description.net
    if net[0] == _ADDITIVE:
        return net[3] * (net[1] + net[4])
    if net[0] == _MLP and net[-1] == _CODES["identity"]:
        n_layers = net[1]
        return net[2 + n_layers] * (net[1 + n_layers] + net[2 + 2 * n_layers])
    return 0


def widest_layer(description):
    """Numbers in the widest layer of an MLP, its input among them; 0 for the other models."""
    net = description.net
    return max(net[2 : 3 + net[1]]) if net[0] == _MLP else 0


def below_zero(description):
    """The slope of a hinge net's activation below 0."""
    return description.reals[0] if description.net[7] == _CODES["leaky_relu"] else 0.0


def _mlp(layers, elementwise=False):
    """From (Linear, activation name, slope) of each layer."""
    linears = [linear for linear, _, _ in layers]
    sizes = [linears[0].in_features, *(linear.out_features for linear in linears)]
    biases = [int(linear.bias is not None) for linear in linears]
    codes = [_CODES[name] for _, name, _ in layers]
    n_parameters = sum(
        n_out * (n_in + bias)
        for n_in, n_out, bias in zip(sizes[:-1], sizes[1:], biases, strict=True)
    )
    return Description(
        (_MLP, len(layers), *sizes, *biases, *codes),
        tuple(float(slope) for _, _, slope in layers),
        sizes[0],
        sizes[-1],
        n_parameters,
        elementwise,
    )


def _sequential(module):
    layers = []
    for part in module.modules():
        if type(part) is nn.Sequential:
            continue
        if type(part) is nn.Linear:
            if layers and layers[-1][0].out_features != part.in_features:
                return None
            layers.append((part, "identity", _SLOPE))
        elif type(part) is nn.Dropout and (part.p == 0 or not part.training):
            continue
        elif type(part) in _MODULES and layers and layers[-1][1] == "identity":
            if type(part) is nn.GELU and part.approximate != "none":
                return None
            slope = getattr(part, "negative_slope", _SLOPE)
            layers[-1] = (layers[-1][0], _MODULES[type(part)], slope)
        elif type(part) is not nn.Identity:
            return None
    return _mlp(layers) if layers else None


def _elementwise_mlp(module):
    return _mlp(
        [(module.fc1, module.activation, _SLOPE), (module.fc2, "identity", _SLOPE)],
        elementwise=True,
    )


def _fastmlp_mlp(module):
    layers = list(module.children())
    names = [module.activation] * (len(layers) - 1) + [module.output_activation or "identity"]
    return _mlp([(layer, name, _SLOPE) for layer, name in zip(layers, names, strict=True)])


def _additive_mlp(module):
    if not module.shared:
        return None  # PyTorch differentiates a subnet for every feature
    n_hidden, bias = module.fc1.out_features, int(module.fc1.bias is not None)
    n_in, n_out = module.fc3.in_features, module.fc3.out_features
    return Description(
        (_ADDITIVE, n_in, n_hidden, n_out, bias, _CODES[module.activation]),
        (_SLOPE,),
        n_in,
        n_out,
        n_hidden * (2 + bias) + bias + n_out * (n_in + bias),
        False,
    )


def _sine_sum(module):
    amplitude, phase = (int(p is not None) for p in (module.amplitude, module.phase))
    factor = 1 / module.width if module.reduction == "mean" else 1.0
    return Description(
        (_SINE, 1, module.width, 1, amplitude, phase),
        (module.scale, factor),
        1,
        1,
        module.width * (1 + amplitude + phase),
        True,
    )


_BUILDERS = {
    nn.Sequential: _sequential,
    ElementwiseMLP: _elementwise_mlp,
    reference.ElementwiseMLP: _elementwise_mlp,
    AdditiveMLP: _additive_mlp,
    reference.AdditiveMLP: _additive_mlp,
    MLP: _fastmlp_mlp,
    reference.MLP: _fastmlp_mlp,
    SineSum: _sine_sum,
    reference.SineSum: _sine_sum,
}
