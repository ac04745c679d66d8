"""Optimizers for plain PyTorch training loops."""

from array import array

import torch
from torch.optim import optimizer

from fastmlp import backends
from fastmlp.training import checks
from fastmlp.training.levenberg_marquardt import (
    LevenbergMarquardt as Settings,
)
from fastmlp.training.levenberg_marquardt import (
    check_size,
    finite,
    flat,
    load,
)

__all__ = ["Adam", "AdamW", "LevenbergMarquardt"]

LARGEST_STEP = 1 << 16
"""Parameters that one core updates in some 20 µs, less than PyTorch takes to begin."""


class _Group:
    """A parameter group whose state is made: what its steps have in common.

    Args:
        group: The group.
        state: The optimizer's.
    """

    def __init__(self, group, state):
        self.settings, self._state = group, state
        self._n_parameters = len(group["params"])
        self._new = [p for p in group["params"] if p not in state]
        self._held = []  # parameter, its state, moments and count, row of the kernel's table
        for p in group["params"]:
            if p in state:
                entry = state[p]
                kept = entry["exp_avg"], entry["exp_avg_sq"], entry["step"]
                row = [p.data_ptr(), 0, *(t.data_ptr() for t in kept), p.numel()]
                self._held.append((p, entry, kept, row))
        self.dtype = self._held[0][0].dtype if self._held else None
        self.size = sum(p.numel() for p, *_ in self._held)
        self._known = self.dtype in (torch.float32, torch.float64) and all(
            count.dtype is torch.float32
            and all(_dense_on_cpu(t, self.dtype) for t in (p, first, second))
            for p, _, (first, second, count), _ in self._held
        )

    def call(self, state):
        """Table, parameters and numbers for the kernel; ``None`` where PyTorch must step."""
        group = self.settings
        if not self._known or state is not self._state:
            return None
        if len(group["params"]) != self._n_parameters:
            return None
        if any(p.grad is not None for p in self._new):  # their first
            return None
        if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"]:
            return None
        lr, (beta1, beta2) = group["lr"], group["betas"]
        if any(isinstance(value, torch.Tensor) for value in (lr, beta1, beta2)):
            return None
        table, changed = [], []
        for p, entry, (first, second, count), row in self._held:
            same = entry["exp_avg"] is first and entry["exp_avg_sq"] is second
            if not same or entry["step"] is not count or p.data_ptr() != row[0]:
                return None
            g = p.grad
            if g is None:
                continue
            if not _dense_on_cpu(g, self.dtype):
                return None
            row[1] = g.data_ptr()
            table += row
            changed.append(p)
        settings = lr, beta1, beta2, group["eps"], group["weight_decay"]
        return table, changed, (*settings, group["decoupled_weight_decay"])


class _OneCall:
    """Makes ``step`` of PyTorch's fused Adam one call of one kernel for a group's parameters."""

    _groups = ()

    def step(self, closure=None):
        """Take one step; ``closure`` as in :class:`torch.optim.Optimizer`. Returns its loss."""
        hooks = (
            self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
            or optimizer._global_optimizer_pre_hooks or optimizer._global_optimizer_post_hooks
        )  # fmt: skip
        if hooks or torch.autograd._profiler_enabled() or torch.compiler.is_compiling():
            return self._hooked_step(*([] if closure is None else [closure]))
        return self._bare_step(closure)

    # or PyTorch would wrap it: 25 µs a step, half of what it takes
    step.hooked = True  # type: ignore[attr-defined]

    def _bare_step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        calls = self._calls()
        if calls is None:
            step = super().step
            # PyTorch wraps the method of a class once it has an instance: hooks must run once
            step = step.__wrapped__.__get__(self) if hasattr(step, "hooked") else step
            step()
            self._groups = ()
            return loss
        kernels = backends.launchers("numba", "optimizers")
        for group, (table, changed, settings) in zip(self._groups, calls, strict=True):
            if changed:
                kernels.adam_steps(group.dtype, array("q", table), *settings)
                torch.autograd.graph.increment_version(changed)
        return loss

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_bare_step)

    def zero_grad(self, set_to_none=True):
        """As :meth:`torch.optim.Optimizer.zero_grad`."""
        if not set_to_none or torch.autograd._profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _calls(self):
        """What the kernel needs of each group, or ``None`` where PyTorch must take the step.

        That is the first step, which makes the state; tensors that are not dense and on the CPU, or
        are many numbers; and options that the kernel does not know.
        """
        scaled = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scaled != (None, None) or torch.compiler.is_compiling():
            return None
        if len(self._groups) != len(self.param_groups) or any(
            known.settings is not group
            for known, group in zip(self._groups, self.param_groups, strict=True)
        ):
            self._groups = [_Group(group, self.state) for group in self.param_groups]
        calls = [group.call(self.state) for group in self._groups]
        small = sum(group.size for group in self._groups) <= LARGEST_STEP
        return calls if small and None not in calls and backends.choose("cpu") == "numba" else None


