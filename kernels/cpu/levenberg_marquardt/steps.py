"""The solver of Levenberg–Marquardt as a state machine, see `solver.py`.

Variable projection (Golub and Pereyra 1973, with Kaufman's Jacobian of 1975): f = Φ(α)·β is linear
in the last parameters β. A step of all parameters moves α as the step of the residual (I − ΦΦ⁺)·y
with the Jacobian (I − ΦΦ⁺)·∂(Φβ)/∂α, for β takes up what is in the span of Φ (Ruhe and Wedin 1980,
SIAM Review 22). Then β is solved for anew, with Φ at the new α, before the loss is taken. Both are
damped alike: ΦΦ⁺ is that of ridge regression with √λ·D. Without that β grows without bound where
Φ's columns are nearly dependent, as those of smooth activations are, and no α can be moved any
more. A trial is never worse than that of the plain step, and λ → 0 is the method as published.
"""

import math

import numpy as np

from ...lm import (
    ACCEPT,
    MIN_DAMPING,
    NO_DESCENT,
    REASONS,  # noqa: F401  callers read a state by these names
    SOLVERS,  # noqa: F401
    WITH_QR,
    XTOL,
    changes,
    ending,
    refused,
    standing,
    undone,
    verdict,
)
from ..machine.jit import copy, inner
from ..numbers.least_norm import solve_least_norm
from ..numbers.linalg import (
    add_gram,
    add_products,
    all_zero,
    cholesky,
    column_norms,
    column_scales,
    dot,
    fold,
    solve_damped,
    solve_lower,
    solve_lower_transposed,
)
from ..numbers.tile import TILE

NORMAL, QR, LOSS, DONE, START, READOUT = 0, 1, 2, 3, 4, 5
"""What :func:`advance` asks for: JᵀJ, R, a loss, nothing more; where it begins; and R of the
read-out's columns alone. A loss and a read-out are those of the trial, the others those of θ."""

ALWAYS = ACCEPT.index("always")

# the state of a run: θ, trial, scale [P each], then these numbers; and the counters
DELIVERED, SSE, DAMPING, GROWTH, PREDICTED, GRADIENT = range(6)
N_NUMBERS = 8
PHASE, STEPS, ATTEMPTS, SOLVER, REASON, N_JACOBIANS = range(6)
N_COUNTERS = 8


@inner
def where(condition, a, b):
    return a if condition else b


_judge, _stand, _end = (inner(decision(where)) for decision in (verdict, standing, ending))
_changes, _refused, _undone = inner(changes), inner(refused), inner(undone)


@inner
def padded(p):
    """P rounded up to a multiple of four."""
    return (p + 3) // 4 * 4


@inner
def take_rows(ask, rows, n, p, ld, at, residual, factor, rotated):
    """Add JᵀJ and Jᵀr of n rows of a tile, or fold them into R and Qᵀr, from column ``at`` on."""
    if ask == NORMAL:
        add_gram(rows, TILE, n, ld, factor)
        add_products(rows, TILE, n, p, residual, rotated)
    else:
        fold(
            rows[at * TILE :], TILE, n, p - at, ld, residual, factor[at * ld + at :],
            rotated[at:], False,
        )  # fmt: skip


@inner
def _column_norms_and_gradient(ask, p, factor, rotated, norms, gradient):
    """‖J_j‖ and Jᵀr."""
    ld = padded(p)
    all_zero(gradient)
    if ask == NORMAL:
        for j in range(p):
            norms[j] = math.sqrt(factor[j * ld + j])
            gradient[j] = rotated[j]
    else:
        column_norms(factor, p, ld, norms)
        for i in range(p):
            row, z = factor[i * ld :][:p], rotated[i]
            for j in range(i, p):
                gradient[j] += row[j] * z


