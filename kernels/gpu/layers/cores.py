"""Rows through layers on tensor cores, for the nets that :mod:`.choices` names.

The mathematics is that of :mod:`.rows`; what differs is where numbers are. Programs are persistent:
each loads the weights once, keeps them on the chip, and walks over tiles of rows. Backward computes
the activations of its tile again, and adds h_{l-1}^T g_l to accumulators in registers, which are
written once, behind the loop; programs are summed in their order afterwards.

Between layers numbers are of the operands' type: bfloat16 and float16 where tensors are, and
products take them, with sums in float32. For float32 products take tf32, or three terms of
bfloat16: :mod:`.products`.

A net is taken in segments of layers, between which the activations are in memory: weights must fit
onto the chip, and accumulators into the registers.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.keys import key_of
from ..machine.tiles import append, tile_size
from ..numbers.activations import identity, leaky_relu, relu_pair
from ..numbers.philox import load_key
from .products import add_product, dot, terms_of, times, transposed, without_infinities
from .rows import drop, load_weight, offset_of, padded


class Net(NamedTuple):
    """A net, and the segment of it that a kernel takes.

    Args:
        widths: Inputs, then outputs of each layer.
        first: The segment's first layer.
        last: The layer behind its last one.
        hidden: Activation of all layers but the net's last.
        output: That of the last.
        dropout: See `numbers/philox.py`.
        operand: Type of numbers between layers.
        terms: Terms of a number in products.
    """

    widths: tuple
    first: int
    last: int
    hidden: object
    output: object
    dropout: tuple
    operand: object
    terms: int

    cache_key = property(key_of)


@triton.jit
def load_transposed(parameters, NET: tl.constexpr, LAYER: tl.constexpr):
    """The transpose of the weights [in, out] in terms."""
    WIDTHS: tl.constexpr = NET.widths
    OPERAND: tl.constexpr = NET.operand
    TERMS: tl.constexpr = NET.terms
    N_IN: tl.constexpr = WIDTHS[LAYER]
    weight = load_weight(parameters[2 * LAYER], N_IN, WIDTHS[LAYER + 1], True, 0, padded(N_IN))
    return terms_of(weight.to(OPERAND), OPERAND, TERMS)


@triton.jit
def load_bias(parameters, n, NET: tl.constexpr, LAYER: tl.constexpr):
    """The biases [1, out] of a layer; none without rows."""
    WIDTHS: tl.constexpr = NET.widths
    N_OUT: tl.constexpr = WIDTHS[LAYER + 1]
    o = tl.arange(0, padded(N_OUT))
    if parameters[2 * LAYER + 1] is None:
        return tl.zeros((1, padded(N_OUT)), tl.float32)
    else:
        bias = tl.load(parameters[2 * LAYER + 1] + o, mask=(o < N_OUT) & (n > 0), other=0.0)
        return bias.to(tl.float32)[None, :]


@triton.jit
def append_weights(weights, weight):
    """As `append`, of which Triton 3.6 takes a call with tuples for one with tiles."""
    return weights + (weight,)  # noqa: RUF005


@triton.jit
def load_weights(parameters, NET: tl.constexpr):
    """Of all layers."""
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    weights = ()
    for layer in tl.static_range(FIRST, LAST):
        weights = append_weights(weights, load_transposed(parameters, NET, layer))
    return weights


@triton.jit
def load_biases(parameters, n, NET: tl.constexpr):
    """Of all layers."""
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    biases = ()
    for layer in tl.static_range(FIRST, LAST):
        biases = append(biases, load_bias(parameters, n, NET, layer))
    return biases


@triton.jit
def known(a, WIDTH: tl.constexpr):
    """A tile with 0 beyond the width: an infinity makes NaN of the padding's zeros."""
    if a.shape[1] == WIDTH:
        return a
    else:
        return tl.where((tl.arange(0, a.shape[1]) < WIDTH)[None, :], a, 0.0)


@triton.constexpr_function
def activation_of(net, layer):
    """That of a layer."""
    net = Net(*net)  # Triton 3.5 makes a plain tuple of it; so in those below
    return net.output if layer == len(net.widths) - 2 else net.hidden


@triton.constexpr_function
def is_straight(activation):
    """Whether the sign of σ(z) tells σ'(z)."""
    return activation in (relu_pair, leaky_relu, identity)


