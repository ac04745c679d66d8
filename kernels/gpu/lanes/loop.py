"""Whole training runs of small models: the loop of `training/loop.py`, a model a lane.

A lane is a thread: the parameters of its model, their moments and gradients are registers of it for
a whole launch, a tuple of tensors ``[lanes]`` each. Rows are read by all lanes alike, or by each
its own where models have orders, data or weights of their own. No step writes to memory, waits for
another thread or asks what it does; those of a block are at the same step, and what has stopped
computes on, and nobody keeps it.

A model comes in as one verb, a jitted function given as a constant::

    item(theta, grad, x_ptr, y_ptr, at, inside, weight, GRAD, SIZES, CONSTANTS, LOSS, COMPUTE)

which returns w·ℓ of one item of a row, float64 ``[lanes]``, and ``grad`` with the gradient of it
added: unscaled, what a batch's sum is multiplied by comes with the step.
"""

import triton
import triton.language as tl

from ..numbers.order import order_keys
from ..training.loop import (
    BATCH,
    BEST_EPOCH,
    BEST_LOSS,
    BETA1,
    BETA1_POWER,
    BETA2,
    BETA2_POWER,
    COUNT,
    FIRST,
    FIRST_WEIGHT,
    LOSS_SUM,
    N_HYPER,
    N_ROWS,
    N_STATE,
    NO_PROGRESS,
    NOT_FINITE,
    OUT_SHARE,
    RUNNING,
    STATUS,
    STEP,
    TRAIN_SHARE,
    UPDATES,
    VAL_COUNT,
    VAL_FIRST,
    VAL_FIRST_WEIGHT,
    VAL_SHARE,
    WEIGHT_SUM,
    is_finite,
)
from .rows import halves_of, load_numbers, row_at, store_numbers, zero_numbers
from .update import clip_factor, squared_norm, updated


