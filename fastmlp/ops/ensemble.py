"""The ops with a leading model axis: what one op does, for many models of one structure at once.

x is ``[1, R, …]``, the same rows for all models, or ``[n, R, …]``; parameters are ``[n, …]``, the
output is ``[n, R, …]``. ``vmap`` over an op's parameters calls them too.
"""

import torch

from fastmlp.ops import additive_mlp as additive
from fastmlp.ops import elementwise_mlp as elementwise
from fastmlp.ops import mlp as layers
from fastmlp.ops import sine_sum as sines
from fastmlp.ops.fused import FusedOp

_NO_DROPOUT = (0.0, 0.0, 0.0)


def _of_each(reference, n_options):
    """The reference of one model as that of many."""

    def call(x, *arguments):
        tensors, options = arguments[: len(arguments) - n_options], arguments[-n_options:]
        own = len(x) > 1 or len(tensors[0]) == 1

        def of_one(x, *tensors):
            return reference(x, *tensors, *options)

        dims = 0 if own else None, *(None if t is None else 0 for t in tensors)
        return torch.vmap(of_one, in_dims=dims)(x if own else x[0], *tensors)

    return call


def _ensemble(op, reference, parameters, options, n_out=None):
    """The op of many models.

    Args:
        op: That of one.
        reference: Of one, with the arguments ``(x, *parameters, *options)``.
        parameters: Names, as of a :class:`.fused.FusedOp`.
        options: Names and schema types.
        n_out: Function of the parameters that gives the numbers of an output row; ``None`` where
            every number is a row.
    """

    def output_shape(x, *given):
        n = given[0].shape[0]
        return (n, *x.shape[1:]) if n_out is None else (n, *x.shape[1:-1], n_out(given))

    def check(x, *tensors):
        n = len(tensors[0])
        if len(x) not in (1, n) or any(t is not None and len(t) != n for t in tensors):
            raise ValueError(f"all tensors must have a first dimension of {n} models")
        first = [None if t is None else t[0] for t in tensors]
        op.check(x[0], *first, *[None] * op.n_constants)

    many = FusedOp(
        f"{op.name}_ensemble",
        parameters=parameters,
        options=options,
        reference=_of_each(reference, len(options)),
        check=check,
        output_shape=output_shape,
        pointwise=op.pointwise,
        is_of_many=True,
        setting=op.setting,
    )
    op.be_mapped_by(many)
    return many


def _subnet(op):
    def call(x, *arguments):
        *parameters, activation = arguments
        return op.reference(x, *parameters, None, activation, *_NO_DROPOUT)

    return call


def _dense(x, *arguments):
    *parameters, activation, output_activation = arguments
    return layers.mlp.reference(x, *parameters, None, activation, output_activation, 0.0)


_SUBNET = ("fc1_weight", "fc1_bias?", "fc2_weight", "fc2_bias?")

sine_sum = _ensemble(
    sines.sine_sum,
    sines.sine_sum.reference,
    ("w", "amplitude?", "phase?"),
    {"scale": "float", "mean": "bool"},
)
elementwise_mlp = _ensemble(
    elementwise.elementwise_mlp,
    _subnet(elementwise.elementwise_mlp),
    _SUBNET,
    {"activation": "str"},
)
additive_mlp = _ensemble(
    additive.additive_mlp,
    _subnet(additive.additive_mlp),
    (*_SUBNET, "fc3_weight", "fc3_bias?"),
    {"activation": "str"},
    lambda given: given[4].shape[1],
)
mlp = _ensemble(
    layers.mlp,
    _dense,
    ("weights_and_biases[]",),
    {"activation": "str", "output_activation": "str"},
    lambda given: given[-2].shape[1],
)
