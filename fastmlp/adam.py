"""Adam and AdamW whose step is one kernel call where parameters are few and on the CPU."""

from array import array
from itertools import repeat
from operator import is_
from struct import Struct

import torch
from torch.optim import optimizer
from torch.optim.adam import adam

from fastmlp import backends, boundary

LARGEST_STEP = 1 << 18
"""Parameters of a group that one core updates in 100 µs, less than PyTorch takes to begin."""

# PyTorch wraps the method of a class once it has an instance, so that hooks run
_step = torch.optim.Adam.step
_pytorchs_step = getattr(_step, "__wrapped__", _step) if hasattr(_step, "hooked") else _step

_DTYPES = torch.float32, torch.float64
_address = torch.Tensor.data_ptr
_count_change = torch.autograd.graph.increment_version


class _Group:
    """One group's parameters, gradients and state as its last step saw them.

    Users replace these tensors, move them in place and give them other shapes: so every step reads
    which they are and where, and compares the rest with what the kernel's table was made for.
    """

    def __init__(self):
        self._settings = (None,) * 5
        self._numbers = array("d", bytes(8 * 6))
        self._places = (None,)  # as many as no step has: the first is looked at closely

    def read(self, group, state):
        """Note where the tensors are; whether the step is one for :meth:`step`."""
        if (
            group["amsgrad"] or group["maximize"] or group["capturable"]
            or group["differentiable"] or group["foreach"]
        ):  # fmt: skip
            return False
        params, tensors, gradients = group["params"], [], []
        # a loop's usual order; looking up a tensor takes 0.15 µs
        whole = len(state) == len(params) and all(map(is_, state, params))
        try:
            for p, entry in state.items() if whole else _entries(params, state):
                gradient = p.grad
                if gradient is not None:
                    tensors += p, entry["exp_avg"], entry["exp_avg_sq"], entry["step"]
                    gradients.append(gradient)
        except (KeyError, TypeError):  # the first step makes the state
            return False
        tensors += gradients
        if not self._settle(group):
            return False
        # a nested tensor would end the process in PyTorch's check: it is for known objects, and
        # gradients, which are as their parameters
        same = len(tensors) == len(self._places) and all(map(is_, self._kept, tensors))
        same = same and boundary.is_direct() and self._check(*tensors)
        if not same and not self._look_closer(tensors):
            return False
        self._write(self._places, 0, *map(_address, tensors))
        self._gradients = gradients
        return True

    def _settle(self, group):
        """Whether the settings are numbers that the kernel knows; note them."""
        lr, betas, eps, weight_decay, decoupled = self._settings
        if (
            group["lr"] is lr and group["betas"] is betas and group["eps"] is eps
            and group["weight_decay"] is weight_decay
            and group["decoupled_weight_decay"] is decoupled
        ):  # fmt: skip
            return True
        betas = tuple(group["betas"])  # a list is another object every time
        rest = group["eps"], group["weight_decay"], group["decoupled_weight_decay"]
        numbers = group["lr"], *betas, *rest
        if len(numbers) != 6 or not all(isinstance(value, float | int) for value in numbers):
            return False
        if not all(0 <= beta < 1 for beta in betas):
            return False
        self._settings = group["lr"], betas, *rest
        self._numbers[:] = array("d", numbers)
        return True

    def _look_closer(self, tensors):
        """Whether the tensors are such as the kernel knows; what to compare the next with."""
        if not boundary.is_plain(tensors) or any(t.is_inference() for t in tensors):
            return False
        params, first, second, counts, gradients = _columns(tensors)
        dtype = params[0].dtype if params else torch.float32
        for p, *others in zip(params, first, second, gradients, strict=True):
            if any(t.shape != p.shape for t in others):
                return False
            if not all(t.dtype is dtype and t.is_contiguous() for t in (p, *others)):
                return False
        counted = all(count.dtype in _DTYPES and count.numel() == 1 for count in counts)
        on_cpu = all(t.is_cpu for t in tensors)
        small = sum(p.numel() for p in params) <= LARGEST_STEP
        if dtype not in _DTYPES or not counted or not small or not on_cpu:
            return False
        sizes = array("q")
        for p, count in zip(params, counts, strict=True):
            sizes.extend((p.numel(), count.element_size()))
        self._params, self._kept = params, tensors[: 4 * len(params)]
        self._places, self._sizes = array("q", bytes(8 * len(tensors))), sizes
        # half the time of an array from an iterator
        self._write = Struct(f"{len(tensors)}q").pack_into
        tables = (table.buffer_info()[0] for table in (self._places, sizes, self._numbers))
        self._arguments = dtype, len(params), *tables
        every_size, every_stride = [[*t.shape] for t in tensors], [[*t.stride()] for t in tensors]
        self._kernels = backends.launchers("numba", "training.optimizers")
        guards = boundary.guards_of(tensors, every_size, every_stride)
        self._check = _no_check if guards is None else guards.check
        return True

    def step(self):
        """Take the step for which :meth:`read` said yes."""
        gradients, self._gradients = self._gradients, ()  # not kept alive
        done = self._kernels.adam_steps(*self._arguments)
        _count_change(self._params)
        if done < len(gradients):
            # a tensor lies over another of the same parameter: the order of operations matters
            columns = _columns([*self._kept, *gradients])
            params, first, second, counts, gradients = (column[done:] for column in columns)
            lr, (beta1, beta2), eps, weight_decay, decoupled = self._settings
            with torch.no_grad():
                adam(
                    params, gradients, first, second, [], counts,
                    foreach=False, fused=False, amsgrad=False, maximize=False,
                    lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
                    decoupled_weight_decay=decoupled,
                )  # fmt: skip


