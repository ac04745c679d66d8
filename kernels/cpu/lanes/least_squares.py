"""Levenberg–Marquardt for many small models at once, a model a lane, as far as Cholesky goes.

The steps and what is made of them are those of `levenberg_marquardt/steps.py`, by the decisions of
`lm.py`, which take vectors. All lanes go from trial to trial together: a round takes the residuals
and Jacobians of all trials, and a lane whose trial is refused keeps the sums of its last one. A
lane whose model is over, or has come to QR, gets the next model. QR is for `lm_runs`, which goes
on with the state that is left here.

A model comes in as two verbs: *forward*, as in `loop.py`, and::

    jacobian(at, x, n_rows, net, n_net, m, rows, stride)
        writes ∂y_m/∂θ of each row [P] to ``rows``, ``stride`` bytes apart; writes over at.dy and
        at.spare.
"""

import math

import numpy as np

from ...lm import MIN_DAMPING, NO_DESCENT, XTOL, changes, ending, refused, standing, verdict
from ..levenberg_marquardt.solver import CHOICES, LIMITS
from ..levenberg_marquardt.steps import (
    ATTEMPTS,
    DAMPING,
    GROWTH,
    N_COUNTERS,
    N_NUMBERS,
    NORMAL,
    PHASE,
    change_to_qr,
    end_with_trial,
    refuse,
    stop,
)
from ..machine.jit import address_of, array_at, inner, kernel, select
from ..machine.vectors import LANE_BYTES, all_lanes, any_lane, load, splat, store
from .least_squares_places import (
    LANES,
    OWN,
    RUN,
    fill,
    keep_factor,
    lane_of,
    lay_out,
    leave,
    record_step,
    row_vectors_of,
    set_lane,
)
from .normal_equations import add_products, place, solve_damped
from .places import PLACES

real = np.float64
B = LANE_BYTES


@inner
def where(condition, a, b):
    # codes become numbers
    return select(condition, a + 0.0, b + 0.0)


_judge, _stand, _end = (inner(decision(where)) for decision in (verdict, standing, ending))
_changes, _refused = inner(changes), inner(refused)


@inner
def _larger(a, b):
    """The larger one; a where b is NaN."""
    return select(b > a, b, a)


@inner
def _is_set(vector):
    return load(vector, real) > 0


@inner
def _as_number(mask):
    return select(mask, splat(1.0, real), 0.0)


@inner
def _take_losses(run, at, own, limits, choices):
    """Decide on the trials: some are taken, and some end their runs."""
    p = run.p
    n = p * B
    size = moved = splat(0.0, real)
    for i in range(0, n, B):
        scale, theta = load(own.scale + i, real), load(own.theta + i, real)
        a, b = scale * theta, scale * (load(at.theta + i, real) - theta)
        size, moved = size + a * a, moved + b * b
    sse, new = load(own.sse, real), load(own.trial_sums + place(p, p), real)
    damping, growth = load(own.damping, real), load(own.growth, real)
    accepted, flat, short, factor = _judge(
        sse, new, load(own.predicted, real), math.sqrt(moved), math.sqrt(size), limits.ftol,
        limits.xtol,
    )  # fmt: skip
    running, fresh = _is_set(own.running), _is_set(own.fresh)
    more, faster, attempts = _refused(damping, growth, load(own.attempts, real))
    less = _larger(damping * factor, MIN_DAMPING[NORMAL])
    store(own.damping, select(fresh, damping, select(accepted, less, more)))
    store(own.growth, select(fresh, growth, select(accepted, 2.0, faster)))
    attempts = select(accepted | fresh, 0.0, attempts)
    store(own.attempts, attempts)
    reason = select(fresh, 0.0, _end(flat, short, attempts >= choices.max_attempts))
    taken = running & (accepted | fresh)
    store(own.sse, select(taken, new, sse))
    counted = select(fresh, 0.0, _as_number(taken))
    store(own.steps, load(own.steps, real) + counted)
    for i in range(0, n, B):
        store(own.theta + i, select(taken, load(at.theta + i, real), load(own.theta + i, real)))
    store(own.taken, _as_number(taken))
    store(own.reason, reason)
    store(own.fresh, splat(0.0, real))
    over = running & (reason != 0)
    if any_lane(over):
        store(own.step, _as_number(over))
        for l in range(LANES):
            if lane_of(own.step, l) > 0:
                is_taken = lane_of(own.taken, l) > 0
                if is_taken:
                    record_step(run, own, l, math.nan)
                state, counters = leave(run, at, own, l)
                reason_code = np.int64(lane_of(own.reason, l))
                end_with_trial(choices, state[3 * p :], counters, reason_code, is_taken)
                keep_factor(run, own, l, counters)
    # those that go on ask for a Jacobian; a fresh one has done so
    counted = select(_is_set(own.taken), counted, 0.0)
    store(own.jacobians, load(own.jacobians, real) + counted)
    store(own.spent, load(own.spent, real) + counted)


