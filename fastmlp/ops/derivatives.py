"""Derivatives by differentiating the reference: what kernels do not give, to any order."""

import torch

from fastmlp import boundary


def reference_gradients(op, dy, tensors, options, needs):
    """Gradients of x and of each parameter; differentiable again where grad mode is on.

    Args:
        op: A :class:`.fused.FusedOp`.
        dy: The gradient of its output.
        tensors: x, parameters and constants, ``None`` for one that is missing.
        options: Plain arguments.
        needs: Which gradients are wanted, of x and of each parameter.

    Returns:
        A list, ``None`` where a gradient is not wanted.
    """
    wanted_of = (*needs, *[False] * (len(tensors) - len(needs)))

    def call(*wanted):
        # autocast cast the output of forward, not what was computed
        with torch.autocast(dy.device.type, enabled=False):
            return op.reference(*_filled(tensors, wanted_of, wanted), *options)

    wanted = [t for t, need in zip(tensors, wanted_of, strict=True) if need]
    if boundary.is_within_transforms():
        _, pull_back = torch.func.vjp(call, *map(torch._C._functorch.unwrap_if_dead, wanted))
        return _filled([None] * len(needs), needs, pull_back(dy))
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        wanted = [
            # a view makes each argument distinct: one parameter may be passed twice
            t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()
            for t in wanted
        ]
        y = call(*wanted)
    gradients = torch.autograd.grad(y, wanted, dy, create_graph=create_graph)
    return _filled([None] * len(needs), needs, gradients)


def differentiable_backward(op):
    """The autograd rule of an op's backward: its derivatives; what calls it comes along."""

    def forward(ctx, way, dy, x, *tensors):
        call, ctx.options, ctx.needs = way
        ctx.save_for_backward(dy, x, *tensors)
        return tuple(call(dy, x, *tensors, *ctx.options, ctx.needs))

    def backward(ctx, *cotangents):
        inputs = [
            t if t is None else torch._C._functorch.unwrap_if_dead(t) for t in ctx.saved_tensors
        ]
        wanted_of = ctx.needs_input_grad[1:]

        def gradients(*wanted):
            dy, *tensors = _filled(inputs, wanted_of, wanted)
            found = reference_gradients(op, dy, tensors, ctx.options, ctx.needs)
            return tuple(g for g in found if g is not None)

        wanted = [t for t, need in zip(inputs, wanted_of, strict=True) if need]
        _, pull_back = torch.func.vjp(gradients, *wanted)
        given = tuple(c for c, need in zip(cotangents, ctx.needs, strict=True) if need)
        return None, *_filled([None] * len(inputs), wanted_of, pull_back(given))

    rules = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"{op.name}_bwd", (torch.autograd.Function,), rules)


def _filled(tensors, places, values):
    """The tensors, with values one after the other in the places that are true."""
    given = iter(values)
    return [next(given) if here else t for t, here in zip(tensors, places, strict=True)]
