"""What a launch of least squares knows, and where it keeps what is a model a lane."""

import numpy as np

from ...lm import DATA
from ..levenberg_marquardt.solver import CHOICES, LIMITS, fits_a_lane
from ..levenberg_marquardt.steps import (
    ATTEMPTS,
    DAMPING,
    DONE,
    GRADIENT,
    GROWTH,
    N_COUNTERS,
    N_JACOBIANS,
    N_NUMBERS,
    NORMAL,
    PHASE,
    PREDICTED,
    SSE,
    START,
    STEPS,
    begin,
    padded,
)
from ..machine.jit import array_at, inner
from ..machine.vectors import LANE_BYTES
from .normal_equations import place
from .places import take

B = LANE_BYTES
LANES = LANE_BYTES // 8

RUN = np.dtype(
    [
        # as `lm_runs` takes them
        (name, np.int64)
        for name in (
            "p", "data", "data_step", "limits", "choices", "state", "counters", "history",
            "factor",
            # and the model as `models.py` has it, for blocks of rows
            "net", "n_net", "n_rows", "n_in", "n_out", "block_rows", "n_kept", "n_widest",
            "is_ragged",  # whether some model has fewer rows than n_rows
            "has_weights",
        )
    ]
)  # fmt: skip
"""What a launch must know; written by the caller."""

# of vectors: θ, D, 1/D, a step; sums at θ and at the trial, a factor; rows of [J r]; numbers
OWN = np.dtype(
    [
        (name, np.int64)
        for name in (
            "theta", "scale", "inverse", "step", "sums", "trial_sums", "low", "rows",
            "sse", "damping", "growth", "predicted", "gradient", "steps", "attempts", "jacobians",
            "spent",  # Jacobians in this call
            "fresh",  # whether the trial is θ itself, of a model that has just come
            "running", "taken", "reason", "count",
            "model",  # int64
            "next", "last",  # no addresses: the next model of this call, and behind the last
        )
    ]
)  # fmt: skip
"""Where a launch keeps its numbers: addresses."""


@inner
def lane_of(vector, lane):
    return array_at(vector, LANES, np.float64)[lane]


@inner
def set_lane(vector, lane, value):
    array_at(vector, LANES, np.float64)[lane] = value


@inner
def _state(run, model):
    """State and counters of a model."""
    size = 3 * run.p + N_NUMBERS
    return (
        array_at(run.state + 8 * size * model, size, np.float64),
        array_at(run.counters + 8 * N_COUNTERS * model, N_COUNTERS, np.int64),
    )


@inner
def _enter_matrix(address, is_double, first, n, lane, target):
    out = array_at(target, n * LANES, np.float64)
    if is_double != 0:
        source = array_at(address + 8 * first, n, np.float64)
        for e in range(n):
            out[e * LANES + lane] = source[e]
    else:
        short = array_at(address + 4 * first, n, np.float32)
        for e in range(n):
            out[e * LANES + lane] = short[e]


@inner
def _enter(run, at, own, lane, model):
    """Bring a model and its rows into a lane: its trial is where it is."""
    limits, choices = array_at(run.limits, 1, LIMITS)[0], array_at(run.choices, 1, CHOICES)[0]
    state, counters = _state(run, model)
    p, n = run.p, run.p * LANES
    numbers = state[3 * p :]
    if counters[PHASE] == START:
        begin(limits, choices, numbers, counters)
        counters[N_JACOBIANS] = 1
    theta, trial = array_at(own.theta, n, np.float64), array_at(at.theta, n, np.float64)
    scale = array_at(own.scale, n, np.float64)
    for i in range(p):
        theta[i * LANES + lane] = trial[i * LANES + lane] = state[i]
        scale[i * LANES + lane] = state[2 * p + i]
    set_lane(own.sse, lane, numbers[SSE])
    set_lane(own.damping, lane, numbers[DAMPING])
    set_lane(own.growth, lane, numbers[GROWTH])
    set_lane(own.predicted, lane, numbers[PREDICTED])
    set_lane(own.gradient, lane, numbers[GRADIENT])
    set_lane(own.steps, lane, counters[STEPS])
    set_lane(own.attempts, lane, counters[ATTEMPTS])
    set_lane(own.jacobians, lane, counters[N_JACOBIANS])
    set_lane(own.spent, lane, 1.0)
    set_lane(own.fresh, lane, 1.0)
    set_lane(own.running, lane, 1.0)
    array_at(own.model, LANES, np.int64)[lane] = model
    data = array_at(run.data + run.data_step * model, 1, DATA)[0]
    set_lane(own.count, lane, data.n_rows)
    _enter_matrix(data.x, data.x_is_double, 0, data.n_rows * run.n_in, lane, at.x)
    _enter_matrix(data.y, data.y_is_double, 0, data.n_rows * run.n_out, lane, at.y)
    if run.has_weights != 0:
        _enter_matrix(data.weight, 1, 0, data.n_rows, lane, at.weight)


