"""Levenberg–Marquardt for an ensemble: some thousands of models at a time, nothing a model."""

import contextlib
import time
from typing import ClassVar

import numpy as np
import torch

from fastmlp.ensemble import Ensemble
from fastmlp.kernels.lm import REASONS
from fastmlp.training import batched, compiled, shards
from fastmlp.training.generic import check_rows_alone
from fastmlp.training.levenberg_marquardt import (
    check_solvable,
    finite_rows,
    hinge_starts_of,
    work_of,
)
from fastmlp.training.members import Stacked
from fastmlp.training.progress import reporter_of_runs
from fastmlp.training.result import FitResult, kept_columns
from fastmlp.training.structures import describe, has_biases, is_hinge_net

RUNS_AT_ONCE = 1 << 14
"""Runs whose states are in memory, each with its losses of all steps."""

ROWS_AT_ONCE = 1 << 20
"""Rows that models are called with at a time, to tell their losses."""

_INTERRUPTED, _MAX_TIME = 0, len(REASONS)


class EnsembleLeastSquaresResult(FitResult):
    """What :func:`fastmlp.fit` returns after Levenberg–Marquardt on an ensemble.

    The losses are those of a
    :class:`~fastmlp.training.least_squares.LeastSquaresResult`, all as tensors.

    Args:
        ensemble: The trained models.
        tensors: ``train_loss``, ``val_loss`` and ``grad_norm``, or ``None``.
        states: ``status`` int8 and ``steps`` int64, ``[n]``.
        final: The loss that ranks each model, float64 ``[n]``.
        seconds: Time that the run took.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-3, 3, 60)
        >>> nets = fastmlp.Ensemble(fastmlp.SineSum(1), 20, seed=0)
        >>> lm = fastmlp.LevenbergMarquardt()
        >>> result = fastmlp.fit(nets, x, (2 * x).sin(), epochs=50, optimizer=lm, progress=False)
        >>> result.train_loss.shape, result.final_loss.min().item() < 1e-12
        (torch.Size([20, 50]), True)
    """

    reasons: ClassVar = {**dict(enumerate(REASONS)), 0: "interrupted", _MAX_TIME: "max_time"}

    def __init__(self, ensemble, tensors, states, final, seconds):
        super().__init__(ensemble, {"best": None, **tensors}, states, {"loss": "mse"}, seconds)
        self._final = final

    @property
    def steps(self):
        """Accepted steps of all models' best runs together."""
        return int(self._states["steps"].sum())

    @property
    def epochs(self):
        """Accepted steps of each model's best run, int64 ``[n]``."""
        return self._states["steps"]

    @property
    def final_loss(self):
        """The loss of the models as they were handed over, of validation where there was one.

        float64 ``[n]``; infinite where not finite.
        """
        return self._final.nan_to_num(nan=torch.inf)

    def save(self, path):
        """Refuse: the weights are all there is to go on from.

        Args:
            path: Not used.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a result of LevenbergMarquardt is not saved: save the state_dict of the ensemble"
        )


def fit(members, rows, held_out, *, settings, epochs, every, seed, track, progress, on_progress):
    """Train an ensemble in place.

    Args:
        members: A :class:`fastmlp.training.members.Stacked` whose structure the kernels know.
        rows: The :class:`fastmlp.training.rows.Rows` to train with.
        held_out: Those to validate with, or ``None``.
        settings: A :class:`fastmlp.LevenbergMarquardt`.
        epochs: Accepted steps at most.
        every: Epochs of which the losses have the last.
        seed: Of the restarts.
        track: Names of what to record besides.
        progress: Whether to show a progress bar.
        on_progress: Called with what there is by then, every some thousands of runs; or ``None``.

    Returns:
        An :class:`EnsembleLeastSquaresResult`.
    """
    began = time.perf_counter()
    first = members.module(0)
    check_rows_alone(first)
    description = describe(first)
    check_solvable(first, description, rows, settings)
    run = _Run(members, finite_rows(rows), description, settings, epochs, every)
    deadline = None if settings.max_time is None else began + settings.max_time

    def result():
        return run.result(None, None, run.final / run.weights, time.perf_counter() - began)

    visible = progress and shards.is_first()
    # after Ctrl-C what is there is the result
    with reporter_of_runs(visible) as report, contextlib.suppress(KeyboardInterrupt):
        for models in run.parts:
            if not run.advance(models, seed, deadline, report):
                break
            if on_progress is not None:
                on_progress(result())
    run.gather()
    members.load(run.theta.to(members.dtype).to(members.device))
    losses = errors_of(members.models, run.rows) / run.weights
    run.close(losses)
    val_loss = grad_norm = None
    final = losses
    if held_out is not None:
        final = errors_of(members.models, held_out) / _totals(held_out, len(members))
        val_loss = run.table(run.steps.clamp(min=1) - 1, final)
    if "grad_norm" in track:
        grad_norm = run.norms(errors_of(members.models, run.rows, slope=True) / run.weights)
    return run.result(val_loss, grad_norm, final, time.perf_counter() - began)


def _drawn(example, description, restarts, seed, models, rows):
    """First parameters of every run, ``[models * restarts, P]``, drawn as a list's are."""
    seed = (seed + int(models[0])) % 2**63
    if is_hinge_net(description) and has_biases(description):
        return hinge_starts_of(description, len(models), restarts, seed, rows)
    drawn = Ensemble(example, len(models) * restarts, seed=seed)
    return Stacked(drawn).gather().view(len(drawn), -1).double().cpu()


