"""The op `mlp`: a whole dense network, any depth, fused."""

from fastmlp import reference
from fastmlp.ops.fused import FusedOp


def _reference(x, *arguments):
    *parameters, activation, output_activation = arguments
    return reference.mlp(x, parameters[::2], parameters[1::2], activation, output_activation)


def _output_shape(x, *parameters):
    return x.shape[0], parameters[-2].shape[0]


# the parameters are weights and biases in turn
mlp = FusedOp(
    "mlp",
    parameters=("weights_and_biases[]",),
    options={"activation": "str", "output_activation": "str"},
    reference=_reference,
    output_shape=_output_shape,
)
