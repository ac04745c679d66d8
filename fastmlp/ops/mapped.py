"""What `vmap` makes of a registered op: over rows the op itself, over parameters that of many."""

import torch
from torch.utils import _pytree


def forward(op, info, in_dims, *arguments):
    """All outputs from one call of a kernel, where no constant keys what it draws.

    Args:
        op: A :class:`.fused.FusedOp`.
        info: How many there are.
        in_dims: Of each argument the dimension that is mapped over, or ``None``.
        *arguments: As the registered op takes them.
    """
    flat, tree = _pytree.tree_flatten(arguments)
    dims = _pytree.tree_leaves(in_dims, is_leaf=lambda dim: dim is None)
    flat = [t if dim is None else t.movedim(dim, 0) for t, dim in zip(flat, dims, strict=True)]
    x, *given = _pytree.tree_unflatten(flat, tree)
    given = op._unpacked(given)
    n_parameters = len(op._parameters(given))
    constants = given[n_parameters : len(given) - op.n_options]
    x_dim, *given_dims = dims  # an op's list comes first: both are in one order
    over_parameters = any(dim is not None for dim in given_dims[:n_parameters])
    if any(c is not None for c in constants) or (over_parameters and op.of_many is None):
        # one call after the other
        calls = (
            [leaf if dim is None else leaf[i] for leaf, dim in zip(flat, dims, strict=True)]
            for i in range(info.batch_size)
        )
        return torch.stack([op._library_fwd(*_pytree.tree_unflatten(c, tree)) for c in calls]), 0
    n = info.batch_size
    if not over_parameters:
        rows = x if op.pointwise else x.flatten(0, 1)
        y = op._library_fwd(rows, *op._packed(given))
        return (y if op.pointwise else y.view(n, -1, y.shape[-1])), 0
    parameters = [
        t if t is None or dim is not None else t.expand(n, *t.shape)
        for t, dim in zip(given[:n_parameters], given_dims, strict=False)
    ]
    many = op.of_many
    options = given[len(given) - op.n_options :][: many.n_options]
    x = x.unsqueeze(0) if x_dim is None else x
    rows = x.flatten(1) if op.pointwise else x
    y = many._library_fwd(rows, *many._packed((*parameters, *options)))
    return (y.view(n, *x.shape[1:]) if op.pointwise else y), 0


def backward(op, info, in_dims, *arguments):
    """Gradients by one call after the other."""
    leaves, tree = _pytree.tree_flatten(arguments)
    dims = _pytree.tree_leaves(in_dims, is_leaf=lambda dim: dim is None)
    results = [
        op._library_bwd(
            *_pytree.tree_unflatten(
                [
                    leaf if dim is None else leaf.select(dim, i)
                    for leaf, dim in zip(leaves, dims, strict=True)
                ],
                tree,
            )
        )
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*results, strict=True))), (0, 0)
