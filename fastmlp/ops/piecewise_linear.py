"""The op `piecewise_linear`: the line of its segment for every element."""

from fastmlp import reference
from fastmlp.op_arguments import check_table
from fastmlp.ops.fused import FusedOp


def _reference(x, values, slopes, breakpoints, anchors):
    return reference.piecewise_linear(x, breakpoints, anchors, values, slopes)


def _check(x, values, slopes, breakpoints, anchors):
    check_table(x, breakpoints, anchors, values, slopes)


piecewise_linear = FusedOp(
    "piecewise_linear",
    parameters=("values", "slopes"),
    constants=("breakpoints", "anchors"),
    options={},
    reference=_reference,
    check=_check,
    output_shape=lambda x, values, slopes: (*x.shape, *values.shape[1:]),
    pointwise=True,
)
