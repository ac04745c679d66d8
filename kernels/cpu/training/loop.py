"""Whole training runs: loop × model × optimizer in one compiled function.

A launch advances some models, one after the other, by a number of steps; the models of a launch
share the data and nothing else. What a step needs besides the model is written here once. A model
comes in as two verbs over flat arrays, jitted functions made for a scalar type::

    forward(theta, x, n_rows, sizes, constants, seed, place, kept, y)
        y[n_rows·n_out] = the model's outputs for the rows x[n_rows·n_in].
    backward(theta, x, dy, n_rows, sizes, constants, seed, place, kept, grad)
        grad[n_parameters] += Σ_rows dy·∂y/∂θ.

``theta`` is the module's parameters one after the other, each row-major, in the order of
``module.named_parameters()``; ``grad`` has the same layout. ``sizes`` (int64) and ``constants``
(float64) say what the module is; ``seed`` is the key of the step's random draws and ``place`` the
index in the batch of the block's first row; a ``place`` below 0 asks for the model as it is
evaluated, without dropout. ``kept`` is scratch space
of the module's ``n_kept`` numbers in which forward may leave what backward on the same rows wants;
a batch is cut into blocks of at most ``block_rows`` rows, so that both stay in a level-1 cache.
:mod:`..models` has the verbs' table :data:`..models.VERBS`, in which a new model is a row.

All of a model's state (parameters, moments, counters, losses) is in memory that the caller owns, so
that a run may be cut into launches anywhere: the numbers stay the same bit for bit.
"""

import math

import numpy as np

from ...runs import LOSSES, NO_PROGRESS, NOT_FINITE, RUNNING, STATE
from ...spec import for_each
from ..machine.jit import array_at, copy, entry, estimated_quotients, inner, wide_vectors
from ..numbers.order import fill_order, step_key
from .full_batch import no_sums, of_sums
from .optimizers import norm, update

RUN = np.dtype(
    [
        # addresses of numbers of the compute dtype, where nothing else is said
        ("state", np.int64),  # one STATE
        ("x", np.int64),  # [n_rows, n_in]
        ("y", np.int64),  # [n_rows, n_out]
        ("weight", np.int64),  # [n_rows], or 0
        ("val_x", np.int64),  # [n_val_rows, n_in], or 0
        ("val_y", np.int64),
        ("val_weight", np.int64),  # [n_val_rows], or 0
        ("theta", np.int64),  # [n_parameters]; as are the three that follow
        ("moment1", np.int64),
        ("moment2", np.int64),
        ("best", np.int64),  # the weights of the best epoch, or 0
        ("train_loss", np.int64),  # [⌈epochs/every⌉] float64
        ("val_loss", np.int64),  # likewise
        ("grad_norm", np.int64),  # likewise, or 0
        ("rates", np.int64),  # learning rate of each epoch of this launch, float64
        ("trained", np.int64),  # [n_trained, 2] int64: the parameters that are trained
        ("sizes", np.int64),  # int64
        ("constants", np.int64),  # float64
        ("sums", np.int64),  # FullBatch.data of a step that takes sums of all rows, or 0
        ("widths", np.int64),  # int64: of the layers of such a net; as are the three that follow
        ("n_widths", np.int64),
        ("has_bias", np.int64),
        ("alpha", np.float64),
        ("n_rows", np.int64),
        ("n_in", np.int64),  # numbers in a row of x
        ("n_out", np.int64),
        ("n_val_rows", np.int64),
        ("batch_rows", np.int64),
        ("n_parameters", np.int64),
        ("n_trained", np.int64),
        ("n_sizes", np.int64),
        ("n_constants", np.int64),
        ("block_rows", np.int64),
        ("n_kept", np.int64),
        ("every", np.int64),  # epochs that a column of the losses has the last of
        ("first_epoch", np.int64),  # of rates
        ("stop_step", np.int64),  # where this launch ends
        ("shuffle", np.int64),
        ("draws", np.int64),  # whether the model draws random numbers
        ("seed", np.int64),
        ("stream", np.int64),  # with the seed and the epoch: the key of the order of rows
        ("optimizer", np.int64),
        ("loss", np.int64),
        ("patience", np.int64),  # 0: none
        ("clip_norm", np.float64),  # inf: none
        ("weight_decay", np.float64),
        ("momentum", np.float64),
        ("dampening", np.float64),
        ("nesterov", np.float64),
        ("beta1", np.float64),
        ("beta2", np.float64),
        ("eps", np.float64),
    ]
)
"""What a launch must know of one model; written by the caller, read by the kernel."""

