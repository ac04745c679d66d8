"""The progress bar of a run."""

import contextlib
import sys

import numpy as np

from fastmlp.kernels import notice
from fastmlp.kernels.runs import pick


def latest_losses(problem):
    """The last loss that each model of this process has: of validation, or else of training."""
    losses = problem.train_loss if problem.val_loss is None else problem.val_loss
    here = problem.here
    epoch = problem.states["step"][here] // pick(problem.steps_per_epoch, here)
    known = epoch > 0
    return losses[here[known], (epoch[known] - 1) // problem.every]


def summary(problem):
    """Epoch, best and median loss as a line."""
    here = problem.here
    epochs = problem.states["step"][here] // pick(problem.steps_per_epoch, here)
    text = f"epoch {int(epochs.max())}/{problem.epochs}"
    losses = latest_losses(problem)
    losses = losses[np.isfinite(losses)]
    if len(losses):
        text += f", best {losses.min():.3g}, median {np.median(losses):.3g}"
    return text


def can_be_seen():
    """Whether there is a standard error to draw on; programs without a console have none."""
    return sys.stderr is not None and not sys.stderr.closed


@contextlib.contextmanager
def reporter(problem, visible):
    """A function to be called after every launch, which moves the bar.

    Args:
        problem: A :class:`fastmlp.training.problem.Problem`.
        visible: Whether a bar is wanted.
    """
    if not (visible and len(problem.here) and can_be_seen()):
        yield lambda: None
        return
    from tqdm import tqdm

    def done():
        return int(problem.states["step"][problem.here].sum())

    total = int(np.broadcast_to(pick(problem.n_steps, problem.here), len(problem.here)).sum())
    with tqdm(total=total, initial=done(), unit=" steps", unit_scale=True) as bar:

        def report():
            bar.set_postfix_str(summary(problem), refresh=False)
            bar.update(done() - bar.n)

        with notice.said_by(bar.set_postfix_str):
            yield report


@contextlib.contextmanager
def reporter_of_runs(visible):
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
