"""Levenberg–Marquardt on the kernels: one task a model, or the rows of one model dealt to threads.

Both take the same sums over the same pieces of rows, in the same order, so the choice changes the
time alone.
"""

import math
import time

import numpy as np
import torch

from fastmlp import backends
from fastmlp.kernels.lm import SOLVERS
from fastmlp.training.describe import is_hinge_net, n_readout
from fastmlp.training.outcomes import Outcome, numerical_rank

WORK_OF_A_PIECE = 2e7
"""Multiplications of a piece of rows: some 5 ms, far above the cost of dealing it out."""
MAX_PIECES = 64
WORK_TO_SHARE = 1e7
"""Multiplications of one Jacobian from which its rows are worth dealing to threads."""
WORK_OF_A_SLICE = 1e9
"""Multiplications between two looks at the clock and at the keyboard: some 0.2 s."""
ROWS_TO_SUM_UP = 4
"""Rows a hidden unit from which the sums over segments are cheaper than the rows."""
MAX_KEPT_FACTORS = 1 << 23
"""Numbers in all factors that are kept for the ranks: 64 MB."""


class Runs:
    """The state of many runs, as `kernels/cpu/levenberg_marquardt/solver.py` wants it in memory."""

    def __init__(self, starts, settings, max_steps, n_readout=0):
        self.kernels = kernels = backends.launchers("numba", "levenberg_marquardt.solver")
        n_runs, self.p = starts.shape
        real = {"dtype": torch.float64, "device": "cpu"}
        self.state = torch.zeros(n_runs, 3 * self.p + kernels.N_NUMBERS, **real)
        self.state[:, : self.p] = starts
        self.counters = torch.zeros(n_runs, kernels.N_COUNTERS, dtype=torch.int64, device="cpu")
        self.counters[:, kernels.PHASE] = kernels.START
        self.history = torch.full((n_runs, max_steps + 1, 2), math.nan, **real)
        self.limits, self.choices = settings.limits, settings.choices(max_steps, n_readout)
        self.ld = (self.p + 3) // 4 * 4
        self.factors = {}
        self.unfinished = "max_time"  # why a run without a reason of its own stopped

    @property
    def settings_at(self):
        return self.limits.data_ptr(), self.choices.data_ptr()

    def at(self, run):
        """Addresses of the state, the counters and the history of a run."""
        return tuple(t[run].data_ptr() for t in (self.state, self.counters, self.history))

    def is_over(self, run):
        return int(self.counters[run, self.kernels.PHASE]) == self.kernels.DONE

    def outcome(self):
        """Everything that is told about the runs."""
        k, counters = self.kernels, self.counters
        solvers = counters[:, k.SOLVER].tolist()
        return Outcome(
            sse=self.history[:, :, 0].clone(),
            gradient_norm=self.history[:, :, 1].clone(),
            parameters=self.state[:, : self.p].clone(),
            steps=counters[:, k.STEPS].tolist(),
            stopped=[k.REASONS[i] or self.unfinished for i in counters[:, k.REASON].tolist()],
            rank=[self._rank(run, solver) for run, solver in enumerate(solvers)],
            solver=[SOLVERS[i] for i in solvers],
            jacobians=counters[:, k.N_JACOBIANS].tolist(),
        )

    def _rank(self, run, solver):
        factor = self.factors.get(run)
        if factor is None:
            return None
        factor = factor[: self.ld * self.ld].view(self.ld, self.ld)[: self.p, : self.p]
        scale = self.state[run, 2 * self.p : 3 * self.p]
        return numerical_rank(factor, scale, solver == self.kernels.QR)


def _as_rows(name, tensor, columns, shape, device):
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
    dtype = tensor.dtype if tensor.dtype is torch.float32 else torch.float64
    return tensor.detach().to(device=device, dtype=dtype).reshape(-1, columns).contiguous()