MSE, L1, HUBER, _, SSE = range(len(LOSSES))
for_each(LOSSES, ("mse", "l1", "huber", "bce_with_logits", "sse"), "loss")


@inner
def _add_loss(kind, y_hat, y, weight, scale, one, dy):
    """Σ w·ℓ(ŷ, y) over a block of outputs; dy = scale·w·∂ℓ/∂ŷ; writes over ``y_hat``.

    ``weight`` has a number a row, or none at all. Huber's δ is 1; BCE is max(z, 0) − z·y +
    log(1 + e^−|z|) of the logit z.
    """
    n = y.size
    half = one / 2
    if kind in (MSE, SSE):
        for e in range(n):
            d = y_hat[e] - y[e]
            dy[e] = d + d
            y_hat[e] = d * d
    elif kind == L1:
        for e in range(n):
            d = y_hat[e] - y[e]
            # NaN stays NaN, 0 stays 0
            dy[e] = one if d > 0 else (-one if d < 0 else d)
            y_hat[e] = abs(d)
    elif kind == HUBER:
        for e in range(n):
            d = y_hat[e] - y[e]
            size = abs(d)
            dy[e] = d if not (size > one) else (one if d > 0 else -one)
            y_hat[e] = half * d * d if not (size > one) else size - half
    else:
        for e in range(n):
            z = y_hat[e]
            t = math.exp(-abs(z))
            dy[e] = (one if z >= 0 else t) / (one + t) - y[e]
            y_hat[e] = (z if z >= 0 else z * 0) - z * y[e] + math.log1p(t)
    total = 0.0
    if weight.size == 0:
        for e in range(n):
            dy[e] *= scale
            total += np.float64(y_hat[e])
    else:
        n_out = n // weight.size
        for row in range(weight.size):
            w = weight[row]
            for e in range(row * n_out, (row + 1) * n_out):
                dy[np.uintp(e)] *= w * scale
                total += np.float64(y_hat[np.uintp(e)]) * w
    return total


@inner
def _gather(source, order, first, n_rows, width, out):
    for r in range(n_rows):
        row = np.uintp(order[first + r]) * np.uintp(width)
        to = np.uintp(r * width)
        for e in range(width):
            out[to + np.uintp(e)] = source[row + np.uintp(e)]


@inner
def _write(curve_at, run, epoch, value):
    """A number of an epoch, into its column."""
    column = epoch // run.every
    array_at(curve_at, column + 1, np.float64)[column] = value


@inner
def _write_loss(run, state, epoch):
    """The training loss of the epoch so far, a mean or a sum."""
    loss = state.loss_sum / (1.0 if run.loss == SSE else state.weight_sum)
    _write(run.train_loss, run, epoch, loss)


@inner
def _close_epoch(run, state, epoch, theta, val_loss):
    """Write the epoch's training loss; keep the best weights; stop where nothing gets better."""
    _write_loss(run, state, epoch)
    state.loss_sum = state.weight_sum = 0.0
    if run.val_x != 0:
        _write(run.val_loss, run, epoch, val_loss)
        if val_loss < state.best_loss:
            state.best_loss = val_loss
            state.best_epoch = epoch
            return True
        if run.patience > 0 and epoch - state.best_epoch >= run.patience:
            state.status = NO_PROGRESS
    return False


