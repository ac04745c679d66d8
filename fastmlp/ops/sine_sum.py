"""The op `sine_sum`: a sum or mean of sines with learned frequencies, on every element."""

from fastmlp import reference
from fastmlp.op_arguments import check_sines
from fastmlp.ops.fused import FusedOp


def _reference(x, w, amplitude, phase, scale, mean):
    return reference.sine_sum(x, w, amplitude, phase, scale, "mean" if mean else "sum")


sine_sum = FusedOp(
    "sine_sum",
    parameters=("w", "amplitude?", "phase?"),
    options={"scale": "float", "mean": "bool"},
    reference=_reference,
    check=check_sines,
    output_shape=lambda x, *parameters: x.shape,
    pointwise=True,
)
