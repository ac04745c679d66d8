"""The verb of every model that can be trained whole: see :mod:`.training` for its contract.

Sums over the units are taken across one tile, [rows, units] or [rows, features, units], so the
sizes of a model are bounded by what a tile holds: :data:`MAX_TILE`.
"""

import triton
import triton.language as tl

from .activations import cos_turns, reduce_turns_any, sin_turns

MIN_BITS = tl.constexpr(6)
MAX_TILE = 8192
"""Elements in a row's part of a tile: units, or features times units, each rounded up to a power of
two."""

TILE = 2048
"""Elements in a tile, about."""


@triton.jit
def order_keys(seed, stream, epoch, SHUFFLE: tl.constexpr):
    """The twelve keys of an epoch's order, as in `kernels/cpu/shuffle.py`."""
    if SHUFFLE:
        low, high = (stream & 0xFFFFFFFF).to(tl.uint32), (stream >> 32).to(tl.uint32)
        e = epoch.to(tl.uint32)
        i = tl.zeros((), tl.uint32)
        a0, a1, a2, a3 = tl.philox_impl(e, i, low, high, *split(seed))
        b0, b1, b2, b3 = tl.philox_impl(e, i + 4, low, high, *split(seed))
        c0, c1, c2, c3 = tl.philox_impl(e, i + 8, low, high, *split(seed))
        return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3
    else:
        return ()


@triton.jit
def split(seed):
    return (seed & 0xFFFFFFFF).to(tl.uint32), (seed >> 32).to(tl.uint32)


@triton.jit
def mix(x):
    """A bijection of 32 bits of which every bit depends on every other."""
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def permuted(i, keys, left_bits, right_bits):
    one = tl.full((), 1, tl.uint32)
    left_mask = (one << left_bits) - one
    right_mask = (one << right_bits) - one
    left, right = i >> right_bits, i & right_mask
    for k in tl.static_range(0, 12, 2):
        left = left ^ (mix(right ^ keys[k]) & left_mask)
        right = right ^ (mix(left ^ keys[k + 1]) & right_mask)
    return (left << right_bits) | right


@triton.jit
def rows_of(positions, stop, keys, n_rows, SHUFFLE: tl.constexpr):
    """The rows at some positions of an epoch, int64; row 0 beyond ``stop``."""
    positions = tl.where(positions < stop, positions, 0)
    if SHUFFLE:
        bits = tl.full((), MIN_BITS, tl.uint32)
        while (tl.full((), 1, tl.int64) << bits.to(tl.int64)) < n_rows:
            bits += 1
        left_bits = bits >> 1
        right_bits = bits - left_bits
        rows = permuted(positions.to(tl.uint32), keys, left_bits, right_bits)
        n = n_rows.to(tl.uint32)
        while tl.max((rows >= n).to(tl.int32)) > 0:
            rows = tl.where(rows >= n, permuted(rows, keys, left_bits, right_bits), rows)
        return rows.to(tl.int64)
    else:
        return positions.to(tl.int64)


@triton.jit
def loss_and_slope(y_hat, y, LOSS: tl.constexpr):
    """ℓ(ŷ, y) and ∂ℓ/∂ŷ; Huber's δ is 1."""
    d = y_hat - y
    if LOSS == "mse":
        return d * d, d + d
    elif LOSS == "l1":
        # NaN stays NaN, 0 stays 0
        return tl.abs(d), tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, d))
    elif LOSS == "huber":
        far = tl.abs(d) > 1.0
        slope = tl.where(far, tl.where(d > 0.0, 1.0, -1.0), d)
        return tl.where(far, tl.abs(d) - 0.5, 0.5 * d * d), slope
    else:
        t = tl.exp(-tl.abs(y_hat))
        slope = tl.where(y_hat >= 0.0, 1.0, t) / (1.0 + t) - y
        return tl.where(y_hat >= 0.0, y_hat, y_hat * 0.0) - y_hat * y + log1p(t), slope


