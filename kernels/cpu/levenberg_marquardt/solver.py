"""Levenberg–Marquardt for the models of `../models.py`, many at once; float64 throughout.

A step solves min ‖J·p + r‖² + λ‖D·p‖², D the running maximum of the columns' norms (Marquardt's
scaling), either by Cholesky of the scaled JᵀJ + λI or, without squaring the condition number, by
Householder QR: rows are folded tile by tile into the triangular factor R of J, and a trial folds
√λ·I into it. λ follows the gain ratio ϱ = actual/predicted reduction (Nielsen 1999, report
IMM-REP-1999-05); scaling and stopping are those of Moré 1978, Lecture Notes in Mathematics 630.

The solver is a state machine: :func:`advance` takes what it asked for (JᵀJ and Jᵀr, R and Qᵀr, or
a sum of squares) and says what it needs next. So one code serves a whole run inside one compiled
call (``lm_runs``, some models a task), rows dealt to threads (``lm_piece`` and ``lm_advance``), and
Jacobians that come from elsewhere. Sums are taken over pieces of rows and added in their order,
alike in all three: the bits do not depend on threads.
"""

import math

import numpy as np

from ...lm import DATA, Choices, Limits
from ..machine.jit import array_at, copy, inner, kernel, record
from ..models import forward, jacobian, sizes, workspace_rows
from ..numbers.linalg import all_zero, dot, fold
from ..numbers.tile import TILE
from .segment_sums import N_SUMS, evaluate_segments
from .steps import (  # noqa: F401  callers read a state by these names
    DAMPING,
    DELIVERED,
    DONE,
    LOSS,
    N_COUNTERS,
    N_JACOBIANS,
    N_NUMBERS,
    NORMAL,
    PHASE,
    QR,
    READOUT,
    REASON,
    REASONS,
    SOLVER,
    SOLVERS,
    START,
    STEPS,
    advance,
    padded,
    take_rows,
)

LIMITS, CHOICES = record(Limits, np.float64), record(Choices)


@inner
def _memory(p, choices, state_at, counters_at, history_at):
    """State, counters and history of a run."""
    return (
        array_at(state_at, 3 * p + N_NUMBERS, np.float64),
        array_at(counters_at, N_COUNTERS, np.int64),
        array_at(history_at, 2 * (choices.max_steps + 1), np.float64),
    )


@inner
def _load(at, is_double, n_columns, first, n, tile):
    """Rows ``first … first + n`` of a matrix of float64 or float32, as a tile."""
    if is_double:
        source = array_at(at + 8 * n_columns * first, n * n_columns, np.float64)
        for j in range(n_columns):
            column = tile[j * TILE :][:n]
            for e in range(n):
                column[e] = source[e * n_columns + j]
    else:
        short = array_at(at + 4 * n_columns * first, n * n_columns, np.float32)
        for j in range(n_columns):
            column = tile[j * TILE :][:n]
            for e in range(n):
                column[e] = short[e * n_columns + j]


@inner
def _new_space(net, p):
    """Memory for :func:`_evaluate`: inputs, outputs, targets, workspace and Jacobian of a tile."""
    n_in, n_out = sizes(net)
    space = np.empty((n_in + 2 * n_out + workspace_rows(net) + padded(p)) * TILE)
    # columns that no parameter has
    all_zero(space[space.size - (padded(p) - p) * TILE :])
    return space