def trainer(forward, backward, has_sums):
    """The entry points of one kind of model: compute dtype to ``train(runs, first, last)``.

    Args:
        forward: Function of the scalar type that returns the verb.
        backward: The like.
        has_sums: Whether some of these models may take :func:`.full_batch.of_sums`.
    """

    def build(real):
        fwd, bwd = forward(real), backward(real)
        sums = of_sums if has_sums else no_sums

        def validate(run, theta, sizes, constants, y_hat, dy, kept):
            x = array_at(run.val_x, run.n_val_rows * run.n_in, real)
            y = array_at(run.val_y, run.n_val_rows * run.n_out, real)
            weighted = run.val_weight != 0
            weight = array_at(run.val_weight, run.n_val_rows if weighted else 0, real)
            total, total_weight = 0.0, 0.0 if weighted else np.float64(run.n_val_rows)
            for r in range(weight.size):
                total_weight += weight[r]
            for first in range(0, run.n_val_rows, run.block_rows):
                rows = min(run.block_rows, run.n_val_rows - first)
                xb = x[first * run.n_in : (first + rows) * run.n_in]
                yb = y[first * run.n_out : (first + rows) * run.n_out]
                fwd(theta, xb, rows, sizes, constants, run.seed, -1, kept, y_hat[: yb.size])
                wb = weight[first : first + rows] if weighted else weight[:0]
                total += _add_loss(
                    run.loss, y_hat[: yb.size], yb, wb, real(1), real(1), dy[: yb.size]
                )
            return total / (1.0 if run.loss == SSE else total_weight * run.n_out)

        validate = inner(validate)

        def advance(run, state, space_at, order_at):
            """Run one model from its step to ``stop_step``, or until it stops by itself."""
            estimated_quotients()
            n_rows, n_in, n_out = run.n_rows, run.n_in, run.n_out
            batch_rows, block_rows = run.batch_rows, run.block_rows
            x, y = array_at(run.x, n_rows * n_in, real), array_at(run.y, n_rows * n_out, real)
            weighted = run.weight != 0
            weight = array_at(run.weight, n_rows if weighted else 0, real)
            theta = array_at(run.theta, run.n_parameters, real)
            moment1 = array_at(run.moment1, run.n_parameters, real)
            moment2 = array_at(run.moment2, run.n_parameters, real)
            trained = array_at(run.trained, 2 * run.n_trained, np.int64)
            sizes = array_at(run.sizes, run.n_sizes, np.int64)
            constants = array_at(run.constants, run.n_constants, np.float64)
            widths = array_at(run.widths, run.n_widths, np.int64)
            steps_per_epoch = (n_rows + batch_rows - 1) // batch_rows
            shuffle = run.shuffle != 0

            # views without an owner, whose references nobody counts: that took half a short step
            item = x.itemsize
            kept, at = array_at(space_at, run.n_kept, real), space_at
            at += item * run.n_kept
            grad = array_at(at, run.n_parameters, real)
            at += item * run.n_parameters
            y_hat = array_at(at, block_rows * n_out, real)
            at += item * block_rows * n_out
            dy = array_at(at, block_rows * n_out, real)
            at += item * block_rows * n_out
            mixed_y = array_at(at, block_rows * n_out, real)
            at += item * block_rows * n_out
            mixed_weight = array_at(at, block_rows, real)
            at += item * block_rows
            mixed_x = array_at(at, block_rows * n_in, real)
            order = array_at(order_at, n_rows if shuffle else 0, np.int64)

            epoch = state.step // steps_per_epoch
            batch = state.step - epoch * steps_per_epoch
            if shuffle:
                fill_order(order, run.seed, run.stream, epoch)
            rates = array_at(run.rates, epoch - run.first_epoch + 1, np.float64)
            lr = rates[epoch - run.first_epoch]
            at_rest = False  # at an epoch's end, with its weights, for the gradient of all rows
            while at_rest or state.step < run.stop_step:
                start, stop = batch * batch_rows, min((batch + 1) * batch_rows, n_rows)
                if at_rest:
                    start, stop = 0, n_rows
                total_weight = np.float64(stop - start)
                if weighted:
                    total_weight = 0.0
                    for r in range(start, stop):
                        total_weight += weight[order[r] if shuffle else r]
                # rows of weight 0 alone teach nothing: no step, no decay
                if total_weight > 0:
                    scale = real(1 if run.loss == SSE else 1 / (total_weight * n_out))
                    for e in range(grad.size):
                        grad[e] = 0
                    loss = -1.0
                    if run.sums != 0:
                        loss = sums(
                            run.sums,
                            n_rows * n_in,
                            widths,
                            run.has_bias != 0,
                            run.alpha,
                            theta,
                            grad,
                        )
                    by_sums = loss >= 0
                    loss = loss if by_sums else 0.0
                    key = step_key(run.seed, run.stream, state.step) if run.draws != 0 else 0
                    for first in range(start, start if by_sums else stop, block_rows):
                        rows = min(block_rows, stop - first)
                        if shuffle:
                            xb, yb = mixed_x[: rows * n_in], mixed_y[: rows * n_out]
                            wb = mixed_weight[: rows if weighted else 0]
                            _gather(x, order, first, rows, n_in, xb)
                            _gather(y, order, first, rows, n_out, yb)
                            if weighted:
                                _gather(weight, order, first, rows, 1, wb)
                        else:
                            xb = x[first * n_in : (first + rows) * n_in]
                            yb = y[first * n_out : (first + rows) * n_out]
                            wb = weight[first : first + rows] if weighted else weight[:0]
                        yh, g = y_hat[: rows * n_out], dy[: rows * n_out]
                        fwd(theta, xb, rows, sizes, constants, key, first - start, kept, yh)
                        loss += _add_loss(run.loss, yh, yb, wb, scale, real(1), g)
                        bwd(
                            theta,
                            xb,
                            g,
                            rows,
                            sizes,
                            constants,
                            key,
                            first - start,
                            kept,
                            grad,
                        )
                    if at_rest:
                        _write(run.grad_norm, run, epoch, norm(grad, trained))
                    else:
                        state.loss_sum += loss / (1 if run.loss == SSE else n_out)
                        state.weight_sum += total_weight
                        if not abs(loss) < math.inf:
                            state.status = NOT_FINITE
                            _write_loss(run, state, epoch)
                            return
                        update(run, state, lr, theta, moment1, moment2, grad, trained, real)
                if not at_rest:
                    state.step += 1
                    batch += 1
                    if batch < steps_per_epoch:
                        continue
                    if run.grad_norm != 0:
                        at_rest = True
                        continue
                at_rest = False
                val_loss = 0.0
                if run.val_x != 0:
                    val_loss = validate(run, theta, sizes, constants, y_hat, dy, kept)
                is_best = _close_epoch(run, state, epoch, theta, val_loss)
                if is_best and run.best != 0:
                    copy(theta, array_at(run.best, run.n_parameters, real))
                if state.status != RUNNING:
                    return
                epoch, batch = epoch + 1, 0
                if state.step < run.stop_step:
                    if shuffle:
                        fill_order(order, run.seed, run.stream, epoch)
                    rates = array_at(run.rates, epoch - run.first_epoch + 1, np.float64)
                    lr = rates[epoch - run.first_epoch]

        advance = inner(advance)

        def train(runs_at, first, last):
            wide_vectors()
            estimated_quotients()
            runs = array_at(runs_at, last, RUN)
            for i in range(first, last):
                state = array_at(runs[i].state, 1, STATE)[0]
                if state.status != RUNNING:
                    continue
                n_out = 3 * runs[i].block_rows * runs[i].n_out
                n_in = runs[i].block_rows * (runs[i].n_in + 1)
                space = np.zeros(runs[i].n_parameters + runs[i].n_kept + n_out + n_in, real)
                order = np.empty(runs[i].n_rows if runs[i].shuffle != 0 else 1, np.int64)
                advance(runs[i], state, space.ctypes.data, order.ctypes.data)
                space[0] = order[0] = 0  # keeps them until here

        return train

    return entry(build)
