"""Whole training runs of many small models at once, a model a lane.

The loop is that of `training/loop.py`, and so are the options; here each number of a model is a
vector over models, and the models of a vector go from step to step together. What one of them does
alone is done lane by lane: it stops, or its best weights are kept. A lane whose model has stopped
computes on, and nobody reads it.

A model comes in as two verbs over memory of vectors::

    forward(at, x, n_rows, net, n_net, place)
        fills ``at.kept``; returns where the outputs [rows, out] are.
    backward(at, x, n_rows, net, n_net, place, grad)
        grad += Σ_rows at.dy·∂y/∂θ; writes over at.dy and at.spare.

``at`` is the record of places, the others are addresses. ``net`` are records that say what the
module is; ``at.keys`` the keys of the step's random draws, one a lane; ``place`` is the index in
the batch of the block's first row, ``at.base`` of each lane added, below 0 for the model as it is
evaluated.

A batch's rows are dealt into a few groups, by their number alone, and its sums are those of the
groups, added up in order. So a model may take as many lanes as there are groups, each of which sums
one of them, and have the same bits: where models are few, that is what keeps the lanes busy.
"""

import math

import numpy as np

from ...runs import NO_PROGRESS, NOT_FINITE, RUNNING, STATE
from ..machine.jit import (
    address_of,
    array_at,
    entry,
    estimated_quotients,
    inner,
    narrowed,
    select,
)
from ..machine.vectors import (
    LANE_BYTES,
    all_lanes,
    load,
    load_wide,
    splat,
    splat_wide,
    store,
)
from ..numbers.order import fill_order, step_key
from .losses import losses
from .places import PLACES, RUN, SSE, enter, lay_out, leave, leave_lane
from .rows import fetch, fetch_block, fetch_weights, fold, lay_groups, weigh
from .update import lanes_norm, update

B = LANE_BYTES


@inner
def _begin_epoch(run, at, epoch, real):
    """The epoch's learning rates, and its orders of rows."""
    lanes = at.used
    models, places = array_at(at.models, lanes, np.int64), array_at(at.places, lanes, np.int64)
    rates, column = array_at(at.rate, lanes, np.float64), epoch - run.first_epoch
    if run.rates_step == 0:
        own = array_at(run.rates, column + 1, np.float64)
        store(at.rate, splat_wide(own[column], real))
    else:
        for l in range(lanes):
            own = array_at(run.rates + places[l] * run.rates_step, column + 1, np.float64)
            rates[l] = own[column]
    if run.shuffle != 0:
        seeds = array_at(run.seeds, run.n_models, np.int64)
        streams = array_at(run.streams, run.n_models, np.int64)
        for l in range(0, 1 if run.shared_order != 0 else lanes, run.spread):
            order = array_at(at.order + 8 * l * run.n_rows, run.n_rows, np.int64)
            fill_order(order, seeds[models[l]], streams[models[l]], epoch)


@inner
def _draw_keys(run, at, step, real):
    lanes = at.used
    models, keys = array_at(at.models, lanes, np.int64), array_at(at.keys, lanes, np.int64)
    seeds = array_at(run.seeds, run.n_models, np.int64)
    streams = array_at(run.streams, run.n_models, np.int64)
    for l in range(lanes):
        keys[l] = step_key(seeds[models[l]], streams[models[l]], step)


@inner
def _record(run, at, source, target, step, epoch, real):
    """target[model, column] = what a vector of float64 holds, of the models that run."""
    lanes, column = at.used, epoch // run.every
    models, running = array_at(at.models, lanes, np.int64), array_at(at.running, lanes, np.int64)
    values = array_at(source, lanes, np.float64)
    for l in range(lanes):
        if running[l] != 0:
            array_at(target + models[l] * step, column + 1, np.float64)[column] = values[l]


@inner
def _record_loss(run, at, epoch, real):
    """The training loss of the epoch so far, a mean or a sum."""
    loss = load_wide(at.loss_sum, real)
    if run.loss != SSE:
        loss = loss / load_wide(at.weight_sum, real)
    store(at.loss, loss)
    _record(run, at, at.loss, run.train_loss, run.train_loss_step, epoch, real)


@inner
def _stop_broken(run, at, step, epoch, real):
    """Stop the models whose loss is not finite, before a step that would spoil their weights."""
    lanes = at.used
    models, running = array_at(at.models, lanes, np.int64), array_at(at.running, lanes, np.int64)
    losses, sums = array_at(at.loss, lanes, np.float64), array_at(at.loss_sum, lanes, np.float64)
    weights = array_at(at.weight_sum, lanes, np.float64)
    for l in range(lanes):
        if running[l] != 0 and not abs(losses[l]) < math.inf:
            target = run.train_loss + models[l] * run.train_loss_step
            mean = sums[l] / (1.0 if run.loss == SSE else weights[l])
            column = epoch // run.every
            array_at(target, column + 1, np.float64)[column] = mean
            leave(run, at, l, step, NOT_FINITE, real)


