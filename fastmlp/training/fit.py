"""`fit`: train a list of models at once, in place."""

import contextlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from fastmlp.arguments import flag, told
from fastmlp.ensemble import Ensemble
from fastmlp.kernels.runs import FINISHED, NOT_FINITE, RUNNING, STATE
from fastmlp.training import first_order, least_squares, shards
from fastmlp.training.levenberg_marquardt import LevenbergMarquardt
from fastmlp.training.problem import make_problem
from fastmlp.training.progress import reporter
from fastmlp.training.result import FitResult, hold_losses
from fastmlp.training.settings import CosineAnnealingLR, Optimizer, StepLR


@torch.inference_mode(False)
def fit(
    models: torch.nn.Module | Sequence[torch.nn.Module] | Ensemble,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    epochs: int,
    own: bool = False,
    offsets: torch.Tensor | None = None,
    batch_size: int | None = None,
    shuffle: bool | str = True,
    optimizer: Optimizer | LevenbergMarquardt | None = None,
    scheduler: StepLR | CosineAnnealingLR | None = None,
    loss: str = "mse",
    validation: tuple[torch.Tensor, ...] | None = None,
    folds: int | None = None,
    sample_weight: torch.Tensor | None = None,
    patience: int | None = None,
    clip_norm: float | Sequence[float] | None = None,
    seed: int | Sequence[int] = 0,
    track: Sequence[str] = (),
    history: str | int = "all",
    progress: bool = True,
    on_progress: Callable[[FitResult], object] | None = None,
    resume: FitResult | None = None,
) -> FitResult:
    """Train models in place, all at the same time, thousands of steps per kernel launch.

    Every model is trained as a plain PyTorch loop with ``torch.optim`` would train it alone; the
    result does not depend on the number of threads, on the other models, or on where the run was
    interrupted. Under ``torch.distributed`` the models are shared out over the ranks, and every
    rank gets all results.

    Of an :class:`fastmlp.Ensemble` nothing is done in Python for each model: a million are trained
    like one. Many models are trained some thousands at a time, each to its end.

    On the CPU, full batches without weights of a net of one variable with ReLU or leaky ReLU, loss
    ``"mse"``, are summed up once: a step then takes sums over the net's segments, in float64, and
    costs the same for any number of rows.

    Args:
        models: One module or a list: ElementwiseMLP, AdditiveMLP, SineSum and MLP, their namesakes
            in :mod:`fastmlp.reference`, modules of your class that :func:`fastmlp.fuse` has given
            a kernel, and ``nn.Sequential`` of linear layers with one activation; mixed as you like,
            of one dtype (float32 or float64) on one device. Frozen parameters stay as they are. Or
            one :class:`fastmlp.Ensemble`.
        x: Inputs, shared by all models. Shape ``[N, …]``, cast to the models' dtype. This and the
            other data may be NumPy arrays of floating point too. With ``own`` shape ``[n, N, …]``;
            with ``offsets`` too the rows of all models, one after the other.
        y: Targets, of the shape of ``model(x)``; with ``own`` each model's.
        epochs: Passes over the data, those of ``resume`` counted.
        own: Whether each model has data of its own. The shape never decides that.
        offsets: Where each model's rows begin, and the last end: int64 ``[n + 1]`` from 0 on, for
            data of different lengths, with ``own``.
        batch_size: Rows of a step; the last batch of an epoch may be smaller. All rows by default.
        shuffle: Whether each model takes the rows in an order of its own, a new one every epoch,
            that of :func:`fastmlp.training.batch_order`. Or ``"shared"``: one order for all, that
            of model 0; small models read a row at once then, which costs less. Not with dropout or
            a sequence as ``seed``. With all rows in one batch no order is needed, and
            they are taken as they come.
        optimizer: :class:`fastmlp.SGD`, :class:`fastmlp.Adam` or :class:`fastmlp.AdamW`; each of
            its fields may hold one value per model. ``None`` means ``Adam(lr=1e-3)``. Or
            :class:`fastmlp.LevenbergMarquardt`: an epoch is one accepted step on all rows, the
            result a :class:`~fastmlp.training.least_squares.LeastSquaresResult`, and any module
            will do whose rows do not depend on each other.
        scheduler: :class:`fastmlp.StepLR` or :class:`fastmlp.CosineAnnealingLR`, or ``None`` for a
            constant rate.
        loss: ``"mse"``, ``"l1"``, ``"huber"`` (δ = 1) or ``"bce_with_logits"``, averaged over rows
            and outputs; or ``"sse"``, the sum of squared errors over a batch's rows and outputs,
            of which an epoch's loss is the sum over all rows.
        validation: A pair ``(x, y)``, evaluated after every epoch; with ``own`` each model's. With
            ``offsets`` a triple ``(x, y, offsets)``.
        folds: In place of ``validation``: model i holds out the rows r of its data with r ≡ i
            modulo ``folds``, which must divide the number of models. The loss on them, weighted
            as in training, is ``val_loss``.
        sample_weight: Weights of the rows, not negative. Shape ``[N]``, or ``[n, N]`` for one set
            a model; with ``offsets`` that of all rows. A batch's loss is its weighted mean; one
            without weight makes no step; with ``"sse"`` it is a weighted sum.
        patience: Stop a model after so many epochs in which its validation loss did not fall, and
            give every model the weights of its best epoch.
        clip_norm: Scale a gradient down to this norm, as ``torch.nn.utils.clip_grad_norm_``. One
            value, or one per model.
        seed: Key of the random orders, which each model's place in the list is part of. A sequence
            gives every model a key of its own, wherever it stands.
        track: Names of what to record after every epoch besides losses: ``("grad_norm",)`` for
            the norm of the gradient of the loss over all rows by the trained parameters, in
            :attr:`FitResult.grad_norm`, at the price of an epoch's forward and backward. Not of a
            model with dropout, whose gradient is random.
        history: Which epochs to keep losses of: ``"all"``, the ``"last"``, or every so many and the
            last; the shape is ``[n, epochs]``, ``[n, 1]`` or ``[n, ⌈epochs/history⌉]``.
        progress: Whether to show a progress bar.
        on_progress: Called after every launch, a tenth of a second, with a
            :class:`FitResult` of what there is by then; its tensors change as the run goes on.
        resume: A :class:`FitResult` of the same models, data and settings: go on from there.

    Returns:
        A :class:`FitResult`. After Ctrl-C: one with what there is, ``stopped`` saying
        ``"interrupted"``. A model whose loss becomes infinite or NaN stops, with ``stopped`` saying
        ``"not finite"``.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: Shapes, lengths or devices that do not match, a module without a kernel, a
            setting out of range, parameters that share memory. The models are untouched then.
        ModuleNotFoundError: Levenberg–Marquardt on the CPU without numba.

    Source: formulas of ``torch.optim``; orders as :func:`fastmlp.training.batch_order`.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-3, 3, 60)
        >>> nets = [fastmlp.SineSum(2) for _ in range(20)]
        >>> adam = fastmlp.Adam(lr=[0.01] * 10 + [0.1] * 10)
        >>> result = fastmlp.fit(nets, x, x.sin(), epochs=30, optimizer=adam, progress=False)
        >>> result.train_loss.shape
        torch.Size([20, 30])
    """
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress must be a function, got {told(on_progress)}")
    if isinstance(optimizer, LevenbergMarquardt):
        return least_squares.fit(
            models, x, y, settings=optimizer, epochs=epochs, own=own, offsets=offsets,
            validation=validation, folds=folds, sample_weight=sample_weight, seed=seed,
            track=track, history=history, progress=progress, on_progress=on_progress,
            others={
                "batch_size": (batch_size, None), "scheduler": (scheduler, None),
                "loss": (loss, "mse"), "patience": (patience, None),
                "clip_norm": (clip_norm, None), "resume": (resume, None),
            },
        )  # fmt: skip
    progress = flag("progress", progress)
    problem = make_problem(
        models, x, y, epochs=epochs, batch_size=batch_size, shuffle=shuffle, optimizer=optimizer,
        scheduler=scheduler, loss=loss, validation=validation, sample_weight=sample_weight,
        patience=patience, clip_norm=clip_norm, seed=seed, track=track, own=own, offsets=offsets,
        folds=folds, history=history,
    )  # fmt: skip
    seconds = _restore(problem, resume)
    shards.share_out(problem)
    began = time.perf_counter()
    visible = progress and shards.is_first()

    def report_result():
        if on_progress is not None:
            on_progress(_result(problem, seconds + time.perf_counter() - began, is_last=False))

    # after Ctrl-C what is there is the result
    with reporter(problem, visible) as report, contextlib.suppress(KeyboardInterrupt):
        first_order.run(problem, lambda: (report(), report_result()))
    shards.gather(problem)
    _mark_broken(problem)
    curves = problem.train_loss, problem.val_loss, problem.grad_norm
    hold_losses(*curves, problem.states, problem.steps_per_epoch, problem.every)
    problem.write_back()
    return _result(problem, seconds + time.perf_counter() - began)


