"""Numbers through a sum of sines: y = s Σ_i a_i sin(scale w_i x + φ_i).

Angles are in turns: frequency κ_i = w_i scale/2π, so that the reduction to |r| ≤ 1/2 is exact.
Forward reads x and writes y; backward reads x and dy. The waves are never in memory.
"""

import triton
import triton.language as tl

from ..machine.tiles import append, zero_tiles
from ..numbers.sine import cos_turns, reduce_turns, reduce_turns_any, sin_turns, turns_limit


@triton.jit
def load_scaled(ptr, i, inside, FACTOR: tl.constexpr, COMPUTE: tl.constexpr):
    """One parameter times a constant; the constant itself where the parameter is absent."""
    if ptr is None:
        return tl.full((), FACTOR, COMPUTE)
    else:
        value = tl.cast(tl.load(ptr + i, mask=inside, other=0.0), COMPUTE)
        return value * tl.full((), FACTOR, COMPUTE)


@triton.jit
def wave_turns(
    x, w_ptr, phase_ptr, i, inside, TURNS: tl.constexpr, ANY: tl.constexpr, COMPUTE: tl.constexpr
):
    """Angle of wave ``i`` at x in turns, reduced; ANY: for any size of the angle."""
    frequency = load_scaled(w_ptr, i, inside, TURNS, COMPUTE)
    if phase_ptr is None:
        phase = None
    else:
        phase = load_scaled(phase_ptr, i, inside, 0.15915494309189535, COMPUTE)
        phase = phase - tl.floor(phase + 0.5)
    if ANY:
        return reduce_turns_any(frequency, x, phase)
    else:
        return reduce_turns(frequency, x, phase)


@triton.jit
def wave_sum(
    x, w_ptr, amplitude_ptr, phase_ptr, n_waves,
    SLOPE: tl.constexpr, SCALE: tl.constexpr, TURNS: tl.constexpr, ANY: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Σ_i a_i sin(angle_i), or its derivative Σ_i a_i scale w_i cos(angle_i)."""
    acc = tl.zeros_like(x)
    for i in range(n_waves):
        r = wave_turns(x, w_ptr, phase_ptr, i, True, TURNS, ANY, COMPUTE)
        amplitude = load_scaled(amplitude_ptr, i, True, 1.0, COMPUTE)
        if SLOPE:
            acc += cos_turns(r) * (amplitude * load_scaled(w_ptr, i, True, SCALE, COMPUTE))
        elif amplitude_ptr is None:
            acc += sin_turns(r)
        else:
            acc += sin_turns(r) * amplitude
    return acc


@triton.jit
def any_beyond_limit(
    x, w_ptr, n_waves, TURNS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_WAVES: tl.constexpr
):
    """Whether some |κ_i x| is too large for the fast reduction, or infinite."""
    largest = tl.zeros((BLOCK_WAVES,), COMPUTE)
    for first in range(0, n_waves, BLOCK_WAVES):
        waves = first + tl.arange(0, BLOCK_WAVES)
        frequency = load_scaled(w_ptr, waves, waves < n_waves, TURNS, COMPUTE)
        largest = tl.maximum(largest, tl.abs(frequency))
    # NaN is dropped by the maxima and kept by either reduction
    return (tl.max(largest) * tl.max(tl.abs(x)) < turns_limit(COMPUTE)) == 0


@triton.jit
def sine_sum_fwd_kernel(
    x_ptr, w_ptr, amplitude_ptr, phase_ptr, y_ptr, n, n_waves,
    FACTOR: tl.constexpr, TURNS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_WAVES: tl.constexpr,
):  # fmt: skip
    """y = FACTOR Σ_i a_i sin(2π TURNS w_i x + φ_i).

    Shapes: x, y [n]; w [n_waves]. Grid: one program per BLOCK elements, each over all waves. Reads
    1, writes 1 value per element.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    if any_beyond_limit(x, w_ptr, n_waves, TURNS, COMPUTE, BLOCK_WAVES):
        y = wave_sum(x, w_ptr, amplitude_ptr, phase_ptr, n_waves, False, 1.0, TURNS, True, COMPUTE)
    else:
        y = wave_sum(x, w_ptr, amplitude_ptr, phase_ptr, n_waves, False, 1.0, TURNS, False, COMPUTE)
    tl.store(y_ptr + offsets, y * FACTOR, mask=inside)


@triton.jit
def sine_sum_bwd_x_kernel(
    dy_ptr, x_ptr, w_ptr, amplitude_ptr, phase_ptr, dx_ptr, n, n_waves,
    FACTOR: tl.constexpr, SCALE: tl.constexpr, TURNS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_WAVES: tl.constexpr,
):  # fmt: skip
    """dx = dy FACTOR Σ_i a_i SCALE w_i cos(2π TURNS w_i x + φ_i).

    Shapes: dy, x, dx [n]; w [n_waves]. Grid: one program per BLOCK elements, each over all waves.
    Reads 2, writes 1 value per element.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    if any_beyond_limit(x, w_ptr, n_waves, TURNS, COMPUTE, BLOCK_WAVES):
        slope = wave_sum(
            x, w_ptr, amplitude_ptr, phase_ptr, n_waves, True, SCALE, TURNS, True, COMPUTE
        )
    else:
        slope = wave_sum(
            x, w_ptr, amplitude_ptr, phase_ptr, n_waves, True, SCALE, TURNS, False, COMPUTE
        )
    tl.store(dx_ptr + offsets, dy * FACTOR * slope, mask=inside)


@triton.jit
def store_piece_gradients(
    dy_ptr, x_ptr, w_ptr, amplitude_ptr, phase_ptr, out_ptr, start, stop, first, n_waves,
    WAVES: tl.constexpr, FACTOR: tl.constexpr, SCALE: tl.constexpr, TURNS: tl.constexpr,
    ANY: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of WAVES waves over one piece; return the largest |x| of the piece."""
    largest = tl.zeros((BLOCK,), COMPUTE)
    zero = tl.zeros((BLOCK,), COMPUTE)
    dw = zero_tiles(largest, WAVES)
    da = zero_tiles(largest, WAVES)
    dphase = zero_tiles(largest, WAVES)
    for j in range(start, stop, BLOCK):
        offsets = j + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offsets, mask=offsets < stop, other=0.0).to(COMPUTE)
        dy = tl.load(dy_ptr + offsets, mask=offsets < stop, other=0.0).to(COMPUTE)
        dy_x = dy * x
        largest = tl.maximum(largest, tl.abs(x))
        dw_next = ()
        da_next = ()
        dphase_next = ()
        for i in tl.static_range(WAVES):
            inside = first + i < n_waves
            r = wave_turns(x, w_ptr, phase_ptr, first + i, inside, TURNS, ANY, COMPUTE)
            cosine = cos_turns(r)
            dw_next = append(dw_next, dw[i] + dy_x * cosine)
            if amplitude_ptr is not None:
                da_next = append(da_next, da[i] + dy * sin_turns(r))
            else:
                da_next = append(da_next, zero)
            if phase_ptr is not None:
                dphase_next = append(dphase_next, dphase[i] + dy * cosine)
            else:
                dphase_next = append(dphase_next, zero)
        dw = dw_next
        da = da_next
        dphase = dphase_next
    for i in tl.static_range(WAVES):
        inside = first + i < n_waves
        amplitude = load_scaled(amplitude_ptr, first + i, inside, FACTOR, COMPUTE)
        row_ptr = out_ptr + first + i
        tl.store(row_ptr, tl.sum(dw[i]) * amplitude * SCALE, mask=inside)
        if amplitude_ptr is not None:
            row_ptr += n_waves
            tl.store(row_ptr, tl.sum(da[i]) * FACTOR, mask=inside)
        if phase_ptr is not None:
            row_ptr += n_waves
            tl.store(row_ptr, tl.sum(dphase[i]) * amplitude, mask=inside)
    return tl.max(largest)