@triton.jit
def layer_value(h, weight, bias, key, rows, NET: tl.constexpr, LAYER: tl.constexpr):
    """The layer's output in the type of sums, and what tells backward of σ'(z)."""
    WIDTHS: tl.constexpr = NET.widths
    OPERAND: tl.constexpr = NET.operand
    TERMS: tl.constexpr = NET.terms
    DROPOUT: tl.constexpr = NET.dropout
    ACT: tl.constexpr = activation_of(NET, LAYER)
    z = times(terms_of(h, OPERAND, TERMS), weight, TERMS) + bias
    value, slope = ACT(z)
    value = known(value, WIDTHS[LAYER + 1])
    value = drop(value, key, rows, WIDTHS, LAYER + 1, DROPOUT, tl.float32)
    if is_straight(ACT):
        slope = value
    return value, slope.to(OPERAND)


@triton.jit
def through_layers(x, weights, biases, key, rows, NET: tl.constexpr):
    """The layers' inputs, what is kept of their slopes, and the output of the last."""
    OPERAND: tl.constexpr = NET.operand
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    values, slopes, value = (), (), x
    for layer in tl.static_range(FIRST, LAST):
        h = value.to(OPERAND)
        values = append(values, h)
        value, slope = layer_value(
            h, weights[layer - FIRST], biases[layer - FIRST], key, rows, NET, layer
        )
        slopes = append(slopes, slope)
    return values, slopes, value


@triton.jit
def times_kept(g, kept, ACT: tl.constexpr):
    """g σ'(z) from what layer_value gave; of an inactive ReLU 0 whatever g, as in PyTorch."""
    if relu_pair == ACT:
        return tl.where(kept <= 0.0, 0.0, g)
    elif leaky_relu == ACT:
        # a bare 0.01 would be a float32
        return tl.where(kept > 0.0, g, g * tl.full(g.shape, 0.01, g.dtype))
    elif identity == ACT:
        return g
    else:
        return g * kept.to(g.dtype)