@inner
def _solve(solver, p, damping, fraction, scale, factor, rotated, damped, step):
    """That fraction of the step at one damping; without damping, of the one of least norm.

    Returns the reduction of the sum of squares that it promises; −1 where Cholesky fails.
    """
    ld = padded(p)
    if solver == NORMAL:
        for i in range(p):
            row, out = factor[i * ld :][:p], damped[i * ld :][:p]
            for j in range(i + 1):
                out[j] = row[j] / (scale[i] * scale[j])
            out[i] += damping
            step[i] = -rotated[i] / scale[i]
        if not cholesky(damped, p, ld):
            return -1.0
        solve_lower(damped, p, ld, step)
        inside = dot(step[:p], step[:p])
        solve_lower_transposed(damped, p, ld, step)
    else:
        for i in range(p):
            step[i] = -rotated[i]
        if damping == 0:
            inside = solve_least_norm(factor, p, ld, step)
            for i in range(p):
                step[i] *= scale[i]
        else:
            inside = solve_damped(factor, p, ld, scale, math.sqrt(damping), damped, step)
    norm = dot(step[:p], step[:p])
    for i in range(p):
        step[i] = fraction * step[i] / scale[i]
    return fraction * (2.0 - fraction) * inside + fraction * fraction * damping * norm


@inner
def stop(counters, reason):
    counters[REASON] = reason
    counters[PHASE] = DONE
    return DONE


@inner
def ask(counters, phase):
    counters[PHASE] = phase
    if phase not in (LOSS, READOUT):
        counters[N_JACOBIANS] += 1
    return phase


@inner
def refuse(choices, counters, numbers):
    """Damp more after a trial that failed; returns whether patience is at its end."""
    numbers[DAMPING], numbers[GROWTH], counters[ATTEMPTS] = _refused(
        numbers[DAMPING], numbers[GROWTH], counters[ATTEMPTS]
    )
    return counters[ATTEMPTS] >= choices.max_attempts


@inner
def change_to_qr(counters):
    counters[SOLVER] = QR
    return ask(counters, QR)


@inner
def _propose(p, limits, choices, state, counters, factor, rotated, damped):
    """Try the next step: ask for its loss, or first for its read-out, or for QR, or give up."""
    numbers = state[3 * p :]
    theta, trial, scale = state[:p], state[p : 2 * p], state[2 * p : 3 * p]
    step = np.empty(p)
    may_change = _changes(choices.solver, counters[SOLVER])
    while True:
        predicted = _solve(
            counters[SOLVER], p, numbers[DAMPING], limits.step, scale, factor, rotated, damped, step
        )
        if predicted >= 0:
            break
        if may_change:
            return change_to_qr(counters)
        if refuse(choices, counters, numbers) or choices.accept == ALWAYS:
            return stop(counters, NO_DESCENT)
    moved = False
    for i in range(p):
        trial[i] = theta[i] + step[i]
        moved = moved or trial[i] != theta[i]
    if not moved and choices.accept != ALWAYS:
        return change_to_qr(counters) if may_change else stop(counters, XTOL)
    numbers[PREDICTED] = predicted
    return ask(counters, READOUT if choices.n_readout > 0 else LOSS)


@inner
def _take_readout(p, choices, state, counters, factor, rotated, damped):
    """Variable projection: solve the read-out of the trial, the last ``n_readout`` parameters."""
    n, ld = choices.n_readout, padded(p)
    first = p - n
    trial, scale = state[p + first :][:n], state[2 * p + first :][:n]
    corner = factor[first * ld + first :]
    if counters[N_JACOBIANS] == 0:
        column_scales(corner, n, ld, scale)
    correction, root = np.empty(n), math.sqrt(state[3 * p + DAMPING])
    copy(rotated[first:p], correction)
    solve_damped(corner, n, ld, scale, root, damped, correction)
    for i in range(n):
        trial[i] -= correction[i] / scale[i]
    if counters[N_JACOBIANS] > 0:
        return ask(counters, LOSS)
    copy(state[p : 2 * p], state[:p])
    return ask(counters, counters[SOLVER])


@inner
def _take_jacobian(p, limits, choices, state, counters, history, factor, rotated, damped):
    numbers, scale = state[3 * p :], state[2 * p : 3 * p]
    sse = numbers[DELIVERED]
    numbers[SSE] = sse
    norms, gradient = np.empty(p), np.empty(p)
    _column_norms_and_gradient(counters[PHASE], p, factor, rotated, norms, gradient)
    slope = size = largest = 0.0
    n_alpha = p - choices.n_readout
    for j in range(n_alpha):
        largest = max(largest, scale[j], norms[j])
    for j in range(p):
        if j < n_alpha:
            # the floor holds where they are those θ_j that have next to no influence
            scale[j] = max(scale[j], norms[j], limits.scale_floor * largest)
        else:
            # outputs are linear in β: it needs no memory of where it was
            scale[j] = norms[j]
        if scale[j] == 0:
            scale[j] = 1.0
        if norms[j] > 0:
            slope = max(slope, abs(gradient[j]) / norms[j])
        size += gradient[j] * gradient[j]
    numbers[GRADIENT] = 2.0 * math.sqrt(size)
    history[2 * counters[STEPS]] = sse
    history[2 * counters[STEPS] + 1] = numbers[GRADIENT]
    root, steps = math.sqrt(sse), counters[STEPS]
    reason = _stand(sse, root, size, slope, limits.gtol, steps, choices.max_steps)
    if reason != 0:
        return stop(counters, reason)
    counters[ATTEMPTS] = 0
    return _propose(p, limits, choices, state, counters, factor, rotated, damped)


