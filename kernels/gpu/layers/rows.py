"""Rows through layers: h_0 = x, h_l = σ_l(W_l h_{l-1} + b_l), y = h_L, widths up to 128.

A program takes a tile of rows through the whole net; the activations of a layer, padded to a power
of two of at least 16, stay in registers and shared memory. Forward reads x and writes y. Backward
reads x and dy, computes the activations again, and follows the chain rule back: with
g_L = dy σ'(z_L), dW_l = g_l^T h_{l-1}, db_l = Σ g_l, g_{l-1} = (g_l W_l) σ'(z_{l-1}), dx = g_1 W_1.
Products are float32 that is float32, never tf32. With dropout the outputs of hidden layers are
h_l = m_l σ_l(…), m_l the factors of `numbers/philox.py`, made again in backward for h_l and g_l.

The parameters come as pointers W_1, b_1, W_2, b_2, …, None for a missing bias, their gradient as
one vector.
"""

import triton
import triton.language as tl

from ..machine.tiles import append, tile_size
from ..numbers.activations import times_slope
from ..numbers.philox import layer_mask, load_key

# terms of a product at a time: a thread holds all terms of the values that it computes
MAX_TERMS = tl.constexpr(32)


@triton.constexpr_function
def padded(width):
    """What a layer's width is padded to: tl.dot takes powers of two from 16."""
    return max(16, 1 << (width - 1).bit_length())


@triton.constexpr_function
def offset_of(widths, layer, bias):
    """Where the parameters of a layer start."""
    return sum((widths[i] + bias) * widths[i + 1] for i in range(layer))


@triton.jit
def pointers(theta_ptr, WIDTHS: tl.constexpr, N_LAYERS: tl.constexpr, BIAS: tl.constexpr):
    """To weights and biases in turn, which lie in one vector."""
    parameters = ()
    for layer in tl.static_range(N_LAYERS):
        weight_ptr = theta_ptr + offset_of(WIDTHS, layer, BIAS)
        bias_ptr = weight_ptr + WIDTHS[layer] * WIDTHS[layer + 1] if BIAS else None
        parameters = append(append(parameters, weight_ptr), bias_ptr)
    return parameters


@triton.jit
def load_rows(ptr, rows, last_row, row_stride, WIDTH: tl.constexpr, COMPUTE: tl.constexpr):
    """Rows of a matrix, [rows, padded(WIDTH)], 0 outside."""
    cols = tl.arange(0, padded(WIDTH))
    inside = (rows < last_row)[:, None] & (cols < WIDTH)[None, :]
    ptrs = ptr + rows.to(tl.int64)[:, None] * row_stride + cols[None, :]
    return tl.load(ptrs, mask=inside, other=0.0).to(COMPUTE)


