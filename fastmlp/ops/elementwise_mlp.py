"""The op `elementwise_mlp`: a scalar subnet 1 → H → 1 on every element."""

from fastmlp import reference
from fastmlp.op_arguments import check_elementwise
from fastmlp.ops.fused import FusedOp

SUBNET_OPTIONS = {
    "activation": "str",
    "p_input": "float",
    "p_hidden": "float",
    "p_output": "float",
}


def _reference(x, *arguments):
    *parameters, seed, activation, p_input, p_hidden, p_output = arguments
    dropout = (p_input, p_hidden, p_output)
    return reference.elementwise_mlp(x, *parameters, activation, dropout, seed)


elementwise_mlp = FusedOp(
    "elementwise_mlp",
    parameters=("fc1_weight", "fc1_bias?", "fc2_weight", "fc2_bias?"),
    constants=("seed?",),
    options=SUBNET_OPTIONS,
    reference=_reference,
    check=lambda x, *tensors: check_elementwise(x, *tensors[:-1]),
    output_shape=lambda x, *parameters: x.shape,
    pointwise=True,
)
