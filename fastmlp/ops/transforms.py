"""Ops under `torch.func`: what PyTorch's dispatcher would do, for `vmap` and reverse mode.

Transforms that are at work are taken off one by one, the innermost first, as PyTorch does itself
for an ``autograd.Function``: `vmap` by the rules of :mod:`.mapped`, reverse mode by the op's rule
of autograd. What is left are plain tensors. By the registered ops the dispatcher does the same, and
calls Python three times for each transform.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch

from fastmlp import boundary
from fastmlp.ops import mapped

_VMAP = _functorch.TransformType.Vmap


class _Call(NamedTuple):
    """Forward or backward of any op.

    Args:
        plain: Function of the op and of arguments where no transform is at work.
        rule: That of :mod:`.mapped`.
        taped: Function of the op, of what calls it without the innermost transform, and of
            arguments, for autograd's tape.
    """

    plain: Callable
    rule: Callable
    taped: Callable

    def __call__(self, op, *arguments):
        """The results of an op, where :func:`fastmlp.boundary.has_rules`."""
        # as of a pull-back whose transform is over
        return self._below_others(op, *_each_tensor(_functorch.unwrap_if_dead, arguments))

    def _below_others(self, op, *arguments):
        """The same under the transforms that are left."""
        transform = _functorch.peek_interpreter_stack()
        if transform is None:
            return self.plain(op, *arguments)
        if transform.key() == _VMAP:
            return self._mapped(op, transform, arguments)
        arguments = _each_tensor(_functorch.CGradInterpreterPtr(transform).lift, arguments)
        below = partial(self._below, op, transform)
        tensors = [t for t in arguments if isinstance(t, Tensor)]
        if not torch.is_grad_enabled() or not torch._C._any_requires_grad(*tensors):
            return below(*arguments)
        with boundary.functions_allowed():
            return self.taped(op, below, arguments)

    def _mapped(self, op, transform, arguments):
        level = transform.level()
        pairs = [
            _functorch._unwrap_batched(a, level) if isinstance(a, Tensor) else (a, None)
            for a in arguments
        ]
        arguments, dims = zip(*pairs, strict=True)
        n = _functorch.CVmapInterpreterPtr(transform).batchSize()
        with _Without():
            if all(dim is None for dim in dims):
                return self._below_others(op, *arguments)
            results = self.rule(self._below_others, op, n, dims, *arguments)
        return _results(lambda t: _functorch._add_batch_dim(t, 0, level), results)

    def _below(self, op, transform, *arguments):
        """The results for a transform of reverse mode by the transforms around it."""
        level = transform.level()
        arguments = _each_tensor(lambda t: _functorch._unwrap_for_grad(t, level), arguments)
        # an autograd.Function has grad mode off, of which those know nothing
        before = _functorch.CGradInterpreterPtr(transform).prevGradMode()
        with torch.set_grad_enabled(before), _Without():
            results = self._below_others(op, *arguments)
        return _results(lambda t: _functorch._wrap_for_grad(t, level), results)


class _Without:
    """Inside the innermost transform is not at work."""

    def __enter__(self):
        self._layer = _functorch.pop_dynamic_layer_stack()

    def __exit__(self, *_):
        _functorch.push_dynamic_layer_stack(self._layer)


def _each_tensor(function, arguments):
    return [function(a) if isinstance(a, Tensor) else a for a in arguments]


def _results(function, results):
    """Of a tensor or of some, ``None`` among them."""
    if isinstance(results, Tensor):
        return function(results)
    return tuple(_each_tensor(function, results))


def _forward(op, x, *given):
    first = len(given) - op.n_options
    return op.run((x, *given[:first]), given[first:])


def _forward_taped(op, below, arguments):
    n_tensors = len(arguments) - op.n_options
    way = (below, None), None, arguments[n_tensors:]
    return op.apply(way, *arguments[:n_tensors])


def _backward(op, dy, x, *given):
    *given, needs = given
    n_tensors = len(given) - op.n_options
    tensors, options = (x, *given[:n_tensors]), given[n_tensors:]
    if torch.is_grad_enabled() and torch._C._any_requires_grad(dy, *tensors):
        return op.apply_backward((partial(_backward, op), options, needs), dy, *tensors)
    with torch.no_grad():
        return op.gradients(None, dy, tensors, options, needs)


def _backward_taped(op, below, arguments):
    *arguments, needs = arguments
    n_tensors = len(arguments) - op.n_options
    way = below, arguments[n_tensors:], needs
    return op.apply_backward(way, *arguments[:n_tensors])


forward = _Call(_forward, mapped.outputs, _forward_taped)
backward = _Call(_backward, mapped.gradients, _backward_taped)


def batched_backward(op, dy, *given):
    """The gradients where :func:`fastmlp.boundary.is_batched_alone`; arguments of ``backward``."""
    level = boundary.TAPES_LEVEL
    rows = torch._remove_batch_dim(dy, level, 0, 0)
    dims = 0, *[None] * len(given)
    found = mapped.gradients(backward, op, len(rows), dims, rows, *given)
    return [g if g is None else torch._add_batch_dim(g, 0, level) for g in found]
