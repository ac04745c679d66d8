"""The verb of every model that can be trained whole: see :mod:`.loop` for its contract.

A row of x is ``PER_ROW`` items, each of them what the model takes at a time: a number, or the
numbers of the last dimension. A tile is some items; sums over units and features are within it, so
that :data:`MAX_TILE` bounds the sizes of a model. Gradients are summed tile by tile in registers.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ... import spec
from ..machine.launch import mlp_config
from ..mlp import all_layers, back_through, padded
from ..numbers.activations import (
    ACTIVATIONS,
    cos_turns,
    preactivation,
    reduce_turns_any,
    sin_turns,
    times_slope,
)
from ..numbers.order import rows_of
from ..numbers.philox import dropout_constants, philox
from ..subnet.dense_units import drop, first_words
from .loop import loss_and_slope

TILE = 2048
"""Elements in a tile, about; half of them in float64."""

MAX_TILE = 8192
"""Elements of one item in a tile: units times features, each rounded up to a power of two."""

SINE_ELEMENTS, SUBNET_ELEMENTS = 16, 8
"""Elements a thread; a subnet keeps three sums of each."""

NO_DROPOUT = tl.constexpr(dropout_constants(0.0, 0.0, 0.0))


@triton.jit
def find(
    items, first, stop, keys, n_rows, weight_ptr,
    PER_ROW: tl.constexpr, SHUFFLE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Where the items of a batch are in x and y, which of them there are, and their weights."""
    positions = first + items // PER_ROW
    inside = positions < stop
    rows = rows_of(positions, stop, keys, n_rows, SHUFFLE)
    if weight_ptr is None:
        weight = inside.to(COMPUTE)
    else:
        weight = tl.load(weight_ptr + rows, mask=inside, other=0.0)
    return rows * PER_ROW + items % PER_ROW, inside, weight


@triton.jit
def loss_and_gradient(y_hat, y, weight, wanted, scale, LOSS: tl.constexpr):
    """Σ w·ℓ(ŷ, y) over what is wanted of a tile, in float64, and scale·w·∂ℓ/∂ŷ, 0 elsewhere."""
    loss, slope = loss_and_slope(y_hat, y, LOSS)
    total = tl.sum(tl.where(wanted, weight * loss, 0.0).to(tl.float64))
    return total, tl.where(wanted, scale * weight * slope, 0.0)


