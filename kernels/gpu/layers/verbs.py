"""The verbs of layers for whole training runs: see `training/loop.py` for their contract."""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import spec
from ..machine.keys import key_of
from ..machine.launch import mlp_config
from ..machine.verbs import Verb
from ..numbers.activations import ACTIVATIONS
from ..numbers.losses import loss_and_gradient
from ..numbers.order import find
from ..numbers.philox import dropout_constants
from . import choices
from .cores import Net, load_biases, load_weights, store_sums, through_layers, zero_sums
from .cores import back_through as back_on_cores
from .rows import all_layers, back_through, drop, padded, pointers


@triton.jit
def mlp(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """h_l = σ_l(W_l h_{l-1} + b_l) of every item."""
    WIDTHS: tl.constexpr = SIZES.widths
    N_LAYERS: tl.constexpr = SIZES.n_layers
    BIAS: tl.constexpr = SIZES.bias
    PER_ROW: tl.constexpr = SIZES.per_row
    ITEMS: tl.constexpr = SIZES.items
    HIDDEN: tl.constexpr = CONSTANTS.hidden
    OUTPUT: tl.constexpr = CONSTANTS.output
    # without a gradient the model is evaluated
    DROPOUT: tl.constexpr = CONSTANTS.no_dropout if grad_ptr is None else CONSTANTS.dropout
    N_IN: tl.constexpr = WIDTHS[0]
    N_OUT: tl.constexpr = WIDTHS[N_LAYERS]
    ins, outs = tl.arange(0, padded(N_IN)), tl.arange(0, padded(N_OUT))
    parameters = pointers(theta_ptr, WIDTHS, N_LAYERS, BIAS)
    total = tl.zeros((), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        here = inside[:, None] & (ins < N_IN)[None, :]
        x = tl.load(x_ptr + at[:, None] * N_IN + ins[None, :], mask=here, other=0.0)
        values, slopes = all_layers(
            x, parameters, mask_key, items, WIDTHS, N_LAYERS, HIDDEN, OUTPUT, DROPOUT, COMPUTE
        )  # fmt: skip
        wanted = inside[:, None] & (outs < N_OUT)[None, :]
        y = tl.load(y_ptr + at[:, None] * N_OUT + outs[None, :], mask=wanted, other=0.0)
        loss, g = loss_and_gradient(values[N_LAYERS], y, weight[:, None], wanted, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            back_through(
                g, values, slopes, parameters, mask_key, items, grad_ptr, e == 0, WIDTHS, N_LAYERS,
                HIDDEN, OUTPUT, DROPOUT, False, BIAS, COMPUTE,
            )  # fmt: skip
            # the next tile reads the sums that this one has written
            tl.debug_barrier()
    return total


@triton.jit
def mlp_on_cores(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """As `mlp`, with the products of :mod:`.cores`: weights are read, and sums written, once."""
    PER_ROW: tl.constexpr = SIZES.per_row
    ITEMS: tl.constexpr = SIZES.items
    BIAS: tl.constexpr = SIZES.bias
    NET: tl.constexpr = CONSTANTS.evaluated if grad_ptr is None else CONSTANTS.trained
    WIDTHS: tl.constexpr = NET.widths
    OPERAND: tl.constexpr = NET.operand
    DROPOUT: tl.constexpr = NET.dropout
    N_IN: tl.constexpr = WIDTHS[0]
    N_OUT: tl.constexpr = WIDTHS[NET.last]
    ins, outs = tl.arange(0, padded(N_IN)), tl.arange(0, padded(N_OUT))
    parameters = pointers(theta_ptr, WIDTHS, NET.last, BIAS)
    weights = load_weights(parameters, NET)
    weight_sums, bias_sums = zero_sums(NET)
    total = tl.zeros((), tl.float64)
    n_items = (stop - first) * PER_ROW
    for e in range(0, n_items, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        here = inside[:, None] & (ins < N_IN)[None, :]
        x = tl.load(x_ptr + at[:, None] * N_IN + ins[None, :], mask=here, other=0.0)
        x = drop(x, mask_key, items, WIDTHS, 0, DROPOUT, COMPUTE).to(OPERAND)
        biases = load_biases(parameters, n_items - e, NET)
        values, slopes, found = through_layers(x, weights, biases, mask_key, items, NET)
        wanted = inside[:, None] & (outs < N_OUT)[None, :]
        y = tl.load(y_ptr + at[:, None] * N_OUT + outs[None, :], mask=wanted, other=0.0)
        loss, g = loss_and_gradient(found, y, weight[:, None], wanted, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            _, weight_sums, bias_sums = back_on_cores(
                g, values, slopes, weights, weight_sums, bias_sums, mask_key, items, NET, True,
                False,
            )  # fmt: skip
    if grad_ptr is not None:
        store_sums(grad_ptr, weight_sums, bias_sums, NET, BIAS)
    return total


class Sizes(NamedTuple):
    """The model, items in a row of x, and items in a tile."""

    widths: tuple
    n_layers: int
    bias: int
    per_row: int
    items: int


class Constants(NamedTuple):
    """Functions of the activations; thresholds and factors of dropout, and those of none."""

    hidden: object
    output: object
    dropout: tuple
    no_dropout: tuple

    cache_key = property(key_of)


class Nets(NamedTuple):
    """The net as it is trained, and without dropout."""

    trained: object
    evaluated: object

    cache_key = property(key_of)


LARGE_BATCH = 64
"""Items from which on a batch is multiplied on tensor cores. Weights are read and sums written
once, not for each tile of 16 or 32; instructions an item on an sm_90 in full precision and in tf32,
beside those of `mlp`: 8-32-32-16 143 and 103 of 437, 8-64-64-1 218 and 140 of 1189."""


def is_large(sizes, n_in, batch_rows):
    """Whether batches of a net, a number or an array, are large enough for tensor cores."""
    _, widths = spec.layer_sizes(sizes)
    return batch_rows * (n_in // widths[0]) >= LARGE_BATCH


def cores_verb_of(sizes, constants, x, compute):
    """The verb on tensor cores for data ``x``, as products are set now; ``None`` if there is none.

    A net has one if its weights and their sums are on the chip at once.
    """
    (n_layers, bias, hidden, output), widths = spec.layer_sizes(sizes)
    products = choices.products_here(x, widths, x.dtype)
    if products is None or products.operand != compute:
        return None
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    trained, evaluated = _dropouts(constants, n_layers)
    net = Net(widths, 0, n_layers, functions[hidden], functions[output], trained, *products)
    tile = choices.tile_of("mlp_bwd", net, choices.target_of(x))
    if len(choices.segments(widths, tile)) > 1:
        return None
    per_row = x[0].numel() // widths[0]
    sizes = Sizes(widths, n_layers, bias, per_row, tile.rows)
    nets = Nets(net, net._replace(dropout=evaluated))
    return Verb(mlp_on_cores, sizes, nets, tile.warps)


def _dropouts(rates, n_layers):
    """What kernels take for the rates, one or one a layer and the input; and for none."""
    if len(rates) == 1:
        rates = 0.0, *rates * (n_layers - 1), 0.0
    return dropout_constants(*rates), dropout_constants(*[0.0] * len(rates))


def verb_of(sizes, constants, n_in, batch_rows, compute):
    (n_layers, bias, hidden, output), widths = spec.layer_sizes(sizes)
    config = mlp_config("mlp_bwd", widths, compute)
    per_row = n_in // widths[0]
    # all layers' values and slopes are kept
    rows = config.rows if n_layers <= 4 else config.rows // 2
    items = max(16, min(rows, triton.next_power_of_2(per_row * batch_rows)))
    # four values a thread, or two in float64, which take two registers each
    warps = min(config.warps, items * config.cols // (64 if compute == tl.float64 else 128))
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    sizes = Sizes(widths, n_layers, bias, per_row, items)
    dropout = _dropouts(constants, n_layers)
    return Verb(mlp, sizes, Constants(functions[hidden], functions[output], *dropout), warps)