@inner
def _judge(run, at, step, epoch, real):
    """Keep the best weights; stop the models that get no better."""
    lanes = at.used
    models, running = array_at(at.models, lanes, np.int64), array_at(at.running, lanes, np.int64)
    states = array_at(run.states, run.n_models, STATE)
    offsets = array_at(run.offsets, run.n_models, np.int64)
    losses = array_at(at.loss, lanes, np.float64)
    for l in range(lanes):
        if running[l] == 0:
            continue
        state = states[models[l]]
        if losses[l] < state.best_loss:
            state.best_loss, state.best_epoch = losses[l], epoch
            if run.best != 0:
                offset = offsets[models[l]]
                leave_lane(at.theta, l, at.lanes, run.best, offset, run.n_parameters, real)
        elif run.patience > 0 and epoch - state.best_epoch >= run.patience:
            leave(run, at, l, step, NO_PROGRESS, real)


@inner
def _any_runs(at):
    running = array_at(at.running, at.used, np.int64)
    n = 0
    for l in range(running.size):
        n += running[l]
    return n > 0


@inner
def _clear(vectors, n, real):
    for e in range(vectors, vectors + n * B, B):
        store(e, splat(real(0), real))


@inner
def _weigh_batch(run, at, start, stop, order, real):
    span = start, stop
    weigh(run, at, run.weight, at.first_weight, run.own_weight, span, order, real)


@inner
def _take_step(run, at, trained, real):
    """The optimizer's step of the models whose batch has a weight."""
    moves = load_wide(at.total, real) > 0
    if run.weight == 0:
        update(run, at, trained, moves, real)
        return
    n = run.n_parameters * B
    for e in range(0, 3 * n, B):
        store(at.saved + e, load(at.theta + e, real))
    update(run, at, trained, moves, real)
    # in every lane, so that the lanes have the same instructions
    for e in range(0, 3 * n, B):
        kept = select(moves, load(at.theta + e, real), load(at.saved + e, real))
        store(at.theta + e, kept)