@inner
def _evaluate(ask, net, reals, theta, p, data, first, last, at, space, is_known, factor, rotated):
    """The sum of squares of some rows; adds their JᵀJ and Jᵀr, or folds them into R and Qᵀr.

    Of R only the columns from ``at`` on. ``space`` is that of :func:`_new_space`; if ``is_known``
    it has the residuals and the workspace of these rows, a tile, at θ. ``data``: a record of
    :data:`.lm.DATA`.
    """
    ld = padded(p)
    if data.n_sorted != 0:
        return evaluate_segments(
            ask,
            net,
            reals,
            theta,
            p,
            ld,
            at,
            array_at(data.x, data.n_sorted, np.float64),
            array_at(data.sums, N_SUMS * (data.n_sorted + 1), np.float64),
            array_at(data.centre, 2, np.float64),
            factor,
            rotated,
        )
    n_in, n_out = sizes(net)
    x, f = space, space[n_in * TILE :]
    targets, work = f[n_out * TILE :], f[2 * n_out * TILE :]
    rows = work[workspace_rows(net) * TILE :]
    total = 0.0
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        weight = array_at(data.weight + 8 * start, n, np.float64)
        if not is_known:
            _load(data.x, data.x_is_double, n_in, start, n, x)
            _load(data.y, data.y_is_double, n_out, start, n, targets)
            forward(net, reals, theta, x, n, work, f)
        for m in range(n_out):
            residual, target = f[m * TILE :][:n], targets[m * TILE :][:n]
            if not is_known:
                for e in range(n):
                    residual[e] -= target[e]
                if data.weight != 0:
                    for e in range(n):
                        residual[e] *= weight[e]
            total += dot(residual, residual)
            if ask == LOSS:
                continue
            jacobian(net, reals, theta, x, n, work, m, rows)
            if data.weight != 0:
                for i in range(p):
                    column = rows[i * TILE :][:n]
                    for e in range(n):
                        column[e] *= weight[e]
            take_rows(ask, rows, n, p, ld, at, residual, factor, rotated)
    return total


@inner
def _combine(ask, first, p, part, part_rotated, factor, rotated):
    """Add a piece's JᵀJ and Jᵀr to those of the pieces before it, or fold its R into theirs."""
    ld = padded(p)
    if first:
        copy(part, factor)
        copy(part_rotated[:p], rotated[:p])
    elif ask == NORMAL:
        for e in range(ld * ld):
            factor[e] += part[e]
        for i in range(p):
            rotated[i] += part_rotated[i]
    else:
        rows = np.zeros(ld * ld)
        for i in range(p):
            for j in range(i, p):
                rows[j * ld + i] = part[i * ld + j]
        fold(rows, ld, p, p, ld, part_rotated, factor, rotated, True)


@inner
def _run(
    net_at,
    n_net,
    reals_at,
    n_reals,
    p,
    data_at,
    limits_at,
    choices_at,
    state_at,
    counters_at,
    history_at,
    factor_at,
    budget,
):
    """Train one model: ``budget`` Jacobians at most, then return to be called again or done.

    At the end R, or JᵀJ, is left at ``factor_at`` unless that is 0.
    """
    net, reals = array_at(net_at, n_net, np.int64), array_at(reals_at, n_reals, np.float64)
    data = array_at(data_at, 1, DATA)[0]
    limits, choices = array_at(limits_at, 1, LIMITS)[0], array_at(choices_at, 1, CHOICES)[0]
    state, counters, history = _memory(p, choices, state_at, counters_at, history_at)
    ld = padded(p)
    factor, rotated, damped = np.zeros(ld * ld), np.zeros(ld), np.zeros(ld * ld)
    part, part_rotated = np.zeros(ld * ld), np.zeros(ld)
    # a trial needs the factor at θ again if it is refused
    readout, readout_rotated = np.zeros(ld * ld), np.zeros(ld)
    # the loss of a trial that is taken leaves what its Jacobian wants
    space, known = _new_space(net, p), np.full(p, math.nan)
    is_kept = data.n_rows <= min(TILE, data.piece_rows) and data.n_sorted == 0
    ask = counters[PHASE]
    if ask == START:
        ask = advance(p, limits, choices, state, counters, history, factor, rotated, damped)
    while ask != DONE:
        if ask in (NORMAL, QR):
            budget -= 1
            if budget < 0:
                return
        theta = state[p : 2 * p] if ask in (LOSS, READOUT) else state[:p]
        at = p - choices.n_readout if ask == READOUT else 0
        whole, whole_rotated = (readout, readout_rotated) if ask == READOUT else (factor, rotated)
        total, is_known = 0.0, is_kept
        for i in range(p):
            is_known = is_known and known[i] == theta[i]
        for first in range(0, data.n_rows, data.piece_rows):
            last = min(data.n_rows, first + data.piece_rows)
            if ask != LOSS:
                all_zero(part)
                all_zero(part_rotated)
            total += _evaluate(
                ask, net, reals, theta, p, data, first, last, at, space, is_known, part,
                part_rotated,
            )  # fmt: skip
            if ask != LOSS:
                _combine(ask, first == 0, p, part, part_rotated, whole, whole_rotated)
        copy(theta, known)
        if ask in (QR, READOUT):  # which end the residuals
            known[0] = math.nan
        state[3 * p + DELIVERED] = total
        ask = advance(p, limits, choices, state, counters, history, whole, whole_rotated, damped)
    if factor_at != 0:
        copy(factor, array_at(factor_at, ld * ld, np.float64))


