"""The op `sine_sum`: a sum or mean of sines with learned frequencies, on every element."""

from fastmlp import reference
from fastmlp.ops.fused import FusedOp


def _reference(x, w, amplitude, phase, scale, mean):
    return reference.sine_sum(x, w, amplitude, phase, scale, "mean" if mean else "sum")


def _gradient_sizes(x, w, amplitude, phase):
    width = w.shape[0]
    return width, width * (amplitude is not None), width * (phase is not None)


sine_sum = FusedOp(
    "sine_sum",
    tensors=("w", "amplitude?", "phase?"),
    n_backward=3,
    options={"scale": "float", "mean": "bool"},
    reference=_reference,
    output_shape=lambda x, *tensors: x.shape,
    gradient_sizes=_gradient_sizes,
)