@inner
def begin(limits, choices, numbers, counters):
    """Damping and solver of the first trial."""
    numbers[DAMPING], numbers[GROWTH] = limits.damping, 2.0
    counters[SOLVER] = QR if choices.solver == WITH_QR else NORMAL


@inner
def end_with_trial(choices, numbers, counters, reason, accepted):
    """Stop after a trial, or have QR confirm that it is the end."""
    if not _changes(choices.solver, counters[SOLVER]):
        return stop(counters, reason)
    if not accepted:
        numbers[DAMPING] = _undone(numbers[DAMPING], counters[ATTEMPTS])
        numbers[GROWTH] = 2.0
    return change_to_qr(counters)


@inner
def _take_trial(p, state, counters, history):
    numbers = state[3 * p :]
    copy(state[p : 2 * p], state[:p])
    counters[STEPS] += 1
    numbers[SSE] = numbers[DELIVERED]
    history[2 * counters[STEPS]] = numbers[DELIVERED]
    history[2 * counters[STEPS] + 1] = math.nan


@inner
def _take_loss(p, limits, choices, state, counters, history, factor, rotated, damped):
    numbers = state[3 * p :]
    theta, trial, scale = state[:p], state[p : 2 * p], state[2 * p : 3 * p]
    sse, new = numbers[SSE], numbers[DELIVERED]
    if choices.accept == ALWAYS:
        _take_trial(p, state, counters, history)
        return ask(counters, counters[SOLVER])
    predicted = numbers[PREDICTED]
    size = moved = 0.0
    for i in range(p):
        size += (scale[i] * theta[i]) ** 2
        moved += (scale[i] * (trial[i] - theta[i])) ** 2
    accepted, flat, short, factor_of_damping = _judge(
        sse, new, predicted, math.sqrt(moved), math.sqrt(size), limits.ftol, limits.xtol
    )
    tired = False
    if accepted:
        _take_trial(p, state, counters, history)
        numbers[DAMPING] *= factor_of_damping
        numbers[DAMPING] = max(numbers[DAMPING], MIN_DAMPING[counters[SOLVER]])
        numbers[GROWTH] = 2.0
    else:
        tired = refuse(choices, counters, numbers)
    reason = _end(flat, short, tired)
    if reason != 0:
        return end_with_trial(choices, numbers, counters, reason, accepted)
    if not accepted:
        return _propose(p, limits, choices, state, counters, factor, rotated, damped)
    return ask(counters, counters[SOLVER])


@inner
def advance(p, limits, choices, state, counters, history, factor, rotated, damped):
    """Take what was asked for and say what is needed next: NORMAL, QR, LOSS, READOUT or DONE.

    ``limits`` and ``choices``: records of :class:`.lm.Limits` and :class:`.lm.Choices`. ``factor``
    and ``rotated`` are those of the last Jacobian, and those asked for where that was a read-out.
    ``history`` [max_steps + 1, 2]: sum of squares and ‖∇‖ before every step.
    """
    if counters[PHASE] == START:
        begin(limits, choices, state[3 * p :], counters)
        if choices.n_readout > 0:
            copy(state[:p], state[p : 2 * p])
            return ask(counters, READOUT)
        return ask(counters, counters[SOLVER])
    if counters[PHASE] == DONE:
        return DONE
    if counters[PHASE] == READOUT:
        return _take_readout(p, choices, state, counters, factor, rotated, damped)
    if counters[PHASE] == LOSS:
        return _take_loss(p, limits, choices, state, counters, history, factor, rotated, damped)
    return _take_jacobian(p, limits, choices, state, counters, history, factor, rotated, damped)
