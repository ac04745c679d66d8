"""Adam and AdamW whose step is one kernel call where parameters are few and on the CPU."""

from array import array
from operator import is_

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


class _Group:
    """One group's parameters, gradients and state as its last step saw them.

    Users replace these tensors, move them in place and give them other shapes: so every step reads
    which they are and where, and compares the rest with what the kernel's table was made for.
    """

    def __init__(self):
        self._settings = ()
        self._kept = []  # of each parameter with a gradient: itself, two moments, count of steps
        self._guards = None

    def read(self, group, state):
        """The gradients, or ``None`` where the step is not one for :meth:`step`."""
        if (
            group["amsgrad"] or group["maximize"] or group["capturable"]
            or group["differentiable"] or group["foreach"]
        ):  # fmt: skip
            return None
        kept, gradients = [], []
        try:
            for p in group["params"]:
                gradient = p.grad
                if gradient is not None:
                    entry = state[p]
                    kept += p, entry["exp_avg"], entry["exp_avg_sq"], entry["step"]
                    gradients.append(gradient)
        except KeyError:  # the first step makes the state
            return None
        return gradients if self._settle(group) and self._look(kept, gradients) else None

    def _settle(self, group):
        settings = (
            group["lr"], *group["betas"], group["eps"], group["weight_decay"],
            group["decoupled_weight_decay"],
        )  # fmt: skip
        if len(settings) == len(self._settings) and all(map(is_, settings, self._settings)):
            return True
        numbers = len(settings) == 6 and all(isinstance(value, float | int) for value in settings)
        if not numbers or not all(0 <= beta < 1 for beta in settings[1:3]):
            return False
        self._settings, self._numbers = settings, array("d", settings)
        return True

    def _look(self, kept, gradients):
        tensors = [*kept, *gradients]
        same = len(kept) == len(self._kept) and all(map(is_, kept, self._kept))
        same = same and self._guards is not None and boundary.is_direct()
        same = same and self._guards.check(*tensors)
        if not same and not self._look_closer(kept, gradients, tensors):
            return False
        self._places = array("q", map(_address, tensors))
        return True

    def _look_closer(self, kept, gradients, tensors):
        """Whether all tensors are such as the kernel knows."""
        if not boundary.is_plain(tensors) or any(t.is_inference() for t in tensors):
            return False
        params, first, second, counts = (kept[column::4] for column in range(4))
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
        self._kept, self._dtype = kept, dtype
        self._sizes = array("q")
        for p, count in zip(params, counts, strict=True):
            self._sizes.extend((p.numel(), count.element_size()))
        sizes, strides = [[*t.shape] for t in tensors], [[*t.stride()] for t in tensors]
        self._guards = boundary.guards_of(tensors, sizes, strides)
        return True

    def step(self, gradients):
        """Take the step for which :meth:`read` gave the gradients."""
        params, first, second, counts = (self._kept[column::4] for column in range(4))
        kernels = backends.launchers("numba", "optimizers")
        done = kernels.adam_steps(self._dtype, self._places, self._sizes, self._numbers)
        torch.autograd.graph.increment_version(params)
        if done < len(params):
            # a tensor lies over another of the same parameter: the order of operations matters
            lr, beta1, beta2, eps, weight_decay, decoupled = self._settings
            with torch.no_grad():
                adam(
                    params[done:], gradients[done:], first[done:], second[done:], [],
                    counts[done:], foreach=False, fused=False, amsgrad=False, maximize=False,
                    lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
                    decoupled_weight_decay=decoupled,
                )  # fmt: skip


class _OneCall:
    """Makes ``step`` of PyTorch's Adam one call of one kernel for a group's parameters."""

    _groups = ()
    # what a GradScaler sets where the optimizer unscales for itself
    grad_scale = found_inf = None

    def step(self, closure=None):
        """Take one step; ``closure`` as in :class:`torch.optim.Optimizer`. Returns its loss."""
        arguments = () if closure is None else (closure,)
        if torch.compiler.is_compiling():
            return self._compiled_step(*arguments)
        if (
            self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks or optimizer._global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ):  # fmt: skip
            return self._hooked_step(*arguments)
        return self._bare_step(closure)

    # or PyTorch would wrap it: 25 µs a step, half of what it takes
    step.hooked = True  # type: ignore[attr-defined]

    def _bare_step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self._read()
        if gradients is None:
            self._groups = ()
            _pytorchs_step(self)
            return loss
        for group, of_group in zip(self._groups, gradients, strict=True):
            group.step(of_group)
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

    def _read(self):
        """Each group's gradients, or ``None`` where PyTorch must take the step.

        That is the first step, which makes the state; tensors that are not plain, dense and on the
        CPU; and options that the kernel does not know.
        """
        if self.grad_scale is not None or self.found_inf is not None:
            return None
        if self.defaults["differentiable"] or backends.choose("cpu") != "numba":
            return None
        if len(self._groups) != len(self.param_groups):
            self._groups = [_Group() for _ in self.param_groups]
        gradients = []
        for seen, group in zip(self._groups, self.param_groups, strict=True):
            gradients.append(seen.read(group, self.state))
            if gradients[-1] is None:
                return None
        return gradients


class Adam(_OneCall, torch.optim.Adam):
    """:class:`torch.optim.Adam`, made for few parameters: a step on the CPU is one kernel call.

    On a compact net PyTorch's own spends a hundred times the arithmetic on calls: a step of
    ``AdditiveMLP(64, 14)`` takes 200 to 600 µs, as much as forward and backward together. Steps,
    state and errors are those of ``torch.optim.Adam``, to rounding. It takes each step that the
    kernel does not cover: the first, which makes the state; tensors that are not float32 or
    float64, dense and on the CPU; ``amsgrad``, ``maximize``, ``foreach``, a learning rate that is a
    tensor. Above 262 144 parameters a step is PyTorch's own; on a CUDA device it is the fused one,
    unless another is asked for.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Factor of the parameters that is added to their gradients.
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

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        **options,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)


class AdamW(_OneCall, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`, made for few parameters: see :class:`Adam`.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Times ``lr``, the fraction that every step takes off the parameters.
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

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        **options,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
