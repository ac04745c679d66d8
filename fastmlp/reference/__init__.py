"""The layers in plain PyTorch: the definition of what is right.

Every fused op and module has its namesake here, with the same arguments, parameters and
``state_dict``. Evaluated in float64, these functions judge every kernel; in the working dtype they
are the baseline of every benchmark. This package and what it is made of import torch alone.
"""

from fastmlp.dropout import dropout_masks as dropout_masks
from fastmlp.dropout import dropout_places as dropout_places
from fastmlp.dropout import layer_dropout_masks as layer_dropout_masks
from fastmlp.featurewise import FeaturewiseLinear
from fastmlp.reference.additive_mlp import AdditiveMLP, additive_mlp
from fastmlp.reference.elementwise_mlp import ElementwiseMLP, elementwise_mlp
from fastmlp.reference.functions import ACTIVATIONS as ACTIVATIONS
from fastmlp.reference.functions import REDUCTIONS as REDUCTIONS
from fastmlp.reference.mlp import MLP, mlp
from fastmlp.reference.piecewise_linear import piecewise_linear
from fastmlp.reference.sine_sum import SineSum, sine_sum

__all__ = [
    "MLP",
    "AdditiveMLP",
    "ElementwiseMLP",
    "FeaturewiseLinear",
    "SineSum",
    "additive_mlp",
    "elementwise_mlp",
    "mlp",
    "piecewise_linear",
    "sine_sum",
]

# pickles and messages name them as users import them
for _module in (MLP, AdditiveMLP, ElementwiseMLP, SineSum):
    _module.__module__ = __name__
