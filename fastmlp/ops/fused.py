"""From the declaration of a fused op to its autograd rule and its registered library ops.

Eager calls go straight to an ``autograd.Function`` (or, when nothing needs a gradient, to the
launcher); the dispatcher costs more than a small net's arithmetic. ``torch.compile`` and
``torch.export`` see the registered ops ``fastmlp::<name>_fwd`` and ``fastmlp::<name>_bwd``.
"""

from functools import reduce

import torch

from fastmlp import backends
from fastmlp.ops import registry


class FusedOp:
    """One op: tensors in, one tensor out, forward and backward one launcher each.

    Args:
        name: Name of the op and of its file in every wing.
        parameters: Names of the tensors after ``x`` that have a gradient; a trailing ``"?"`` marks
            an optional one. A single name with a trailing ``"[]"`` stands for any number of
            optional ones, which callers and launchers write out; the registered op takes a list.
        constants: Names of the tensors after these, which have none.
        options: Names and schema types of the plain arguments, which come last.
        reference: The same op in plain PyTorch, with the arguments ``(x, *parameters, *constants,
            *options)``.
        output_shape: Function of ``(x, *parameters)`` that gives the output's shape.
    """

    def __init__(self, name, *, parameters, constants=(), options, reference, output_shape):
        self.name = name
        self.takes_list = parameters[0].endswith("[]")
        self.n_constants = len(constants)
        self.n_options = len(options)
        self.reference = reference
        self.output_shape = output_shape
        # Function.apply in Python only guards against torch.func, which __call__ has done (5 µs)
        self._apply = super(torch.autograd.Function, _autograd_function(self)).apply
        self._fwd_name, self._bwd_name = name + "_fwd", name + "_bwd"
        self._register((*parameters, *constants), options)

    def __call__(self, x, *arguments):
        """Run the op on arguments that :mod:`fastmlp.functional` has checked."""
        backend = backends.choose(x.device.type)
        if backend == "torch":
            return self.reference(x, *arguments)
        if torch.compiler.is_compiling():
            return self._library_fwd(x, *self._packed(arguments))
        # torch.func transforms differentiate and batch plain PyTorch operations
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return self.reference(x, *arguments)
        kernels = backends.launchers(backend, self.name)
        if torch.is_grad_enabled():
            for t in (x, *self._parameters(arguments)):
                if t is not None and t.requires_grad:
                    n_tensors = len(arguments) - self.n_options
                    return self._apply(kernels, arguments[n_tensors:], x, *arguments[:n_tensors])
        return self.launch_fwd(kernels, x, *arguments)

    def launch_fwd(self, kernels, *arguments):
        return getattr(kernels, self._fwd_name)(*arguments)

    def launch_bwd(self, kernels, dy, *arguments, needs):
        """Gradients of x and of each parameter, ``None`` unless needed."""
        return getattr(kernels, self._bwd_name)(dy, *arguments, needs=needs)

    def _parameters(self, arguments):
        return arguments[: len(arguments) - self.n_constants - self.n_options]

    def _packed(self, arguments):
        """The arguments as the registered op takes them."""
        if not self.takes_list:
            return arguments
        parameters = self._parameters(arguments)
        # PyTorch differentiates no list with None in it: an empty tensor stands for one
        listed = [parameters[0].new_empty(0) if t is None else t for t in parameters]
        return listed, *arguments[len(parameters) :]

    def _unpacked(self, arguments):
        if not self.takes_list:
            return arguments
        listed, *rest = arguments
        return *(t if t.numel() else None for t in listed), *rest

    def _register(self, tensors, options):
        typed = [_typed(name) for name in tensors]
        plain = [f"{kind} {name}" for name, kind in options.items()]
        arguments = ", ".join(["Tensor x", *typed, *plain])
        fwd = registry.define(f"{self._fwd_name}({arguments}) -> Tensor")
        bwd = registry.define(
            f"{self._bwd_name}(Tensor dy, {arguments}, bool need_dx, bool need_dparams)"
            " -> (Tensor, Tensor)"
        )
        registry.impl(fwd, self._fwd_impl, "CompositeExplicitAutograd")
        registry.impl(bwd, self._bwd_impl, "CompositeExplicitAutograd")
        registry.register_fake(fwd, self._fwd_fake)
        registry.register_fake(bwd, self._bwd_fake)
        registry.register_autograd(fwd, self._library_backward, setup_context=_setup_context)
        self._library_fwd, self._library_bwd = registry.op(fwd), registry.op(bwd)

    def _fwd_impl(self, x, *arguments):
        kernels = backends.launchers(backends.choose_compiled(x.device.type), self.name)
        return self.launch_fwd(kernels, x, *self._unpacked(arguments))

    def _bwd_impl(self, dy, x, *arguments):
        *arguments, need_dx, need_dparams = self._unpacked(arguments)
        kernels = backends.launchers(backends.choose_compiled(x.device.type), self.name)
        needs = (
            need_dx,
            *(need_dparams and t is not None for t in self._parameters(arguments)),
        )
        dx, *gradients = self.launch_bwd(kernels, dy, x, *arguments, needs=needs)
        # outputs of a registered op must not share memory: all gradients in one
        flat = [gradient.reshape(-1) for gradient in gradients if gradient is not None]
        return dy.new_empty(0) if dx is None else dx, torch.cat(flat) if flat else dy.new_empty(0)

    def _fwd_fake(self, x, *arguments):
        parameters = self._parameters(self._unpacked(arguments))
        return x.new_empty(self.output_shape(x, *parameters), dtype=_common_dtype(x, *parameters))

    def _bwd_fake(self, dy, x, *arguments):
        *arguments, need_dx, need_dparams = self._unpacked(arguments)
        n_parameters = sum(_sizes(self._parameters(arguments)))
        return (
            x.new_empty(x.shape) if need_dx else dy.new_empty(0),
            dy.new_empty(n_parameters if need_dparams else 0),
        )

    def _library_backward(self, ctx, dy):
        x, *tensors = ctx.saved_tensors
        arguments = (*tensors, *ctx.options)
        parameters = self._parameters(arguments)
        need_dx, *needed = ctx.needs_input_grad
        needed = needed[0] if self.takes_list else needed[: len(parameters)]
        dx, dparams = self._library_bwd(dy, x, *self._packed(arguments), need_dx, any(needed))
        gradients = [None] * len(parameters)
        if any(needed):
            parts = dparams.split_with_sizes(_sizes(parameters))
            gradients = [
                part.view(parameter.shape).to(parameter.dtype) if need else None
                for part, parameter, need in zip(parts, parameters, needed, strict=True)
            ]
        rest = [None] * (self.n_constants + self.n_options)
        if self.takes_list:
            gradients = [gradients]
        return dx if need_dx else None, *gradients, *rest


