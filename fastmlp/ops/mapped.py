"""What `vmap` makes of an op: all outputs, and all gradients, by one call.

Over rows that is the op itself. Over parameters it is the op of many models, for which n times the
same parameters are a view; an op of many models is its own, with n times as many. A registered op
that draws, or is a table, is called for one after the other.
"""

import math

import torch
from torch.utils import _pytree

from fastmlp.kernels.sums import by_halves


def outputs(call, op, n, dims, x, *given):
    """All outputs ``[n, …]``.

    Args:
        call: What calls an op: a function of it, of x, parameters, constants and options.
        op: A :class:`.fused.FusedOp` of which there is one of many models.
        n: How many there are.
        dims: Of x and of what follows the dimension that is mapped over, or ``None``.
        x: Input.
        *given: Parameters, constants and options.
    """
    x_dim, *dims = dims
    if _is_over_rows(op, dims):
        x = _each(n, x, x_dim)
        y = call(op, _rows(op, x), *given)
        return y.view(x.shape if op.pointwise else (n, -1, y.shape[-1]))
    many, others, m = _of_many(op, n, given, dims)
    x = _inputs(op, n, m, x, x_dim)
    y = call(many, _as_rows(op, x), *others)
    if op.is_of_many:
        return y.unflatten(0, (n, m))
    return y.view(n, *x.shape[1:]) if op.pointwise else y


def gradients(call, op, n, dims, dy, x, *given):
    """All gradients, each ``[n, …]`` or ``None``: of :func:`outputs`, with dy before x.

    ``given`` ends with what is needed, of x and of each parameter; so does what ``call`` takes.
    """
    *given, needs = given
    dy_dim, x_dim, *dims = dims
    dy = _each(n, dy, dy_dim)
    if _is_over_rows(op, dims) and not any(needs[1:]):
        x = _each(n, x, x_dim)
        dx, *others = call(op, _rows(op, dy), _rows(op, x), *given, needs)
        return [dx.view(x.shape), *others]
    many, others, m = _of_many(op, n, given, dims)
    # of rows that all share there would be one gradient, a sum
    is_shared = op.is_of_many and x.shape[0 if x_dim != 0 else 1] == 1
    x = _inputs(op, n, m, x, x_dim, own=needs[0])
    dy = dy.flatten(0, 1) if op.is_of_many else _as_rows(op, dy)
    found = [*call(many, dy, _as_rows(op, x), *others, needs)]
    if op.is_of_many:
        found = [g if g is None else g.unflatten(0, (n, m)) for g in found]
        if needs[0] and is_shared:
            found[0] = by_halves(found[0].transpose(0, 1)).transpose(0, 1)
    elif needs[0]:
        found[0] = found[0].view(x.shape)
    return found


def forward(op, info, in_dims, *arguments):
    """What is registered as the rule of an op's forward, for ``torch.library.register_vmap``."""
    n, x, given = info.batch_size, arguments[0], op.unpacked(arguments[1:])
    if not op.has_many(given[: len(given) - op.n_options]):
        return torch.stack(_one_by_one(op.library_fwd, n, in_dims, arguments)), 0
    return outputs(type(op).dispatch, op, n, _flat(op, in_dims, 1), x, *given), 0


def backward(op, info, in_dims, *arguments):
    """The like of its backward."""
    n, (dy, x), needs = info.batch_size, arguments[:2], arguments[-1]
    given = op.unpacked(arguments[2:-1])
    if not op.has_many(given[: len(given) - op.n_options]):
        results = _one_by_one(op.library_bwd, n, in_dims, arguments)
        return [*map(torch.stack, zip(*results, strict=True))], [0] * len(needs)
    dims = _flat(op, in_dims[:-1], 2)
    found = gradients(type(op).dispatch_backward, op, n, dims, dy, x, *given, needs)
    # a registered op returns no None
    found = [dy.new_empty(0) if g is None else g for g in found]
    return found, [0 if need else None for need in needs]


def _flat(op, dims, at):
    """Dimensions of all arguments, those of the list at a place among them."""
    return (*dims[:at], *dims[at], *dims[at + 1 :]) if op.takes_list else dims


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
    if not op.pointwise or t.dim() == 2:
        return t
    return t.reshape(len(t), math.prod(t.shape[1:]))


def _of_many(op, n, given, dims):
    """The op of many models, what it takes behind x, and how many models a call of ``op`` is of."""
    n_parameters = len(given) - op.n_constants - op.n_options
    parameters = [
        t if t is None else _each(n, t, dim)
        for t, dim in zip(given[:n_parameters], dims, strict=False)
    ]
    options = given[len(given) - op.n_options :]
    if not op.is_of_many:
        return op.of_many, (*parameters, *options[: op.of_many.n_options]), 1
    m = parameters[0].shape[1]
    return op, (*(t if t is None else t.flatten(0, 1) for t in parameters), *options), m


def _inputs(op, n, m, x, dim, own=False):
    """x of the op of many models: ``[1, …]`` if all may share it, else of ``n * m`` models.

    ``own``: each has its own, as where its gradient is wanted.
    """
    if dim is None and not own and (not op.is_of_many or len(x) == 1):
        return x if op.is_of_many else x.unsqueeze(0)
    x = _each(n, x, dim)
    return x.expand(n, m, *x.shape[2:]).flatten(0, 1) if op.is_of_many else x