@triton.jit
def add_rows(
    theta, x_ptr, y_ptr, weight_ptr, keys, halves, first, stop, n_rows, GRAD: tl.constexpr,
    SHUFFLE: tl.constexpr, MODEL: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr,
    LOSS: tl.constexpr, ITEMS: tl.constexpr, N: tl.constexpr, COMPUTE: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Σ w·ℓ and Σ w of the rows at some positions, float64, and the gradient of the former."""
    PER_ROW: tl.constexpr = SIZES.per_row
    grad = zero_numbers(N if GRAD else 1, COMPUTE, LANES)
    loss = tl.zeros((LANES,), tl.float64)
    total = tl.zeros((LANES,), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        rows = ()
        for u in tl.static_range(ITEMS):
            # beyond the batch its first row, of which nothing is read
            position = first + (e + u) // PER_ROW
            position = tl.where(position < stop, position, first)
            row = row_at(position, keys, halves, n_rows, SHUFFLE, LANES)
            rows = rows + (row,)  # noqa: RUF005
        for u in tl.static_range(ITEMS):
            inside = first + (e + u) // PER_ROW < stop
            item = (e + u) % PER_ROW
            if weight_ptr is None:
                weight = tl.full((), 1.0, COMPUTE)
            else:
                weight = tl.load(weight_ptr + rows[u], mask=inside, other=0.0)
                # a row counts once, whatever the items in it
                total += tl.where(item == 0, weight, 0.0).to(tl.float64)
            more, grad = MODEL(
                theta, grad, x_ptr, y_ptr, rows[u] * PER_ROW + item, inside, weight, GRAD, SIZES,
                CONSTANTS, LOSS, COMPUTE,
            )  # fmt: skip
            loss += more
    if weight_ptr is None:
        total += (stop - first).to(tl.float64)
    return loss, total, grad


@triton.jit
def scale_of(total, LOSS: tl.constexpr, COMPUTE: tl.constexpr):
    """What a batch's sums are multiplied by: 1 over its weight times its outputs, or nothing."""
    if LOSS == "sse":
        return tl.full(total.shape, 1.0, COMPUTE)
    else:
        return 1.0 / total.to(COMPUTE)


# a kernel would be compiled anew for a number that is 1 or a multiple of 16
@triton.jit(
    do_not_specialize=[
        "n_in", "n_out", "n_epochs", "every", "n_columns", "first_epoch", "rates_stride",
        "stop_step", "patience",
    ]
)  # fmt: skip
def train_lanes_kernel(
    theta_ptr, moment1_ptr, moment2_ptr, best_ptr, starts_ptr, models_ptr, steps_ptr, rows_ptr,
    x_ptr, y_ptr, weight_ptr, val_x_ptr, val_y_ptr, val_weight_ptr, state_ptr, hyper_ptr, rates_ptr,
    seeds_ptr, streams_ptr, train_loss_ptr, val_loss_ptr, grad_norm_ptr, n_in, n_out, n_epochs,
    every, n_columns, first_epoch, rates_stride, stop_step, patience,
    MODEL: tl.constexpr, UPDATE: tl.constexpr, MOMENTS: tl.constexpr, TRAINED: tl.constexpr,
    LOSS: tl.constexpr, SHUFFLE: tl.constexpr, APART: tl.constexpr, CLIPS: tl.constexpr,
    SIZES: tl.constexpr, CONSTANTS: tl.constexpr, ITEMS: tl.constexpr, N: tl.constexpr,
    COMPUTE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Advance a block of models from their step to ``stop_step``; those that stop stay as they are.

    Shapes: models [blocks, LANES], -1 behind the last, and steps [blocks], int64; the others as in
    `training/loop.py`. Grid: one program for each block of LANES models that are at one step and
    have as many rows. Reads the batch from cache at every step; writes losses once an epoch, the
    rest at the end.
    """
    models_ptr += tl.program_id(0) * LANES
    leader = tl.load(models_ptr).to(tl.int64)
    models = tl.load(models_ptr + tl.arange(0, LANES)).to(tl.int64)
    here = models >= 0
    models = tl.where(here, models, leader)
    n_rows = tl.load(rows_ptr + leader * N_ROWS + COUNT).to(tl.int32)
    batch_rows = tl.load(rows_ptr + leader * N_ROWS + BATCH).to(tl.int32)
    n_val_rows = tl.load(rows_ptr + leader * N_ROWS + VAL_COUNT).to(tl.int32)
    step = tl.load(steps_ptr + tl.program_id(0)).to(tl.int32)
    if APART:
        rows_ptr += models * N_ROWS
    else:
        rows_ptr += leader * N_ROWS
    x_ptr += tl.load(rows_ptr + FIRST) * n_in
    y_ptr += tl.load(rows_ptr + FIRST) * n_out
    if weight_ptr is not None:
        weight_ptr += tl.load(rows_ptr + FIRST_WEIGHT)
    if val_x_ptr is not None:
        val_x_ptr += tl.load(rows_ptr + VAL_FIRST) * n_in
        val_y_ptr += tl.load(rows_ptr + VAL_FIRST) * n_out
    if val_weight_ptr is not None:
        val_weight_ptr += tl.load(rows_ptr + VAL_FIRST_WEIGHT)
    seeds, streams = tl.load(seeds_ptr + models), tl.load(streams_ptr + models)
    state_ptr += models * N_STATE
    rates_ptr += models * rates_stride
    starts = tl.load(starts_ptr + models)
    theta = load_numbers(theta_ptr + starts, here, N, LANES)
    m = ()
    v = ()
    if MOMENTS > 0:
        m = load_numbers(moment1_ptr + starts, here, N, LANES)
    if MOMENTS > 1:
        v = load_numbers(moment2_ptr + starts, here, N, LANES)
    # not for lanes without a model: their neighbours write these at the end
    state = load_numbers(state_ptr, here, N_STATE, LANES)
    hyper = load_numbers(hyper_ptr + models * N_HYPER, here, N_HYPER, LANES)
    updates = state[UPDATES].to(tl.int32)
    status = state[STATUS].to(tl.int32)
    loss_sum = state[LOSS_SUM]
    weight_sum = state[WEIGHT_SUM]
    power1 = state[BETA1_POWER]
    power2 = state[BETA2_POWER]
    best_loss = state[BEST_LOSS]
    best_epoch = state[BEST_EPOCH].to(tl.int32)
    beta1, beta2 = hyper[BETA1], hyper[BETA2]
    train_share = hyper[TRAIN_SHARE]
    out_share = hyper[OUT_SHARE]
    val_share = hyper[VAL_SHARE]
    SETTINGS: tl.constexpr = UPDATE.settings
    STEP_OF: tl.constexpr = UPDATE.step
    NUMBER: tl.constexpr = UPDATE.number
    settings = SETTINGS(hyper, COMPUTE)
    halves = halves_of(n_rows)
    per_epoch = tl.cdiv(n_rows, batch_rows)
    stop_step = tl.minimum(stop_step, n_epochs * per_epoch)
    end = tl.zeros((LANES,), tl.int32) + stop_step
    while step < stop_step:
        epoch = step // per_epoch
        column = models * n_columns + epoch // every
        keys = order_keys(seeds, streams, epoch, SHUFFLE)
        lr = tl.load(rates_ptr + epoch - first_epoch)
        ran = here & (status == RUNNING)
        begun = step
        next_epoch = (epoch + 1) * per_epoch
        step = tl.minimum(next_epoch, stop_step)
        for s in range(begun, step):
            first = (s - epoch * per_epoch) * batch_rows
            loss, total, grad = add_rows(
                theta, x_ptr, y_ptr, weight_ptr, keys, halves, first,
                tl.minimum(first + batch_rows, n_rows), n_rows, True, SHUFFLE, MODEL, SIZES,
                CONSTANTS, LOSS, ITEMS, N, COMPUTE, LANES,
            )  # fmt: skip
            runs = status == RUNNING
            teaches = total > 0.0
            loss = tl.where(teaches, loss, 0.0)
            breaks = runs & (is_finite(loss) == 0)
            loss_sum = tl.where(runs, loss_sum + loss * out_share, loss_sum)
            weight_sum = tl.where(runs, weight_sum + total, weight_sum)
            end = tl.where(breaks, s, end)
            status = tl.where(breaks, NOT_FINITE, status)
            moves = runs & teaches & (breaks == 0)
            updates += moves.to(tl.int32)
            power1 = tl.where(moves, power1 * beta1, power1)
            power2 = tl.where(moves, power2 * beta2, power2)
            factor = scale_of(total * n_out, LOSS, COMPUTE)
            if CLIPS:
                factor *= clip_factor(grad, factor, hyper, TRAINED, N, COMPUTE)
            shared = STEP_OF(settings, lr, updates, power1, power2, COMPUTE)
            theta, m, v = updated(
                theta, grad, m, v, factor, shared, moves, NUMBER, TRAINED, MOMENTS, N
            )
        # a mean, of those that broke up to there
        closes = ran & ((step == next_epoch) | (status == NOT_FINITE))
        tl.store(train_loss_ptr + column, loss_sum * train_share, mask=closes)
        if step == next_epoch:
            going = status == RUNNING
            loss_sum = tl.where(going, 0.0, loss_sum)
            weight_sum = tl.where(going, 0.0, weight_sum)
            if grad_norm_ptr is not None:
                # of all rows as they come, at the epoch's last weights
                _, total, grad = add_rows(
                    theta, x_ptr, y_ptr, weight_ptr, (), halves, 0, n_rows, n_rows, True, False,
                    MODEL, SIZES, CONSTANTS, LOSS, ITEMS, N, COMPUTE, LANES,
                )  # fmt: skip
                norm = tl.sqrt(squared_norm(grad, TRAINED, N))
                if LOSS != "sse":
                    norm *= train_share * out_share
                tl.store(grad_norm_ptr + column, norm, mask=here & going)
            if val_x_ptr is not None:
                loss, _, _ = add_rows(
                    theta, val_x_ptr, val_y_ptr, val_weight_ptr, (), halves, 0, n_val_rows,
                    n_val_rows, False, False, MODEL, SIZES, CONSTANTS, LOSS, ITEMS, N, COMPUTE,
                    LANES,
                )  # fmt: skip
                loss *= val_share
                tl.store(val_loss_ptr + column, loss, mask=here & going)
                better = going & (loss < best_loss)
                best_loss = tl.where(better, loss, best_loss)
                best_epoch = tl.where(better, epoch, best_epoch)
                if best_ptr is not None:
                    store_numbers(best_ptr + starts, theta, here & better, N)
                waits = (patience > 0) & (epoch - best_epoch >= patience)
                stops = going & waits & (better == 0)
                end = tl.where(stops, step, end)
                status = tl.where(stops, NO_PROGRESS, status)
    store_numbers(theta_ptr + starts, theta, here, N)
    if MOMENTS > 0:
        store_numbers(moment1_ptr + starts, m, here, N)
    if MOMENTS > 1:
        store_numbers(moment2_ptr + starts, v, here, N)
    tl.store(state_ptr + STEP, end.to(tl.float64), mask=here)
    tl.store(state_ptr + UPDATES, updates.to(tl.float64), mask=here)
    tl.store(state_ptr + STATUS, status.to(tl.float64), mask=here)
    tl.store(state_ptr + LOSS_SUM, loss_sum, mask=here)
    tl.store(state_ptr + WEIGHT_SUM, weight_sum, mask=here)
    tl.store(state_ptr + BETA1_POWER, power1, mask=here)
    tl.store(state_ptr + BETA2_POWER, power2, mask=here)
    if val_x_ptr is not None:
        tl.store(state_ptr + BEST_EPOCH, best_epoch.to(tl.float64), mask=here)
        tl.store(state_ptr + BEST_LOSS, best_loss, mask=here)
