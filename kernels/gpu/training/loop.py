"""Whole training runs: loop × model × optimizer in one kernel, one program per model.

A model comes in as one verb, a jitted function given as a constant::

    value_and_grad(theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop,
                   n_rows, scale, SHUFFLE, SIZES, CONSTANTS, LOSS, COMPUTE)

which returns Σ w·ℓ over the rows at the positions ``first`` … ``stop`` of the epoch's order and
writes the gradient of ``scale`` times that sum to ``grad``. Where ``grad_ptr`` is None, the model
is evaluated: without dropout. ``theta`` and ``grad`` are the parameters one after the other, as in
the Numba wing. They, the moments and the data stay in the level-1 and level-2 caches; between the
writes of one phase and the reads of the next is a barrier of the program. :mod:`.models` has the
verbs and the table of them.
"""

import triton
import triton.language as tl

from ... import runs
from ...spec import for_each
from ..numbers.order import order_keys, rows_of, step_key

HYPER = (
    "weight_decay", "momentum", "dampening", "nesterov", "beta1", "beta2", "eps", "clip_norm",
    "train_share", "val_share", "out_share",
)  # fmt: skip
"""Columns of the table of hyper-parameters, float64. The shares are 1 over the total weight of the
rows, over the numbers of validation outputs and over the outputs of a row: a division in float64
is a call, around which registers are spilled."""

ROWS = "first", "count", "first_weight", "batch", "val_first", "val_count", "val_first_weight"
"""Columns of the table of rows, int64: which each model takes, how many a step, which it is
validated with."""


def _columns(names):
    """Places of columns by name, as Triton takes globals: it knows no fields of a record."""
    return {name: tl.constexpr(place) for place, name in enumerate(names)}


N_STATE, N_HYPER, N_ROWS = (tl.constexpr(len(names)) for names in (runs.STATE.names, HYPER, ROWS))
_state, _hyper, _rows = _columns(runs.STATE.names), _columns(HYPER), _columns(ROWS)
STEP, UPDATES, STATUS = _state["step"], _state["updates"], _state["status"]
LOSS_SUM, WEIGHT_SUM = _state["loss_sum"], _state["weight_sum"]
BETA1_POWER, BETA2_POWER = _state["beta1_power"], _state["beta2_power"]
BEST_EPOCH, BEST_LOSS = _state["best_epoch"], _state["best_loss"]
WEIGHT_DECAY, MOMENTUM = _hyper["weight_decay"], _hyper["momentum"]
DAMPENING, NESTEROV = _hyper["dampening"], _hyper["nesterov"]
BETA1, BETA2, EPS = _hyper["beta1"], _hyper["beta2"], _hyper["eps"]
CLIP_NORM, TRAIN_SHARE = _hyper["clip_norm"], _hyper["train_share"]
VAL_SHARE, OUT_SHARE = _hyper["val_share"], _hyper["out_share"]
FIRST, COUNT, FIRST_WEIGHT = _rows["first"], _rows["count"], _rows["first_weight"]
BATCH, VAL_FIRST = _rows["batch"], _rows["val_first"]
VAL_COUNT, VAL_FIRST_WEIGHT = _rows["val_count"], _rows["val_first_weight"]
RUNNING, NO_PROGRESS = tl.constexpr(runs.RUNNING), tl.constexpr(runs.NO_PROGRESS)
NOT_FINITE = tl.constexpr(runs.NOT_FINITE)


@triton.jit
def is_finite(value):
    return value - value == 0.0


@triton.jit
def sgd(p, g, m, v, hyper_ptr, lr, updates, power1, power2, COMPUTE: tl.constexpr):
    """torch.optim.SGD: its buffer starts as the first gradient."""
    g += tl.load(hyper_ptr + WEIGHT_DECAY).to(COMPUTE) * p
    momentum = tl.load(hyper_ptr + MOMENTUM).to(COMPUTE)
    rest = (1.0 - tl.load(hyper_ptr + DAMPENING)).to(COMPUTE)
    m = tl.where(momentum == 0.0, g, tl.where(updates == 1, g, momentum * m + rest * g))
    step = tl.where(tl.load(hyper_ptr + NESTEROV) != 0.0, g + momentum * m, m)
    return p - lr.to(COMPUTE) * step, tl.where(momentum == 0.0, 0.0, m), v


