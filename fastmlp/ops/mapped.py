"""What `vmap` makes of a registered op: all outputs, and all gradients, by one call.

Over rows that is the op itself. Over parameters it is the op of many models, for which n times the
same parameters are a view; an op of many models is its own, with n times as many. An op that draws,
or is a table, is called for one after the other.
"""

import math

import torch
from torch.utils import _pytree

from fastmlp.kernels.sums import by_halves


def forward(op, info, in_dims, *arguments):
    """All outputs.

    Args:
        op: A :class:`.fused.FusedOp`.
        info: How many there are.
        in_dims: Of each argument the dimension that is mapped over, or ``None``.
        *arguments: As the registered op takes them.
    """
    n = info.batch_size
    x, *given = _flat(op, arguments, 1)
    x_dim, *dims = _flat(op, in_dims, 1)
    if not op.has_many(given[: len(given) - op.n_options]):
        return torch.stack(_one_by_one(op._library_fwd, n, in_dims, arguments)), 0
    if _is_over_rows(op, dims):
        x = _each(n, x, x_dim)
        y = op._library_fwd(_rows(op, x), *arguments[1:])
        return y.view(x.shape if op.pointwise else (n, -1, y.shape[-1])), 0
    many, others, m = _of_many(op, n, given, dims)
    x = _inputs(op, n, m, x, x_dim)
    y = many._library_fwd(_as_rows(op, x), *others)
    if op.is_of_many:
        return y.unflatten(0, (n, m)), 0
    return y.view(n, *x.shape[1:]) if op.pointwise else y, 0


def backward(op, info, in_dims, *arguments):
    """All gradients, by the arguments of a registered backward."""
    n, needs = info.batch_size, arguments[-1]
    dy, x, *given = _flat(op, arguments[:-1], 2)
    dy_dim, x_dim, *dims = _flat(op, in_dims[:-1], 2)
    if not op.has_many(given[: len(given) - op.n_options]):
        results = _one_by_one(op._library_bwd, n, in_dims, arguments)
        return [*map(torch.stack, zip(*results, strict=True))], [0] * len(needs)
    dy, out_dims = _each(n, dy, dy_dim), [0 if need else None for need in needs]
    if _is_over_rows(op, dims) and not any(needs[1:]):
        x = _each(n, x, x_dim)
        dx, *empty = op._library_bwd(_rows(op, dy), _rows(op, x), *arguments[2:])
        return [dx.view(x.shape), *empty], out_dims
    many, others, m = _of_many(op, n, given, dims)
    # of rows that all share there would be one gradient, a sum
    is_shared = op.is_of_many and x.shape[0 if x_dim != 0 else 1] == 1
    x = _inputs(op, n, m, x, x_dim, own=needs[0])
    dy = dy.flatten(0, 1) if op.is_of_many else _as_rows(op, dy)
    gradients = many._library_bwd(dy, _as_rows(op, x), *others, needs)
    if op.is_of_many:
        pairs = zip(gradients, needs, strict=True)
        gradients = [g.unflatten(0, (n, m)) if need else g for g, need in pairs]
        if needs[0] and is_shared:
            gradients[0] = by_halves(gradients[0].transpose(0, 1)).transpose(0, 1)
    elif needs[0]:
        gradients[0] = gradients[0].view(x.shape)
    return gradients, out_dims


def _flat(op, values, at):
    """Values of all arguments, those of the list at a place among them."""
    return (*values[:at], *values[at], *values[at + 1 :]) if op.takes_list else values


def _one_by_one(call, n, in_dims, arguments):
    """The results of one call after the other."""
    leaves, tree = _pytree.tree_flatten(arguments)
    dims = _pytree.tree_leaves(in_dims, is_leaf=lambda dim: dim is None)
    pairs = [*zip(leaves, dims, strict=True)]
    calls = ([t if dim is None else t.select(dim, i) for t, dim in pairs] for i in range(n))
    return [call(*_pytree.tree_unflatten(leaves, tree)) for leaves in calls]


def _is_over_rows(op, dims):
    """Whether one model serves all, by the dimensions of what an op takes behind x."""
    return not op.is_of_many and all(dim is None for dim in dims)


def _each(n, t, dim):
    """A tensor with the dimension that is mapped over as its first: a view."""
    if dim is None:
        return t.expand(n, *t.shape)
    return t if dim == 0 else t.movedim(dim, 0)


def _rows(op, t):
    """The rows of all ``[n, R, …]``; where every number is one, their shape does not matter."""
    return t if op.pointwise else t.flatten(0, 1)


def _as_rows(op, t):
    """The rows of each as the op of many models takes them: ``[n, R]`` of numbers."""
    return t.reshape(len(t), math.prod(t.shape[1:])) if op.pointwise else t


def _of_many(op, n, given, dims):
    """The op of many models, what it takes behind x, and how many models a call of ``op`` is of."""
    n_parameters = len(given) - op.n_constants - op.n_options
    parameters = [
        # an empty tensor of a list stands for none
        t if t is None or (op.takes_list and t.numel() == 0) else _each(n, t, dim)
        for t, dim in zip(given[:n_parameters], dims, strict=False)
    ]
    options = given[len(given) - op.n_options :]
    if not op.is_of_many:
        many, m = op.of_many, 1
    else:
        many, m = op, parameters[0].shape[1]
        parameters = [t if t is None or t.numel() == 0 else t.flatten(0, 1) for t in parameters]
    if op.takes_list:
        parameters = [parameters]
    return many, (*parameters, *options[: many.n_options]), m


def _inputs(op, n, m, x, dim, own=False):
    """x of the op of many models: ``[1, …]`` if all may share it, else of ``n * m`` models.

    ``own``: each has its own, as where its gradient is wanted.
    """
    if dim is None and not own and (not op.is_of_many or len(x) == 1):
        return x if op.is_of_many else x.unsqueeze(0)
    x = _each(n, x, dim)
    return x.expand(n, m, *x.shape[2:]).flatten(0, 1) if op.is_of_many else x