def trainer(forward, backward):
    """The entry points of one kind of model: dtype to ``train(run, places, first, last)``.

    They advance the models of the vectors ``first`` … ``last`` − 1 of a list of places. Those of a
    vector are at the same step, and −1, behind them, stands for no model.
    """

    def build(real):
        fwd, bwd, add_loss = forward(real), backward(real), losses(real)

        @inner
        def validate(run, at):
            """at.loss = the validation loss."""
            n_rows, n_out, own = run.n_val_rows, run.n_out, run.val_own
            starts, own_weight = at.val_first_weight, run.val_own_weight
            span = 0, n_rows
            weigh(run, at, run.val_weight, starts, own_weight, span, 0, real)
            size = lay_groups(run, at, n_rows)
            one = splat(real(1), real)
            store(at.loss, splat_wide(0.0, real))
            for group in range(0, n_rows, size if run.spread == 1 else n_rows):
                loss = splat_wide(0.0, real)
                end = min(group + size, n_rows)
                for first in range(group, end, run.block_rows):
                    rows = first, min(run.block_rows, end - first), n_rows - 1
                    fetch(run, at, run.val_x, at.val_first, own, run.n_in, rows, 0, at.x, real)
                    fetch(run, at, run.val_y, at.val_first, own, n_out, rows, 0, at.y, real)
                    weight = at.weight if run.val_weight != 0 or run.spread > 1 else 0
                    if weight != 0:
                        source = run.val_weight
                        fetch_weights(run, at, source, starts, own_weight, rows, 0, weight, real)
                    y = fwd(at, at.x, rows[1], run.net, run.n_net, -1)
                    loss += add_loss(run.loss, y, at.y, weight, rows[1], n_out, one, at.dy)
                store(at.loss, load_wide(at.loss, real) + loss)
            fold(run, at.loss, 1, np.float64)
            if run.loss != SSE:
                count = load_wide(at.total, real) * np.float64(n_out)
                store(at.loss, load_wide(at.loss, real) / count)

        @inner
        def add_rows(run, at, start, first, end, stop, order, draws, is_there, grad, scale):
            """The loss of a group of rows; adds to its gradient."""
            loss = splat_wide(0.0, real)
            for block in range(first, end, run.block_rows):
                rows = block, min(run.block_rows, end - block), stop - 1
                offset = (block - start) * B if run.stays != 0 else 0
                x, y, weight = at.x + offset * run.n_in, at.y + offset * run.n_out, 0
                if run.weight != 0 or run.spread > 1:
                    weight = at.weight + offset
                if not is_there:
                    fetch_block(run, at, rows, order, x, y, weight, real)
                place = block - start if draws else -1
                y_hat = fwd(at, x, rows[1], run.net, run.n_net, place)
                loss += add_loss(run.loss, y_hat, y, weight, rows[1], run.n_out, scale, at.dy)
                bwd(at, x, rows[1], run.net, run.n_net, place, grad)
            return loss

        @inner
        def gradient(run, at, start, stop, order, draws, is_there):
            """at.grad and at.loss, a sum over rows and outputs, of rows start … stop − 1."""
            total = load_wide(at.total, real)
            scale = splat(real(1), real)
            if run.loss != SSE and run.weight == 0:
                scale = splat(real(1.0 / (np.float64(stop - start) * np.float64(run.n_out))), real)
            elif run.loss != SSE:
                # rows of weight 0 alone teach nothing
                inverse = 1.0 / (total * np.float64(run.n_out))
                scale = narrowed(select(total > 0, inverse, 0.0), real)
            n = run.n_parameters
            size = lay_groups(run, at, stop - start)
            is_whole = run.groups == run.spread
            store(at.loss, splat_wide(0.0, real))
            for first in range(start, stop, stop - start if is_whole else size):
                grad = at.grad if first == start else at.part
                _clear(grad, n, real)
                loss = add_rows(
                    run, at, start, first, min(first + size, stop), stop, order, draws, is_there,
                    grad, scale,
                )  # fmt: skip
                store(at.loss, load_wide(at.loss, real) + loss)
                if first > start:
                    for e in range(0, n * B, B):
                        store(at.grad + e, load(at.grad + e, real) + load(grad + e, real))
            fold(run, at.grad, n, real)
            fold(run, at.loss, 1, np.float64)
            store(at.loss, select(total > 0, load_wide(at.loss, real), 0.0))

        @inner
        def advance(run, at, step):
            """Run the models of a vector from a step to ``stop_step``, or until they stop."""
            trained = array_at(run.trained, 2 * run.n_trained, np.int64)
            n_rows, batch_rows = run.n_rows, run.batch_rows
            steps_per_epoch = (n_rows + batch_rows - 1) // batch_rows
            order = at.order if run.shuffle != 0 else 0
            is_there = False
            epoch = step // steps_per_epoch
            batch = step - epoch * steps_per_epoch
            _begin_epoch(run, at, epoch, real)
            while step < run.stop_step:
                start, stop = batch * batch_rows, min((batch + 1) * batch_rows, n_rows)
                _weigh_batch(run, at, start, stop, order, real)
                if run.draws != 0:
                    _draw_keys(run, at, step, real)
                gradient(run, at, start, stop, order, True, is_there)
                is_there = run.stays != 0
                loss, total = load_wide(at.loss, real), load_wide(at.total, real)
                mean = loss / (1.0 if run.loss == SSE else np.float64(run.n_out))
                store(at.loss_sum, load_wide(at.loss_sum, real) + mean)
                store(at.weight_sum, load_wide(at.weight_sum, real) + total)
                if not all_lanes(abs(loss) < math.inf):
                    _stop_broken(run, at, step, epoch, real)
                    if not _any_runs(at):
                        return step
                _take_step(run, at, trained, real)
                step, batch = step + 1, batch + 1
                if batch < steps_per_epoch:
                    continue
                if run.grad_norm != 0:
                    _weigh_batch(run, at, 0, n_rows, order, real)
                    gradient(run, at, 0, n_rows, order, False, is_there)
                    store(at.loss, lanes_norm(at.grad, trained, real))
                    _record(run, at, at.loss, run.grad_norm, run.grad_norm_step, epoch, real)
                _record_loss(run, at, epoch, real)
                store(at.loss_sum, splat_wide(0.0, real))
                store(at.weight_sum, splat_wide(0.0, real))
                if run.val_x != 0:
                    validate(run, at)
                    is_there = False
                    _record(run, at, at.loss, run.val_loss, run.val_loss_step, epoch, real)
                    _judge(run, at, step, epoch, real)
                    if not _any_runs(at):
                        return step
                epoch, batch = epoch + 1, 0
                if step < run.stop_step:
                    _begin_epoch(run, at, epoch, real)
            return step

        def train(run_at, places_at, first, last):
            estimated_quotients()
            run = array_at(run_at, 1, RUN)[0]
            lanes = run.lanes
            n = lanes // run.spread
            groups = array_at(places_at, last * n, np.int64)
            places = np.zeros(1, PLACES)
            at = places[0]
            space = np.zeros(lay_out(run, at, 0, real) + B, np.uint8)
            lay_out(run, at, address_of(space), real)
            for vector in range(first, last):
                step = enter(run, at, groups[vector * n : (vector + 1) * n], real)
                step = advance(run, at, step)
                running = array_at(at.running, at.used, np.int64)
                for l in range(at.used):
                    if running[l] != 0:
                        leave(run, at, l, step, RUNNING, real)
            # keeps both until here
            space[0] = places[0].theta = 0

        return train

    return entry(build)
