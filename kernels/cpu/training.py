"""Whole training runs: loop × model × optimizer in one compiled function.

A launch advances some models, one after the other, by a number of steps; the models of a launch
share the data and nothing else. What a step needs besides the model is written here once. A model
comes in as two verbs over flat arrays, jitted functions made for a scalar type::

    forward(theta, x, n_rows, sizes, constants, seed, offset, kept, y)
        y[n_rows·n_out] = the model's outputs for the rows x[n_rows·n_in].
    backward(theta, x, dy, n_rows, sizes, constants, seed, offset, kept, grad)
        grad[n_parameters] += Σ_rows dy·∂y/∂θ.

``theta`` is the module's parameters one after the other, each row-major, in the order of
``module.named_parameters()``; ``grad`` has the same layout. ``sizes`` (int64) and ``constants``
(float64) say what the module is; ``seed`` and ``offset`` number the random draws of a step, and an
``offset`` below 0 asks for the model as it is evaluated, without dropout. ``kept`` is scratch space
of the module's ``n_kept`` numbers in which forward may leave what backward on the same rows wants;
a batch is cut into blocks of at most ``block_rows`` rows, so that both stay in a level-1 cache.
:mod:`.verbs` has the verbs and the table :data:`.verbs.VERBS`, in which a new model is a row.

All of a model's state (parameters, moments, counters, losses) is in memory that the caller owns, so
that a run may be cut into launches anywhere: the numbers stay the same bit for bit.
"""

import math

import numpy as np

from .jit import array_at, entry, inner, wide_vectors
from .shuffle import fill_order

RUN = np.dtype(
    [
        # addresses: of the compute dtype, but for order-independent float64 and int64 ones
        ("x", np.int64),  # [n_rows, n_in]
        ("y", np.int64),  # [n_rows, n_out]
        ("weight", np.int64),  # [n_rows], or 0
        ("val_x", np.int64),  # [n_val_rows, n_in], or 0
        ("val_y", np.int64),
        ("theta", np.int64),  # [n_parameters]; as are the three that follow
        ("moment1", np.int64),
        ("moment2", np.int64),
        ("best", np.int64),  # the weights of the best epoch, or 0
        ("train_loss", np.int64),  # [epochs] float64
        ("val_loss", np.int64),
        ("rates", np.int64),  # learning rate of each epoch of this launch, float64
        ("segments", np.int64),  # [n_segments, 2] int64: the parameters that are trained
        ("sizes", np.int64),
        ("constants", np.int64),
        ("n_rows", np.int64),
        ("n_in", np.int64),  # numbers in a row of x
        ("n_out", np.int64),
        ("n_val_rows", np.int64),
        ("batch_rows", np.int64),
        ("n_parameters", np.int64),
        ("n_segments", np.int64),
        ("n_sizes", np.int64),
        ("n_constants", np.int64),
        ("block_rows", np.int64),
        ("n_kept", np.int64),
        ("first_epoch", np.int64),  # of rates
        ("stop_step", np.int64),  # where this launch ends
        ("shuffle", np.int64),
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

STATE = np.dtype(
    [
        ("step", np.int64),  # batches seen
        ("updates", np.int64),  # batches that moved the weights
        ("status", np.int64),
        ("best_epoch", np.int64),
        ("loss_sum", np.float64),  # of this epoch so far
        ("weight_sum", np.float64),
        ("beta1_power", np.float64),  # beta1^updates
        ("beta2_power", np.float64),
        ("best_loss", np.float64),
    ]
)
"""How far one model has come; read and written by the kernel, kept by the caller."""

RUNNING, FINISHED, NO_PROGRESS, NOT_FINITE = range(4)
"""Values of ``status``."""

SGD, ADAM, ADAMW = range(3)
MSE, L1, HUBER, BCE_WITH_LOGITS = range(4)
