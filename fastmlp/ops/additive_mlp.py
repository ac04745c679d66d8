"""The op `additive_mlp`: a shared scalar subnet per feature and a linear read-out, fused."""

from fastmlp import reference
from fastmlp.ops.fused import FusedOp


def _output_shape(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias):
    return x.shape[0], fc3_weight.shape[0]


additive_mlp = FusedOp(
    "additive_mlp",
    tensors=("fc1_weight", "fc1_bias?", "fc2_weight", "fc2_bias?", "fc3_weight", "fc3_bias?"),
    options={},
    reference=reference.additive_mlp,
    output_shape=_output_shape,
)