class _Run:
    """The runs of an ensemble, and what they have come to."""

    def __init__(self, members, rows, description, settings, epochs, every):
        self.members, self.rows, self.description = members, rows, description
        self.settings, self.epochs = settings, epochs
        n, real = len(members), {"dtype": torch.float64, "device": "cpu"}
        self.columns = torch.tensor(kept_columns(epochs, every), device="cpu")
        self.theta = members.gather().view(n, -1).cpu()
        self.train_loss = torch.full((n, len(self.columns)), torch.nan, **real)
        self.gradient_norm = torch.full_like(self.train_loss, torch.nan)
        self.final = torch.full((n,), torch.nan, **real)
        self.weights = _totals(rows, n)
        self.steps = torch.zeros(n, dtype=torch.int64, device="cpu")
        self.status = torch.full((n,), _INTERRUPTED, dtype=torch.int8, device="cpu")
        n_parts = -(-n * max(settings.restarts, 1) // RUNS_AT_ONCE)
        self.parts = np.array_split(np.arange(n), n_parts)
        self.owners = shards.owners_in_ranges(self.parts)

    def advance(self, models, seed, deadline, report):
        """Train those of some models that are this rank's; returns whether there is time for more.

        The starts are drawn for all of them: what is drawn does not depend on the ranks.
        """
        settings, n = self.settings, len(self.members)
        late = deadline is not None and time.perf_counter() > deadline
        if late:
            self.status[models[0] :] = _MAX_TIME
            return False
        example = self.members.module(0)
        starts = self.theta[models].double()
        if settings.restarts > 0:
            among = self.rows.among(models)
            starts = _drawn(example, self.description, settings.restarts, seed, models, among)
        per_model, before = len(starts) // len(models), int(models[0])
        mine, n_all = shards.are_mine(self.owners[models]), len(models)
        starts = starts[torch.from_numpy(np.repeat(mine, per_model))]
        models = models[mine]
        if len(models) == 0:
            return True
        rows, share = self.rows.among(models), n_all / len(models)

        def shown(done, total):
            report(before * per_model + int(done * share), n * per_model)

        options = settings, self.epochs, deadline, None if report is None else shown
        if work_of(self.description, self.members.device, rows) is batched:
            outcome = batched.run([example], self.description, starts, rows, *options)
            codes = {reason: code for code, reason in EnsembleLeastSquaresResult.reasons.items()}
            history, norms, theta = outcome.sse, outcome.gradient_norm, outcome.parameters
            steps = torch.tensor(outcome.steps, device="cpu")
            status = torch.tensor([codes[reason] for reason in outcome.stopped], device="cpu")
            goes_on = "interrupted" not in outcome.stopped
        else:
            runs = compiled.run_all(self.description, starts, rows, len(models), *options)
            k, counters = runs.kernels, runs.counters
            history, norms = runs.history[:, :, 0], runs.history[:, :, 1]
            theta, steps = runs.state[:, : runs.p], counters[:, k.STEPS]
            unfinished = _INTERRUPTED if runs.unfinished == "interrupted" else _MAX_TIME
            status = torch.where(counters[:, k.REASON] == 0, unfinished, counters[:, k.REASON])
            goes_on = runs.unfinished != "interrupted"
        final = history.gather(1, steps[:, None])[:, 0]
        ranked = final.nan_to_num(nan=torch.inf).view(-1, per_model)
        best = torch.arange(len(models), device="cpu") * per_model + ranked.argmin(1)
        self.theta[models], self.final[models] = theta[best].to(self.theta.dtype), final[best]
        known = self.columns < steps[best, None]
        weights = self.weights[models, None]
        self.train_loss[models] = torch.where(
            known, history[best][:, self.columns] / weights, torch.nan
        )
        self.gradient_norm[models] = torch.where(
            self.columns + 1 < steps[best, None],
            norms[best][:, self.columns + 1] / weights,
            torch.nan,
        )
        # last, in case of an interrupt: who is told to be through is
        self.steps[models], self.status[models] = steps[best], status[best].to(torch.int8)
        return goes_on

    def gather(self):
        """Give every rank what all have trained."""
        tensors = self.theta, self.train_loss, self.gradient_norm, self.final
        device = self.members.device
        shards.exchange([*tensors, self.steps, self.status], self.owners, device)

    def table(self, first, value):
        """One number of each model, in the epoch ``first`` and, of a run that is over, behind."""
        over = (self.status != _INTERRUPTED) & (self.status != _MAX_TIME)
        there = (self.columns == first[:, None]) | (over[:, None] & (self.columns > first[:, None]))
        return torch.where(there, value[:, None], torch.nan)

    def close(self, losses):
        """Complete the training losses by those of the models as they were handed over."""
        last = self.table(self.steps, losses)
        self.train_loss = torch.where(last.isnan(), self.train_loss, last)

    def norms(self, norms):
        """The norms of the gradient after each step, likewise completed."""
        last = self.table(self.steps - 1, norms)
        return torch.where(last.isnan(), self.gradient_norm, last)

    def result(self, val_loss, grad_norm, final, seconds):
        """All of it."""
        tensors = {"train_loss": self.train_loss, "val_loss": val_loss, "grad_norm": grad_norm}
        states = {"status": self.status, "steps": self.steps}
        return EnsembleLeastSquaresResult(self.members.models, tensors, states, final, seconds)


def _totals(rows, n):
    """The weight of all numbers of each model's targets, float64 ``[n]``."""
    n_out = rows.y[0].numel()
    count = np.broadcast_to(rows.count, n)
    if rows.weight is None:
        return torch.from_numpy(count * float(n_out))
    first = np.broadcast_to(rows.first_weight, n)
    # up to each end, and from it to the next beginning, which is dropped
    weight = np.append(rows.weight.double().cpu().numpy(), 0.0)
    totals = np.add.reduceat(weight, np.stack([first, first + count], 1).ravel())[::2]
    return torch.from_numpy(totals * n_out)


def errors_of(ensemble, rows, *, slope=False):
    """Sums of (weighted) squared errors of the models as they are, float64 ``[n]``.

    ``slope``: the norms of their gradients by the trained parameters instead.
    """
    n, device = len(ensemble), rows.x.device
    dtype = next(ensemble.parameters()).dtype
    count = np.broadcast_to(rows.count, n)
    result = torch.empty(n, dtype=torch.float64, device="cpu")
    for c in np.unique(count):
        same = np.flatnonzero(count == c)
        for models in np.array_split(same, -(-len(same) * c // ROWS_AT_ONCE)):
            some = rows.among(models)
            first, at = (np.broadcast_to(v, len(models)) for v in (some.first, some.first_weight))
            within = np.arange(c)
            places = torch.from_numpy(first[:, None] + within).to(device)
            weight = None
            x, y = rows.x[places].to(dtype), rows.y[places].double()
            if rows.weight is not None:
                weight = rows.weight[torch.from_numpy(at[:, None] + within).to(device)].double()
            part = ensemble[torch.from_numpy(models)]
            with torch.set_grad_enabled(slope):
                squares = (part(x, own=True).double() - y).square().reshape(*places.shape, -1)
                squares = squares if weight is None else squares * weight.unsqueeze(2)
            if slope:
                trained = [p for p in part.parameters() if p.requires_grad]
                gradients = torch.autograd.grad(squares.sum(), trained)
                parts = [g.double().square().flatten(1).sum(1) for g in gradients]
                result[models] = torch.stack(parts).sum(0).sqrt().cpu()
            else:
                # NumPy's sum of a row does not depend on how many rows there are
                sums = squares.flatten(1).cpu().numpy().sum(1)
                result[models] = torch.from_numpy(sums)
    return result