def prepare(description, x, y, sample_weight, device="cpu"):
    """Inputs and targets as rows, checked, and the square roots of the weights."""
    if description.elementwise:
        shape = x.shape
    elif x.dim() < 1 or x.shape[-1] != description.n_in:
        raise ValueError(f"x must have {description.n_in} columns, got shape {list(x.shape)}")
    else:
        shape = (*x.shape[:-1], description.n_out)
    inputs = _as_rows("x", x, description.n_in, x.shape, device)
    targets = _as_rows("y", y, description.n_out, shape, device)
    if inputs.shape[0] == 0:
        raise ValueError("x must hold at least one row, got none")
    weight = None
    if sample_weight is not None:
        if sample_weight.numel() == len(x):
            sample_weight = sample_weight.repeat_interleave(inputs.shape[0] // len(x))
        if sample_weight.numel() != inputs.shape[0]:
            raise ValueError(
                f"sample_weight must have {inputs.shape[0]} numbers, one a row, "
                f"got {sample_weight.numel()}"
            )
        weight = sample_weight.detach().double().to(device).reshape(-1).sqrt().contiguous()
    return inputs, targets, weight


def kernel_words(description):
    """The integers and the numbers of a model as the kernels take them: sines count in turns."""
    scale, *others = description.reals
    return description.net, (scale if description.net[0] < 2 else scale / (2 * math.pi), *others)


def prefix_sums(x, y, weight):
    """Sorted x, prefix sums of w, w·x, w·y, w·x², w·x·y, w·y² of centred numbers, the centre."""
    order = x[:, 0].double().argsort(stable=True)
    x, y = x[order, 0].double(), y[order, 0].double()
    w = torch.ones_like(x) if weight is None else weight[order].square()
    centre = torch.stack([x.mean(), y.mean()])
    dx, dy = x - centre[0], y - centre[1]
    terms = torch.stack([w, w * dx, w * dy, w * dx * dx, w * dx * dy, w * dy * dy])
    sums = torch.zeros(6, len(x) + 1, dtype=torch.float64, device="cpu")
    # NumPy's long double, where it has more digits, keeps the sums' own rounding out
    totals = np.cumsum(terms.numpy().astype(np.longdouble), axis=1)
    sums[:, 1:] = torch.from_numpy(totals.astype(np.float64))
    return x.contiguous(), sums, centre


def run(models, description, starts, x, y, settings, max_steps, sample_weight, deadline, progress):
    """Train all runs; returns their :class:`Outcome`."""
    inputs, targets, weight = prepare(description, x, y, sample_weight)
    n_projected = n_readout(description) if settings.variable_projection else 0
    runs = Runs(starts, settings, max_steps, n_projected)
    n_runs, n_rows = len(starts), inputs.shape[0]
    net, reals = kernel_words(description)
    net = torch.tensor(net, device="cpu")
    reals = torch.tensor(reals, dtype=torch.float64, device="cpu")
    piecewise = is_hinge_net(description) and n_rows > ROWS_TO_SUM_UP * description.net[3]
    if piecewise:
        inputs, targets, centre = prefix_sums(inputs, targets, weight)
        n_rows = 1  # all in one piece
    data = torch.tensor(
        [
            inputs.data_ptr(),
            inputs.dtype is torch.float64,
            targets.data_ptr(),
            targets.dtype is torch.float64,
            0 if piecewise or weight is None else weight.data_ptr(),
            len(inputs) if piecewise else 0,
            centre.data_ptr() if piecewise else 0,
        ],
        device="cpu",
    )
    model_at = (net.data_ptr(), len(net), reals.data_ptr(), len(reals), runs.p, data.data_ptr())
    work_of_a_row = description.n_out * runs.ld**2
    rows = max(WORK_OF_A_PIECE // work_of_a_row, n_rows // MAX_PIECES, 1)
    rows = int(-(-rows // 128) * 128)
    work = n_rows * work_of_a_row + runs.p**3 + 100 * n_rows * runs.p
    alone = work >= WORK_TO_SHARE and n_runs < 2 * torch.get_num_threads()
    try:
        if alone:
            for index in range(n_runs):
                _run_alone(runs, index, model_at, n_rows, rows, deadline)
                if progress is not None:
                    progress(index + 1, n_runs)
        else:
            budget = int(max(1, WORK_OF_A_SLICE // work))
            _run_many(runs, model_at, n_rows, rows, budget, deadline, progress)
    except KeyboardInterrupt:  # every state is that after the last accepted step
        runs.unfinished = "interrupted"
    return runs.outcome()


def _run_many(runs, model_at, n_rows, rows, budget, deadline, progress):
    from fastmlp.kernels.cpu.machine import pool

    n_runs = len(runs.state)
    keep = n_runs * runs.ld**2 <= MAX_KEPT_FACTORS
    if keep:
        factors = torch.zeros(n_runs, runs.ld**2, dtype=torch.float64, device="cpu")
        runs.factors = dict(enumerate(factors))
    active = list(range(n_runs))
    while active and (deadline is None or time.perf_counter() < deadline):

        def advance(piece, active=active):
            index = active[piece]
            if deadline is not None and time.perf_counter() > deadline:
                return
            runs.kernels.lm_run(
                *model_at,
                n_rows,
                rows,
                *runs.settings_at,
                *runs.at(index),
                runs.factors[index].data_ptr() if keep else 0,
                budget,
            )

        pool.run_pieces(advance, len(active))
        active = [index for index in active if not runs.is_over(index)]
        if progress is not None:
            progress(n_runs - len(active), n_runs)


def _run_alone(runs, index, model_at, n_rows, rows, deadline):
    from fastmlp.kernels.cpu.machine import pool

    k, p, ld = runs.kernels, runs.p, runs.ld
    n_pieces = -(-n_rows // rows)
    parts = torch.empty(n_pieces, ld * ld + ld + 1, dtype=torch.float64, device="cpu")
    kept = torch.zeros(ld * ld + ld, dtype=torch.float64, device="cpu")
    state = runs.state[index]
    ask = None
    while True:
        ask = k.lm_advance(
            p,
            *runs.settings_at,
            *runs.at(index),
            kept.data_ptr(),
            parts.data_ptr(),
            0 if ask is None else n_pieces,
        )
        of_trial = ask in (k.LOSS, k.READOUT)
        if ask == k.DONE or (
            not of_trial and deadline is not None and time.perf_counter() > deadline
        ):
            break
        theta = state[p : 2 * p] if of_trial else state[:p]
        at = p - int(runs.choices[3]) if ask == k.READOUT else 0

        def evaluate(piece, ask=ask, theta=theta, at=at):
            k.lm_piece(
                ask,
                *model_at,
                theta.data_ptr(),
                parts[piece].data_ptr(),
                piece * rows,
                min(n_rows, (piece + 1) * rows),
                at,
            )

        pool.run_pieces(evaluate, n_pieces)
    runs.factors[index] = kept
