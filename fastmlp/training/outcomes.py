"""What Levenberg–Marquardt tells of its runs, however they were made."""

from dataclasses import dataclass, field

import torch


@dataclass
class Outcome:
    """What became of every model; the first index counts models, then restarts if there are any.

    Args:
        sse: Sum of (weighted) squared errors before every step and after the last,
            ``[runs, max_steps + 1]``, NaN where there was no step. With variable projection the
            first is that after the read-out has been solved for.
        gradient_norm: Norm of its gradient in float64, likewise; NaN after a last step that
            ended the run.
        parameters: The final parameters in float64, ``[runs, P]``.
        steps: Accepted steps, a list.
        stopped: Why each run ended: ``"ftol"``, ``"xtol"``, ``"gtol"`` (see
            ``fastmlp.LevenbergMarquardt``), ``"zero"`` (no error is left), ``"max_steps"``,
            ``"max_time"``, ``"no_descent"`` (no trial lowered the loss), ``"not_finite"``,
            ``"interrupted"`` (Ctrl-C).
        rank: Numerical rank of each last scaled Jacobian, to the precision of the solver that
            was in use; ``None`` where unknown. Less than P means gauge freedom or dead units.
        solver: The one in use at the end, a list.
        best: Index of the best run of each model.
        seconds: Wall time.
        jacobians: Jacobians evaluated, a list.
    """

    sse: torch.Tensor
    gradient_norm: torch.Tensor
    parameters: torch.Tensor
    steps: list
    stopped: list
    rank: list
    solver: list
    best: list = field(default_factory=list)
    seconds: float = 0.0
    jacobians: list = field(default_factory=list)

    @property
    def final(self):
        """Last sum of squared errors of every run, ``[runs]``."""
        return self.sse.gather(1, torch.tensor(self.steps, device="cpu").unsqueeze(1)).squeeze(1)


def numerical_rank(factor, scale, triangular):
    """Rank of the scaled Jacobian from R, or from JᵀJ, of which the lower triangle counts.

    ``None`` where it is unknown: no Jacobian has been taken, or it is not finite.
    """
    if not bool(factor.isfinite().all()) or bool((scale == 0).any()):
        return None
    if triangular:
        values = torch.linalg.svdvals(factor / scale)
    else:
        values = torch.linalg.eigvalsh(factor / (scale * scale.unsqueeze(1)))
    eps = torch.finfo(torch.float64).eps
    return int((values > len(scale) * eps * values.max()).sum())