@inner
def _pause(run, at, own, budget):
    """Leave the models that have had their Jacobians for this call."""
    spent = load(own.spent, real) > budget
    if any_lane(_is_set(own.taken) & spent):
        for l in range(LANES):
            if lane_of(own.taken, l) > 0 and lane_of(own.spent, l) > budget:
                record_step(run, own, l, math.nan)
                _, counters = leave(run, at, own, l)
                counters[PHASE] = NORMAL


@inner
def _take_jacobians(run, at, own, limits, choices):
    """The sums of the trials that were taken are those of θ: scale, and stop where that is all."""
    p, taken = run.p, _is_set(own.taken)
    if not any_lane(taken):
        return
    if all_lanes((load(own.running, real) == 0) | taken):
        own.sums, own.trial_sums = own.trial_sums, own.sums
    else:
        for e in range(0, place(p + 1, 0), B):
            trial = load(own.trial_sums + e, real)
            store(own.sums + e, select(taken, trial, load(own.sums + e, real)))
    # what follows changes nothing where the sums are as they were
    largest = splat(0.0, real)
    for j in range(p):
        norm = math.sqrt(load(own.sums + place(j, j), real))
        store(own.step + j * B, norm)
        largest = _larger(_larger(largest, load(own.scale + j * B, real)), norm)
    least = limits.scale_floor * largest
    slope = size = splat(0.0, real)
    for j in range(p):
        norm, g = load(own.step + j * B, real), load(own.sums + place(p, j), real)
        scale = _larger(_larger(load(own.scale + j * B, real), norm), least)
        scale = select(scale == 0, 1.0, scale)
        store(own.scale + j * B, scale)
        store(own.inverse + j * B, 1.0 / scale)
        slope = _larger(slope, select(norm > 0, abs(g) / norm, 0.0))
        size += g * g
    sse = load(own.sse, real)
    store(own.gradient, 2.0 * math.sqrt(size))
    reason = _stand(
        sse, math.sqrt(sse), size, slope, limits.gtol, load(own.steps, real), choices.max_steps
    )
    store(own.reason, reason)
    for l in range(LANES):
        if lane_of(own.taken, l) > 0:
            record_step(run, own, l, lane_of(own.gradient, l))
            code = np.int64(lane_of(own.reason, l))
            if code != 0:
                _, counters = leave(run, at, own, l)
                stop(counters, code)
                keep_factor(run, own, l, counters)


@inner
def _refuse_failed(run, at, own, choices):
    """What becomes of the models whose JᵀJ has no factor."""
    may_change = _changes(choices.solver, NORMAL)
    numbers, counters = np.empty(N_NUMBERS), np.empty(N_COUNTERS, np.int64)
    for l in range(LANES):
        if lane_of(own.reason, l) == 0:
            continue
        if may_change:
            _, left = leave(run, at, own, l)
            change_to_qr(left)
            continue
        numbers[DAMPING], numbers[GROWTH] = lane_of(own.damping, l), lane_of(own.growth, l)
        counters[ATTEMPTS] = np.int64(lane_of(own.attempts, l))
        is_over = refuse(choices, counters, numbers)
        set_lane(own.damping, l, numbers[DAMPING])
        set_lane(own.growth, l, numbers[GROWTH])
        set_lane(own.attempts, l, counters[ATTEMPTS])
        if is_over:
            _, left = leave(run, at, own, l)
            stop(left, NO_DESCENT)
            keep_factor(run, own, l, left)


