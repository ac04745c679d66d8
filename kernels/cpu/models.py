"""What the kernels know of each model: a row for training whole, a branch for least squares.

Training calls the verbs of :data:`VERBS`; `training/loop.py` has their contract. Least squares
takes outputs and rows of ∂y/∂θ, a tile of rows at a time, in float64. A tile holds ``TILE`` rows
and is stored column by column: inputs x [F, TILE], outputs f [M, TILE] and the Jacobian of one
output J [P, TILE] are flat, so that every inner loop runs over rows and vectorises. θ is flat, in
the order of ``module.parameters()``. :func:`forward` fills f and a workspace, :func:`jacobian`
turns the workspace into the rows ∂f_m/∂θ of one output m.

To least squares a model is integers ``net`` and numbers ``reals``:

==========  =================================================================  ===================
model       net                                                                reals
==========  =================================================================  ===================
MLP         [MLP, L, n_0 … n_L, has_bias_1 … has_bias_L, σ_1 … σ_L]            slope of σ_1 … σ_L
AdditiveMLP [ADDITIVE, F, H, M, has_bias, σ]                                   slope of σ
SineSum     [SINE, 1, W, 1, has_amplitude, has_phase]                          turns, factor
==========  =================================================================  ===================

The slope is that of leaky ReLU, unused elsewhere. An ElementwiseMLP is the MLP 1 → H → 1.
"""

from typing import NamedTuple

from .. import spec
from ..spec import ADDITIVE, CODES, KINK_SLOPES, MLP, SINE, SubnetSizes, layer_sizes
from .layers import jacobian as layers
from .layers import verbs as layer_verbs
from .machine.jit import inner, named
from .numbers.blocks import BLOCK_NUMBERS
from .sines import jacobian as sines
from .sines import verbs as sine_verbs
from .subnet import jacobian as subnet
from .subnet import verbs as subnet_verbs


class Verbs(NamedTuple):
    """One kind of model.

    Args:
        forward: Function of the scalar type that returns the verb.
        backward: The like.
        block_rows: Function of (sizes, n_in): most rows in a block.
        n_kept: Function of (sizes, n_in): numbers of scratch space that the verbs need.
        has_sums: Whether there are univariate nets of straight pieces among them.
    """

    forward: object
    backward: object
    block_rows: object
    n_kept: object
    has_sums: bool = False