def _dense_on_cpu(tensor, dtype):
    """Whether this is a contiguous CPU tensor of the dtype."""
    return (
        tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
    )


class Adam(_OneCall, torch.optim.Adam):
    """:class:`torch.optim.Adam`, made for few parameters: a step on the CPU is one kernel call.

    On a compact net PyTorch's own spends a hundred times the arithmetic on calls: a step of
    ``AdditiveMLP(64, 14)`` takes 200 to 400 µs, as much as forward and backward together. The state
    is that of ``torch.optim.Adam(fused=True)``, and so is every step that the kernel does not
    cover: the first one, tensors on other devices, more than 65 536 parameters, gradients that are
    sparse or scaled, ``amsgrad``.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Factor of the parameters that is added to their gradients.
        **options: As :class:`torch.optim.Adam` has them, except ``foreach`` and ``fused``.

    Raises:
        TypeError: ``foreach`` or ``fused`` is given.
        ValueError: A number out of its range.

    Source: Kingma and Ba 2015, arXiv:1412.6980; formulas and defaults of PyTorch 2.13.

    Example:
        >>> import torch, fastmlp
        >>> model = fastmlp.AdditiveMLP(64, 14)
        >>> optimizer = fastmlp.optim.Adam(model.parameters(), lr=1e-4)
        >>> model(torch.randn(100, 64)).square().mean().backward()
        >>> optimizer.step()
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, **options):
        super().__init__(params, lr, betas, eps, weight_decay, fused=True, **options)


class AdamW(_OneCall, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`, made for few parameters: see :class:`Adam`.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of the means of the gradient and of its square.
        eps: Added to the root of the latter.
        weight_decay: Times ``lr``, the fraction that every step takes off the parameters.
        **options: As :class:`torch.optim.AdamW` has them, except ``foreach`` and ``fused``.

    Raises:
        TypeError: ``foreach`` or ``fused`` is given.
        ValueError: A number out of its range.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; formulas and defaults of PyTorch 2.13.

    Example:
        >>> import fastmlp
        >>> optimizer = fastmlp.optim.AdamW(fastmlp.SineSum(8).parameters(), weight_decay=0.1)
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, **options):
        super().__init__(params, lr, betas, eps, weight_decay, fused=True, **options)


class LevenbergMarquardt(torch.optim.Optimizer):
    """Damped Gauss–Newton steps for any small module, for the sum of squared errors.

    The Jacobian comes from :mod:`torch.func` in float64, chunk by chunk of rows; the solver is that
    of :class:`fastmlp.LevenbergMarquardt`. The module must treat the rows of its input, the first
    dimension, one by one. Under :mod:`torch.distributed` every rank passes its own rows: the ranks'
    JᵀJ, or triangular factors, are combined in their order, so all take the same step.

    In a Lightning module with manual optimization, take the optimizer itself:
    ``self.optimizers(use_pl_optimizer=False).step(inputs, targets)``.

    Args:
        module: The module to train; parameters with ``requires_grad=False`` stay as they are.
        solver: ``"cholesky"``, ``"qr"`` or ``"auto"``; this and the next as there.
        max_attempts: Damping trials a step.
        damping: λ of the first trial.
        scale_floor: Least entry of the scaling, as a fraction of its largest.
        ftol: See :attr:`stopped`; this and the next two as there.
        xtol: Likewise.
        gtol: Likewise.
        process_group: Ranks to combine, by default all.

    Raises:
        TypeError: ``module`` is no module, or a setting of another type.
        ValueError: A module without parameters to train or with too many, a setting out of range.

    Source: as :class:`fastmlp.LevenbergMarquardt`.

    Example:
        >>> import torch, fastmlp
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
        >>> optimizer = fastmlp.optim.LevenbergMarquardt(net)
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
        >>> losses = [optimizer.step(x, y) for _ in range(20)]
        >>> losses[-1] < 1e-6 * losses[0]
        True
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        solver: str = "auto",
        max_attempts: int = 20,
        damping: float = 1.0,
        scale_floor: float = 0.1,
        ftol: float = 1e-12,
        xtol: float = 1e-12,
        gtol: float = 0.0,
        process_group: torch.distributed.ProcessGroup | None = None,
    ):
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        settings = Settings(
            solver=solver,
            max_attempts=max_attempts,
            damping=damping,
            scale_floor=scale_floor,
            ftol=ftol,
            xtol=xtol,
            gtol=gtol,
        )
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("module has no parameters to train")
        check_size(sum(p.numel() for p in trained))
        super().__init__(trained, {})
        self._module = module
        self._settings = settings
        self._group = process_group
        self._differentiate = None
        self.stopped = None

    @torch.inference_mode(False)
    def step(  # type: ignore[override]  # the loss is its own: it takes data, no closure
        self, inputs: torch.Tensor, targets: torch.Tensor, sample_weight: torch.Tensor | None = None
    ) -> float:
        """Take one step, if a trial among ``max_attempts`` lowers the loss.

        Afterwards the attribute ``stopped`` is ``None`` after an ordinary step, else why another
        one on the same data would be of no use: ``"zero"``, ``"ftol"``, ``"xtol"``, ``"gtol"``,
        ``"no_descent"`` or ``"not_finite"``.

        Args:
            inputs: What the module takes, rows first; a Tensor or, as the others, a NumPy array.
            targets: Shape of the module's output.
            sample_weight: Weights of the rows' squared errors, ``[rows]``, or ``None``.

        Returns:
            The sum of squared errors before the step, a float.

        Raises:
            TypeError: Data that are not floating-point.
            ValueError: NaN or infinity in the data, shapes that do not fit, active dropout,
                parameters that share memory.
            ModuleNotFoundError: numba is not installed.
        """
        from fastmlp.training.generic import Linearisation, check_weight
        from fastmlp.training.tiles import Runs

        device = self.param_groups[0]["params"][0].device
        inputs = checks.tensor("inputs", inputs, device)
        targets = checks.tensor("targets", targets, device)
        if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
            raise ValueError(
                "inputs and targets must have as many rows, got shapes "
                f"{list(inputs.shape)} and {list(targets.shape)}"
            )
        inputs, targets = finite("inputs", inputs), finite("targets", targets)
        if sample_weight is not None:
            sample_weight = checks.tensor("sample_weight", sample_weight, device)
        weight = check_weight(sample_weight, len(inputs), device)
        checks.parameters([self._module], ["module"])
        problem = Linearisation(self._module)
        problem.differentiate = self._differentiate
        runs = Runs(flat(self._module).unsqueeze(0), self._settings, max_steps=1)
        k, p, state = runs.kernels, runs.p, runs.state[0]
        numbers, counters = state[3 * p :], runs.counters[0]
        kept = torch.zeros(runs.ld**2 + runs.ld, dtype=torch.float64, device="cpu")
        memory = self.state[self.param_groups[0]["params"][0]]
        parts, ask = kept, self._ask(runs, kept, kept, 0)
        if memory:
            state[2 * p : 3 * p] = torch.tensor(memory["scale"], dtype=torch.float64, device="cpu")
            numbers[k.DAMPING] = memory["damping"]
            if self._settings.solver == "auto" and memory["qr"]:
                ask = k.QR
                counters[k.PHASE] = counters[k.SOLVER] = k.QR
        while ask != k.DONE and int(counters[k.STEPS]) == 0:
            theta = state[p : 2 * p] if ask == k.LOSS else state[:p]
            parts = self._gather(problem.part(ask, k, theta, inputs, targets, weight))
            ask = self._ask(runs, kept, parts, len(parts))
        self._differentiate = problem.differentiate
        reason = k.REASONS[int(counters[k.REASON])]
        self.stopped = None if reason in ("", "max_steps") else reason
        memory["scale"] = state[2 * p : 3 * p].tolist()  # a tensor would be cast on load
        memory["damping"] = float(numbers[k.DAMPING])
        memory["qr"] = int(counters[k.SOLVER]) == k.QR
        load(self._module, state[:p])
        return float(runs.history[0, 0, 0])

    def _ask(self, runs, kept, parts, n_parts):
        return runs.kernels.lm_advance(
            runs.p,
            *runs.settings_at,
            *runs.at(0),
            kept.data_ptr(),
            parts.data_ptr(),
            n_parts,
        )

    def _gather(self, part):
        """The parts of all ranks, in their order."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return part.unsqueeze(0)
        size = distributed.get_world_size(self._group)
        device = self.param_groups[0]["params"][0].device
        if distributed.get_backend(self._group) != "nccl":
            device = torch.device("cpu")
        parts = [torch.empty_like(part, device=device) for _ in range(size)]
        distributed.all_gather(parts, part.to(device), group=self._group)
        return torch.stack(parts).cpu()