@triton.jit
def log1p(t):
    """log(1 + t) for 0 ≤ t ≤ 1 with small t right: log(u)·t/(u − 1), u = 1 + t rounded."""
    u = 1.0 + t
    return tl.where(u == 1.0, t, tl.log(u) * (t / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def add_to(ptr, value, mask):
    tl.store(ptr, tl.load(ptr, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def row_weights(weight_ptr, rows, inside, COMPUTE: tl.constexpr):
    if weight_ptr is None:
        return inside.to(COMPUTE)
    else:
        return tl.load(weight_ptr + rows, mask=inside, other=0.0)


@triton.jit
def sine_sum(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, first, stop, n_rows, n_in, n_out, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i) of every number of a row."""
    WIDTH: tl.constexpr = SIZES[0]
    HAS_A: tl.constexpr = SIZES[1]
    HAS_PHASE: tl.constexpr = SIZES[2]
    BLOCK: tl.constexpr = SIZES[3]
    ROWS: tl.constexpr = SIZES[4]
    TURNS: tl.constexpr = CONSTANTS[0]
    FACTOR: tl.constexpr = CONSTANTS[1]
    units = tl.arange(0, BLOCK)
    known = units < WIDTH
    w = tl.load(theta_ptr + units, mask=known, other=0.0)
    frequency = w * tl.full((), TURNS, COMPUTE)
    a = known.to(COMPUTE)
    if HAS_A:
        a = tl.load(theta_ptr + WIDTH + units, mask=known, other=0.0)
    phase = tl.zeros((BLOCK,), COMPUTE)
    PHASE_AT: tl.constexpr = WIDTH * (1 + HAS_A)
    if HAS_PHASE:
        phase = tl.load(theta_ptr + PHASE_AT + units, mask=known, other=0.0)
        phase *= tl.full((), 0.15915494309189535, COMPUTE)
    dw = tl.zeros((BLOCK,), COMPUTE)
    da = tl.zeros((BLOCK,), COMPUTE)
    dphase = tl.zeros((BLOCK,), COMPUTE)
    total = tl.zeros((), tl.float64)
    for e in range(first * n_in, stop * n_in, ROWS):
        numbers = e + tl.arange(0, ROWS)
        inside = numbers < stop * n_in
        positions = numbers // n_in
        rows = rows_of(positions, stop, keys, n_rows, SHUFFLE)
        at = rows * n_in + (numbers - positions * n_in)
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        y = tl.load(y_ptr + at, mask=inside, other=0.0)
        weight = row_weights(weight_ptr, rows, inside, COMPUTE)
        xs = tl.zeros((ROWS, BLOCK), COMPUTE) + x[:, None]
        if HAS_PHASE:
            r = reduce_turns_any(frequency[None, :], xs, phase[None, :])
        else:
            r = reduce_turns_any(frequency[None, :], xs, None)
        sines = sin_turns(r)
        y_hat = tl.sum(sines * a[None, :], axis=1) * tl.full((), FACTOR, COMPUTE)
        loss, slope = loss_and_slope(y_hat, y, LOSS)
        total += tl.sum(tl.where(inside, weight * loss, 0.0).to(tl.float64))
        if grad_ptr is not None:
            g = tl.where(inside, scale * weight * slope, 0.0) * tl.full((), FACTOR, COMPUTE)
            cosines = cos_turns(r)
            dw += tl.sum((g * x)[:, None] * cosines, axis=0)
            if HAS_A:
                da += tl.sum(g[:, None] * sines, axis=0)
            if HAS_PHASE:
                dphase += tl.sum(g[:, None] * cosines, axis=0)
    if grad_ptr is not None:
        add_to(grad_ptr + units, dw * a * tl.full((), TURNS * 6.283185307179586, COMPUTE), known)
        if HAS_A:
            add_to(grad_ptr + WIDTH + units, da, known)
        if HAS_PHASE:
            add_to(grad_ptr + PHASE_AT + units, dphase * a, known)
    return total


@triton.jit
def elementwise_mlp(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, first, stop, n_rows, n_in, n_out, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y = Σ_k v_k relu(w_k x + b_k) + d of every number of a row."""
    H: tl.constexpr = SIZES[0]
    BIAS: tl.constexpr = SIZES[1]
    BLOCK: tl.constexpr = SIZES[2]
    ROWS: tl.constexpr = SIZES[3]
    V_AT: tl.constexpr = H * (1 + BIAS)
    units = tl.arange(0, BLOCK)
    known = units < H
    w = tl.load(theta_ptr + units, mask=known, other=0.0)
    v = tl.load(theta_ptr + V_AT + units, mask=known, other=0.0)
    b = tl.zeros((BLOCK,), COMPUTE)
    d = tl.zeros((), COMPUTE)
    if BIAS:
        b = tl.load(theta_ptr + H + units, mask=known, other=0.0)
        d = tl.load(theta_ptr + V_AT + H)
    dw = tl.zeros((BLOCK,), COMPUTE)
    db = tl.zeros((BLOCK,), COMPUTE)
    dv = tl.zeros((BLOCK,), COMPUTE)
    dd = tl.zeros((), COMPUTE)
    total = tl.zeros((), tl.float64)
    for e in range(first * n_in, stop * n_in, ROWS):
        numbers = e + tl.arange(0, ROWS)
        inside = numbers < stop * n_in
        positions = numbers // n_in
        rows = rows_of(positions, stop, keys, n_rows, SHUFFLE)
        at = rows * n_in + (numbers - positions * n_in)
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        y = tl.load(y_ptr + at, mask=inside, other=0.0)
        weight = row_weights(weight_ptr, rows, inside, COMPUTE)
        z = x[:, None] * w[None, :] + b[None, :]
        hidden = tl.where(z <= 0.0, 0.0, z)
        y_hat = tl.sum(hidden * v[None, :], axis=1) + d
        loss, slope = loss_and_slope(y_hat, y, LOSS)
        total += tl.sum(tl.where(inside, weight * loss, 0.0).to(tl.float64))
        if grad_ptr is not None:
            g = tl.where(inside, scale * weight * slope, 0.0)
            active = tl.where(z <= 0.0, 0.0, g[:, None])
            dw += tl.sum(active * x[:, None], axis=0)
            db += tl.sum(active, axis=0)
            dv += tl.sum(g[:, None] * hidden, axis=0)
            dd += tl.sum(g)
    if grad_ptr is not None:
        add_to(grad_ptr + units, dw * v, known)
        add_to(grad_ptr + V_AT + units, dv, known)
        if BIAS:
            add_to(grad_ptr + H + units, db * v, known)
            add_to(grad_ptr + V_AT + H, dd, True)
    return total


@triton.jit
def additive_mlp(
    theta_ptr, grad_ptr, x_ptr, y_ptr, weight_ptr, keys, first, stop, n_rows, n_in, n_out, scale,
    SHUFFLE: tl.constexpr, SIZES: tl.constexpr, CONSTANTS: tl.constexpr, LOSS: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """y_m = Σ_j V_mj f(x_j) + c_m, f(x) = Σ_k v_k relu(w_k x + b_k) + d."""
    H: tl.constexpr = SIZES[0]
    BIAS: tl.constexpr = SIZES[1]
    F: tl.constexpr = SIZES[2]
    M: tl.constexpr = SIZES[3]
    BLOCK: tl.constexpr = SIZES[4]
    BLOCK_F: tl.constexpr = SIZES[5]
    ROWS: tl.constexpr = SIZES[6]
    V_AT: tl.constexpr = H * (1 + BIAS)
    READOUT_AT: tl.constexpr = V_AT + H + BIAS
    units, features = tl.arange(0, BLOCK), tl.arange(0, BLOCK_F)
    known, real = units < H, features < F
    w = tl.load(theta_ptr + units, mask=known, other=0.0)[None, None, :]
    v = tl.load(theta_ptr + V_AT + units, mask=known, other=0.0)[None, None, :]
    b = tl.zeros((1, 1, BLOCK), COMPUTE)
    d = tl.zeros((), COMPUTE)
    if BIAS:
        b = tl.load(theta_ptr + H + units, mask=known, other=0.0)[None, None, :]
        d = tl.load(theta_ptr + V_AT + H)
    dw = tl.zeros((BLOCK,), COMPUTE)
    db = tl.zeros((BLOCK,), COMPUTE)
    dv = tl.zeros((BLOCK,), COMPUTE)
    dd = tl.zeros((), COMPUTE)
    total = tl.zeros((), tl.float64)
    for r in range(first, stop, ROWS):
        positions = r + tl.arange(0, ROWS)
        inside = positions < stop
        rows = rows_of(positions, stop, keys, n_rows, SHUFFLE)
        here = inside[:, None] & real[None, :]
        x = tl.load(x_ptr + rows[:, None] * F + features[None, :], mask=here, other=0.0)
        weight = row_weights(weight_ptr, rows, inside, COMPUTE)
        z = x[:, :, None] * w + b
        hidden = tl.where(z <= 0.0, 0.0, z)
        f = tl.sum(hidden * v, axis=2) + d
        df = tl.zeros((ROWS, BLOCK_F), COMPUTE)
        for m in range(M):
            readout_at = READOUT_AT + m * F + features
            readout = tl.load(theta_ptr + readout_at, mask=real, other=0.0)
            y_hat = tl.sum(f * readout[None, :], axis=1)
            if BIAS:
                y_hat += tl.load(theta_ptr + READOUT_AT + M * F + m)
            y = tl.load(y_ptr + rows * M + m, mask=inside, other=0.0)
            loss, slope = loss_and_slope(y_hat, y, LOSS)
            total += tl.sum(tl.where(inside, weight * loss, 0.0).to(tl.float64))
            if grad_ptr is not None:
                g = tl.where(inside, scale * weight * slope, 0.0)
                df += g[:, None] * readout[None, :]
                add_to(grad_ptr + readout_at, tl.sum(g[:, None] * f, axis=0), real)
                if BIAS:
                    add_to(grad_ptr + READOUT_AT + M * F + m, tl.sum(g), True)
        if grad_ptr is not None:
            active = tl.where(z <= 0.0, 0.0, df[:, :, None])
            dw += tl.sum(tl.sum(active * x[:, :, None], axis=1), axis=0)
            db += tl.sum(tl.sum(active, axis=1), axis=0)
            dv += tl.sum(tl.sum(df[:, :, None] * hidden, axis=1), axis=0)
            dd += tl.sum(tl.sum(df, axis=1))
    if grad_ptr is not None:
        v_flat = tl.load(theta_ptr + V_AT + units, mask=known, other=0.0)
        add_to(grad_ptr + units, dw * v_flat, known)
        add_to(grad_ptr + V_AT + units, dv, known)
        if BIAS:
            add_to(grad_ptr + H + units, db * v_flat, known)
            add_to(grad_ptr + V_AT + H, dd, True)
    return total


def _tile(*sizes):
    blocks = [triton.next_power_of_2(size) for size in sizes]
    row = 1
    for block in blocks:
        row *= block
    if row > MAX_TILE:
        raise ValueError(
            f"the Triton loop trains models of up to {MAX_TILE} units (times features), each "
            f"rounded up to a power of two, got {' × '.join(map(str, sizes))}"
        )
    return *blocks, max(1, min(64, TILE // row))


def _sine_sizes(sizes):
    return *sizes, *_tile(sizes[0])


def _elementwise_sizes(sizes):
    return *sizes, *_tile(sizes[0])


def _additive_sizes(sizes):
    return *sizes, *_tile(sizes[0], sizes[2])


VERBS = {
    "sine_sum": (sine_sum, _sine_sizes),
    "elementwise_mlp": (elementwise_mlp, _elementwise_sizes),
    "additive_mlp": (additive_mlp, _additive_sizes),
}
"""Every model by the name of its op: the verb, and its SIZES with those of the tile."""