@triton.jit
def adam_step(p, g, m, v, hyper_ptr, lr, power1, power2, COMPUTE: tl.constexpr):
    """What Adam and AdamW share: all but where the weights decay."""
    m += (1.0 - tl.load(hyper_ptr + BETA1)).to(COMPUTE) * (g - m)
    beta2 = tl.load(hyper_ptr + BETA2)
    v = beta2.to(COMPUTE) * v + (1.0 - beta2).to(COMPUTE) * (g * g)
    root = tl.sqrt(v) / tl.sqrt((1.0 - power2).to(COMPUTE))
    eps = tl.load(hyper_ptr + EPS).to(COMPUTE)
    return p - lr.to(COMPUTE) / (1.0 - power1).to(COMPUTE) * (m / (root + eps)), m, v


@triton.jit
def adam(p, g, m, v, hyper_ptr, lr, updates, power1, power2, COMPUTE: tl.constexpr):
    """torch.optim.Adam."""
    g += tl.load(hyper_ptr + WEIGHT_DECAY).to(COMPUTE) * p
    return adam_step(p, g, m, v, hyper_ptr, lr, power1, power2, COMPUTE)


@triton.jit
def adamw(p, g, m, v, hyper_ptr, lr, updates, power1, power2, COMPUTE: tl.constexpr):
    """torch.optim.AdamW."""
    p *= (1.0 - lr * tl.load(hyper_ptr + WEIGHT_DECAY)).to(COMPUTE)
    return adam_step(p, g, m, v, hyper_ptr, lr, power1, power2, COMPUTE)


@triton.jit
def squared_norm(grad_ptr, trained_ptr, size, BLOCK: tl.constexpr):
    """‖g‖² of what is trained, float64."""
    total = tl.zeros((), tl.float64)
    for e in range(0, size, BLOCK):
        i = e + tl.arange(0, BLOCK)
        g = tl.load(grad_ptr + i, mask=i < size, other=0.0)
        g = tl.where(tl.load(trained_ptr + i, mask=i < size, other=0) != 0, g, 0.0)
        total += tl.sum(g.to(tl.float64) * g.to(tl.float64))
    return total


