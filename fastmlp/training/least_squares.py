"""`fit` with Levenberg–Marquardt: what it refuses, and its result."""

import math

import torch

from fastmlp.training.describe import describe
from fastmlp.training.levenberg_marquardt import train
from fastmlp.training.result import FitResult


class LeastSquaresResult(FitResult):
    """What :func:`fastmlp.fit` returns after Levenberg–Marquardt.

    ``train_loss`` ``[models, epochs]`` is the mean squared error before every step of each model's
    best run, NaN after its end; ``val_loss`` has the error of the final weights at the last step.

    Args:
        models: The trained modules.
        outcomes: For every model, the :class:`~fastmlp.training.levenberg_marquardt.Outcome` it
            was part of, and its first and last run there.
        weight: Sum of the rows' weights times outputs: what the sums of squares are divided by.
        epochs: Accepted steps at most.
        val_losses: Final validation loss of every model, or ``None``.
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

    def __init__(self, models, outcomes, weight, epochs, val_losses, seconds):
        super().__init__(models, {"best": None}, {}, {"loss": "mse"}, seconds)
        self.runs = [outcome for outcome, _ in outcomes]
        self._index = [index for _, index in outcomes]
        losses = [outcome.sse[index] / weight for outcome, index in outcomes]
        self._final = torch.stack(
            [row[o.steps[i]] for row, (o, i) in zip(losses, outcomes, strict=True)]
        )
        self._tensors["train_loss"] = torch.stack(losses)[:, :epochs].clone()
        self._tensors["val_loss"] = None
        if val_losses is not None:
            table = torch.full((len(models), epochs), math.nan, dtype=torch.float64, device="cpu")
            for row, (o, i), loss in zip(table, outcomes, val_losses, strict=True):
                row[max(o.steps[i] - 1, 0)] = loss
            self._tensors["val_loss"] = table
            self._final = torch.tensor(val_losses, dtype=torch.float64, device="cpu")

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
        """The loss of the final weights, of validation where there was one, ``[models]``."""
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


def fit(models, x, y, *, settings, epochs, validation, sample_weight, seed, progress, others):
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
        progress: Whether to show a progress bar.
        others: Arguments of ``fit`` by name that must be at their defaults, with these.

    Returns:
        A :class:`LeastSquaresResult`.

    Raises:
        ValueError: As :func:`fastmlp.fit`; an argument that makes no sense with full steps.
    """
    for name, (value, default) in others.items():
        if value != default:
            raise ValueError(
                f"{name} must be {default!r} with LevenbergMarquardt, which takes whole steps on "
                f"all rows for the sum of squares, got {value!r}"
            )
    if isinstance(models, torch.nn.Module) and not isinstance(models, torch.nn.ModuleList):
        models = [models]
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one module, got an empty list")
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an int with LevenbergMarquardt, got {type(seed).__name__}")
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
                sample_weight=sample_weight,
                seed=seed,
                progress=report,
            )
        for i, index in zip(indices, outcome.best, strict=True):
            outcomes[i] = outcome, index
    seconds = sum({id(outcome): outcome.seconds for outcome, _ in outcomes}.values())
    weight = y.numel()
    if sample_weight is not None:
        weight = float(sample_weight.double().sum()) * y.numel() / max(sample_weight.numel(), 1)
    val_losses = None
    if validation is not None:
        val_x, val_y = validation
        with torch.no_grad():
            val_losses = [
                float((model(val_x.to(next(model.parameters()))) - val_y).double().square().mean())
                for model in models
            ]
    return LeastSquaresResult(models, outcomes, weight, epochs, val_losses, seconds)


class _bar:
    """A progress bar that counts the runs that are over."""

    def __init__(self, visible):
        self.visible, self.bar = visible, None

    def __enter__(self):
        return self._report if self.visible else None

    def _report(self, done, total):
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit=" runs")
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