@triton.jit
def load_weight(
    weight_ptr, N_IN: tl.constexpr, N_OUT: tl.constexpr, TRANSPOSED: tl.constexpr,
    FIRST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of W [out, in] of a layer, or of its transpose [in, out], padded with 0."""
    block = FIRST + tl.arange(0, BLOCK)
    if TRANSPOSED:
        o = tl.arange(0, padded(N_OUT))
        inside = (block < N_IN)[:, None] & (o < N_OUT)[None, :]
        return tl.load(weight_ptr + o[None, :] * N_IN + block[:, None], mask=inside, other=0.0)
    else:
        i = tl.arange(0, padded(N_IN))
        inside = (block < N_OUT)[:, None] & (i < N_IN)[None, :]
        return tl.load(weight_ptr + block[:, None] * N_IN + i[None, :], mask=inside, other=0.0)


@triton.jit
def product(a, b, COMPUTE: tl.constexpr):
    """A matrix product in the full precision of its type."""
    return tl.dot(a, b, input_precision="ieee", out_dtype=COMPUTE)


@triton.jit
def halve_blocks(blocks, N: tl.constexpr):
    """The left and the right half of each of N tiles."""
    halves = ()
    for i in tl.static_range(N):
        a = blocks[i]
        pairs = tl.reshape(a, (a.shape[0], 2, a.shape[1] // 2))
        left, right = tl.split(tl.permute(pairs, (0, 2, 1)))
        halves = append(append(halves, left), right)
    return halves


@triton.jit
def column_blocks(a):
    """A tile in blocks of up to MAX_TERMS columns; of up to four of them, for 128 columns."""
    blocks = (a,)
    if a.shape[1] > MAX_TERMS:
        blocks = halve_blocks(blocks, 1)
    if a.shape[1] > 2 * MAX_TERMS:
        blocks = halve_blocks(blocks, 2)
    return blocks


@triton.jit
def times_weight(
    a, weight_ptr, N_IN: tl.constexpr, N_OUT: tl.constexpr, TRANSPOSED: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """a W, or a W^T if TRANSPOSED."""
    BLOCK: tl.constexpr = a.shape[1] if a.shape[1] < MAX_TERMS else MAX_TERMS
    blocks = column_blocks(a)
    weight = load_weight(weight_ptr, N_IN, N_OUT, TRANSPOSED, 0, BLOCK)
    total = product(blocks[0], weight.to(COMPUTE), COMPUTE)
    for i in tl.static_range(1, a.shape[1] // BLOCK):
        weight = load_weight(weight_ptr, N_IN, N_OUT, TRANSPOSED, i * BLOCK, BLOCK)
        total += product(blocks[i], weight.to(COMPUTE), COMPUTE)
    return total


@triton.jit
def layer_value(
    h, weight_ptr, bias_ptr, N_IN: tl.constexpr, N_OUT: tl.constexpr, ACT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """σ(W h + b) and σ' there, 0 beyond the layer's width."""
    o = tl.arange(0, padded(N_OUT))
    z = times_weight(h, weight_ptr, N_IN, N_OUT, True, COMPUTE)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + o, mask=o < N_OUT, other=0.0).to(COMPUTE)[None, :]
    value, slope = ACT(z)
    # an infinite h makes NaN of the padding's zeros
    return tl.where((o < N_OUT)[None, :], value, 0.0), slope


@triton.jit
def drop(
    h, key, rows, WIDTHS: tl.constexpr, LAYER: tl.constexpr, DROPOUT: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """The outputs of layer LAYER, for 0 the input, or the gradient there, times the factors."""
    if DROPOUT[2 * LAYER] < 0:
        return h
    else:
        WIDTH: tl.constexpr = padded(WIDTHS[LAYER])
        return h * layer_mask(key, rows, LAYER, WIDTH, DROPOUT, COMPUTE)


@triton.jit
def all_layers(
    h, parameters, key, rows, WIDTHS: tl.constexpr, N_LAYERS: tl.constexpr, HIDDEN: tl.constexpr,
    OUTPUT: tl.constexpr, DROPOUT: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """h_0 … h_L, and σ' of the layers 1 … L; key and rows are those of the dropout factors."""
    h = drop(h, key, rows, WIDTHS, 0, DROPOUT, COMPUTE)
    values = (h,)
    slopes = ()
    for layer in tl.static_range(N_LAYERS - 1):
        h, slope = layer_value(
            h, parameters[2 * layer], parameters[2 * layer + 1], WIDTHS[layer], WIDTHS[layer + 1],
            HIDDEN, COMPUTE,
        )  # fmt: skip
        h = drop(h, key, rows, WIDTHS, layer + 1, DROPOUT, COMPUTE)
        values = append(values, h)
        slopes = append(slopes, slope)
    h, slope = layer_value(
        h, parameters[2 * N_LAYERS - 2], parameters[2 * N_LAYERS - 1], WIDTHS[N_LAYERS - 1],
        WIDTHS[N_LAYERS], OUTPUT, COMPUTE,
    )  # fmt: skip
    h = drop(h, key, rows, WIDTHS, N_LAYERS, DROPOUT, COMPUTE)
    return append(values, h), append(slopes, slope)


@triton.jit
def mlp_fwd_kernel(
    x_ptr, parameters, seed_ptr, y_ptr, n_rows, x_row_stride,
    WIDTHS: tl.constexpr, N_LAYERS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUT: tl.constexpr,
    DROPOUT: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """y = h_L.

    Shapes: x [n_rows, WIDTHS[0]]; y [n_rows, WIDTHS[N_LAYERS]]. Grid: one program per BLOCK_ROWS
    rows. Reads x and the parameters, writes y.
    """
    N_OUT: tl.constexpr = WIDTHS[N_LAYERS]
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    h = load_rows(x_ptr, rows, n_rows, x_row_stride, WIDTHS[0], COMPUTE)
    key = load_key(seed_ptr)
    values, _ = all_layers(
        h, parameters, key, rows, WIDTHS, N_LAYERS, HIDDEN, OUTPUT, DROPOUT, COMPUTE
    )
    cols = tl.arange(0, padded(N_OUT))
    inside = (rows < n_rows)[:, None] & (cols < N_OUT)[None, :]
    tl.store(y_ptr + rows[:, None] * N_OUT + cols[None, :], values[N_LAYERS], mask=inside)


@triton.jit
def product_over_rows(a, b, COMPUTE: tl.constexpr):
    """a^T b, up to MAX_TERMS rows at a time; with 64 rows Triton 3.6 spills on sm_80."""
    a_blocks, b_blocks = column_blocks(tl.trans(a)), column_blocks(tl.trans(b))
    BLOCKS: tl.constexpr = (a.shape[0] + MAX_TERMS - 1) // MAX_TERMS
    total = product(a_blocks[0], tl.trans(b_blocks[0]), COMPUTE)
    for i in tl.static_range(1, BLOCKS):
        total += product(a_blocks[i], tl.trans(b_blocks[i]), COMPUTE)
    return total


@triton.jit
def add_layer_gradient(
    grad_ptr, g, h, first, WIDTHS: tl.constexpr, LAYER: tl.constexpr, BIAS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Add g^T h and Σ g of a tile to the sums; ``first`` where there are none yet."""
    N_IN: tl.constexpr = WIDTHS[LAYER]
    N_OUT: tl.constexpr = WIDTHS[LAYER + 1]
    BLOCK: tl.constexpr = g.shape[1] if g.shape[1] < MAX_TERMS else MAX_TERMS
    i = tl.arange(0, padded(N_IN))
    blocks = column_blocks(g)
    for k in tl.static_range(g.shape[1] // BLOCK):
        o = k * BLOCK + tl.arange(0, BLOCK)
        ptrs = grad_ptr + offset_of(WIDTHS, LAYER, BIAS) + o[:, None] * N_IN + i[None, :]
        inside = (o < N_OUT)[:, None] & (i < N_IN)[None, :]
        old = tl.load(ptrs, mask=inside & (first == 0), other=0.0)
        tl.store(ptrs, old + product_over_rows(blocks[k], h, COMPUTE), mask=inside)
    if BIAS:
        o = tl.arange(0, padded(N_OUT))
        bias_ptrs = grad_ptr + offset_of(WIDTHS, LAYER, BIAS) + N_IN * N_OUT + o
        old = tl.load(bias_ptrs, mask=(o < N_OUT) & (first == 0), other=0.0)
        tl.store(bias_ptrs, old + tl.sum(g, axis=0), mask=o < N_OUT)


@triton.jit
def back_through(
    g, values, slopes, parameters, key, rows, grad_ptr, first, WIDTHS: tl.constexpr,
    N_LAYERS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUT: tl.constexpr, DROPOUT: tl.constexpr,
    DX: tl.constexpr, BIAS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """From dL/dy back to dL/dx, which is returned if DX; adds up all gradients but for None.

    Nobody asks for the dL/dx of an input that is dropped.
    """
    g = drop(g, key, rows, WIDTHS, N_LAYERS, DROPOUT, COMPUTE)
    g = times_slope(g, slopes[N_LAYERS - 1], OUTPUT)
    for layer in tl.static_range(N_LAYERS - 1, -1, -1):
        if grad_ptr is not None:
            add_layer_gradient(grad_ptr, g, values[layer], first, WIDTHS, layer, BIAS, COMPUTE)
        if layer > 0 or DX:
            g = times_weight(
                g, parameters[2 * layer], WIDTHS[layer], WIDTHS[layer + 1], False, COMPUTE
            )  # fmt: skip
            # an infinite g makes NaN of the padding's zeros
            cols = tl.arange(0, padded(WIDTHS[layer]))
            g = tl.where((cols < WIDTHS[layer])[None, :], g, 0.0)
        if layer > 0:
            g = drop(g, key, rows, WIDTHS, layer, DROPOUT, COMPUTE)
            g = times_slope(g, slopes[layer - 1], HIDDEN)
    return g


@triton.jit
def mlp_bwd_kernel(
    dy_ptr, x_ptr, parameters, seed_ptr, dx_ptr, partial_ptr, n_rows, piece_rows, dy_row_stride,
    x_row_stride,
    WIDTHS: tl.constexpr, N_LAYERS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUT: tl.constexpr,
    DROPOUT: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """dx, and a piece's sums for all parameters; neither where its pointer is None.

    Shapes: dy [n_rows, out]; x, dx [n_rows, in]; partial [pieces, parameters]. Grid: one program
    per piece of rows, which walks over tiles of BLOCK_ROWS. Reads x and dy, writes dx; the sums are
    read and written once a tile, in a level-2 cache.
    """
    N_IN: tl.constexpr = WIDTHS[0]
    start = tl.program_id(0).to(tl.int64) * piece_rows
    length = tile_size(n_rows - start, piece_rows)
    key = load_key(seed_ptr)
    last_row = start + length
    if partial_ptr is not None:
        partial_ptr += tl.program_id(0).to(tl.int64) * offset_of(WIDTHS, N_LAYERS, True)
    for i in range(0, length, BLOCK_ROWS):
        rows = start + i + tl.arange(0, BLOCK_ROWS)
        x = load_rows(x_ptr, rows, last_row, x_row_stride, N_IN, COMPUTE)
        values, slopes = all_layers(
            x, parameters, key, rows, WIDTHS, N_LAYERS, HIDDEN, OUTPUT, DROPOUT, COMPUTE
        )
        dy = load_rows(dy_ptr, rows, last_row, dy_row_stride, WIDTHS[N_LAYERS], COMPUTE)
        dx = back_through(
            dy, values, slopes, parameters, key, rows, partial_ptr, i == 0, WIDTHS, N_LAYERS,
            HIDDEN, OUTPUT, DROPOUT, dx_ptr is not None, True, COMPUTE,
        )  # fmt: skip
        if dx_ptr is not None:
            cols = tl.arange(0, padded(N_IN))
            inside = (rows < last_row)[:, None] & (cols < N_IN)[None, :]
            tl.store(dx_ptr + rows[:, None] * N_IN + cols[None, :], dx, mask=inside)
        # the next tile reads the sums that this one has written
        tl.debug_barrier()
