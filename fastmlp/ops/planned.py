"""Calls of the Triton wing by plan: what was looked at and chosen once for a pattern of tensors.

A pattern is the tensors' types, dtypes, devices, shapes, strides, alignments and needs of
gradients, whether gradients are recorded, and the options. One check of PyTorch's own compares all
tensors with it; then nothing is left to check but their addresses, and nothing to choose:
:mod:`fastmlp.kernels.gpu.machine.plans` launches the kernels.
"""

from operator import itemgetter

import torch
from torch import is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

from fastmlp import backends, boundary
from fastmlp.boundary import is_direct

MAX_PATTERNS = 256
"""Patterns that an op remembers; then it forgets all of them and begins anew."""
MAX_BACKWARD_PATTERNS = 4
"""Patterns of dy that are remembered for a pattern of the rest."""

_data_ptr = torch.Tensor.data_ptr


class Plans:
    """The patterns of one op."""

    def __init__(self, op):
        self._op = op
        # Function.apply in Python only guards against torch.func, which is_direct has done
        self._apply = super(torch.autograd.Function, _autograd_function(op)).apply
        self._known: dict[tuple, list[_Call]] = {}
        self._n_known = 0

    def __bool__(self):
        """Whether there is one, and nobody traces."""
        # Dynamo of PyTorch 2.9 cannot ask whether a dictionary is empty
        return not is_dynamo_compiling() and bool(self._known) and not is_compiling()

    def _key(self, tensors, options):
        # an op that takes a list has as many tensors as that; the check of all tensors does not ask
        # whether gradients are recorded
        key = options, len(tensors), tensors[0].shape, is_grad_enabled()
        return key if self._op.setting is None else (key, self._op.setting())

    def call(self, tensors, options):
        """The op by plan, or ``None`` where there is none or something stands between.

        To be asked only where there are plans: see :meth:`__bool__`.

        Args:
            tensors: x, parameters and constants, ``None`` among them; nothing is checked yet.
            options: The plain arguments.
        """
        # a tracer first: it would record that somebody asks for a shape
        if not is_direct() or forward_ad._current_level >= 0:
            return None
        try:
            known = self._known.get(self._key(tensors, options))
            if not known:
                return None
            for t in tensors:
                if t is not None and t.is_nested:
                    return None
        except (AttributeError, TypeError):  # no tensor, or an option that has no hash
            return None
        except RuntimeError:  # nested tensors have no shape
            return None
        for call in known:
            if (addresses := call.addresses(tensors)) is not None:
                if backends.choose(call.device_type) != "triton":
                    return None
                if call.needs_graph:
                    return self._apply((call, addresses, options), *tensors)
                return call.forward(addresses, tensors, options)
        return None

    def first(self, launchers, tensors, options):
        """The op by its launchers, which are recorded; the tensors have been found plain."""
        call = _Call(self._op, launchers, tensors)
        if call.has_guards:
            if self._n_known >= MAX_PATTERNS:
                self._known, self._n_known = {}, 0
            self._known.setdefault(self._key(tensors, options), []).insert(0, call)
            self._n_known += 1
        if call.needs_graph:
            return self._apply((call, None, options), *tensors)
        return call.forward(None, tensors, options)


def _no_match(*tensors):
    """In place of PyTorch's check where it has none."""
    return False


class _Pattern:
    """Tensors as they came once, ``None`` among them, and what was done for them."""

    def __init__(self, tensors):
        present = [i for i, t in enumerate(tensors) if t is not None]
        self._absent = [i for i, t in enumerate(tensors) if t is None]
        self._present = itemgetter(*present)
        given = self._present(tensors)
        sizes, strides = [list(t.shape) for t in given], [list(t.stride()) for t in given]
        guards = boundary.guards_of(given, sizes, strides)
        self._check = _no_match if guards is None else guards.check
        self.has_guards = guards is not None
        self._aligned = [t.data_ptr() % 16 == 0 for t in given]
        self._served: list[int] | None = None
        self._plan, self._is_recorded = None, False

    def addresses(self, tensors):
        """Those of the tensors that are there, or ``None`` where they are not of this pattern.

        None of them may be nested, which would end the process in PyTorch's check.
        """
        given = self._present(tensors)
        if not self._check(*given):  # None is none of them, too
            return None
        for i in self._absent:
            if tensors[i] is not None:
                return None
        addresses = list(map(_data_ptr, given))
        # most often those of the last call
        if addresses != self._served:
            # 0: no elements, or freed
            if 0 in addresses or [a % 16 == 0 for a in addresses] != self._aligned:
                return None
            self._served = addresses
        return addresses

    def launch(self, tensors, launcher, *arguments, **keywords):
        """What the launcher returns, recorded at its first call."""
        recorder = backends.launchers("triton", "machine.plans")
        if self._is_recorded or recorder.is_hooked():
            return launcher(*arguments, **keywords)
        self._is_recorded = True
        result, self._plan = recorder.recorded(
            self._present(tensors), launcher, *arguments, **keywords
        )
        return result


class _Call(_Pattern):
    """Tensors of a forward, and the patterns of its backward."""

    def __init__(self, op, launchers, tensors):
        super().__init__(tensors)
        self._op, (self._fwd, self._bwd) = op, launchers
        grad = is_grad_enabled()
        needs = [t is not None and grad and t.requires_grad for t in tensors]
        self.needs_graph = any(needs)
        self._setting = op.setting and op.setting()
        self._needs = tuple(needs[: len(needs) - op.n_constants])
        self.device_type = tensors[0].device.type
        self._backward: list[_Pattern] = []

    def forward(self, addresses, tensors, options):
        """y, by plan where there are addresses."""
        if addresses is not None and (plan := self._plan) is not None:
            allocated = plan.replay(addresses)
            if allocated is not None:
                return plan.result(allocated)
        return self.launch(tensors, self._fwd, *tensors, *options)

    def backward(self, dy, tensors, options):
        """Gradients of x and of each parameter, ``None`` unless needed."""
        op, bwd, needs = self._op, self._bwd, self._needs
        # what forward has saved is not nested, and cannot become so
        if (
            not is_direct()
            or forward_ad._current_level >= 0
            or dy.is_nested
            or is_grad_enabled()
            or is_compiling()
            or (op.setting is not None and op.setting() != self._setting)
        ):
            return op.gradients(bwd, dy, tensors, options, needs)
        given = (dy, *tensors)
        for pattern in self._backward:
            if (addresses := pattern.addresses(given)) is not None:
                break
        else:
            if not op.fits(dy, tensors, [t for t in given if t is not None]):
                return op.gradients(bwd, dy, tensors, options, needs)
            pattern, addresses = _Pattern(given), None
            # a new list: another thread may be reading the old one
            self._backward = [pattern, *self._backward][:MAX_BACKWARD_PATTERNS]
        if addresses is not None and (plan := pattern._plan) is not None:
            allocated = plan.replay(addresses)
            if allocated is not None:
                return plan.results(allocated)
        return pattern.launch(given, bwd, dy, *tensors, *options, needs=needs)


def _autograd_function(op):
    nothing = (None,) * op.n_constants

    def forward(ctx, way, *tensors):
        call, addresses, options = ctx.way = way
        ctx.save_for_backward(*tensors)
        return call.forward(addresses, tensors, options)

    def backward(ctx, dy):
        call, _, options = ctx.way
        gradients = call.backward(dy, ctx.saved_tensors, options)
        return None, *gradients, *nothing

    rules = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(op.name, (torch.autograd.Function,), rules)
