"""`fit` with Levenberg–Marquardt: what it refuses, and its result."""

import contextlib
import math

import torch

from fastmlp.arguments import flag, integer
from fastmlp.kernels import notice
from fastmlp.training import checks
from fastmlp.training.describe import describe
from fastmlp.training.generic import check_rows_alone
from fastmlp.training.levenberg_marquardt import train
from fastmlp.training.progress import can_be_seen
from fastmlp.training.result import FitResult, hold_last

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
        weight: Sum of the rows' weights times outputs: what the sums of squares are divided by.
        epochs: Accepted steps at most.
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

    def __init__(self, models, outcomes, weight, epochs, losses, val_losses, grad_norms, seconds):
        super().__init__(models, {"best": None}, {}, {"loss": "mse"}, seconds)
        self.runs = [outcome for outcome, _ in outcomes]
        self._index = [index for _, index in outcomes]
        steps = self._of_best("steps")
        over = [reason not in ("interrupted", "max_time") for reason in self.stopped]
        history = torch.stack([outcome.sse[index] / weight for outcome, index in outcomes])
        for row, step, loss in zip(history, steps, losses, strict=True):
            row[step] = loss
        hold_last(history, [step + 1 for step in steps], over)
        self._tensors["train_loss"] = history[:, :epochs].clone()
        self._tensors["val_loss"] = self._tensors["grad_norm"] = None
        if grad_norms is not None:
            norms = torch.stack([outcome.gradient_norm[i] / weight for outcome, i in outcomes])
            for row, step, norm in zip(norms, steps, grad_norms, strict=True):
                row[step] = norm
            hold_last(norms, [step + 1 for step in steps], over)
            self._tensors["grad_norm"] = norms[:, 1:].clone()
        final = losses
        if val_losses is not None:
            table = torch.full((len(models), epochs), math.nan, dtype=torch.float64, device="cpu")
            last = [max(step, 1) for step in steps]
            for row, step, loss in zip(table, last, val_losses, strict=True):
                row[step - 1] = loss
            hold_last(table, last, over)
            self._tensors["val_loss"] = table
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


def fit(
    models, x, y, *, settings, epochs, validation, sample_weight, seed, track, progress, others
):
    """Train with Levenberg–Marquardt, models of the same structure together.

    Args:
        models: One module or a list.
        x: Inputs.
        y: Targets.
        settings: A :class:`fastmlp.LevenbergMarquardt`.
        epochs: Accepted steps at most.
        validation: A pair ``(x, y)`` or ``None``.
        sample_weight: Shape ``[N]`` or ``None``.
        seed: An int, for the restarts.
        track: Names of what to record, ``"grad_norm"`` or nothing.
        progress: Whether to show a progress bar.
        others: Arguments of ``fit`` by name that must be at their defaults, with these.

    Returns:
        A :class:`LeastSquaresResult`.

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
    models = checks.modules(models)
    progress, epochs = flag("progress", progress), integer("epochs", epochs, 1)
    if isinstance(seed, list | tuple | range):
        raise TypeError(f"seed must be an int with LevenbergMarquardt, got {type(seed).__name__}")
    seed, track = checks.seed("seed", seed), checks.tracked(track)
    device = _device(models)
    x, y = checks.data("", x, y, device)
    val_x, val_y = checks.validation(validation, device)
    for i, model in enumerate(models):
        _check_shapes("", f"models[{i}]", model, x, y)
        if val_x is not None:
            _check_shapes("validation ", f"models[{i}]", model, val_x, val_y)
    weights = checks.weights(sample_weight, x)
    groups = {}
    for i, model in enumerate(models):
        shapes = tuple((p.shape, p.requires_grad) for p in model.parameters())
        groups.setdefault((type(model), describe(model), shapes), []).append(i)
    outcomes = [None] * len(models)
    for indices in groups.values():
        with _bar(progress) as report:
            outcome = train(
                [models[i] for i in indices],
                x,
                y,
                settings,
                max_steps=epochs,
                sample_weight=None if weights is None else weights[0],
                seed=seed,
                progress=report,
            )
        for i, index in zip(indices, outcome.best, strict=True):
            outcomes[i] = outcome, index
    seconds = sum({id(outcome): outcome.seconds for outcome, _ in outcomes}.values())
    weight = y.numel() if weights is None else float(weights.double().mean()) * y.numel()
    losses = [_error(model, x, y, weights) / weight for model in models]
    val_losses = None
    if val_x is not None:
        val_losses = [_error(model, val_x, val_y) / val_y.numel() for model in models]
    grad_norms = None
    if "grad_norm" in track:
        grad_norms = [_gradient_norm(model, x, y, weights) / weight for model in models]
    return LeastSquaresResult(
        models, outcomes, weight, epochs, losses, val_losses, grad_norms, seconds
    )


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
            squares = squares * weights[0, rows].double().unsqueeze(1)
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


@contextlib.contextmanager
def _bar(visible):
    """A function that moves a progress bar of the runs that are over; ``None``: there is none."""
    if not (visible and can_be_seen()):
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit=" runs") as bar, notice.said_by(bar.set_postfix_str):

        def report(done, total):
            bar.total = total
            bar.set_postfix_str("", refresh=False)
            bar.update(done - bar.n)

        yield report