@triton.jit
def within(n_rows, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Which places of a padded tile are among its first n_rows rows, and in the matrix."""
    r, cols = tl.arange(0, BLOCK_ROWS), tl.arange(0, padded(WIDTH))
    if padded(WIDTH) == WIDTH:
        return tl.broadcast_to((r < n_rows)[:, None], (BLOCK_ROWS, WIDTH))
    else:
        return (r < n_rows)[:, None] & (cols < WIDTH)[None, :]


@triton.jit
def places(ptr, first_row, row_stride, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers to a tile: what differs between tiles is one number. No stride: rows are dense."""
    r, cols = tl.arange(0, BLOCK_ROWS), tl.arange(0, padded(WIDTH))
    if row_stride is None:
        return ptr + first_row * WIDTH + (r[:, None] * WIDTH + cols[None, :])
    else:
        return ptr + first_row * row_stride + (r.to(tl.int64)[:, None] * row_stride + cols[None, :])


@triton.jit
def load_tile(
    ptr, first_row, n_rows, row_stride, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """Rows of a matrix, [BLOCK_ROWS, padded(WIDTH)], 0 outside."""
    ptrs = places(ptr, first_row, row_stride, BLOCK_ROWS, WIDTH)
    return tl.load(ptrs, mask=within(n_rows, BLOCK_ROWS, WIDTH), other=0.0).to(TYPE)


@triton.jit
def store_tile(
    ptr, values, first_row, n_rows, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Rows of a dense matrix."""
    ptrs = places(ptr, first_row, None, BLOCK_ROWS, WIDTH)
    tl.store(ptrs, values, mask=within(n_rows, BLOCK_ROWS, WIDTH))


@triton.jit
def mlp_cores_fwd_kernel(
    x_ptr, parameters, seed_ptr, y_ptr, n_rows, x_row_stride, NET: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """y, the output of the segment's last layer, from x, the input of its first.

    Shapes: x [n_rows, in]; y [n_rows, out]. Grid: programs that share the tiles
    of BLOCK_ROWS rows. Reads x once and the parameters once a program, writes y.
    """
    WIDTHS: tl.constexpr = NET.widths
    OPERAND: tl.constexpr = NET.operand
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    weights, biases = load_weights(parameters, NET), load_biases(parameters, n_rows, NET)
    key = load_key(seed_ptr)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_ROWS), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * BLOCK_ROWS
        n = tile_size(n_rows - start, BLOCK_ROWS)
        x = load_tile(x_ptr, start, n, x_row_stride, BLOCK_ROWS, WIDTHS[FIRST], OPERAND)
        rows = start + tl.arange(0, BLOCK_ROWS)
        _, _, y = through_layers(x, weights, biases, key, rows, NET)
        store_tile(y_ptr, y, start, n, BLOCK_ROWS, WIDTHS[LAST])


@triton.constexpr_function
def is_upright(net, layer):
    """Whether dW is summed as [in, out], not as [out, in].

    The first side is the one of which the tensor cores of Hopper want 64.
    """
    net = Net(*net)
    return padded(net.widths[layer]) >= padded(net.widths[layer + 1])


@triton.constexpr_function
def is_by_ones(net):
    """Whether biases are summed as products with ones: without tf32, of which those are exact."""
    net = Net(*net)
    return net.terms == 3 or net.operand != tl.float32


@triton.jit
def add_rows(acc, g, g_terms, NET: tl.constexpr):
    """acc + Σ g over the rows, for each of 16 alike: a tree of shuffles costs more registers."""
    TERMS: tl.constexpr = NET.terms
    if not is_by_ones(NET):
        return acc + tl.sum(g, axis=0)[None, :]
    else:
        ones = tl.full((16, g.shape[0]), 1.0, tl.float32)
        if TERMS == 1:
            return dot(ones.to(g_terms.dtype), g_terms, acc)
        else:
            ones = ones.to(tl.bfloat16)
            small = dot(ones, g_terms[1], dot(ones, g_terms[2]))
            return acc + dot(ones, g_terms[0], without_infinities(small))


@triton.jit
def zero_sum(NET: tl.constexpr, LAYER: tl.constexpr):
    """Sums of a layer's weights, and 16 of its biases, or one."""
    WIDTHS: tl.constexpr = NET.widths
    N_IN: tl.constexpr = padded(WIDTHS[LAYER])
    N_OUT: tl.constexpr = padded(WIDTHS[LAYER + 1])
    if is_upright(NET, LAYER):
        weight_sum = tl.zeros((N_IN, N_OUT), tl.float32)
    else:
        weight_sum = tl.zeros((N_OUT, N_IN), tl.float32)
    return weight_sum, tl.zeros((16 if is_by_ones(NET) else 1, N_OUT), tl.float32)


@triton.jit
def zero_sums(NET: tl.constexpr):
    """Sums of all layers, the last layer's first."""
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    weight_sums, bias_sums = (), ()
    for layer in tl.static_range(LAST - 1, FIRST - 1, -1):
        weight_sum, bias_sum = zero_sum(NET, layer)
        weight_sums, bias_sums = append(weight_sums, weight_sum), append(bias_sums, bias_sum)
    return weight_sums, bias_sums


@triton.jit
def add_layer(weight_sum, bias_sum, h, g, g_terms, NET: tl.constexpr, LAYER: tl.constexpr):
    """Add h^T g and Σ g of a tile to a layer's sums."""
    OPERAND: tl.constexpr = NET.operand
    TERMS: tl.constexpr = NET.terms
    h_terms = terms_of(h, OPERAND, TERMS)
    if is_upright(NET, LAYER):
        weight_sum = add_product(weight_sum, transposed(h_terms, TERMS), g_terms, TERMS)
    else:
        weight_sum = add_product(weight_sum, transposed(g_terms, TERMS), h_terms, TERMS)
    return weight_sum, add_rows(bias_sum, g, g_terms, NET)


@triton.jit
def store_sum(
    ptr, weight_sum, bias_sum, NET: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    """Write a layer's sums, each number once."""
    WIDTHS: tl.constexpr = NET.widths
    N_IN: tl.constexpr = WIDTHS[LAYER]
    N_OUT: tl.constexpr = WIDTHS[LAYER + 1]
    ptr += offset_of(WIDTHS, LAYER, BIAS)
    i, o = tl.arange(0, padded(N_IN)), tl.arange(0, padded(N_OUT))
    if is_upright(NET, LAYER):
        ptrs = ptr + o[None, :] * N_IN + i[:, None]
        inside = (i < N_IN)[:, None] & (o < N_OUT)[None, :]
    else:
        ptrs = ptr + o[:, None] * N_IN + i[None, :]
        inside = (o < N_OUT)[:, None] & (i < N_IN)[None, :]
    tl.store(ptrs, weight_sum, mask=inside)
    if BIAS:
        one = (tl.arange(0, bias_sum.shape[0]) == 0)[:, None]
        bias_sum = tl.sum(tl.where(one, bias_sum, 0.0), axis=0)
        tl.store(ptr + N_IN * N_OUT + o, bias_sum, mask=o < N_OUT)


@triton.jit
def store_sums(ptr, weight_sums, bias_sums, NET: tl.constexpr, BIAS: tl.constexpr):
    """Write the sums of all layers of the segment, in the layout of the whole net's parameters."""
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    for i in tl.static_range(LAST - FIRST):
        store_sum(ptr, weight_sums[i], bias_sums[i], NET, LAST - 1 - i, BIAS)


@triton.jit
def back_through(
    g, values, slopes, weights, weight_sums, bias_sums, key, rows, NET: tl.constexpr,
    SUM: tl.constexpr, DX: tl.constexpr,
):  # fmt: skip
    """From dL/dy of a tile back to dL/dx, which is returned if DX; and the sums, with SUM added to.

    The factors of dropout in front of the segment are the matter of the one before.
    """
    WIDTHS: tl.constexpr = NET.widths
    OPERAND: tl.constexpr = NET.operand
    TERMS: tl.constexpr = NET.terms
    DROPOUT: tl.constexpr = NET.dropout
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    new_weight_sums, new_bias_sums = (), ()
    for layer in tl.static_range(LAST - 1, FIRST - 1, -1):
        g = drop(g, key, rows, WIDTHS, layer + 1, DROPOUT, tl.float32)
        g = times_kept(g, slopes[layer - FIRST], activation_of(NET, layer))
        g_terms = terms_of(g, OPERAND, TERMS)
        weight_sum, bias_sum = weight_sums[LAST - 1 - layer], bias_sums[LAST - 1 - layer]
        if SUM:
            weight_sum, bias_sum = add_layer(
                weight_sum, bias_sum, values[layer - FIRST], g, g_terms, NET, layer
            )  # fmt: skip
        new_weight_sums = append(new_weight_sums, weight_sum)
        new_bias_sums = append(new_bias_sums, bias_sum)
        if layer > FIRST or DX:
            g = times(g_terms, transposed(weights[layer - FIRST], TERMS), TERMS)
            g = known(g, WIDTHS[layer])
    return g, new_weight_sums, new_bias_sums


@triton.constexpr_function
def n_parameters(net):
    """Of the whole net, a bias for each unit."""
    net = Net(*net)
    return offset_of(net.widths, len(net.widths) - 1, True)


@triton.jit
def mlp_cores_bwd_kernel(
    dy_ptr, x_ptr, parameters, seed_ptr, dx_ptr, partial_ptr, n_rows, piece_rows, dy_row_stride,
    x_row_stride, NET: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """dx, and a piece's sums for the segment's parameters; neither where its pointer is None.

    Shapes: dy [n_rows, out]; x, dx [n_rows, in]; partial [pieces, parameters of the whole net].
    Grid: one program per piece of rows, which walks over tiles of BLOCK_ROWS. Reads x and dy once
    and the parameters once a program, writes dx and, once a program, the sums.
    """
    WIDTHS: tl.constexpr = NET.widths
    OPERAND: tl.constexpr = NET.operand
    FIRST: tl.constexpr = NET.first
    LAST: tl.constexpr = NET.last
    weights = load_weights(parameters, NET)
    key = load_key(seed_ptr)
    first = tl.program_id(0).to(tl.int64) * piece_rows
    length = tile_size(n_rows - first, piece_rows)
    weight_sums, bias_sums = zero_sums(NET)
    for i in range(0, length, BLOCK_ROWS):
        start, n = first + i, length - i
        x = load_tile(x_ptr, start, n, x_row_stride, BLOCK_ROWS, WIDTHS[FIRST], OPERAND)
        dy = load_tile(dy_ptr, start, n, dy_row_stride, BLOCK_ROWS, WIDTHS[LAST], tl.float32)
        rows = start + tl.arange(0, BLOCK_ROWS)
        # there are no registers for them across the loop, and n keeps them in it
        biases = load_biases(parameters, n, NET)
        values, slopes, _ = through_layers(x, weights, biases, key, rows, NET)
        dx, weight_sums, bias_sums = back_through(
            dy, values, slopes, weights, weight_sums, bias_sums, key, rows, NET,
            partial_ptr is not None, dx_ptr is not None,
        )  # fmt: skip
        if dx_ptr is not None:
            store_tile(dx_ptr, dx, start, n, BLOCK_ROWS, WIDTHS[FIRST])
    if partial_ptr is not None:
        partial_ptr += tl.program_id(0).to(tl.int64) * n_parameters(NET)
        store_sums(partial_ptr, weight_sums, bias_sums, NET, True)