@inner
def fits_a_lane(data, lane_rows):
    """Whether a model is trained a model a lane: its rows are few, and taken one by one."""
    return data.n_sorted == 0 and data.n_rows <= lane_rows


def _lm_runs(
    net_at, n_net, reals_at, n_reals, p, data_at, data_step, limits_at, choices_at, state_at,
    counters_at, history_at, factor_at, budget, lane_rows, first, last,
):  # fmt: skip
    """Train the models ``first`` … ``last``, those that are not done, as :func:`_run` does each.

    Those of up to ``lane_rows`` rows are left to `lanes/least_squares.py` until they come to QR.
    Addresses are those of model 0: a model's state, counters, history and factor follow those of
    the one before it. The record of the next one's rows is ``data_step`` bytes further.
    """
    choices, ld = array_at(choices_at, 1, CHOICES)[0], padded(p)
    for i in range(first, last):
        counters = array_at(counters_at + 8 * N_COUNTERS * i, N_COUNTERS, np.int64)
        data = array_at(data_at + data_step * i, 1, DATA)[0]
        is_in_lane = fits_a_lane(data, lane_rows) and counters[SOLVER] != QR
        if counters[PHASE] == DONE or is_in_lane:
            continue
        _run(
            net_at, n_net, reals_at, n_reals, p, data_at + data_step * i, limits_at, choices_at,
            state_at + 8 * (3 * p + N_NUMBERS) * i, counters_at + 8 * N_COUNTERS * i,
            history_at + 16 * (choices.max_steps + 1) * i,
            factor_at + 8 * ld * ld * i if factor_at != 0 else 0, budget,
        )  # fmt: skip


def _lm_piece(
    ask, net_at, n_net, reals_at, n_reals, p, data_at, theta_at, part_at, first, last, at
):
    """Evaluate some rows; writes JᵀJ or R [ld, ld], Jᵀr or Qᵀr [ld] and the sum of squares.

    R has the columns from ``at`` on alone.
    """
    net, reals = array_at(net_at, n_net, np.int64), array_at(reals_at, n_reals, np.float64)
    data, theta = array_at(data_at, 1, DATA)[0], array_at(theta_at, p, np.float64)
    ld = padded(p)
    part = array_at(part_at, ld * ld + ld + 1, np.float64)
    all_zero(part)
    part[ld * ld + ld] = _evaluate(
        ask,
        net,
        reals,
        theta,
        p,
        data,
        first,
        last,
        at,
        _new_space(net, p),
        False,
        part[: ld * ld],
        part[ld * ld : ld * ld + ld],
    )


def _lm_advance(
    p, limits_at, choices_at, state_at, counters_at, history_at, factor_at, parts_at, n_parts
):
    """Combine what the pieces wrote and advance; returns what is asked for next.

    ``factor_at``: [ld, ld] and [ld], kept between calls. Each part is what ``lm_piece`` writes.
    """
    limits, choices = array_at(limits_at, 1, LIMITS)[0], array_at(choices_at, 1, CHOICES)[0]
    state, counters, history = _memory(p, choices, state_at, counters_at, history_at)
    ld = padded(p)
    size = ld * ld + ld + 1
    kept = array_at(factor_at, ld * ld + ld, np.float64)
    if counters[PHASE] == READOUT:
        kept = np.zeros(ld * ld + ld)
    factor, rotated, damped = kept[: ld * ld], kept[ld * ld :], np.zeros(ld * ld)
    total = 0.0
    for i in range(n_parts):
        part = array_at(parts_at + 8 * size * i, size, np.float64)
        total += part[ld * ld + ld]
        if counters[PHASE] != LOSS:
            _combine(
                counters[PHASE],
                i == 0,
                p,
                part[: ld * ld],
                part[ld * ld : ld * ld + ld],
                factor,
                rotated,
            )
    state[3 * p + DELIVERED] = total
    return advance(p, limits, choices, state, counters, history, factor, rotated, damped)


lm_runs, lm_piece, lm_advance = kernel(_lm_runs), kernel(_lm_piece), kernel(_lm_advance)
