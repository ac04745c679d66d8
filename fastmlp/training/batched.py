"""Levenberg–Marquardt on the Triton kernels: all runs at once, their state on the device.

Every round each run that is not over makes one trial, as the state machine of
`kernels/cpu/levenberg_marquardt/steps.py` makes them one after the other: the same steps and
reasons to stop. A run that has no need of a kernel's sums takes none of its time. The host looks at
the runs once in :data:`ROUNDS`; where rows are folded into R it also asks whose, for a
factorisation is dearer than the wait.
"""

import math
import time
from types import SimpleNamespace

import torch

from fastmlp.kernels import lm
from fastmlp.kernels.lm import MIN_DAMPING, REASONS, SOLVERS
from fastmlp.training.compiled import MAX_KEPT_FACTORS, kernel_words, prepare
from fastmlp.training.outcomes import Outcome, numerical_rank
from fastmlp.training.structures import n_readout

ROUNDS = 8
"""Trials between two looks at which runs are over."""

NUMBERS_AT_A_TIME = 1 << 27
"""Numbers of float64 that the runs need which are at work at a time, a gibibyte."""

_CHOLESKY, _QR = lm.CHOLESKY, lm.WITH_QR
_judge, _stand, _end = (decision(torch.where) for decision in (lm.verdict, lm.standing, lm.ending))


