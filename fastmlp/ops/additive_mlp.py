"""The op `additive_mlp`: a scalar subnet per feature and a linear read-out, fused."""

from fastmlp import reference
from fastmlp.op_arguments import check_additive
from fastmlp.ops.elementwise_mlp import SUBNET_OPTIONS
from fastmlp.ops.fused import FusedOp


def _reference(x, *arguments):
    *parameters, seed, activation, p_input, p_hidden, p_output = arguments
    dropout = (p_input, p_hidden, p_output)
    return reference.additive_mlp(x, *parameters, activation, dropout, seed)


def _output_shape(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias):
    return x.shape[0], fc3_weight.shape[0]


additive_mlp = FusedOp(
    "additive_mlp",
    parameters=("fc1_weight", "fc1_bias?", "fc2_weight", "fc2_bias?", "fc3_weight", "fc3_bias?"),
    constants=("seed?",),
    options=SUBNET_OPTIONS,
    reference=_reference,
    check=lambda x, *tensors: check_additive(x, *tensors[:-1]),
    output_shape=_output_shape,
    pointwise=False,
)
