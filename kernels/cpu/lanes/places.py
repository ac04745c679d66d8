"""What a launch knows of models of one structure, and where it keeps what is a model a lane."""

import numpy as np

from ...runs import LOSSES, STATE
from ..machine.jit import array_at, inner
from ..machine.vectors import LANE_BYTES, lanes_of
from .update import HYPER

B = LANE_BYTES
SSE = LOSSES.index("sse")

RUN = np.dtype(
    [
        # addresses
        ("states", np.int64),  # of all models, as are the next: STATE
        ("offsets", np.int64),  # of their parameters in the flat buffers: int64
        ("seeds", np.int64),
        ("streams", np.int64),
        ("n_models", np.int64),
        ("models", np.int64),  # indices of those of this run, whose place in it counts
        ("n_places", np.int64),
        ("hyper", np.int64),  # float64 [places, HYPER]
        ("lanes", np.int64),  # of a vector
        ("groups", np.int64),  # of rows: sums of a batch are those of each, added up in order
        ("spread", np.int64),  # lanes of a model: one, or one for each group
        ("theta", np.int64),  # flat, of the compute dtype, as are the three that follow
        ("moment1", np.int64),
        ("moment2", np.int64),
        ("best", np.int64),  # or 0
        ("x", np.int64),  # rows [n_in] of all models
        ("y", np.int64),  # rows [n_out]
        ("first", np.int64),  # each model's first row, or one for all: int64
        ("own", np.int64),  # whether each has its own
        ("weight", np.int64),  # of the rows, or 0
        ("first_weight", np.int64),
        ("own_weight", np.int64),
        ("val_x", np.int64),  # or 0
        ("val_y", np.int64),
        ("val_first", np.int64),
        ("val_own", np.int64),
        ("val_weight", np.int64),
        ("val_first_weight", np.int64),
        ("val_own_weight", np.int64),
        ("every", np.int64),  # epochs that a column of the losses has the last of
        # [columns] float64 of a model, so many bytes from one to the next
        ("train_loss", np.int64),
        ("train_loss_step", np.int64),
        ("val_loss", np.int64),
        ("val_loss_step", np.int64),
        ("grad_norm", np.int64),  # or 0
        ("grad_norm_step", np.int64),
        ("rates", np.int64),  # of the epochs of this launch, by place
        ("rates_step", np.int64),
        ("trained", np.int64),  # [n_trained, 2] int64: the parameters that are trained
        ("n_trained", np.int64),
        ("net", np.int64),  # records of the verbs
        ("n_net", np.int64),
        ("n_parameters", np.int64),
        ("n_rows", np.int64),
        ("n_in", np.int64),  # numbers in a row of x
        ("n_out", np.int64),
        ("n_val_rows", np.int64),
        ("batch_rows", np.int64),
        ("block_rows", np.int64),  # most rows that the verbs are given
        (
            "stays",
            np.int64,
        ),  # whether the rows are fetched once: all are in a batch, without weights
        ("n_kept", np.int64),  # vectors of their memory for so many
        ("n_widest", np.int64),  # vectors of the gradient of their widest layer, for so many
        ("first_epoch", np.int64),  # of rates
        ("stop_step", np.int64),
        ("shuffle", np.int64),
        ("shared_order", np.int64),  # whether all models have one order: that of lane 0
        ("draws", np.int64),  # whether the model draws random numbers
        ("optimizer", np.int64),
        ("loss", np.int64),
        ("patience", np.int64),  # 0: none
        ("clips", np.int64),  # whether some model has a clip_norm
    ]
)
"""What a launch must know of the models of one structure; written by the caller."""