@triton.jit
def clip_factor(grad_ptr, trained_ptr, size, clip_norm, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """min(1, clip_norm / (‖g‖ + 1e-6)), as torch.nn.utils.clip_grad_norm_."""
    total = squared_norm(grad_ptr, trained_ptr, size, BLOCK)
    return tl.minimum(1.0, clip_norm.to(COMPUTE) / (tl.sqrt(total.to(COMPUTE)) + 1e-6))


@triton.jit
def batch_weight(weight_ptr, keys, first, stop, n_rows, SHUFFLE: tl.constexpr, BLOCK: tl.constexpr):
    """Σ w over a batch; the number of its rows without weights."""
    if weight_ptr is None:
        return (stop - first).to(tl.float64)
    else:
        total = tl.zeros((), tl.float64)
        for r in range(first, stop, BLOCK):
            positions = r + tl.arange(0, BLOCK)
            rows = rows_of(positions, stop, keys, n_rows, SHUFFLE)
            w = tl.load(weight_ptr + rows, mask=positions < stop, other=0.0)
            total += tl.sum(w.to(tl.float64))
        return total


# a kernel would be compiled anew for a number that is 1 or a multiple of 16
@triton.jit(
    do_not_specialize=[
        "n_parameters", "n_in", "n_out", "n_epochs", "every", "n_columns", "first_epoch",
        "rates_stride", "stop_step", "patience",
    ]
)  # fmt: skip
def train_kernel(
    theta_ptr, moment1_ptr, moment2_ptr, best_ptr, grad_ptr, trained_ptr, starts_ptr, models_ptr,
    rows_ptr, x_ptr, y_ptr, weight_ptr, val_x_ptr, val_y_ptr, val_weight_ptr, state_ptr, hyper_ptr,
    rates_ptr, seeds_ptr, streams_ptr, train_loss_ptr, val_loss_ptr, grad_norm_ptr, n_parameters,
    n_in, n_out, n_epochs, every, n_columns, first_epoch, rates_stride, stop_step, patience,
    MODEL: tl.constexpr, UPDATE: tl.constexpr, LOSS: tl.constexpr, SHUFFLE: tl.constexpr,
    DRAWS: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Advance one model a program from its step to ``stop_step``, or until it stops by itself.

    Shapes: theta, moments, best, grad, trained [all parameters], a model's part at ``starts``;
    rows [all models, ROWS], int64; state [all models, STATE], hyper [all models, HYPER], losses
    [all models, n_columns], a column every ``every`` epochs, float64. Grid: one program for each of
    ``models``. Reads the batch and the parameters from cache at every step.
    """
    model = tl.load(models_ptr + tl.program_id(0)).to(tl.int64)
    state_ptr += model * N_STATE
    hyper_ptr += model * N_HYPER
    rates_ptr += model * rates_stride
    train_loss_ptr += model * n_columns
    val_loss_ptr += model * n_columns
    if grad_norm_ptr is not None:
        grad_norm_ptr += model * n_columns
    rows_ptr += model * N_ROWS
    n_rows = tl.load(rows_ptr + COUNT).to(tl.int32)
    batch_rows = tl.load(rows_ptr + BATCH).to(tl.int32)
    x_ptr += tl.load(rows_ptr + FIRST) * n_in
    y_ptr += tl.load(rows_ptr + FIRST) * n_out
    start = tl.load(starts_ptr + model)
    theta_ptr += start
    moment1_ptr += start
    moment2_ptr += start
    best_ptr += start
    grad_ptr += start
    trained_ptr += start
    if weight_ptr is not None:
        weight_ptr += tl.load(rows_ptr + FIRST_WEIGHT)
    seed, stream = tl.load(seeds_ptr + model), tl.load(streams_ptr + model)
    clip_norm = tl.load(hyper_ptr + CLIP_NORM)
    steps_per_epoch = tl.cdiv(n_rows, batch_rows)
    stop_step = tl.minimum(stop_step, n_epochs * steps_per_epoch)
    step = tl.load(state_ptr + STEP).to(tl.int32)
    updates = tl.load(state_ptr + UPDATES).to(tl.int32)
    status = tl.load(state_ptr + STATUS).to(tl.int32)
    loss_sum, weight_sum = tl.load(state_ptr + LOSS_SUM), tl.load(state_ptr + WEIGHT_SUM)
    power1, power2 = tl.load(state_ptr + BETA1_POWER), tl.load(state_ptr + BETA2_POWER)
    while (step < stop_step) & (status == RUNNING):
        epoch = step // steps_per_epoch
        batch = step - epoch * steps_per_epoch
        keys = order_keys(seed, stream, epoch, SHUFFLE)
        lr = tl.load(rates_ptr + epoch - first_epoch)
        first = batch * batch_rows
        stop = tl.minimum(first + batch_rows, n_rows)
        total = batch_weight(weight_ptr, keys, first, stop, n_rows, SHUFFLE, BLOCK)
        loss = tl.zeros((), tl.float64)
        if total > 0.0:
            scale = 1.0 / (total * n_out).to(COMPUTE)
            if LOSS == "sse":
                scale = tl.full((), 1.0, COMPUTE)
            loss = MODEL(
                theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys,
                step_key(seed, stream, step, DRAWS), first, stop, n_rows, scale, SHUFFLE, SIZES,
                CONSTANTS, LOSS, COMPUTE,
            )  # fmt: skip
            loss_sum += loss * tl.load(hyper_ptr + OUT_SHARE)
            weight_sum += total
            tl.debug_barrier()
        if is_finite(loss):
            if total > 0.0:
                updates += 1
                power1 *= tl.load(hyper_ptr + BETA1)
                power2 *= tl.load(hyper_ptr + BETA2)
                factor = tl.full((), 1.0, COMPUTE)
                if clip_norm < float("inf"):
                    factor = clip_factor(
                        grad_ptr, trained_ptr, n_parameters, clip_norm, COMPUTE, BLOCK
                    )
                for e in range(0, n_parameters, BLOCK):
                    i = e + tl.arange(0, BLOCK)
                    inside = i < n_parameters
                    inside &= tl.load(trained_ptr + i, mask=inside, other=0) != 0
                    p = tl.load(theta_ptr + i, mask=inside, other=0.0)
                    g = tl.load(grad_ptr + i, mask=inside, other=0.0) * factor
                    m = tl.load(moment1_ptr + i, mask=inside, other=0.0)
                    v = tl.load(moment2_ptr + i, mask=inside, other=0.0)
                    p, m, v = UPDATE(p, g, m, v, hyper_ptr, lr, updates, power1, power2, COMPUTE)
                    tl.store(theta_ptr + i, p, mask=inside)
                    tl.store(moment1_ptr + i, m, mask=inside)
                    tl.store(moment2_ptr + i, v, mask=inside)
                tl.debug_barrier()
            step += 1
            if batch == steps_per_epoch - 1:
                tl.store(
                    train_loss_ptr + epoch // every, loss_sum * tl.load(hyper_ptr + TRAIN_SHARE)
                )
                loss_sum = tl.zeros((), tl.float64)
                weight_sum = tl.zeros((), tl.float64)
                if grad_norm_ptr is not None:
                    # of all rows as they come, at the epoch's last weights
                    whole = tl.full((), 1.0, tl.float64)
                    if LOSS != "sse":
                        whole = tl.load(hyper_ptr + TRAIN_SHARE) * tl.load(hyper_ptr + OUT_SHARE)
                    MODEL(
                        theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, (), (), 0, n_rows, n_rows,
                        whole.to(COMPUTE), False, SIZES, CONSTANTS, LOSS, COMPUTE,
                    )  # fmt: skip
                    tl.debug_barrier()
                    square = squared_norm(grad_ptr, trained_ptr, n_parameters, BLOCK)
                    tl.store(grad_norm_ptr + epoch // every, tl.sqrt(square))
                    tl.debug_barrier()
                if val_x_ptr is not None:
                    one = tl.full((), 1.0, COMPUTE)
                    val_first = tl.load(rows_ptr + VAL_FIRST)
                    n_val_rows = tl.load(rows_ptr + VAL_COUNT).to(tl.int32)
                    if val_weight_ptr is None:
                        held_weight_ptr = None
                    else:
                        held_weight_ptr = val_weight_ptr + tl.load(rows_ptr + VAL_FIRST_WEIGHT)
                    val_loss = MODEL(
                        theta_ptr, None, val_x_ptr + val_first * n_in,
                        val_y_ptr + val_first * n_out, held_weight_ptr, (), (), 0, n_val_rows,
                        n_val_rows, one, False, SIZES, CONSTANTS, LOSS, COMPUTE,
                    )  # fmt: skip
                    val_loss *= tl.load(hyper_ptr + VAL_SHARE)
                    tl.store(val_loss_ptr + epoch // every, val_loss)
                    best_epoch = tl.load(state_ptr + BEST_EPOCH).to(tl.int32)
                    if val_loss < tl.load(state_ptr + BEST_LOSS):
                        # all threads must have read before one writes
                        tl.debug_barrier()
                        tl.store(state_ptr + BEST_LOSS, val_loss)
                        tl.store(state_ptr + BEST_EPOCH, epoch.to(tl.float64))
                        for e in range(0, n_parameters, BLOCK):
                            i = e + tl.arange(0, BLOCK)
                            p = tl.load(theta_ptr + i, mask=i < n_parameters, other=0.0)
                            tl.store(best_ptr + i, p, mask=i < n_parameters)
                        tl.debug_barrier()
                    elif (patience > 0) & (epoch - best_epoch >= patience):
                        status = tl.full((), NO_PROGRESS, tl.int32)
        else:
            status = tl.full((), NOT_FINITE, tl.int32)
            tl.store(train_loss_ptr + epoch // every, loss_sum * tl.load(hyper_ptr + TRAIN_SHARE))
    tl.store(state_ptr + STEP, step.to(tl.float64))
    tl.store(state_ptr + UPDATES, updates.to(tl.float64))
    tl.store(state_ptr + STATUS, status.to(tl.float64))
    tl.store(state_ptr + LOSS_SUM, loss_sum)
    tl.store(state_ptr + WEIGHT_SUM, weight_sum)
    tl.store(state_ptr + BETA1_POWER, power1)
    tl.store(state_ptr + BETA2_POWER, power2)


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adamw}
for_each(runs.OPTIMIZERS, OPTIMIZERS, "optimizer")
