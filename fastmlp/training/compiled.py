"""Levenberg–Marquardt on the kernels: models a task, or the rows of one model dealt to threads.

Both take the same sums over the same pieces of rows, in the same order, so the choice changes the
time alone. Small models are a model a lane of vectors, whatever stands beside them; what comes to
QR, and larger ones, are taken one by one.
"""

import math
import time

import numpy as np
import torch

from fastmlp import backends
from fastmlp.kernels.lm import DATA, SOLVERS
from fastmlp.kernels.runs import pick
from fastmlp.kernels.spec import SINE, model_of
from fastmlp.training.outcomes import Outcome, numerical_rank
from fastmlp.training.structures import hidden_units, is_hinge_net, n_readout

WORK_OF_A_PIECE = 2e7
"""Multiplications of a piece of rows: some 5 ms, far above the cost of dealing it out."""
MAX_PIECES = 64
WORK_TO_SHARE = 1e7
"""Multiplications of one Jacobian from which its rows are worth dealing to threads."""
WORK_OF_A_SLICE = 1e9
"""Multiplications between two looks at the clock and at the keyboard: some 0.2 s."""
ROWS_TO_SUM_UP = 4
"""Rows a hidden unit from which the sums over segments are cheaper than the rows."""
ROWS_IN_LANES = 96
"""Rows of a hinge net up to which lanes of models are taken, not the sums over segments.

Whole calls for 2000 nets 1-8-1 on 60, 96, 128, 160 rows are 2.9, 2.2, 1.7, 1.5 times as fast in
lanes, but those for one, with seven of eight lanes empty, 0.9, 0.9, 0.8, 0.8 times (AMD EPYC,
Zen 5, two threads, 2026-11).
"""
JACOBIANS_OF_A_RUN = 32
"""About: of so many a run is taken to be when small ones are put together."""
MIN_TASKS = 64
"""Tasks of many small runs, at least, where there are as many."""
RUNS_IN_LANES = 32
"""Runs of such a task, at least, where they are a model a lane: lanes wait for nobody but the last.
"""
MAX_KEPT_FACTORS = 1 << 23
"""Numbers in all factors that are kept for the ranks: 64 MB."""


class RunStates:
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
        self.n_readout = n_readout
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
    is_sine = model_of(description.net).model == SINE
    return description.net, (scale / (2 * math.pi) if is_sine else scale, *others)


def prefix_sums(x, y, weight):
    """Sorted x, prefix sums of w, w·x, w·y, w·x², w·x·y, w·y² of centred numbers, the centre."""
    return [part[0] for part in _prefix_sums(x.T, y.T, None if weight is None else weight[None])]


def _prefix_sums(x, y, weight):
    """The same of each row of ``[sets, N]``: ``[sets, N]``, ``[sets, 6, N + 1]``, ``[sets, 2]``."""
    order = x.double().argsort(dim=1, stable=True)
    x, y = x.double().gather(1, order), y.double().gather(1, order)
    w = torch.ones_like(x) if weight is None else weight.gather(1, order).square()
    # NumPy's sum of a row does not depend on how many rows there are, nor on threads
    centre = torch.from_numpy(np.stack([x.numpy().mean(1), y.numpy().mean(1)], 1))
    dx, dy = x - centre[:, :1], y - centre[:, 1:]
    terms = torch.stack([w, w * dx, w * dy, w * dx * dx, w * dx * dy, w * dy * dy], 1)
    sums = torch.zeros(len(x), 6, x.shape[1] + 1, dtype=torch.float64, device="cpu")
    # NumPy's long double, where it has more digits, keeps the sums' own rounding out
    totals = np.cumsum(terms.numpy().astype(np.longdouble), axis=2)
    sums[:, :, 1:] = torch.from_numpy(totals.astype(np.float64))
    return x, sums, centre


class _Data:
    """What the kernels must know of the rows: a record, for all runs or for each."""

    def __init__(self, description, rows, models, lane_rows=0):
        """``models``: of each run that whose rows it takes; ``lane_rows``: the most of a lane."""
        is_shared = rows.are_shared
        given = rows.weight if is_shared else None
        x, y, weight = prepare(description, rows.x, rows.y, given)
        per_row = len(x) // len(rows.x)
        if rows.weight is not None and not is_shared:
            weight = rows.weight.double().cpu().sqrt().repeat_interleave(per_row)
        self.alive = [x, y, weight]
        models = np.zeros(1, np.int64) if is_shared else models
        first, count, at = (
            np.broadcast_to(pick(v, models), len(models)) * per_row
            for v in (rows.first, rows.count, rows.first_weight)
        )
        self.table = table = np.zeros(len(models), DATA)
        self.step = 0 if is_shared else table.strides[0]
        table["x_is_double"], table["y_is_double"] = (t.dtype is torch.float64 for t in (x, y))
        table["n_rows"] = count
        table["x"] = x.data_ptr() + first * x.shape[1] * x.element_size()
        table["y"] = y.data_ptr() + first * y.shape[1] * y.element_size()
        table["weight"] = 0 if weight is None else weight.data_ptr() + at * 8
        if not is_hinge_net(description):
            return
        summed = (count > lane_rows) & (count > ROWS_TO_SUM_UP * hidden_units(description))
        for n in np.unique(count[summed]):
            same = np.flatnonzero(summed & (count == n))
            within = np.arange(n)
            places = torch.from_numpy(first[same, None] + within)
            weights = None if weight is None else weight[torch.from_numpy(at[same, None] + within)]
            parts = _prefix_sums(x[places, 0], y[places, 0], weights)
            self.alive += parts
            for name, part in zip(("x", "sums", "centre"), parts, strict=True):
                steps = np.arange(len(same)) * part[0].numel() * 8
                table[name][same] = part.data_ptr() + steps
        # all in one piece
        table["n_sorted"], table["n_rows"] = count * summed, np.where(summed, 1, count)

    @property
    def at(self):
        return self.table.ctypes.data


