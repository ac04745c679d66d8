"""Optimizers for plain PyTorch training loops."""

import torch

from fastmlp.adam import Adam, AdamW
from fastmlp.training import checks
from fastmlp.training.compiled import RunStates
from fastmlp.training.generic import Linearisation, check_weight
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
        runs = RunStates(flat(self._module).unsqueeze(0), self._settings, max_steps=1)
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