@triton.jit
def sine_sum(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i) of every number of a row."""
    WIDTH: tl.constexpr = SIZES[0]
    HAS_A: tl.constexpr = SIZES[1]
    HAS_PHASE: tl.constexpr = SIZES[2]
    PER_ROW: tl.constexpr = SIZES[3]
    BLOCK: tl.constexpr = SIZES[4]
    ITEMS: tl.constexpr = SIZES[5]
    TURNS: tl.constexpr = CONSTANTS[0]
    FACTOR: tl.constexpr = CONSTANTS[1]
    units = tl.arange(0, BLOCK)
    known = units < WIDTH
    w = tl.load(theta_ptr + units, mask=known, other=0.0)
    frequency = w * tl.full((), TURNS, COMPUTE)
    a = known.to(COMPUTE)
    if HAS_A:
        a = tl.load(theta_ptr + WIDTH + units, mask=known, other=0.0)
    phase = None
    PHASE_AT: tl.constexpr = WIDTH * (1 + HAS_A)
    if HAS_PHASE:
        phase = tl.load(theta_ptr + PHASE_AT + units, mask=known, other=0.0)
        phase = (phase * tl.full((), 0.15915494309189535, COMPUTE))[None, :]
    dw = tl.zeros((BLOCK,), COMPUTE)
    da = tl.zeros((BLOCK,), COMPUTE)
    dphase = tl.zeros((BLOCK,), COMPUTE)
    total = tl.zeros((), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        y = tl.load(y_ptr + at, mask=inside, other=0.0)
        r = reduce_turns_any(frequency[None, :], tl.broadcast_to(x[:, None], (ITEMS, BLOCK)), phase)
        sines = sin_turns(r)
        y_hat = tl.sum(sines * a[None, :], axis=1) * tl.full((), FACTOR, COMPUTE)
        loss, g = loss_and_gradient(y_hat, y, weight, inside, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            g *= tl.full((), FACTOR, COMPUTE)
            cosines = cos_turns(r)
            dw += tl.sum((g * x)[:, None] * cosines, axis=0)
            if HAS_A:
                da += tl.sum(g[:, None] * sines, axis=0)
            if HAS_PHASE:
                dphase += tl.sum(g[:, None] * cosines, axis=0)
    if grad_ptr is not None:
        dw *= a * tl.full((), TURNS * 6.283185307179586, COMPUTE)
        tl.store(grad_ptr + units, dw, mask=known)
        if HAS_A:
            tl.store(grad_ptr + WIDTH + units, da, mask=known)
        if HAS_PHASE:
            tl.store(grad_ptr + PHASE_AT + units, dphase * a, mask=known)
    return total


@triton.jit
def hidden_masks(key, place, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr):
    """Factors [items, features, BLOCK] by the first masks of some places: 2 + k is unit k's."""
    blocks = tl.arange(0, BLOCK // 8)[None, None, :]
    w0, w1, w2, w3 = philox(key, place[:, :, None], blocks)
    # the last dimension joined is the fastest: which half, then the low bit of which word
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    halves = tl.join(words & 0xFFFF, words >> 16)
    halves = tl.reshape(halves, (place.shape[0], place.shape[1], BLOCK))
    return tl.where(halves >= DROPOUT[2], tl.full((), DROPOUT[3], COMPUTE), 0.0)


@triton.jit
def sum_items(terms, STACKED: tl.constexpr):
    """Sums over items of [items, features, units], and over features unless each has its own."""
    total = tl.sum(terms, axis=0)
    if STACKED:
        return total
    else:
        return tl.sum(total, axis=0)[None, :]


@triton.jit
def subnet(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y_m = Σ_j V_mj f_j(x_j) + c_m, or without a read-out y = f(x) of every number.

    f(x) = m_out (Σ_k v_k m_k σ(w_k m_in x + b_k) + d), one for all features or one for each, the
    masks m of the element's place in the batch.
    """
    H: tl.constexpr = SIZES[0]
    BIAS: tl.constexpr = SIZES[1]
    F: tl.constexpr = SIZES[2]
    M: tl.constexpr = SIZES[3]
    STACKED: tl.constexpr = SIZES[4]
    READOUT: tl.constexpr = SIZES[5]
    PER_ROW: tl.constexpr = SIZES[6]
    BLOCK: tl.constexpr = SIZES[7]
    BLOCK_F: tl.constexpr = SIZES[8]
    BLOCK_M: tl.constexpr = SIZES[9]
    ITEMS: tl.constexpr = SIZES[10]
    ACT: tl.constexpr = CONSTANTS[0]
    # without a gradient the model is evaluated
    DROPOUT: tl.constexpr = NO_DROPOUT if grad_ptr is None else CONSTANTS[1]
    NETS: tl.constexpr = F if STACKED else 1
    BLOCK_NETS: tl.constexpr = BLOCK_F if STACKED else 1
    V_AT: tl.constexpr = NETS * H * (1 + BIAS)
    D_AT: tl.constexpr = V_AT + NETS * H
    READOUT_AT: tl.constexpr = D_AT + NETS * BIAS
    C_AT: tl.constexpr = READOUT_AT + M * F
    # the first two masks are the input's and the output's: a unit is where its mask is
    SHIFT: tl.constexpr = 2 if DROPOUT[2] >= 0 else 0
    units = tl.arange(0, BLOCK) - SHIFT
    nets, features, outs = tl.arange(0, BLOCK_NETS), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_M)
    at_units = nets[:, None] * H + units[None, :]
    known = (nets < NETS)[:, None] & ((units >= 0) & (units < H))[None, :]
    at_readout = outs[None, :] * F + features[:, None]
    linked = (features < F)[:, None] & (outs < M)[None, :]
    w = tl.load(theta_ptr + at_units, mask=known, other=0.0)[None, :, :]
    v = tl.load(theta_ptr + V_AT + at_units, mask=known, other=0.0)[None, :, :]
    b = tl.zeros((1, BLOCK_NETS, BLOCK), COMPUTE)
    d = tl.zeros((1, BLOCK_NETS), COMPUTE)
    c = tl.zeros((1, BLOCK_M), COMPUTE)
    readout = tl.zeros((1, BLOCK_F, BLOCK_M), COMPUTE)
    if BIAS:
        b = tl.load(theta_ptr + NETS * H + at_units, mask=known, other=0.0)[None, :, :]
        d = tl.load(theta_ptr + D_AT + nets, mask=nets < NETS, other=0.0)[None, :]
    if READOUT:
        readout = tl.load(theta_ptr + READOUT_AT + at_readout, mask=linked, other=0.0)[None, :, :]
        if BIAS:
            c = tl.load(theta_ptr + C_AT + outs, mask=outs < M, other=0.0)[None, :]
    dw = tl.zeros((ITEMS, BLOCK_F, BLOCK), COMPUTE)
    db = tl.zeros((ITEMS, BLOCK_F, BLOCK), COMPUTE)
    dv = tl.zeros((ITEMS, BLOCK_F, BLOCK), COMPUTE)
    dd = tl.zeros((ITEMS, BLOCK_F), COMPUTE)
    dreadout = tl.zeros((ITEMS, BLOCK_F, BLOCK_M), COMPUTE)
    dc = tl.zeros((ITEMS, BLOCK_M), COMPUTE)
    total = tl.zeros((), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        here = inside[:, None] & (features < F)[None, :]
        x = tl.load(x_ptr + at[:, None] * F + features[None, :], mask=here, other=0.0)
        place, words = first_words(x, mask_key, items, features, F, DROPOUT)
        x = drop(x, words, 0, 0, DROPOUT)
        xs = tl.broadcast_to(x[:, :, None], (ITEMS, BLOCK_F, BLOCK))
        value, slope = ACT(preactivation(xs, w, b))
        masks = tl.full((1, 1, 1), 1.0, COMPUTE)
        if DROPOUT[2] >= 0:
            masks = hidden_masks(mask_key, place, BLOCK, DROPOUT, COMPUTE)
            value *= masks
        f = drop(tl.sum(value * v, axis=2) + d, words, 1, 2, DROPOUT)
        y_hat = f
        if READOUT:
            y_hat = tl.sum(f[:, :, None] * readout, axis=1) + c
        wanted = inside[:, None] & (outs < M)[None, :]
        y = tl.load(y_ptr + at[:, None] * M + outs[None, :], mask=wanted, other=0.0)
        loss, g = loss_and_gradient(y_hat, y, weight[:, None], wanted, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            df = g
            if READOUT:
                dreadout += f[:, :, None] * g[:, None, :]
                dc += g
                df = tl.sum(readout * g[:, None, :], axis=2)
            df = drop(df, words, 1, 2, DROPOUT)
            dd += df
            dfs = tl.broadcast_to(df[:, :, None], (ITEMS, BLOCK_F, BLOCK))
            dv += dfs * value
            dz = times_slope(dfs * masks, slope, ACT)
            dw += dz * xs
            db += dz
    if grad_ptr is not None:
        v = tl.load(theta_ptr + V_AT + at_units, mask=known, other=0.0)
        tl.store(grad_ptr + at_units, sum_items(dw, STACKED) * v, mask=known)
        tl.store(grad_ptr + V_AT + at_units, sum_items(dv, STACKED), mask=known)
        if BIAS:
            tl.store(grad_ptr + NETS * H + at_units, sum_items(db, STACKED) * v, mask=known)
            dd = tl.sum(sum_items(dd[:, :, None], STACKED), axis=1)
            tl.store(grad_ptr + D_AT + nets, dd, mask=nets < NETS)
        if READOUT:
            tl.store(grad_ptr + READOUT_AT + at_readout, tl.sum(dreadout, axis=0), mask=linked)
            if BIAS:
                tl.store(grad_ptr + C_AT + outs, tl.sum(dc, axis=0), mask=outs < M)
    return total


@triton.jit
def mlp(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, mask_key, first, stop, n_rows, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """h_l = σ_l(W_l h_{l-1} + b_l) of every item."""
    WIDTHS: tl.constexpr = SIZES[0]
    N_LAYERS: tl.constexpr = SIZES[1]
    BIAS: tl.constexpr = SIZES[2]
    PER_ROW: tl.constexpr = SIZES[3]
    ITEMS: tl.constexpr = SIZES[4]
    HIDDEN: tl.constexpr = CONSTANTS[0]
    OUTPUT: tl.constexpr = CONSTANTS[1]
    # without a gradient the model is evaluated
    DROPOUT: tl.constexpr = NO_DROPOUT if grad_ptr is None else CONSTANTS[2]
    N_IN: tl.constexpr = WIDTHS[0]
    N_OUT: tl.constexpr = WIDTHS[N_LAYERS]
    ins, outs = tl.arange(0, padded(N_IN)), tl.arange(0, padded(N_OUT))
    total = tl.zeros((), tl.float64)
    for e in range(0, (stop - first) * PER_ROW, ITEMS):
        items = e + tl.arange(0, ITEMS)
        at, inside, weight = find(
            items, first, stop, keys, n_rows, weight_ptr, PER_ROW, SHUFFLE, COMPUTE
        )
        here = inside[:, None] & (ins < N_IN)[None, :]
        x = tl.load(x_ptr + at[:, None] * N_IN + ins[None, :], mask=here, other=0.0)
        values, slopes = all_layers(
            x, theta_ptr, mask_key, items, WIDTHS, N_LAYERS, HIDDEN, OUTPUT, DROPOUT, BIAS,
            COMPUTE,
        )  # fmt: skip
        wanted = inside[:, None] & (outs < N_OUT)[None, :]
        y = tl.load(y_ptr + at[:, None] * N_OUT + outs[None, :], mask=wanted, other=0.0)
        loss, g = loss_and_gradient(values[N_LAYERS], y, weight[:, None], wanted, scale, LOSS)
        total += loss
        if grad_ptr is not None:
            back_through(
                g, values, slopes, theta_ptr, mask_key, items, grad_ptr, e == 0, WIDTHS, N_LAYERS,
                HIDDEN, OUTPUT, DROPOUT, False, BIAS, COMPUTE,
            )  # fmt: skip
            # the next tile reads the sums that this one has written
            tl.debug_barrier()
    return total


class Verb(NamedTuple):
    """How to launch the training of one structure.

    Args:
        function: The verb.
        sizes: SIZES of the verb.
        constants: CONSTANTS of the verb.
        warps: Warps of a program.
    """

    function: object
    sizes: tuple
    constants: tuple
    warps: int


def _items(elements, n_items, compute, per_thread):
    """Items in a tile of ``elements`` each, and warps; no more than a batch has."""
    if elements > MAX_TILE:
        raise ValueError(
            f"its units times features, each rounded up to a power of two, take {elements} places "
            f"in a tile, which has {MAX_TILE}"
        )
    size = TILE // 2 if compute == tl.float64 else TILE
    items = max(1, min(size // elements, triton.next_power_of_2(n_items)))
    return items, max(1, min(16, items * elements // (32 * per_thread)))


def _sine_sum(sizes, constants, n_in, batch_rows, compute):
    block = triton.next_power_of_2(sizes[0])
    items, warps = _items(block, n_in * batch_rows, compute, SINE_ELEMENTS)
    return Verb(sine_sum, (*sizes, n_in, block, items), constants, warps)


def _subnet(sizes, dropout, activation, stacked, has_readout, n_in, batch_rows, compute):
    n_hidden, _, features, outs = sizes
    blocks = [triton.next_power_of_2(n) for n in (n_hidden, features, outs)]
    if dropout[1] > 0:
        blocks[0] = max(8, triton.next_power_of_2(n_hidden + 2))
    per_row = n_in // features
    elements = blocks[1] * max(blocks[0], blocks[2])
    items, warps = _items(elements, per_row * batch_rows, compute, SUBNET_ELEMENTS)
    sizes = *sizes, stacked, has_readout, per_row, *blocks, items
    constants = (
        spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)[activation],
        dropout_constants(*dropout),
    )
    return Verb(subnet, sizes, constants, warps)


def _elementwise_mlp(sizes, constants, *batch):
    return _subnet((*sizes, 1, 1), (0.0, 0.0, 0.0), 0, 0, 0, *batch)


def _additive_mlp(sizes, constants, *batch):
    return _subnet(sizes, (0.0, 0.0, 0.0), 0, 0, 1, *batch)


def _dense(sizes, dropout, *batch):
    return _subnet(sizes[:4], dropout, *sizes[4:7], *batch)


def _mlp(sizes, constants, n_in, batch_rows, compute):
    n_layers, bias, hidden, output, *widths = sizes
    config = mlp_config("mlp_bwd", tuple(widths), compute)
    per_row = n_in // widths[0]
    # all layers' values and slopes are kept
    rows = config.rows if n_layers <= 4 else config.rows // 2
    items = max(16, min(rows, triton.next_power_of_2(per_row * batch_rows)))
    # four values a thread, or two in float64, which take two registers each
    warps = min(config.warps, items * config.cols // (64 if compute == tl.float64 else 128))
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    sizes = tuple(widths), n_layers, bias, per_row, items
    constants = functions[hidden], functions[output], dropout_constants(*constants)
    return Verb(mlp, sizes, constants, warps)


VERBS = {
    "sine_sum": _sine_sum,
    "elementwise_mlp": _elementwise_mlp,
    "additive_mlp": _additive_mlp,
    "dense": _dense,
    "mlp": _mlp,
}
"""Every model by the name of its op: the function of its sizes and constants, as in
`kernels/cpu/training/models.py`, of the numbers in a row of x, the rows of a batch and the compute
type that gives the :class:`Verb`."""