def run(models, description, starts, rows, settings, max_steps, deadline, progress):
    """Train all runs; returns their :class:`Outcome`."""
    return run_all(
        description, starts, rows, len(models), settings, max_steps, deadline, progress
    ).outcome()


def run_all(description, starts, rows, n_models, settings, max_steps, deadline, progress):
    """Train all runs, each model's one after the other; returns their :class:`RunStates`."""
    n_runs = len(starts)
    n_projected = n_readout(description) if settings.variable_projection else 0
    runs = RunStates(starts, settings, max_steps, n_projected)
    net, reals = kernel_words(description)
    small = backends.launchers("numba", "lanes.models")
    by_cholesky = settings.first_solver != "qr" and settings.accept == "descent"
    lane_rows = small.lane_rows(net, reals) if by_cholesky and n_projected == 0 else 0
    if is_hinge_net(description):
        lane_rows = min(lane_rows, ROWS_IN_LANES)
    data = _Data(description, rows, np.arange(n_runs) // (n_runs // n_models), lane_rows)
    n_rows, lanes = int(data.table["n_rows"].max()), None
    few = (data.table["n_sorted"] == 0) & (data.table["n_rows"] <= lane_rows)
    if few.any():
        most = int(data.table["n_rows"][few].max())
        lanes = small.LaneSolver(net, reals, runs.p, data.table, most)
    net = torch.tensor(net, device="cpu")
    reals = torch.tensor(reals, dtype=torch.float64, device="cpu")
    model_at = net.data_ptr(), len(net), reals.data_ptr(), len(reals), runs.p
    work_of_a_row = description.n_out * runs.ld**2
    piece = max(WORK_OF_A_PIECE // work_of_a_row, n_rows // MAX_PIECES, 1)
    piece = data.table["piece_rows"] = int(-(-piece // 128) * 128)
    work = n_rows * work_of_a_row + runs.p**3 + 100 * n_rows * runs.p
    alone = lanes is None and work >= WORK_TO_SHARE and n_runs < 2 * torch.get_num_threads()
    try:
        if alone:
            for index in range(n_runs):
                at = data.at + index * data.step
                n = int(data.table["n_rows"][index if data.step else 0])
                _run_alone(runs, index, (*model_at, at), n, piece, deadline)
                if progress is not None:
                    progress(index + 1, n_runs)
        else:
            _run_many(runs, lanes, (*model_at, data.at, data.step), int(work), deadline, progress)
    except KeyboardInterrupt:  # every state is that after the last accepted step
        runs.unfinished = "interrupted"
    return runs


def _run_many(runs, lanes, model_at, work, deadline, progress):
    from fastmlp.kernels.cpu.machine import pool

    n_runs = len(runs.state)
    kept = None
    if n_runs * runs.ld**2 <= MAX_KEPT_FACTORS:
        kept = torch.zeros(n_runs, runs.ld**2, dtype=torch.float64, device="cpu")
        runs.factors = dict(enumerate(kept))
    budget = max(1, int(WORK_OF_A_SLICE) // work)
    # a task is a slice too: of many small models some dozens, with all the steps that they need
    together = max(1, min(budget // JACOBIANS_OF_A_RUN, -(-n_runs // MIN_TASKS)))
    tensors = runs.state, runs.counters, runs.history
    places = [t.data_ptr() for t in tensors] + [0 if kept is None else kept.data_ptr()]
    if lanes is not None:
        of_a_thread = -(-n_runs // torch.get_num_threads())
        together = max(together, min(RUNS_IN_LANES, of_a_thread))
        names = "limits", "choices", "state", "counters", "history", "factor"
        solve = lanes.bind(**dict(zip(names, (*runs.settings_at, *places), strict=True)))
    todo = np.arange(0, n_runs, together)
    while len(todo) and (deadline is None or time.perf_counter() < deadline):

        def advance(piece, todo=todo):
            if deadline is not None and time.perf_counter() > deadline:
                return
            first = int(todo[piece])
            last = min(n_runs, first + together)
            if lanes is not None:
                solve(budget, first, last)
            runs.kernels.lm_runs(
                *model_at,
                *runs.settings_at,
                *places,
                budget,
                0 if lanes is None else lanes.n_rows,
                first,
                last,
            )

        pool.run_pieces(advance, len(todo))
        is_over = runs.counters[:, runs.kernels.PHASE].numpy() == runs.kernels.DONE
        todo = todo[
            ~np.logical_and.reduceat(is_over, np.arange(0, n_runs, together))[todo // together]
        ]
        if progress is not None:
            progress(int(is_over.sum()), n_runs)


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
        at = p - runs.n_readout if ask == k.READOUT else 0

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
