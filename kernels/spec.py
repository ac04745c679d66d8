"""The models as named records, and the one layout of their parameters.

A record tells all of a model but its numbers. Its parameters follow each other in the order of
``module.parameters()``: layer by layer, a weight row by row, then its bias; of sines, frequencies,
amplitudes, phases.
"""

from typing import NamedTuple

ACTIVATIONS = (
    "relu", "leaky_relu", "sigmoid", "tanh", "silu", "gelu", "sin", "identity", "softplus",
)  # fmt: skip
"""Names of the activations; a kernel knows one by its place here."""

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
"""Their places."""

MLP, ADDITIVE, SINE = MODELS = range(3)
"""What the words of a Jacobian's model begin with: :class:`Layers`, :class:`Subnet`,
:class:`Sines`."""

KINK_SLOPES = {"relu": 0.0, "leaky_relu": 0.01}
"""Activations of straight pieces, with their slopes below 0."""


class Subnet(NamedTuple):
    """Σ_j V[m, j]·f(x_j) + c[m]: a subnet 1 → H → 1 for all features, or one a feature.

    Args:
        n_in: Features F.
        n_hidden: Hidden units H.
        n_out: Outputs M.
        biases: Whether fc1, fc2 and fc3 have one.
        activation: Name.
        shared: Whether all features share one subnet.
        dropout: Probabilities of dropping an input, a hidden unit, an output of the subnet.
    """

    n_in: int
    n_hidden: int
    n_out: int
    biases: tuple
    activation: str
    shared: bool
    dropout: tuple

    @property
    def shapes(self):
        """Of the parameters, in order."""
        h = self.n_hidden
        nets = () if self.shared else (self.n_in,)
        layers = (*nets, h, 1), (*nets, 1, h), (self.n_out, self.n_in)
        return _with_biases(layers, self.biases)


class Layers(NamedTuple):
    """Linear layers with an activation behind each, for rows or for every number alone.

    Args:
        widths: Inputs, then outputs of each layer.
        biases: Whether each layer has one.
        activations: Name of each layer's.
        slopes: Of each layer's leaky ReLU below 0.
        dropout: Probabilities of dropping a number before the first layer and behind each.
        elementwise: Whether it maps numbers, whatever the shape, and not rows.
    """

    widths: tuple
    biases: tuple
    activations: tuple
    slopes: tuple
    dropout: tuple
    elementwise: bool

    @property
    def shapes(self):
        """Of the parameters, in order."""
        return _with_biases(zip(self.widths[1:], self.widths, strict=False), self.biases)

    @property
    def hidden_activation(self):
        """The name of the activation of all layers but the last; ``None`` where they differ."""
        names = {*zip(self.activations[:-1], self.slopes, strict=False)}
        return _without_slope(*names.pop()) if len(names) == 1 else None

    @property
    def output_activation(self):
        """The name of the activation of the last layer; ``None`` where its slope is its own."""
        return _without_slope(self.activations[-1], self.slopes[-1])


def _without_slope(name, slope):
    """The name of an activation, if it is all there is to say."""
    return name if name != "leaky_relu" or slope == KINK_SLOPES[name] else None


class Sines(NamedTuple):
    """Σ_i a_i·sin(scale·w_i·x + φ_i) of every number, or their mean.

    Args:
        width: Number of sines.
        amplitude: Whether the a_i are parameters.
        phase: Whether the φ_i are.
        scale: Radians per unit of w·x.
        reduction: ``"mean"`` or ``"sum"``.
    """

    width: int
    amplitude: bool
    phase: bool
    scale: float
    reduction: str

    @property
    def shapes(self):
        """Of the parameters, in order."""
        return ((self.width,),) * (1 + self.amplitude + self.phase)

    @property
    def factor(self):
        """What the sum of the sines is multiplied by."""
        return 1.0 / self.width if self.reduction == "mean" else 1.0


class SineSizes(NamedTuple):
    """What the verbs of whole runs are told of :class:`Sines`; the numbers are turns and factor."""

    width: int
    amplitude: int
    phase: int


class SubnetSizes(NamedTuple):
    """What they are told of a subnet 1 → H → 1; the numbers are the probabilities of dropout.

    The quick form of ReLU needs no more than the first two, with a read-out the first four.
    """

    n_hidden: int
    bias: int
    n_in: int = 1
    n_out: int = 1
    activation: int = CODES["relu"]
    featurewise: int = 0
    readout: int = 0


def subnet_places(n_nets, n_hidden, bias, n_read):
    """Where b, v, d, read-out and its bias begin in θ of subnets, w at 0; compilers take it too.

    Args:
        n_nets: Subnets: one, or one for each feature.
        n_hidden: Hidden units of each.
        bias: Whether there are biases, 0 or 1; those that are not there are empty.
        n_read: Weights of the read-out.
    """
    at_b = n_nets * n_hidden
    at_v = at_b + at_b * bias
    at_d = at_v + at_b
    at_readout = at_d + n_nets * bias
    return at_b, at_v, at_d, at_readout, at_readout + n_read


class LayerSizes(NamedTuple):
    """What they are told of layers, before their widths; the numbers are those of dropout."""

    n_layers: int
    bias: int
    hidden: int
    output: int


def layer_sizes(sizes):
    """:class:`LayerSizes` and the widths."""
    n = len(LayerSizes._fields)
    return LayerSizes(*sizes[:n]), tuple(sizes[n:])


class AdditiveWords(NamedTuple):
    """What Jacobians are told of a shared subnet; the number is leaky ReLU's slope below 0."""

    model: int
    n_in: int
    n_hidden: int
    n_out: int
    bias: int
    activation: int


class SineWords(NamedTuple):
    """What Jacobians are told of :class:`Sines`; the numbers are turns and factor."""

    model: int
    n_in: int
    width: int
    n_out: int
    amplitude: int
    phase: int


class LayerWords(NamedTuple):
    """What Jacobians are told of layers; L + 1 widths, L biases, L activations follow.

    The numbers are the slopes of the layers' leaky ReLU below 0.
    """

    model: int
    n_layers: int


def layers_of(words, n_layers):
    """Widths, biases and activations of the words of so many layers; a compiler takes it too."""
    at_biases = 3 + n_layers
    at_activations = at_biases + n_layers
    return words[2:at_biases], words[at_biases:at_activations], words[at_activations:]


def model_of(words):
    """The words of a model by their names."""
    kinds = {MLP: LayerWords, ADDITIVE: AdditiveWords, SINE: SineWords}
    kind = dict(zip(MODELS, for_each(MODELS, kinds, "model"), strict=True)).get(next(iter(words)))
    if kind is None:
        raise ValueError(f"{next(iter(words))} is no model")
    return kind(*words[: len(kind._fields)])


def for_each(choices, branches, what="activation"):
    """Return what there is for each choice, in their order: a mapping's values, or the names.

    Whoever chooses among an enumeration asks it where the choice is written down, so that one more
    member is an error there and not another member's branch.

    Raises:
        NotImplementedError: A choice without a branch, or a branch for what is no choice.
    """
    missing, unknown = {*choices} - {*branches}, {*branches} - {*choices}
    if missing or unknown:
        words = ", ".join(map(str, sorted(missing or unknown)))
        raise NotImplementedError(f"{what} {words}: {'no branch' if missing else 'not known'} here")
    return [branches[c] if isinstance(branches, dict) else c for c in choices]


def _with_biases(weights, biases):
    shapes = []
    for shape, has_bias in zip(weights, biases, strict=True):
        shapes.append(tuple(shape))
        if has_bias:
            shapes.append(tuple(shape)[:-1])
    return tuple(shapes)