@triton.jit
def sine_sum_bwd_params_kernel(
    dy_ptr, x_ptr, w_ptr, amplitude_ptr, phase_ptr, partial_ptr, n, n_waves, n_params, piece_size,
    WAVES: tl.constexpr, FACTOR: tl.constexpr, SCALE: tl.constexpr, TURNS: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dw_i = s a_i scale Σ dy x cos, da_i = s Σ dy sin, dφ_i = s a_i Σ dy cos over a piece.

    Shapes: dy, x [n]; w [n_waves]; partial [pieces, n_params]. Grid: pieces x groups of WAVES
    waves. Reads 2 values per element and group.
    """
    piece = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * WAVES
    start = piece * piece_size
    stop = tl.minimum(start + piece_size, n)
    out_ptr = partial_ptr + piece * n_params
    # before the sums: loaded after them it costs more registers, and Triton 3.6 spills
    frequency = tl.zeros((), COMPUTE)
    for i in tl.static_range(WAVES):
        kappa = load_scaled(w_ptr, first + i, first + i < n_waves, TURNS, COMPUTE)
        frequency = tl.maximum(frequency, tl.abs(kappa))
    largest = store_piece_gradients(
        dy_ptr, x_ptr, w_ptr, amplitude_ptr, phase_ptr, out_ptr, start, stop, first, n_waves,
        WAVES, FACTOR, SCALE, TURNS, False, COMPUTE, BLOCK,
    )  # fmt: skip
    if (frequency * largest < turns_limit(COMPUTE)) == 0:
        # the first sums are of no use and must be written before the right ones
        tl.debug_barrier()
        store_piece_gradients(
            dy_ptr, x_ptr, w_ptr, amplitude_ptr, phase_ptr, out_ptr, start, stop, first, n_waves,
            WAVES, FACTOR, SCALE, TURNS, True, COMPUTE, BLOCK,
        )  # fmt: skip