@inner
def _propose(run, at, own, limits, choices):
    """The next trials."""
    p = run.p
    while True:
        damping = load(own.damping, real)
        ok, inside, norm = solve_damped(own.sums, own.inverse, damping, p, own.low, own.step)
        failed = select(ok, 0.0, load(own.running, real))
        if not any_lane(failed > 0):
            break
        store(own.reason, failed)
        _refuse_failed(run, at, own, choices)
    fraction = limits.step
    inside = fraction * (2.0 - fraction) * inside
    store(own.predicted, inside + fraction * fraction * damping * norm)
    moved = splat(0.0, real) > 0
    for i in range(0, p * B, B):
        theta = load(own.theta + i, real)
        trial = theta + fraction * load(own.step + i, real) * load(own.inverse + i, real)
        store(at.theta + i, trial)
        moved = moved | (trial != theta)
    stuck = select(moved, 0.0, load(own.running, real))
    if any_lane(stuck > 0):
        store(own.reason, stuck)
        for l in range(LANES):
            if lane_of(own.reason, l) > 0:
                _, counters = leave(run, at, own, l)
                if _changes(choices.solver, NORMAL):
                    change_to_qr(counters)
                else:
                    stop(counters, XTOL)
                    keep_factor(run, own, l, counters)


def lane_solver(forward, jacobian):
    """The entry point of one kind of model: ``(run, budget, first, last)``.

    It trains the models ``first`` … ``last`` − 1, with at most ``budget`` Jacobians of each; those
    that need QR are left where they ask for it.
    """
    fwd, jac = forward(real), jacobian(real)

    @inner
    def residuals(run, at, own, y, first, n, m):
        """The last column of the rows; of output m."""
        stride, column = row_vectors_of(run.p) * B, own.rows + run.p * B
        target = at.y + first * run.n_out * B
        for r in range(n):
            e = (r * run.n_out + m) * B
            store(column + r * stride, load(y + e, real) - load(target + e, real))

    @inner
    def weigh(run, at, own, first, n):
        """Rows times the roots of their weights; 0 those that a model does not have."""
        stride = row_vectors_of(run.p) * B
        for r in range(n):
            row = own.rows + r * stride
            if run.has_weights != 0:
                weight = load(at.weight + (first + r) * B, real)
                for e in range(row, row + (run.p + 1) * B, B):
                    store(e, load(e, real) * weight)
            if run.is_ragged != 0:
                is_there = load(own.count, real) > np.float64(first + r)
                for e in range(row, row + (run.p + 1) * B, B):
                    store(e, select(is_there, load(e, real), 0.0))

    @inner
    def evaluate(run, at, own):
        """The sums of the trials."""
        p, stride = run.p, row_vectors_of(run.p) * B
        for e in range(own.trial_sums, own.trial_sums + place(p + 1, 0), B):
            store(e, splat(0.0, real))
        for first in range(0, run.n_rows, run.block_rows):
            n = min(run.block_rows, run.n_rows - first)
            x = at.x + first * run.n_in * B
            y = fwd(at, x, n, run.net, run.n_net, -1)
            for m in range(run.n_out):
                jac(at, x, n, run.net, run.n_net, m, own.rows, stride)
                residuals(run, at, own, y, first, n, m)
                if run.has_weights != 0 or run.is_ragged != 0:
                    weigh(run, at, own, first, n)
                add_products(own.rows, n, p + 1, stride, own.trial_sums)

    def lm_lanes(run_at, budget, first, last):
        run = array_at(run_at, 1, RUN)[0]
        limits, choices = array_at(run.limits, 1, LIMITS)[0], array_at(run.choices, 1, CHOICES)[0]
        places, owns = np.zeros(1, PLACES), np.zeros(1, OWN)
        at, own = places[0], owns[0]
        own.next, own.last = first, last
        space = np.zeros(lay_out(run, at, own, 0) + B, np.uint8)
        lay_out(run, at, own, address_of(space))
        store(own.inverse + run.p * B, splat(-1.0, real))
        while fill(run, at, own):
            evaluate(run, at, own)
            _take_losses(run, at, own, limits, choices)
            _pause(run, at, own, budget)
            _take_jacobians(run, at, own, limits, choices)
            _propose(run, at, own, limits, choices)
        # keeps all until here
        space[0] = places[0].theta = owns[0].theta = 0

    return kernel(lm_lanes)