def run(models, description, starts, rows, settings, max_steps, deadline, progress):
    """Train all runs; returns their :class:`Outcome`."""
    from fastmlp.kernels.gpu.levenberg_marquardt.sums import Sums

    device = next(models[0].parameters()).device
    data = prepare(description, *rows.of(0), device)  # the same for all
    sums = Sums(*kernel_words(description), description.n_parameters, *data)
    n_projected = n_readout(description) if settings.variable_projection else 0
    n_runs, n_columns = len(starts), sums.p + 1
    per_run = sums.numbers_of_a_model + 8 * n_columns**2 + 2 * max_steps
    at_a_time = max(1, NUMBERS_AT_A_TIME // per_run)
    parts, unfinished, done = [], "max_time", 0
    for first in range(0, n_runs, at_a_time):
        chosen = starts[first : first + at_a_time].to(device)
        solver = _Solver(sums, chosen, settings, max_steps, n_projected)
        try:
            while unfinished != "interrupted" and (n_left := solver.advance(deadline)):
                if progress is not None:
                    progress(done + len(chosen) - n_left, n_runs)
        except KeyboardInterrupt:  # every state is that after an accepted step
            unfinished = "interrupted"
        if n_runs * n_columns**2 > MAX_KEPT_FACTORS:
            solver.state.factor = solver.state.sse[:, None, None] * math.nan
        parts.append(solver.state)
        done += len(chosen)
        if progress is not None:
            progress(done, n_runs)
    return _outcome(parts, sums.p, unfinished)


def _outcome(parts, p, unfinished):
    """Everything that is told about the runs."""
    state = {
        name: torch.cat([getattr(part, name) for part in parts]).cpu() for name in vars(parts[0])
    }
    solvers = state["solver"].tolist()
    ranks = [
        numerical_rank(factor[:p, :p], scale, solver == _QR)
        for factor, scale, solver in zip(state["factor"], state["scale"], solvers, strict=True)
    ]
    return Outcome(
        sse=state["history"][:, :, 0].clone(),
        gradient_norm=state["history"][:, :, 1].clone(),
        parameters=state["theta"],
        steps=state["steps"].tolist(),
        stopped=[REASONS[i] or unfinished for i in state["reason"].tolist()],
        rank=ranks,
        solver=[SOLVERS[i] for i in solvers],
        jacobians=state["jacobians"].tolist(),
    )


class _Solver:
    """Runs of one problem; ``state`` has a row for each, in every tensor."""

    def __init__(self, sums, starts, settings, max_steps, n_projected):
        self.sums, self.settings, self.max_steps = sums, settings, max_steps
        self.p, self.n_alpha = sums.p, sums.p - n_projected
        n, numbers, like = len(starts), starts.new_zeros, torch.full_like
        zeros = torch.zeros(n, dtype=torch.int64, device=starts.device)
        theta, damping = starts, numbers(n).fill_(settings.damping)
        if n_projected > 0:
            theta = self._read_out(starts, None, damping)
        self.state = SimpleNamespace(
            theta=theta,
            scale=numbers(n, self.p),
            damping=damping,
            growth=numbers(n).fill_(2.0),
            sse=sums.losses(theta, like(zeros, 1, dtype=torch.int8)),
            steps=zeros,
            attempts=like(zeros, 0),
            solver=like(zeros, _QR if settings.first_solver == "qr" else _CHOLESKY),
            reason=like(zeros, 0),
            jacobians=like(zeros, 0),
            stale=like(zeros, True, dtype=torch.bool),
            factor=numbers(n, self.p + 1, self.p + 1),
            history=numbers(n, max_steps + 1, 2).fill_(math.nan),
        )

    def advance(self, deadline):
        """Some rounds of all runs, those with one solver together; returns how many go on."""
        running = (self.state.reason == 0).cpu()  # the host waits here
        late = deadline is not None and time.perf_counter() > deadline
        if late or not bool(running.any()):
            return 0
        solvers = self.state.solver.cpu()
        for solver in (_CHOLESKY, _QR):
            chosen = (running & (solvers == solver)).nonzero().squeeze(1)
            if len(chosen) == 0:
                continue
            at = chosen.to(self.state.theta.device)
            group = SimpleNamespace(**{name: t[at] for name, t in vars(self.state).items()})
            for _ in range(ROUNDS):
                self._round(group, solver)
            # one assignment: Ctrl-C finds a whole state
            self.state = SimpleNamespace(
                **{n: t.index_copy(0, at, getattr(group, n)) for n, t in vars(self.state).items()}
            )
        return int(running.sum())

    def _round(self, s, solver):
        asked = self._running(s, solver) & s.stale
        self._linearise(s, asked, solver)
        gradient = self._take_jacobian(s, asked, solver)
        running = self._running(s, solver)
        step, predicted, solved = self._solve(s, solver, gradient)
        trial = torch.where((running & solved).unsqueeze(1), s.theta + step, s.theta)
        moved = (trial != s.theta).any(1)
        always = self.settings.accept == "always"
        failed, stuck = running & ~solved, running & solved & ~moved & (not always)
        if self._may_change(solver):
            self._change_to_qr(s, failed | stuck)
        else:
            refused = self._refuse(s, failed)
            self._stop(s, failed if always else refused, lm.NO_DESCENT)
            self._stop(s, stuck, lm.XTOL)
        trying = running & solved & (moved | always)
        if self.n_alpha < self.p:
            solved_for = self._read_out(trial, s.scale[:, self.n_alpha :], s.damping)
            trial = torch.where(trying.unsqueeze(1), solved_for, trial)
        new = self.sums.losses(trial, trying.to(torch.int8))
        self._take_loss(s, trying, solver, trial, new, predicted)

    def _running(self, s, solver):
        return (s.reason == 0) & (s.solver == solver)

    def _may_change(self, solver):
        return lm.changes(SOLVERS.index(self.settings.first_solver), solver)

    def _stop(self, s, where, reason):
        s.reason = torch.where(where & (s.reason == 0), reason, s.reason)

    def _change_to_qr(self, s, where):
        s.solver = torch.where(where, _QR, s.solver)
        s.stale = s.stale | where

    def _refuse(self, s, where):
        """Damp more after a trial that failed; returns whose patience that ends."""
        damping, growth, attempts = lm.refused(s.damping, s.growth, s.attempts)
        s.damping = torch.where(where, damping, s.damping)
        s.growth = torch.where(where, growth, s.growth)
        s.attempts = torch.where(where, attempts, s.attempts)
        return where & (s.attempts >= self.settings.max_attempts)

    def _linearise(self, s, asked, solver):
        """[J, r]ᵀ[J, r], or the triangular factor of [J, r], of the runs that are ``asked``."""
        if solver == _CHOLESKY:
            gram = self.sums.grams(s.theta, asked.to(torch.int8)).tril()
            s.factor = torch.where(asked[:, None, None], gram, s.factor)
        else:
            at = asked.nonzero().squeeze(1)
            if len(at) > 0:
                s.factor[at] = self._fold(s.theta[at], 0)
        s.jacobians = s.jacobians + asked
        s.stale = s.stale & ~asked

    def _fold(self, theta, first):
        """R of the columns of [J, r] from ``first`` on, a tile of rows after the other."""
        n = self.p + 1 - first
        factor = theta.new_zeros(len(theta), n, n)
        for rows in self.sums.tiles(theta):
            above = torch.cat([factor, rows[:, first:].mT], 1)
            factor = torch.linalg.qr(above, mode="r").R
        return factor

    def _read_out(self, theta, scale, damping):
        """Variable projection: θ with the last layer solved for; see `steps.py` of the CPU wing.

        Scaled by the norms of the layer's columns where ``scale`` is None.
        """
        factor = self._fold(theta, self.n_alpha)
        n = self.p - self.n_alpha
        matrix, rotated = factor[:, :n, :n], factor[:, :n, n]
        if scale is None:
            scale = matrix.norm(dim=1)
            scale = torch.where(scale == 0, 1.0, scale)
        correction, _ = _least_squares(matrix / scale.unsqueeze(1), rotated, damping.sqrt())
        others, readout = theta.split([self.n_alpha, n], 1)
        return torch.cat([others, readout - correction / scale], 1)

    def _take_jacobian(self, s, asked, solver):
        """Scales, the norm of the gradient and the tests before a step; returns Jᵀr."""
        p, n_alpha = self.p, self.n_alpha
        if solver == _CHOLESKY:
            norms = s.factor.diagonal(dim1=1, dim2=2)[:, :p].sqrt()
            gradient = s.factor[:, p, :p]
        else:
            norms = s.factor[:, :p, :p].norm(dim=1)
            gradient = (s.factor[:, :p, :p] * s.factor[:, :p, p:]).sum(1)
        kept = torch.maximum(s.scale, norms)[:, :n_alpha]
        largest = kept.amax(1, keepdim=True) if n_alpha > 0 else kept
        # the floor holds where they are those θ_j that have next to no influence
        kept = torch.maximum(kept, self.settings.scale_floor * largest)
        scale = torch.cat([kept, norms[:, n_alpha:]], 1)
        scale = torch.where(scale == 0, 1.0, scale)
        s.scale = torch.where(asked.unsqueeze(1), scale, s.scale)
        slope = torch.where(norms > 0, gradient.abs() / norms, 0.0).amax(1)
        size = gradient.square().sum(1)
        self._write(s, asked, s.sse, 2.0 * size.sqrt())
        gtol, most = self.settings.gtol, self.max_steps
        reason = _stand(s.sse, s.sse.sqrt(), size, slope, gtol, s.steps, most)
        self._stop(s, asked & (reason != 0), reason)
        s.attempts = torch.where(asked, 0, s.attempts)
        return gradient

    def _write(self, s, where, sse, gradient_norm):
        """Put numbers into the history at the step where each run is."""
        rows = torch.arange(len(s.steps), device=s.steps.device)
        numbers = torch.stack([sse, gradient_norm], 1)
        kept = s.history[rows, s.steps]
        s.history[rows, s.steps] = torch.where(where.unsqueeze(1), numbers, kept)

    def _solve(self, s, solver, gradient):
        """The step, the reduction that it promises, and whether there is one."""
        p = self.p
        if solver == _CHOLESKY:
            matrix = s.factor[:, :p, :p] / (s.scale.unsqueeze(1) * s.scale.unsqueeze(2))
            matrix.diagonal(dim1=1, dim2=2).add_(s.damping.unsqueeze(1))
            lower, info = torch.linalg.cholesky_ex(matrix)
            half = torch.linalg.solve_triangular(
                lower, (-gradient / s.scale).unsqueeze(2), upper=False
            )
            step = torch.linalg.solve_triangular(lower.mT, half, upper=True).squeeze(2)
            inside = half.square().sum((1, 2))
            solved = (info == 0) & inside.isfinite()
        else:
            matrix = s.factor[:, :p, :p] / s.scale.unsqueeze(1)
            if self.settings.damping == 0:
                step, inside = _least_norm(s.factor[:, :p, :p], -s.factor[:, :p, p])
                step = step * s.scale
            else:
                step, inside = _least_squares(matrix, -s.factor[:, :p, p], s.damping.sqrt())
            solved = torch.ones_like(s.stale)
        t = self.settings.step
        predicted = t * (2.0 - t) * inside + t * t * s.damping * step.square().sum(1)
        return t * step / s.scale, predicted, solved

    def _take(self, s, taken, trial, new):
        """Make trials the weights."""
        s.theta = torch.where(taken.unsqueeze(1), trial, s.theta)
        s.sse = torch.where(taken, new, s.sse)
        s.steps = s.steps + taken
        self._write(s, taken, new, torch.full_like(new, math.nan))
        s.stale = s.stale | taken

    def _take_loss(self, s, trying, solver, trial, new, predicted):
        """Take the trials that lower the loss enough, and see who is at the end."""
        settings = self.settings
        if settings.accept == "always":
            self._take(s, trying, trial, new)
            return
        size = (s.scale * s.theta).square().sum(1).sqrt()
        moved = (s.scale * (trial - s.theta)).square().sum(1).sqrt()
        taken, flat, short, factor = _judge(
            s.sse, new, predicted, moved, size, settings.ftol, settings.xtol
        )
        taken = trying & taken
        refused = trying & ~taken
        self._take(s, taken, trial, new)
        damping = (s.damping * factor).clamp(min=MIN_DAMPING[solver])
        s.damping = torch.where(taken, damping, s.damping)
        s.growth = torch.where(taken, 2.0, s.growth)
        reason = _end(trying & flat, trying & short, self._refuse(s, refused))
        if not self._may_change(solver):
            self._stop(s, reason != 0, reason)
            return
        over = reason != 0
        undone = lm.undone(s.damping, s.attempts.double())
        s.damping = torch.where(over & refused, undone, s.damping)
        s.growth = torch.where(over, 2.0, s.growth)
        self._change_to_qr(s, over)


def _least_norm(matrix, target):
    """Of all x that minimise ‖R·x − z‖² the one of least norm, and how much of ‖z‖² it takes away.

    Shapes: R [runs, n, n]; z [runs, n].
    """
    u, values, vh = torch.linalg.svd(matrix)
    eps = torch.finfo(values.dtype).eps
    seen = values > values.shape[1] * eps * values[:, :1]
    along = (u.mT @ target.unsqueeze(2)).squeeze(2) * seen
    x = vh.mT @ (along / torch.where(seen, values, 1.0)).unsqueeze(2)
    return x.squeeze(2), along.square().sum(1)


def _least_squares(matrix, target, root):
    """argmin_x ‖R·x − z‖² + ‖root·x‖², and how much of ‖z‖² that takes away from both.

    Shapes: R [runs, n, n]; z [runs, n]; root [runs].
    """
    n = matrix.shape[-1]
    above = torch.cat([matrix, target.unsqueeze(2)], 2)
    roots = root.unsqueeze(1).expand(-1, n).diag_embed()
    below = torch.cat([roots, torch.zeros_like(target).unsqueeze(2)], 2)
    factor = torch.linalg.qr(torch.cat([above, below], 1), mode="r").R
    rotated = factor[:, :n, n:]
    x = torch.linalg.solve_triangular(factor[:, :n, :n], rotated, upper=True)
    return x.squeeze(2), rotated.square().sum((1, 2))
