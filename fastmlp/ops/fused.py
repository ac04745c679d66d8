"""From the declaration of a fused op to its autograd rule and its registered library ops.

Eager calls on plain tensors go straight to an ``autograd.Function`` (or, when nothing needs a
gradient, to the launcher); the dispatcher costs more than a small net's arithmetic. Compilers,
dispatch modes and ``torch.func`` see the registered ops ``fastmlp::<name>_fwd`` and
``fastmlp::<name>_bwd``. :mod:`fastmlp.boundary` says which tensors are plain.
"""

from functools import partial, reduce

import torch
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from fastmlp import backends, boundary
from fastmlp.ops import mapped, registry, transforms
from fastmlp.ops.derivatives import differentiable_backward, reference_gradients
from fastmlp.ops.planned import Plans


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
        check: Function of ``(x, *parameters, *constants)`` that raises where their shapes or
            dtypes do not fit one another.
        output_shape: Function of ``(x, *parameters)`` that gives the output's shape.
        pointwise: Whether every element of x is on its own, whatever the shape of x. If not, every
            row of a matrix is.
        is_of_many: Whether parameters and outputs have a first dimension for the model, and x the
            same or one of 1.
        setting: Function without arguments that gives the setting of PyTorch's which the launchers
            follow; ``None`` where they follow none.
    """

    def __init__(
        self, name, *, parameters, constants=(), options, reference, check, output_shape,
        pointwise, is_of_many=False, setting=None,
    ):  # fmt: skip
        self.name, self.is_of_many = name, is_of_many
        self._file = "ensemble" if is_of_many else name
        self.of_many = None
        self.takes_list = parameters[0].endswith("[]")
        self.n_constants = len(constants)
        self.n_options = len(options)
        self.reference = reference
        self.check = check
        self.output_shape = output_shape
        self.pointwise, self.setting = pointwise, setting
        self._known, self._known_backward = boundary.Known(), boundary.Known()
        # Function.apply in Python only guards against torch.func, which __call__ has done (5 µs)
        self.apply = super(torch.autograd.Function, _autograd_function(self)).apply
        self.apply_backward = super(torch.autograd.Function, differentiable_backward(self)).apply
        self._fwd_name, self._bwd_name = name + "_fwd", name + "_bwd"
        self.plans = Plans(self)
        self._register((*parameters, *constants), options)

    def known(self, tensors):
        """What :meth:`learn` said of tensors like these, ``None`` where it has not seen any."""
        if is_dynamo_compiling():
            return None
        try:
            return self._known.find(tensors)
        except AttributeError:  # not all of them are tensors
            given = [t for t in tensors if t is not None]
        return self._known.find(given) if all(map(torch.is_tensor, given)) else None

    def learn(self, tensors):
        """Remember tensors that have been checked, if they are plain.

        Args:
            tensors: x, parameters and constants, in any order behind x.

        Returns:
            What a call of the op is to be told of such tensors, ``None`` if they are not plain.
        """
        given = [t for t in tensors if t is not None]
        if is_dynamo_compiling() or not boundary.is_plain(given):
            return None
        x, *others = given
        # checks have looked at the size of a row
        n_free = x.dim() if self.pointwise else x.dim() - 1
        note = x.device.type, torch._C._any_requires_grad(*given)
        sizes = [[None] * n_free + [*x.shape[n_free:]], *([*t.shape] for t in others)]
        self._known.keep(given, note, sizes)
        return note

    def __call__(self, note, tensors, options):
        """Run the op on arguments that :mod:`fastmlp.functional` has checked.

        Args:
            note: What :meth:`known` or :meth:`learn` says of the tensors.
            tensors: x, parameters and constants, ``None`` among them.
            options: The plain arguments.
        """
        if note is None:
            return self._elsewhere(*tensors, *options)
        device_type, requires_grad = note
        backend = backends.choose(device_type)
        if backend == "torch":
            return self.reference(*tensors, *options)
        launchers = fwd, _ = self._launchers(backend)
        if backend == "triton":
            y = self.plans.call(tensors, options) if self.plans else None
            return self.plans.first(launchers, tensors, options) if y is None else y
        if requires_grad and torch.is_grad_enabled():
            return self.apply((launchers, None, options), *tensors)
        return fwd(*tensors, *options)

    def run(self, tensors, options):
        """Run the op on arguments whose shapes and dtypes are known to fit."""
        return self(self.known(tensors) or self.learn(tensors), tensors, options)

    def _launchers(self, backend):
        """Those of forward and backward."""
        kernels = backends.launchers(backend, self._file)
        return getattr(kernels, self._fwd_name), getattr(kernels, self._bwd_name)

    def _elsewhere(self, x, *arguments):
        """Run the op on tensors that are not plain."""
        backend = backends.choose(x.device.type)
        if backend == "torch":
            return self.reference(x, *arguments)
        if is_dynamo_compiling():
            return self.dispatch(x, *arguments)
        n_tensors = len(arguments) - self.n_options
        tensors = [x, *[t for t in arguments[:n_tensors] if t is not None]]
        if boundary.is_interposed(tensors):
            return self.dispatch(x, *arguments)
        if self._has_rules(tensors, arguments[:n_tensors]):
            return transforms.forward(self, x, *arguments)
        boundary.refuse_freed(tensors)
        y = self._forward_mode(backend, tensors, x, *arguments)
        return self.reference(x, *arguments) if y is None else y

    def _has_rules(self, present, others):
        """Whether one call of a kernel gives what `torch.func` asks for.

        Args:
            present: All tensors.
            others: Parameters and constants. Where one of these draws, or is a table, it does not.
        """
        return self.has_many(others) and boundary.has_rules(present)

    def has_many(self, others):
        """Whether there is an op of many models for calls with these parameters and constants."""
        n_parameters = len(others) - self.n_constants
        known = self.of_many is not None or self.is_of_many
        return known and all(c is None for c in others[n_parameters:])

    def _forward_mode(self, backend, tensors, x, *arguments):
        """The output and its tangent by kernels, or ``None`` where these do not give it.

        The tangent is that of x, times the slope that backward finds for a gradient of ones. That
        needs an output for each input of its own, and no more derivatives behind this one.
        """
        needs_graph = torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)
        if forward_ad._current_level < 0 or needs_graph or not boundary.is_plain(tensors[1:]):
            return None
        primal, tangent = forward_ad.unpack_dual(x)
        if tangent is None or not boundary.is_plain((primal, tangent)):
            return None
        parameters = self._parameters(arguments)
        shape = self.output_shape(x, *parameters)
        if shape != (x.shape if self.pointwise else (*x.shape[:-1], 1)):
            return None
        n_tensors = len(arguments) - self.n_options
        tensors, options = (primal, *arguments[:n_tensors]), arguments[n_tensors:]
        needs = (True, *[False] * len(parameters))
        fwd, bwd = self._launchers(backend)
        y = fwd(*tensors, *options)
        slope, *_ = bwd(torch.ones_like(y), *tensors, *options, needs=needs)
        change = slope * tangent
        if not self.pointwise:
            change = change.sum(-1, keepdim=True)
        return forward_ad.make_dual(y, change.to(y.dtype))

    def gradients(self, bwd, dy, tensors, options, needs):
        """Gradients of x and of each parameter, ``None`` unless needed, by the way for ``dy``.

        ``tensors`` are x, parameters and constants; ``bwd`` is the launcher, if forward chose one.
        """
        if is_dynamo_compiling() and not torch.is_grad_enabled():
            return self.dispatch_backward(dy, *tensors, *options, needs)
        present = [t for t in (dy, *tensors) if t is not None]
        if torch.is_grad_enabled():
            if not is_dynamo_compiling() and self._has_rules(present, tensors[1:]):
                return transforms.backward(self, dy, *tensors, *options, needs)
            # create_graph=True: differentiate the reference, to any order
            return reference_gradients(self, dy, tensors, options, needs)
        if self.fits(dy, tensors, present):
            if bwd is None:
                _, bwd = self._launchers(backends.choose_compiled(dy.device.type))
            # PyTorch casts them where a parameter has another dtype than the output
            return bwd(dy, *tensors, *options, needs=needs)
        if boundary.is_interposed(present):
            return self.dispatch_backward(dy, *tensors, *options, needs)
        if self._has_rules(present, tensors[1:]):
            return transforms.backward(self, dy, *tensors, *options, needs)
        if self.has_many(tensors[1:]) and boundary.is_batched_alone(dy, present[1:]):
            return transforms.batched_backward(self, dy, *tensors, *options, needs)
        boundary.refuse_freed(present)
        return reference_gradients(self, dy, tensors, options, needs)

    def fits(self, dy, tensors, present):
        """Whether a kernel may read what backward finds: plain, of shapes that fit one another.

        ``p.data = other`` gives another shape to what forward has saved.
        """
        x = tensors[0]
        n_free = x.dim() if self.pointwise else x.dim() - 1
        if not self._known_backward.find(present):
            if not boundary.is_plain(present):
                return False
            try:
                self.check(*tensors)
            except (TypeError, ValueError):
                return False
            sizes = [None] * dy.dim(), [None] * n_free + [*x.shape[n_free:]]
            self._known_backward.keep(present, True, [*sizes, *([*t.shape] for t in present[2:])])
        if not self.is_of_many:
            # shapes are costly to cut, and a row's width has been compared
            if n_free == 1:
                return dy.shape[0] == x.shape[0]
            return dy.shape[:n_free] == x.shape[:n_free]
        n = tensors[1].shape[0]
        if dy.shape[0] != n or x.shape[0] not in (1, n):
            return False
        return dy.shape[1:n_free] == x.shape[1:n_free]

    def dispatch(self, x, *given):
        """The output by the registered op; parameters, constants and options behind x."""
        return self.library_fwd(x, *self.packed(given))

    def dispatch_backward(self, dy, x, *given):
        """The gradients by the registered op, ``None`` where not needed, as the last says."""
        *given, needs = given
        gradients = self.library_bwd(dy, x, *self.packed(given), [*needs])
        return [g if need else None for g, need in zip(gradients, needs, strict=True)]

    def _parameters(self, arguments):
        return arguments[: len(arguments) - self.n_constants - self.n_options]

    def packed(self, arguments):
        """The arguments as the registered op takes them."""
        if not self.takes_list:
            return arguments
        parameters = self._parameters(arguments)
        # PyTorch differentiates no list with None in it: an empty tensor stands for one
        listed = [parameters[0].new_empty(0) if t is None else t for t in parameters]
        return listed, *arguments[len(parameters) :]

    def unpacked(self, arguments):
        if not self.takes_list:
            return arguments
        listed, *rest = arguments
        return *(t if t.numel() else None for t in listed), *rest

    def _register(self, tensors, options):
        typed = [_typed(name) for name in tensors]
        plain = [f"{kind} {name}" for name, kind in options.items()]
        arguments = ", ".join(["Tensor x", *typed, *plain])
        fwd = registry.define(f"{self._fwd_name}({arguments}) -> Tensor")
        bwd = registry.define(f"{self._bwd_name}(Tensor dy, {arguments}, bool[] needs) -> Tensor[]")
        registry.impl(fwd, self._fwd_impl, "CompositeExplicitAutograd")
        registry.impl(bwd, self._bwd_impl, "CompositeExplicitAutograd")
        registry.impl(fwd, self._fwd_autograd, "Autograd", with_keyset=True)
        registry.impl(bwd, self._bwd_autograd, "Autograd", with_keyset=True)
        registry.register_vmap(fwd, partial(mapped.forward, self))
        registry.register_vmap(bwd, partial(mapped.backward, self))
        registry.register_fake(fwd, self._fwd_fake)
        registry.register_fake(bwd, self._bwd_fake)
        # for targets that know nothing of ours, such as ONNX
        registry.register_decomposition(fwd, self._fwd_composite)
        self.library_fwd, self.library_bwd = registry.op(fwd), registry.op(bwd)

    def _fwd_impl(self, x, *arguments):
        arguments = self.unpacked(arguments)
        if not _all_plain(x, *arguments):
            return self.reference(x, *arguments)
        fwd, _ = self._launchers(backends.choose_compiled(x.device.type))
        return fwd(x, *arguments)

    def _bwd_impl(self, dy, x, *arguments):
        if not _all_plain(dy, x, *self.unpacked(arguments)):
            return self._bwd_composite(dy, x, *arguments)
        *arguments, needs = self.unpacked(arguments)
        _, bwd = self._launchers(backends.choose_compiled(x.device.type))
        gradients = bwd(dy, x, *arguments, needs=tuple(needs))
        return _returned(dy, (x, *self._parameters(arguments)), gradients)

    def _fwd_composite(self, x, *arguments):
        return self.reference(x, *self.unpacked(arguments))

    def _bwd_composite(self, dy, x, *arguments):
        *arguments, needs = self.unpacked(arguments)
        n_tensors = len(arguments) - self.n_options
        tensors, options = (x, *arguments[:n_tensors]), arguments[n_tensors:]
        gradients = reference_gradients(self, dy, tensors, options, needs)
        return _returned(dy, (x, *self._parameters(arguments)), gradients)

    def _fwd_fake(self, x, *arguments):
        parameters = self._parameters(self.unpacked(arguments))
        return x.new_empty(self.output_shape(x, *parameters), dtype=_common_dtype(x, *parameters))

    def _bwd_fake(self, dy, x, *arguments):
        *arguments, needs = self.unpacked(arguments)
        pairs = zip((x, *self._parameters(arguments)), needs, strict=True)
        return [t.new_empty(t.shape) if need else dy.new_empty(0) for t, need in pairs]

    def _fwd_autograd(self, keyset, x, *arguments):
        unpacked = self.unpacked(arguments)
        n_tensors = len(unpacked) - self.n_options
        tensors, options = (x, *unpacked[:n_tensors]), unpacked[n_tensors:]
        if not self._has_formula(tensors):
            return self.reference(*tensors, *options)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors):
            with boundary.functions_allowed():
                return self.apply(((None, None), keyset, options), *tensors)
        return self._redispatch(self.library_fwd, keyset, x, *arguments)

    def _bwd_autograd(self, keyset, dy, x, *arguments):
        *unpacked, needs = self.unpacked(arguments)
        n_tensors = len(unpacked) - self.n_options
        tensors, options = (x, *unpacked[:n_tensors]), unpacked[n_tensors:]
        if not self._has_formula((dy, *tensors)):
            return self._bwd_composite(dy, x, *arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(dy, *tensors):

            def below(dy, x, *given):
                *given, needs = given
                packed = self.packed(given)
                return self._redispatch(self.library_bwd, keyset, dy, x, *packed, needs)

            with boundary.functions_allowed():
                return [*self.apply_backward((below, options, needs), dy, *tensors)]
        return self._redispatch(self.library_bwd, keyset, dy, x, *arguments)

    @staticmethod
    def _has_formula(tensors):
        """Whether the rules of autograd here give what is asked for."""
        if not boundary.is_transformed(tensors):
            return True
        return boundary.has_rules([t for t in tensors if t is not None])

    def be_mapped_by(self, of_many):
        """Have ``vmap`` over parameters call another op: this one with a leading model axis.

        It takes x ``[1 or n, R, …]``, R elements, or rows if the op is not pointwise; the same
        parameters, each ``[n, …]``; no constants; and as many of the options as it has.
        """
        self.of_many = of_many

    @staticmethod
    def _redispatch(op, keyset, *arguments):
        # an autograd.Function has it off, of which transforms further out know nothing
        grad_mode = torch.is_grad_enabled() or boundary.is_within_transforms()
        with torch.set_grad_enabled(grad_mode), torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)


def _typed(name):
    if name.endswith("[]"):
        return f"Tensor[] {name[:-2]}"
    return f"Tensor? {name[:-1]}" if name.endswith("?") else f"Tensor {name}"


def _common_dtype(*tensors):
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None))


def _all_plain(*arguments):
    return all(boundary.oddity(t) is None for t in arguments if torch.is_tensor(t))


def _returned(dy, inputs, gradients):
    """What a registered backward returns: tensors of memory of their own, empty where not needed.

    Args:
        dy: The gradient of the output.
        inputs: x and parameters, whose dtypes they have.
        gradients: What a launcher gave, ``None`` where they are not needed.
    """
    return [
        dy.new_empty(0) if g is None else _of_its_own(g.to(t.dtype))
        for g, t in zip(gradients, inputs, strict=True)
    ]


def _of_its_own(t):
    return t if t.untyped_storage().nbytes() == t.numel() * t.element_size() else t.clone()


def _autograd_function(op):
    def forward(ctx, way, x, *tensors):
        """By a launcher, or by the registered op below the autograd keys of a call."""
        (fwd, bwd), keyset, options = way
        ctx.bwd, ctx.options = bwd, options
        ctx.save_for_backward(x, *tensors)
        if keyset is None:
            return fwd(x, *tensors, *options)
        packed = op.packed((*tensors, *options))
        return op._redispatch(op.library_fwd, keyset, x, *packed)

    def backward(ctx, dy):
        tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[1 : len(tensors) - op.n_constants + 1]
        gradients = op.gradients(ctx.bwd, dy, tensors, ctx.options, needs)
        return None, *gradients, *[None] * op.n_constants

    rules = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(op.name, (torch.autograd.Function,), rules)