def _mark_broken(problem):
    """A last step may leave weights that no loss has seen."""
    finite = problem.theta.isfinite().cpu().numpy()
    if not finite.all():
        broken = ~np.logical_and.reduceat(finite, problem.members.offsets[:-1])
        problem.states["status"][broken] = NOT_FINITE


def _result(problem, seconds, is_last=True):
    """What there is; while the run goes on, as views of what it writes."""

    def tensor(array):
        return None if array is None else torch.from_numpy(array)

    tensors = {
        "theta": problem.theta,
        "moment1": problem.moment1,
        "moment2": problem.moment2,
        "best": problem.best,
        "train_loss": tensor(problem.train_loss),
        "val_loss": tensor(problem.val_loss),
        "grad_norm": tensor(problem.grad_norm),
    }
    states = {name: torch.from_numpy(problem.states[name]) for name in STATE.names}
    if is_last:
        states = {name: state.clone() for name, state in states.items()}
    return FitResult(problem.members.models, tensors, states, problem.description, seconds)


def _restore(problem, resume):
    """Take up the state of an earlier run; return the seconds that it took."""
    if resume is None:
        return 0.0
    if not isinstance(resume, FitResult):
        raise TypeError(f"resume must be a FitResult, got {type(resume).__name__}")
    for name, value in problem.description.items():
        if resume._description.get(name) != value:
            raise ValueError(
                f"resume must come from a run with the same {name}, "
                f"got {_short(resume._description.get(name))} and now {_short(value)}"
            )
    if resume._tensors["theta"].shape != problem.theta.shape:
        raise ValueError("resume must hold as many parameters as the models")
    done = resume.train_loss.shape[1]
    if int(resume.epochs.max()) > problem.epochs:
        raise ValueError(
            f"epochs counts those of resume: it must be at least {int(resume.epochs.max())}, "
            f"got {problem.epochs}"
        )
    for name in ("theta", "moment1", "moment2", "best"):
        if getattr(problem, name) is not None:
            getattr(problem, name).copy_(resume._tensors[name])
    for name in ("train_loss", "val_loss", "grad_norm"):
        if getattr(problem, name) is not None:
            curve = getattr(problem, name)
            common = min(done, curve.shape[1])
            curve[:, :common] = resume._tensors[name][:, :common].numpy()
    for name in STATE.names:
        problem.states[name] = resume._states[name].numpy()
    status, short = problem.states["status"], problem.states["step"] < problem.n_steps
    status[short & (status == FINISHED)] = RUNNING
    return resume.seconds


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