def _entries(params, state):
    return zip(params, map(state.get, params), strict=True)


def _no_check(*_):
    return False


def _columns(tensors):
    """Parameters, their two moments, counts of steps, gradients."""
    n = len(tensors) // 5
    return *(tensors[column : 4 * n : 4] for column in range(4)), tensors[4 * n :]


def _given(closure):
    return () if closure is None else (closure,)


class _OneCall:
    """Makes ``step`` of PyTorch's Adam one call of one kernel for a group's parameters."""

    _groups = ()
    # what a GradScaler sets where the optimizer unscales for itself
    grad_scale = found_inf = None

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=None,
        amsgrad=False,
        **options,
    ):
        if weight_decay is not None:
            options["weight_decay"] = weight_decay
        super().__init__(params, lr, betas, eps, amsgrad=amsgrad, **options)

    def step(self, closure=None):
        """Take one step; ``closure`` as in :class:`torch.optim.Optimizer`. Returns its loss."""
        if torch.compiler.is_compiling():
            return self._compiled_step(*_given(closure))
        if (
            self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks or optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):  # fmt: skip
            return self._hooked_step(*_given(closure))
        return self._bare_step(closure)

    # or PyTorch would wrap it: 25 µs a step, half of what it takes
    step.hooked = True  # type: ignore[attr-defined]

    def _bare_step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._step_in_kernel():
            self._groups = ()
            _pytorchs_step(self)
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_bare_step)
    _compiled_step = torch.optim.Optimizer.profile_hook_step(_pytorchs_step)

    def zero_grad(self, set_to_none=True):
        """As :meth:`torch.optim.Optimizer.zero_grad`."""
        if not set_to_none or torch.compiler.is_compiling() or torch.autograd._profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def add_param_group(self, param_group):
        """As :meth:`torch.optim.Optimizer.add_param_group`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        options = "foreach", "fused", "capturable", "differentiable"
        if (
            not any(group[option] for option in options)
            and group["fused"] is None
            and all(
                type(p) in boundary.PLAIN_TYPES and p.is_cuda and p.is_floating_point()
                for p in group["params"]
            )
        ):
            # two launches instead of a dozen; by the group alone, so that a GradScaler and
            # clipping treat this optimizer as any other
            group["fused"] = True

    def _step_in_kernel(self):
        """Take the step if the kernel can; whether it could.

        It cannot take the first, which makes the state; nor tensors that are not plain, dense and
        on the CPU; nor options that it does not know.
        """
        if self.grad_scale is not None or self.found_inf is not None:
            return False
        if self.defaults["differentiable"] or backends.choose("cpu") != "numba":
            return False
        if len(self._groups) != len(self.param_groups):
            self._groups = [_Group() for _ in self.param_groups]
        groups = self._groups
        if not all(map(_Group.read, groups, self.param_groups, repeat(self.state))):
            return False
        for group in groups:
            group.step()
        return True


class Adam(_OneCall, torch.optim.Adam):
    """:class:`torch.optim.Adam`, made for few parameters: a step on the CPU is one kernel call.

    On a compact net PyTorch's own spends a hundred times the arithmetic on calls: a step of
    ``AdditiveMLP(64, 14)`` takes 200 to 600 µs, as much as forward and backward together.
    Steps, state and errors are those of ``torch.optim.Adam``, steps to rounding. It takes each step
    that the kernel does not cover: the first, which makes the state; tensors that are not float32
    or float64, dense and on the CPU; ``amsgrad``, ``maximize``, ``foreach``, a learning rate that
    is a tensor. Above 262 144 parameters a step is PyTorch's own; on a CUDA device it is the fused
    one, unless another is asked for.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Factor of the parameters that is added to their gradients; by default 0.
        amsgrad: Whether to divide by the largest mean of squares so far.
        **options: As :class:`torch.optim.Adam` has them.

    Raises:
        TypeError: An option that PyTorch does not have.
        ValueError: A number out of its range.

    Source: Kingma and Ba 2015, arXiv:1412.6980; formulas and defaults of PyTorch 2.13.

    Example:
        >>> import torch, fastmlp
        >>> model = fastmlp.AdditiveMLP(64, 14)
        >>> optimizer = fastmlp.optim.Adam(model.parameters(), lr=1e-4)
        >>> model(torch.randn(100, 64)).square().mean().backward()
        >>> optimizer.step()
    """


class AdamW(_OneCall, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`, made for few parameters: see :class:`Adam`.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Times ``lr``, the fraction that every step takes off the parameters; by
            default 0.01.
        amsgrad: Whether to divide by the largest mean of squares so far.
        **options: As :class:`torch.optim.AdamW` has them.

    Raises:
        TypeError: An option that PyTorch does not have.
        ValueError: A number out of its range.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; formulas and defaults of PyTorch 2.13.

    Example:
        >>> import fastmlp
        >>> optimizer = fastmlp.optim.AdamW(fastmlp.SineSum(8).parameters(), weight_decay=0.1)
    """
