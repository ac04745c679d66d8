"""The inner layers of a module: their parameters where they are plain, or a call of each.

Who puts a hook, a parametrization or another module in place of a layer wants it called. So the
formulas over all parameters at once are for plain layers alone.
"""

from torch import nn
from torch.nn import functional as F

from fastmlp.dropout import dropout_places
from fastmlp.featurewise import FeaturewiseLinear

PLAIN_LAYERS = frozenset((nn.Linear, FeaturewiseLinear))


def plain_parameters(layers):
    """Weight and bias of each layer in one list, or ``None`` where a layer is not plain.

    A subclass (what a parametrization makes of a layer is one), a hook or a forward of its own may
    compute anything. It asks the objects' dictionaries, for ``nn.Module.__getattr__`` would take
    half a microsecond an attribute.
    """
    parameters = []
    try:
        for layer in layers:
            own = layer.__dict__
            if (
                layer.__class__ not in PLAIN_LAYERS
                or own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
                or "forward" in own
            ):
                return None
            of_layer = own["_parameters"]
            parameters += of_layer["weight"], of_layer["bias"]
    except KeyError:  # a parameter that is none, or is kept elsewhere
        return None
    return parameters


def call_subnet(x, layers, activation, dropout):
    """Layer by layer, one number in and one out: x of any shape, or [*, F] for F subnets."""
    p_input, p_hidden, p_output = dropout_places(dropout)
    first, last = layers
    hidden = activation(first(F.dropout(x, p_input).unsqueeze(-1)))
    return F.dropout(last(F.dropout(hidden, p_hidden)).squeeze(-1), p_output)


def call_chain(x, layers, activation, output_activation, dropout):
    """Layer by layer, with dropout behind each hidden one."""
    *hidden, last = layers
    for layer in hidden:
        x = F.dropout(activation(layer(x)), dropout)
    return output_activation(last(x))