PLACES = np.dtype(
    [
        # of a vector: no constant, or LLVM unrolls every loop over lanes
        ("lanes", np.int64),
        ("used", np.int64),  # of these: the others are 0 and nobody's
        # addresses of vectors: parameters of each kind, blocks of rows
        ("theta", np.int64),
        ("moment1", np.int64),
        ("moment2", np.int64),
        ("grad", np.int64),
        ("part", np.int64),  # the gradient of a group
        ("saved", np.int64),  # the first three, where a step may leave some lanes alone
        ("kept", np.int64),
        ("dy", np.int64),
        ("spare", np.int64),
        ("x", np.int64),
        ("y", np.int64),
        ("weight", np.int64),
        # of vectors of float64
        ("hyper", np.int64),
        ("rate", np.int64),
        ("updates", np.int64),
        ("power1", np.int64),
        ("power2", np.int64),
        ("loss", np.int64),
        ("loss_sum", np.int64),
        ("weight_sum", np.int64),
        ("total", np.int64),  # the weight of a batch
        # of a number a lane, int64
        ("models", np.int64),
        ("places", np.int64),
        ("first", np.int64),  # rows, as in RUN
        ("first_weight", np.int64),
        ("val_first", np.int64),
        ("val_first_weight", np.int64),
        ("running", np.int64),
        ("keys", np.int64),
        ("base", np.int64),  # the first row of the lane's group
        ("order", np.int64),  # [lanes, n_rows]
    ]
)
"""Where one launch of a vector of models keeps its numbers."""


@inner
def take(top, n_bytes):
    """Where a piece of memory begins; the next one begins behind it, at a whole vector."""
    at = top[0]
    top[0] += (n_bytes + LANE_BYTES - 1) // LANE_BYTES * LANE_BYTES
    return at


@inner
def has_weights(run):
    """Whether blocks of rows have weights: of those that are there, or of groups that are short."""
    return run.weight != 0 or run.val_weight != 0 or run.spread > 1


@inner
def lay_out(run, at, base, real):
    """Fill the record of places, from an address on; returns where it ends."""
    lanes = at.lanes = run.lanes
    top = np.empty(1, np.int64)
    top[0] = (base + LANE_BYTES - 1) // LANE_BYTES * LANE_BYTES
    whole = run.n_parameters * LANE_BYTES
    rows = max(run.block_rows, run.n_rows if run.stays != 0 else 0) * LANE_BYTES
    at.theta, at.moment1 = take(top, whole), take(top, whole)
    at.moment2, at.grad = take(top, whole), take(top, whole)
    at.part = take(top, whole if run.groups > run.spread else 0)
    at.saved = take(top, 3 * whole if run.weight != 0 else 0)
    at.kept = take(top, run.n_kept * LANE_BYTES)
    at.dy = take(top, run.n_widest * LANE_BYTES)
    at.spare = take(top, run.n_widest * LANE_BYTES)
    at.x, at.y = take(top, rows * run.n_in), take(top, rows * run.n_out)
    at.weight = take(top, rows if has_weights(run) else 0)
    wide = 8 * lanes
    at.hyper = take(top, len(HYPER) * wide)
    at.rate, at.updates = take(top, wide), take(top, wide)
    at.power1, at.power2 = take(top, wide), take(top, wide)
    at.loss, at.loss_sum = take(top, wide), take(top, wide)
    at.weight_sum, at.total = take(top, wide), take(top, wide)
    at.models, at.running = take(top, wide), take(top, wide)
    at.places, at.first = take(top, wide), take(top, wide)
    at.first_weight, at.val_first = take(top, wide), take(top, wide)
    at.val_first_weight = take(top, wide)
    at.keys, at.base = take(top, wide), take(top, wide)
    n_orders = 0 if run.shuffle == 0 else (1 if run.shared_order != 0 else lanes)
    at.order = take(top, 8 * n_orders * run.n_rows)
    return top[0]