def _typed(name):
    if name.endswith("[]"):
        return f"Tensor[] {name[:-2]}"
    return f"Tensor? {name[:-1]}" if name.endswith("?") else f"Tensor {name}"


def _sizes(tensors):
    return [0 if t is None else t.numel() for t in tensors]


def _common_dtype(*tensors):
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))


def _setup_context(ctx, inputs, output):
    if isinstance(inputs[1], (list, tuple)):
        inputs = (inputs[0], *inputs[1], *inputs[2:])
    tensors = [a for a in inputs if a is None or isinstance(a, torch.Tensor)]
    ctx.options = inputs[len(tensors) :]
    ctx.save_for_backward(*tensors)


def _autograd_function(op):
    def forward(ctx, kernels, options, x, *tensors):
        ctx.kernels, ctx.options = kernels, options
        ctx.save_for_backward(x, *tensors)
        return op.launch_fwd(kernels, x, *tensors, *options)

    def backward(ctx, dy):
        tensors, options = ctx.saved_tensors, ctx.options
        n_constants = op.n_constants
        needs = ctx.needs_input_grad[2 : len(tensors) - n_constants + 2]
        if torch.is_grad_enabled():
            # create_graph=True: differentiate the reference, to any order
            gradients = _differentiable_gradients(op, dy, tensors, options, needs)
        else:
            # PyTorch casts them where a parameter has another dtype than the output
            gradients = op.launch_bwd(ctx.kernels, dy, *tensors, *options, needs=needs)
        return None, None, *gradients, *[None] * n_constants

    rules = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(op.name, (torch.autograd.Function,), rules)


def _differentiable_gradients(op, dy, tensors, options, needs):
    # a view makes each argument distinct: one parameter may be passed twice
    arguments = [None if t is None else t.view_as(t) for t in tensors]
    y = op.reference(*arguments, *options)
    wanted = [t for t, need in zip(arguments, needs, strict=False) if need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(gradients) if need else None for need in needs]
