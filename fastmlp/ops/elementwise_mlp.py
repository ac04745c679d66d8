"""The op `elementwise_mlp`: a scalar subnet 1 → H → 1 on every element."""

from fastmlp import reference
from fastmlp.ops.fused import FusedOp

elementwise_mlp = FusedOp(
    "elementwise_mlp",
    tensors=("fc1_weight", "fc1_bias?", "fc2_weight", "fc2_bias?"),
    options={},
    reference=reference.elementwise_mlp,
    output_shape=lambda x, *tensors: x.shape,
)