@inner
def enter(run, at, places, real):
    """Bring the models of a vector into their lanes; tells ``at.used``.

    ``places`` are theirs in the run; below 0 there is none: those come last, with the settings of
    the first one and parameters of 0. Of a model's lanes the first one is read again.
    """
    lanes, n = run.lanes, run.n_parameters
    offsets = array_at(run.offsets, run.n_models, np.int64)
    states = array_at(run.states, run.n_models, STATE)
    chosen, running = array_at(at.models, lanes, np.int64), array_at(at.running, lanes, np.int64)
    hyper = array_at(at.hyper, len(HYPER) * lanes, np.float64)
    updates, loss_sum = (
        array_at(at.updates, lanes, np.float64),
        array_at(at.loss_sum, lanes, np.float64),
    )
    power1, power2 = array_at(at.power1, lanes, np.float64), array_at(at.power2, lanes, np.float64)
    weight_sum = array_at(at.weight_sum, lanes, np.float64)
    models = array_at(run.models, run.n_places, np.int64)
    at.used = 0
    for l in range(lanes):
        place = places[l // run.spread]
        running[l] = place >= 0 and l % run.spread == 0
        is_used = place >= 0
        at.used += is_used
        place = place if is_used else places[0]
        m = models[place]
        chosen[l], array_at(at.places, lanes, np.int64)[l] = m, place
        _enter_first(at.first, run.first, run.own, l, m)
        _enter_first(at.first_weight, run.first_weight, run.own_weight, l, m)
        _enter_first(at.val_first, run.val_first, run.val_own, l, m)
        _enter_first(at.val_first_weight, run.val_first_weight, run.val_own_weight, l, m)
        state = states[m]
        updates[l], power1[l], power2[l] = state.updates, state.beta1_power, state.beta2_power
        loss_sum[l], weight_sum[l] = state.loss_sum, state.weight_sum
        own = array_at(run.hyper + 8 * len(HYPER) * place, len(HYPER), np.float64)
        for h in range(len(HYPER)):
            hyper[h * lanes + l] = own[h]
        if is_used:
            _enter_lane(run.theta, offsets[m], at.theta, l, lanes, n, real)
            _enter_lane(run.moment1, offsets[m], at.moment1, l, lanes, n, real)
            _enter_lane(run.moment2, offsets[m], at.moment2, l, lanes, n, real)
        else:
            _clear_lane(at, l, n, real)
    return states[models[places[0]]].step


@inner
def _enter_first(target, source, is_own, lane, model):
    """A lane's first row, of those of all models or the one for all."""
    first = np.int64(0)
    if source != 0:
        at = model if is_own != 0 else 0
        first = array_at(source, at + 1, np.int64)[at]
    array_at(target, lane + 1, np.int64)[lane] = first


@inner
def _enter_lane(source, offset, target, lane, lanes, n, real):
    flat = array_at(source + offset * (B // lanes_of(real)), n, real)
    vectors = array_at(target, n * lanes, real)
    for k in range(n):
        vectors[k * lanes + lane] = flat[k]


@inner
def _clear_lane(at, lane, n, real):
    """Zeros for the parameters, moments and gradients of a lane.

    Numbers that are not finite, or below all normal ones, would slow the others down.
    """
    vectors = array_at(at.theta, 4 * n * at.lanes, real)
    for k in range(4 * n):
        vectors[k * at.lanes + lane] = 0


@inner
def leave_lane(source, lane, lanes, target, offset, n, real):
    """Write what a lane holds of each of n vectors into a model's part of a flat buffer."""
    vectors = array_at(source, n * lanes, real)
    flat = array_at(target + offset * (B // lanes_of(real)), n, real)
    for k in range(n):
        flat[k] = vectors[k * lanes + lane]


@inner
def leave(run, at, lane, step, status, real):
    """Write a model back that has come to ``step``, for it stops or the launch ends."""
    lanes, n = run.lanes, run.n_parameters
    m = array_at(at.models, lanes, np.int64)[lane]
    offset = array_at(run.offsets, run.n_models, np.int64)[m]
    state = array_at(run.states, run.n_models, STATE)[m]
    state.step, state.status = step, status
    state.updates = np.int64(array_at(at.updates, lanes, np.float64)[lane])
    state.beta1_power = array_at(at.power1, lanes, np.float64)[lane]
    state.beta2_power = array_at(at.power2, lanes, np.float64)[lane]
    state.loss_sum = array_at(at.loss_sum, lanes, np.float64)[lane]
    state.weight_sum = array_at(at.weight_sum, lanes, np.float64)[lane]
    leave_lane(at.theta, lane, lanes, run.theta, offset, n, real)
    leave_lane(at.moment1, lane, lanes, run.moment1, offset, n, real)
    leave_lane(at.moment2, lane, lanes, run.moment2, offset, n, real)
    array_at(at.running, lanes, np.int64)[lane] = 0
    for l in range(lane, lane + run.spread):
        _clear_lane(at, l, n, real)
