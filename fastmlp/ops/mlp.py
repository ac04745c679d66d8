"""The op `mlp`: a whole dense network, any depth, fused."""

import torch

from fastmlp import reference
from fastmlp.op_arguments import check_mlp
from fastmlp.ops.fused import FusedOp


def _reference(x, *arguments):
    *parameters, seed, activation, output_activation, dropout = arguments
    weights, biases = parameters[::2], parameters[1::2]
    return reference.mlp(x, weights, biases, activation, output_activation, dropout, seed)


def _output_shape(x, *parameters):
    return x.shape[0], parameters[-2].shape[0]


def _float32_precision():
    """What PyTorch's own products of float32 on a CUDA device may take at a call."""
    return torch._C._get_fp32_precision_getter("cuda", "matmul")


# the parameters are weights and biases in turn
mlp = FusedOp(
    "mlp",
    parameters=("weights_and_biases[]",),
    constants=("seed?",),
    options={"activation": "str", "output_activation": "str", "dropout": "float"},
    reference=_reference,
    check=lambda x, *tensors: check_mlp(x, tensors[:-1:2], tensors[1:-1:2]),
    output_shape=_output_shape,
    pointwise=False,
    setting=_float32_precision,
)