def _many_rows(sizes, n_in):
    return max(1, BLOCK_NUMBERS // n_in)


def _none_kept(sizes, n_in):
    return 0


VERBS = {
    "sine_sum": Verbs(
        sine_verbs.sine_forward,
        sine_verbs.sine_backward,
        sine_verbs.sine_block_rows,
        sine_verbs.sine_n_kept,
    ),
    "elementwise_mlp": Verbs(
        subnet_verbs.subnet_forward, subnet_verbs.subnet_backward, _many_rows, _none_kept, True
    ),
    "additive_mlp": Verbs(
        subnet_verbs.additive_forward, subnet_verbs.additive_backward, _many_rows, _none_kept
    ),
    "general": Verbs(
        subnet_verbs.general_forward, subnet_verbs.general_backward, _many_rows, _none_kept, True
    ),
    "featurewise": Verbs(
        subnet_verbs.featurewise_forward, subnet_verbs.featurewise_backward, _many_rows, _none_kept
    ),
    "mlp": Verbs(
        layer_verbs.mlp_forward,
        layer_verbs.mlp_backward,
        layer_verbs.mlp_block_rows,
        layer_verbs.mlp_n_kept,
        True,
    ),
}
"""Every model by the name of its op. ``sizes`` and ``constants``, in the order of the verbs:

- ``sine_sum``: width, whether amplitudes, phases are learned; turns a unit of w·x, 1 or 1/width
- ``elementwise_mlp``: hidden units, whether there are biases
- ``additive_mlp``: hidden units, whether there are biases, features, outputs
- ``general``, what the two above do not cover: hidden units, whether there are biases, features,
  outputs, number of the activation, whether there is a subnet for each feature, whether there is a
  read-out; the three dropout probabilities
- ``featurewise``: those of them that have a subnet for each feature, a trainer of their own, for
  each takes long to compile
- ``mlp``: layers, whether there are biases, numbers of the two activations, the widths; the
  dropout probability of the hidden layers, or those of the input and behind each layer
"""


def kind_of(structure):
    """The key of the model's verbs."""
    has_many = structure.kind == "general" and SubnetSizes(*structure.sizes).featurewise
    return "featurewise" if has_many else structure.kind


class Univariate(NamedTuple):
    """A net of one variable that is linear between breakpoints.

    Args:
        widths: Of all layers, ``(1, H₁, …, 1)``.
        has_bias: Whether the layers have biases.
        negative_slope: Of the activation below 0.
    """

    widths: tuple
    has_bias: bool
    negative_slope: float


_KINKS = {CODES[name]: slope for name, slope in KINK_SLOPES.items()}
_IDENTITY = CODES["identity"]


def univariate_of(structure):
    """The :class:`Univariate` that a structure is, or ``None``."""
    kind, sizes = structure.kind, structure.sizes
    if kind == "elementwise_mlp":
        model = SubnetSizes(*sizes)
        return Univariate((1, model.n_hidden, 1), bool(model.bias), 0.0)
    if kind == "general":
        n_hidden, bias, _, _, code, featurewise, has_readout = SubnetSizes(*sizes)
        if code in _KINKS and not (featurewise or has_readout or structure.draws):
            return Univariate((1, n_hidden, 1), bool(bias), _KINKS[code])
    if kind == "mlp" and not structure.draws:
        (_, bias, code, last), widths = layer_sizes(sizes)
        if code in _KINKS and last == _IDENTITY and widths[0] == widths[-1] == 1:
            return Univariate(tuple(widths), bool(bias), _KINKS[code])
    return None


# what the choices below have branches for
spec.for_each(spec.MODELS, (MLP, ADDITIVE, SINE), "model")


@inner
def workspace_rows(net):
    """Rows of the workspace."""
    model = named(net, layers.WORDS)
    if model.model == MLP:
        widths, _, _ = layers.parts(net, model.n_layers)
        total, widest = 0, 0
        for l in range(model.n_layers):
            total += widths[l + 1]
            widest = max(widest, widths[l + 1])
        return 2 * total + 2 * widest
    if model.model == ADDITIVE:
        return named(net, subnet.WORDS).n_in + 3
    return 2 * named(net, sines.WORDS).width


@inner
def sizes(net):
    """Inputs F and outputs M of a model."""
    model = named(net, layers.WORDS)
    if model.model == MLP:
        widths, _, _ = layers.parts(net, model.n_layers)
        return widths[0], widths[model.n_layers]
    # sines have a number for either, as subnets
    model = named(net, subnet.WORDS)
    return model.n_in, model.n_out


@inner
def forward(net, reals, theta, x, n, work, f):
    """f(x; θ) of the first n rows of a tile."""
    kind = named(net, layers.WORDS).model
    if kind == MLP:
        layers.mlp_forward(net, reals, theta, x, n, work, f)
    elif kind == ADDITIVE:
        subnet.additive_forward(net, reals, theta, x, n, work, f)
    else:
        sines.sine_forward(net, reals, theta, x, n, work, f)


@inner
def jacobian(net, reals, theta, x, n, work, m, out):
    """∂f_m/∂θ of the first n rows of the tile that :func:`forward` has just seen."""
    kind = named(net, layers.WORDS).model
    if kind == MLP:
        layers.mlp_jacobian(net, theta, x, n, work, m, out)
    elif kind == ADDITIVE:
        subnet.additive_jacobian(net, reals, theta, x, n, work, m, out)
    else:
        sines.sine_jacobian(net, reals, theta, x, n, work, out)