@inner
def leave(run, at, own, lane):
    """Write the state of a lane's model back, and let the lane go; returns state and counters."""
    state, counters = _state(run, array_at(own.model, LANES, np.int64)[lane])
    p, n = run.p, run.p * LANES
    theta, trial = array_at(own.theta, n, np.float64), array_at(at.theta, n, np.float64)
    scale, numbers = array_at(own.scale, n, np.float64), state[3 * p :]
    for i in range(p):
        state[i], state[p + i] = theta[i * LANES + lane], trial[i * LANES + lane]
        state[2 * p + i] = scale[i * LANES + lane]
    numbers[SSE], numbers[DAMPING] = lane_of(own.sse, lane), lane_of(own.damping, lane)
    numbers[GROWTH], numbers[PREDICTED] = lane_of(own.growth, lane), lane_of(own.predicted, lane)
    numbers[GRADIENT] = lane_of(own.gradient, lane)
    counters[STEPS] = np.int64(lane_of(own.steps, lane))
    counters[ATTEMPTS] = np.int64(lane_of(own.attempts, lane))
    counters[N_JACOBIANS] = np.int64(lane_of(own.jacobians, lane))
    set_lane(own.running, lane, 0.0)
    set_lane(own.taken, lane, 0.0)
    return state, counters


@inner
def keep_factor(run, own, lane, counters):
    """JᵀJ of a run that is over."""
    if run.factor == 0 or counters[PHASE] != DONE:
        return
    p, ld = run.p, padded(run.p)
    model = array_at(own.model, LANES, np.int64)[lane]
    factor = array_at(run.factor + 8 * ld * ld * model, ld * ld, np.float64)
    sums = array_at(own.sums, p * (p + 1) // 2 * LANES, np.float64)
    e = lane
    for i in range(p):
        for j in range(i + 1):
            factor[i * ld + j] = sums[e]
            e += LANES


@inner
def record_step(run, own, lane, gradient):
    """The sum of squares and ‖∇‖ where a lane's model stands."""
    max_steps = array_at(run.choices, 1, CHOICES)[0].max_steps
    step = np.int64(lane_of(own.steps, lane))
    model = array_at(own.model, LANES, np.int64)[lane]
    history = array_at(run.history + 16 * ((max_steps + 1) * model + step), 2, np.float64)
    history[0], history[1] = lane_of(own.sse, lane), gradient


@inner
def fill(run, at, own):
    """Give every free lane the next model; returns whether any lane has one."""
    n_running = 0
    for l in range(LANES):
        if lane_of(own.running, l) == 0:
            trial = array_at(at.theta, run.p * LANES, np.float64)
            for i in range(run.p):
                # numbers that are not finite, or below all normal ones, would slow the others
                trial[i * LANES + l] = 0.0
            while own.next < own.last and lane_of(own.running, l) == 0:
                _, counters = _state(run, own.next)
                data = array_at(run.data + run.data_step * own.next, 1, DATA)[0]
                if counters[PHASE] in (START, NORMAL) and fits_a_lane(data, run.n_rows):
                    _enter(run, at, own, l, own.next)
                own.next += 1
        n_running += lane_of(own.running, l) > 0
    return n_running > 0


@inner
def lay_out(run, at, own, base):
    """Fill the records of places, from an address on; returns where they end."""
    top = np.empty(1, np.int64)
    top[0] = (base + B - 1) // B * B
    p, rows = run.p, run.n_rows * B
    triangle = place(p + 1, 0)
    at.theta, own.theta = take(top, p * B), take(top, p * B)
    own.scale, own.inverse = take(top, p * B), take(top, (p + 1) * B)
    own.step = take(top, p * B)
    own.sums, own.trial_sums = take(top, triangle), take(top, triangle)
    own.low = take(top, triangle)
    own.rows = take(top, run.block_rows * row_vectors_of(p) * B)
    at.kept = take(top, run.n_kept * B)
    at.dy, at.spare = take(top, run.n_widest * B), take(top, run.n_widest * B)
    at.x, at.y = take(top, rows * run.n_in), take(top, rows * run.n_out)
    at.weight = take(top, rows * run.has_weights)
    own.sse, own.damping = take(top, B), take(top, B)
    own.growth, own.predicted = take(top, B), take(top, B)
    own.gradient, own.steps = take(top, B), take(top, B)
    own.attempts, own.jacobians = take(top, B), take(top, B)
    own.spent, own.fresh = take(top, B), take(top, B)
    own.running, own.taken = take(top, B), take(top, B)
    own.reason, own.count, own.model = take(top, B), take(top, B), take(top, B)
    return top[0]


def row_vectors(p):
    """Of a row of [J r]: columns in pairs."""
    return (p + 2) // 2 * 2


row_vectors_of = inner(row_vectors)
