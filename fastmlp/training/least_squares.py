"""`fit` with Levenberg–Marquardt: what it refuses, and its result."""

import math
from typing import ClassVar

import torch

from fastmlp.arguments import flag, integer
from fastmlp.ensemble import Ensemble
from fastmlp.kernels.lm import REASONS
from fastmlp.training import checks, least_squares_ensemble
from fastmlp.training.generic import check_rows_alone
from fastmlp.training.levenberg_marquardt import train_on
from fastmlp.training.members import members_of
from fastmlp.training.problem import check_history, gather_rows
from fastmlp.training.progress import reporter_of_runs
from fastmlp.training.result import FitResult, hold_last, kept_columns
from fastmlp.training.structures import describe

ROWS_OF_OUTPUTS = 1 << 14
"""Rows that a module is called with at a time, to tell its loss."""


class LeastSquaresResult(FitResult):
    """What :func:`fastmlp.fit` returns after Levenberg–Marquardt.

    ``train_loss`` ``[models, epochs]`` is the mean squared error before every step of each model's
    best run, of weights in float64; from the run's end on that of the module as it was handed
    over, its weights rounded to its dtype. ``val_loss`` has the error of that module from its last
    step on, and NaN before. ``grad_norm``, where it is tracked, is that after every step, from the
    run's end on that of the module as it was handed over. What a run that was interrupted, or out
    of time, did not reach is NaN.

    Args:
        models: The trained modules.
        outcomes: For every model, the :class:`~fastmlp.training.outcomes.Outcome` it
            was part of, and its best run there.
        weight: Sum of the rows' weights times outputs, of each model: what the sums of squares are
            divided by.
        epochs: Accepted steps at most.
        every: Epochs of which the losses have the last.
        losses: Training loss of every module as it was handed over.
        val_losses: Its validation loss, or ``None``.
        grad_norms: Norm of the gradient of its training loss, or ``None``.
        seconds: Time that the run took.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-3, 3, 60)
        >>> net = fastmlp.SineSum(1)
        >>> lm = fastmlp.LevenbergMarquardt(restarts=20)
        >>> result = fastmlp.fit(net, x, (2 * x).sin(), epochs=50, optimizer=lm, progress=False)
        >>> result.best_model is net, result.final_loss.item() < 1e-12
        (True, True)
    """

    reasons: ClassVar = dict(enumerate(("interrupted", *REASONS[1:], "max_time")))

    def __init__(
        self, models, outcomes, weight, epochs, every, losses, val_losses, grad_norms, seconds
    ):
        super().__init__(models, {"best": None}, {}, {"loss": "mse"}, seconds)
        self.runs = [outcome for outcome, _ in outcomes]
        self._index = [index for _, index in outcomes]
        steps = self._of_best("steps")
        over = [reason not in ("interrupted", "max_time") for reason in self.stopped]
        kept = kept_columns(epochs, every)
        history = torch.stack([o.sse[i] / w for (o, i), w in zip(outcomes, weight, strict=True)])
        for row, step, loss in zip(history, steps, losses, strict=True):
            row[step] = loss
        hold_last(history, [step + 1 for step in steps], over)
        self._tensors["train_loss"] = history[:, kept]
        self._tensors["val_loss"] = self._tensors["grad_norm"] = None
        if grad_norms is not None:
            norms = [o.gradient_norm[i] / w for (o, i), w in zip(outcomes, weight, strict=True)]
            norms = torch.stack(norms)
            for row, step, norm in zip(norms, steps, grad_norms, strict=True):
                row[step] = norm
            hold_last(norms, [step + 1 for step in steps], over)
            self._tensors["grad_norm"] = norms[:, 1:][:, kept]
        final = losses
        if val_losses is not None:
            table = torch.full((len(models), epochs), math.nan, dtype=torch.float64, device="cpu")
            last = [max(step, 1) for step in steps]
            for row, step, loss in zip(table, last, val_losses, strict=True):
                row[step - 1] = loss
            hold_last(table, last, over)
            self._tensors["val_loss"] = table[:, kept]
            final = val_losses
        self._final = torch.tensor(final, dtype=torch.float64, device="cpu")

    def _of_best(self, name):
        return [
            getattr(outcome, name)[index]
            for outcome, index in zip(self.runs, self._index, strict=True)
        ]

    @property
    def steps(self):
        """Accepted steps of all models' best runs together."""
        return sum(self._of_best("steps"))

    @property
    def epochs(self):
        """Accepted steps of each model's best run, int64 ``[models]``."""
        return torch.tensor(self._of_best("steps"), device="cpu")

    @property
    def stopped(self):
        """Why each model's best run stopped: ``"zero"``, ``"ftol"``, ``"xtol"``, ``"gtol"``,
        ``"max_steps"``, ``"max_time"``, ``"no_descent"``, ``"not_finite"`` or
        ``"interrupted"``."""
        return self._of_best("stopped")

    @property
    def status(self):
        """The same as int8 ``[models]``, each a key of :attr:`reasons`."""
        codes = {reason: code for code, reason in self.reasons.items()}
        return torch.tensor([codes[r] for r in self.stopped], dtype=torch.int8, device="cpu")

    @property
    def rank(self):
        """Numerical rank of each model's last Jacobian, or ``None`` where unknown."""
        return self._of_best("rank")

    @property
    def final_loss(self):
        """The loss of the modules as they were handed over, of validation where there was one.

        float64 ``[models]``; infinite where not finite.
        """
        return self._final.nan_to_num(nan=math.inf)

    def save(self, path):
        """Refuse: the weights are all there is to go on from.

        Args:
            path: Not used.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a result of LevenbergMarquardt is not saved: save the state_dict of the modules"
        )


class _Listed:
    """A list of any modules, as :func:`fastmlp.training.rows.rows_of` wants to know it."""

    dtype = None

    def __init__(self, models):
        self.models, self.device = models, _device(models)

    def __len__(self):
        return len(self.models)

    @staticmethod
    def examples():
        """None: the models themselves say whether they take the data."""
        return []


def fit(
    models, x, y, *, settings, epochs, own, offsets, validation, folds, sample_weight, seed, track,
    history, progress, on_progress, others,
):  # fmt: skip
    """Train with Levenberg–Marquardt, models of the same structure together.

    Args:
        models: One module, a list or an :class:`fastmlp.Ensemble`.
        x: Inputs.
        y: Targets.
        settings: A :class:`fastmlp.LevenbergMarquardt`.
        epochs: Accepted steps at most.
        own: Whether each model has data of its own.
        offsets: Where those begin, or ``None``.
        validation: A pair ``(x, y)`` or ``None``.
        folds: Number of folds or ``None``.
        sample_weight: Shape ``[N]`` or ``[n, N]``, or ``None``.
        seed: An int, for the restarts.
        track: Names of what to record, ``"grad_norm"`` or nothing.
        history: Which epochs to keep losses of.
        progress: Whether to show a progress bar.
        on_progress: Called with the result of an ensemble now and then, or ``None``.
        others: Arguments of ``fit`` by name that must be at their defaults, with these.

    Returns:
        A :class:`LeastSquaresResult`; of an ensemble an
        :class:`~fastmlp.training.least_squares_ensemble.EnsembleLeastSquaresResult`.

    Raises:
        ValueError: As :func:`fastmlp.fit`; an argument that makes no sense with full steps.
    """
    for name, (value, default) in others.items():
        # an array has no truth
        if value is not default and not (isinstance(value, str) and value == default):
            raise ValueError(
                f"{name} must be {default!r} with LevenbergMarquardt, which takes whole steps on "
                f"all rows for the sum of squares, got {value!r}"
            )
    of_list = not isinstance(models, Ensemble) or describe(models[0]) is None
    if of_list:
        # of an ensemble that the kernels do not know: its modules are views
        models = checks.modules(list(models) if isinstance(models, Ensemble) else models)
    progress, epochs = flag("progress", progress), integer("epochs", epochs, 1)
    if isinstance(seed, list | tuple | range):
        raise TypeError(f"seed must be an int with LevenbergMarquardt, got {type(seed).__name__}")
    seed, track = checks.seed("seed", seed), checks.tracked(track)
    _, every = check_history(history, epochs)
    members = _Listed(models) if of_list else members_of(models)
    rows, held_out = gather_rows(
        members, x, y, sample_weight=sample_weight, validation=validation, own=flag("own", own),
        offsets=offsets, folds=folds,
    )  # fmt: skip
    if not of_list:
        return least_squares_ensemble.fit(
            members, rows, held_out, settings=settings, epochs=epochs, every=every, seed=seed,
            track=track, progress=progress, on_progress=on_progress,
        )  # fmt: skip
    for i, model in enumerate(models):
        _check_shapes("", f"models[{i}]", model, *rows.of(i)[:2])
        if held_out is not None:
            _check_shapes("validation ", f"models[{i}]", model, *held_out.of(i)[:2])
    groups = {}
    for i, model in enumerate(models):
        shapes = tuple((p.shape, p.requires_grad) for p in model.parameters())
        groups.setdefault((type(model), describe(model), shapes), []).append(i)
    outcomes = [None] * len(models)
    for indices in groups.values():
        with reporter_of_runs(progress) as report:
            outcome = train_on(
                [models[i] for i in indices],
                rows.among(indices),
                settings,
                max_steps=epochs,
                seed=seed,
                progress=report,
            )
        for i, index in zip(indices, outcome.best, strict=True):
            outcomes[i] = outcome, index
    seconds = sum({id(outcome): outcome.seconds for outcome, _ in outcomes}.values())
    weights = [_total(*rows.of(i)[1:]) for i in range(len(models))]
    losses = [_error(m, *rows.of(i)) / weights[i] for i, m in enumerate(models)]
    val_losses = None
    if held_out is not None:
        held = [held_out.of(i) for i in range(len(models))]
        pairs = zip(models, held, strict=True)
        val_losses = [_error(m, *data) / _total(*data[1:]) for m, data in pairs]
    grad_norms = None
    if "grad_norm" in track:
        norms = [_gradient_norm(m, *rows.of(i)) for i, m in enumerate(models)]
        grad_norms = [norm / weight for norm, weight in zip(norms, weights, strict=True)]
    return LeastSquaresResult(
        models, outcomes, weights, epochs, every, losses, val_losses, grad_norms, seconds
    )


def _total(y, weight):
    """The weight of all numbers of y."""
    return y.numel() if weight is None else float(weight.double().mean()) * y.numel()


def _device(models):
    """The device of all parameters."""
    checks.parameters(models)
    devices = {p.device for model in models for p in model.parameters()}
    if len(devices) > 1:
        raise ValueError(f"models must share one device, got {', '.join(map(str, devices))}")
    # a model without parameters is refused later, by name
    return next(iter(devices), torch.device("cpu"))


def _check_shapes(name, label, model, x, y):
    """Raise unless a model takes x and its outputs have the shape of y."""
    description = describe(model)
    if description is not None:
        features = None if description.elementwise else (description.n_in, description.n_out)
        checks.shapes(name, label, features, x, y)
        return
    check_rows_alone(model)
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []), torch.no_grad():
        ours, again = (_outputs(model, x[:8]) for _ in range(2))
    if not torch.allclose(ours, again, equal_nan=True):
        raise ValueError(
            f"{label} must give the same outputs every time, got others at a second call: "
            "call eval() where something is random"
        )
    checks.outputs(name, label, [len(x), *ours.shape[1:]], y)


def _outputs(model, x):
    """What a module gives for inputs in its dtype."""
    dtype = next((p.dtype for p in model.parameters()), x.dtype)
    return model(x.to(dtype))


def _errors(model, x, y, weights):
    """The sums of (weighted) squared errors of a module as it is, float64, some rows at a time."""
    for first in range(0, len(x), ROWS_OF_OUTPUTS):
        rows = slice(first, first + ROWS_OF_OUTPUTS)
        squares = (_outputs(model, x[rows]).double() - y[rows].double()).square()
        if weights is not None:
            squares = squares.flatten(1) if squares.dim() > 1 else squares.unsqueeze(1)
            squares = squares * weights[rows].double().unsqueeze(1)
        yield squares.sum()


def _error(model, x, y, weights=None):
    """The sum of (weighted) squared errors of a module as it is."""
    with torch.no_grad():
        return sum(map(float, _errors(model, x, y, weights)))


def _gradient_norm(model, x, y, weights):
    """The norm of the gradient of :func:`_error` by the trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in trained]
    with torch.enable_grad():
        for error in _errors(model, x, y, weights):
            for part, g in zip(total, torch.autograd.grad(error, trained), strict=True):
                part += g
    return math.sqrt(sum(float(part.square().sum()) for part in total))
