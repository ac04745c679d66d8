"""piecewise_linear: y = v_s + p_s (x - a_s), s the segment of x, for every element.

The segment is found by halving: log2 of the breakpoints steps, one load each, from the
caches. Forward reads x and writes the outputs; backward reads x and dy.
"""

import torch
import triton
import triton.language as tl

from .machine.launch import compute_dtype, config_for, contiguous, device_of, result_dtype
from .machine.pieces import MAX_PARTIALS, MAX_PIECES, MIN_PIECE_ELEMENTS, sum_pieces
from .machine.plans import empty, launch


@triton.jit
def segment_of(x, breakpoints_ptr, n_breakpoints, STEPS: tl.constexpr, COMPUTE: tl.constexpr):
    """Number of breakpoints below x; all of them for NaN."""
    segment = tl.zeros(x.shape, tl.int32)
    for step in tl.static_range(STEPS):
        half = 1 << (STEPS - 1 - step)
        at = segment + (half - 1)
        inside = at < n_breakpoints
        t = tl.load(breakpoints_ptr + at, mask=inside, other=float("inf")).to(COMPUTE)
        segment = tl.where(inside & ((x <= t) == 0), segment + half, segment)
    return segment


@triton.jit
def piecewise_linear_fwd_kernel(
    x_ptr, breakpoints_ptr, anchors_ptr, values_ptr, slopes_ptr, y_ptr, n, n_breakpoints, n_out,
    STEPS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = v_s + p_s (x - a_s).

    Shapes: x [n]; values, slopes [segments, n_out]; y [n, n_out]. Grid: one program per BLOCK
    elements. Reads 1, writes n_out values per element.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    segment = segment_of(x, breakpoints_ptr, n_breakpoints, STEPS, COMPUTE)
    distance = x - tl.load(anchors_ptr + segment).to(COMPUTE)
    for m in range(n_out):
        value = tl.load(values_ptr + segment * n_out + m).to(COMPUTE)
        slope = tl.load(slopes_ptr + segment * n_out + m).to(COMPUTE)
        tl.store(y_ptr + offsets * n_out + m, value + slope * distance, mask=inside)


@triton.jit
def piecewise_linear_bwd_x_kernel(
    dy_ptr, x_ptr, breakpoints_ptr, slopes_ptr, dx_ptr, n, n_breakpoints, n_out,
    STEPS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = Σ_m dy_m p_sm.

    Shapes: dy [n, n_out]; x, dx [n]; slopes [segments, n_out]. Grid: one program per BLOCK
    elements. Reads 1 + n_out values, writes 1 per element.
    """
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
    segment = segment_of(x, breakpoints_ptr, n_breakpoints, STEPS, COMPUTE)
    dx = tl.zeros((BLOCK,), COMPUTE)
    for m in range(n_out):
        dy = tl.load(dy_ptr + offsets * n_out + m, mask=inside, other=0.0).to(COMPUTE)
        dx += dy * tl.load(slopes_ptr + segment * n_out + m).to(COMPUTE)
    tl.store(dx_ptr + offsets, dx, mask=inside)


@triton.jit
def piecewise_linear_bwd_tables_kernel(
    dy_ptr, x_ptr, breakpoints_ptr, anchors_ptr, partial_ptr, n, n_breakpoints, n_out, piece_size,
    STEPS: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Sums Σ dy and Σ dy (x - a) of every segment over a piece.

    Shapes: dy [n, n_out]; x [n]; partial [pieces, 2, segments, n_out]. Grid: pieces x groups of
    BLOCK_COLS segments x n_out. Reads 2 values per element and group.
    """
    m = tl.program_id(2)
    n_segments = n_breakpoints + 1
    start = tl.program_id(0).to(tl.int64) * piece_size
    stop = tl.minimum(start + piece_size, n)
    mine = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_COLS), COMPUTE)
    sums_x = tl.zeros((BLOCK_ROWS, BLOCK_COLS), COMPUTE)
    for i in range(start, stop, BLOCK_ROWS):
        offsets = i + tl.arange(0, BLOCK_ROWS)
        inside = offsets < stop
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(COMPUTE)
        dy = tl.load(dy_ptr + offsets * n_out + m, mask=inside, other=0.0).to(COMPUTE)
        segment = segment_of(x, breakpoints_ptr, n_breakpoints, STEPS, COMPUTE)
        distance = x - tl.load(anchors_ptr + segment).to(COMPUTE)
        here = inside[:, None] & (segment[:, None] == mine[None, :])
        sums += tl.where(here, dy[:, None], 0.0)
        sums_x += tl.where(here, (dy * distance)[:, None], 0.0)
    out_ptr = partial_ptr + tl.program_id(0).to(tl.int64) * (2 * n_segments * n_out)
    known = mine < n_segments
    tl.store(out_ptr + mine * n_out + m, tl.sum(sums, axis=0), mask=known)
    tl.store(out_ptr + (n_segments + mine) * n_out + m, tl.sum(sums_x, axis=0), mask=known)


def _n_outputs(values):
    return 1 if values.dim() == 1 else values.shape[1]


def piecewise_linear_fwd(x, values, slopes, breakpoints, anchors):
    """y [*] or [*, M], in the promoted dtype of the arguments."""
    out_dtype = result_dtype(x, values, slopes, breakpoints, anchors)
    _, compute = compute_dtype(out_dtype)
    x, values, slopes, breakpoints, anchors = contiguous(x, values, slopes, breakpoints, anchors)
    y = empty((*x.shape, *values.shape[1:]), x, out_dtype)
    n, n_breakpoints = x.numel(), breakpoints.shape[0]
    if n == 0:
        return y
    config = config_for("piecewise_linear_fwd", compute)
    with device_of(x):
        launch(
            piecewise_linear_fwd_kernel, (triton.cdiv(n, config.cols),),
            x, breakpoints, anchors, values, slopes, y, n, n_breakpoints, _n_outputs(values),
            STEPS=n_breakpoints.bit_length(), COMPUTE=compute, BLOCK=config.cols,
            num_warps=config.warps,
        )  # fmt: skip
    return y


def piecewise_linear_bwd(dy, x, values, slopes, breakpoints, anchors, *, needs):
    """Gradients of x, values and slopes; ``None`` where ``needs`` says so."""
    compute_torch, compute = compute_dtype(dy.dtype)
    dy, x, slopes, breakpoints, anchors = contiguous(dy, x, slopes, breakpoints, anchors)
    n, n_breakpoints, n_out = x.numel(), breakpoints.shape[0], _n_outputs(values)
    need_dx, need_dvalues, need_dslopes = needs
    steps = n_breakpoints.bit_length()
    dx = empty(x.shape, x, x.dtype) if need_dx else None
    dvalues = dslopes = None
    if n == 0:
        dvalues = torch.zeros_like(values, dtype=dy.dtype) if need_dvalues else None
        dslopes = torch.zeros_like(slopes, dtype=dy.dtype) if need_dslopes else None
        return [dx, dvalues, dslopes]
    with device_of(x):
        if need_dx:
            config = config_for("piecewise_linear_bwd_x", compute)
            launch(
                piecewise_linear_bwd_x_kernel, (triton.cdiv(n, config.cols),),
                dy, x, breakpoints, slopes, dx, n, n_breakpoints, n_out,
                STEPS=steps, COMPUTE=compute, BLOCK=config.cols, num_warps=config.warps,
            )  # fmt: skip
        if need_dvalues or need_dslopes:
            config = config_for("piecewise_linear_bwd_tables", compute)
            n_sums = 2 * (n_breakpoints + 1) * n_out
            most = max(1, min(MAX_PIECES, MAX_PARTIALS // n_sums))
            piece_size = max(triton.cdiv(n, most), MIN_PIECE_ELEMENTS)
            n_pieces = triton.cdiv(n, piece_size)
            partials = empty((n_pieces, n_sums), x, compute_torch)
            n_groups = triton.cdiv(n_breakpoints + 1, config.cols)
            launch(
                piecewise_linear_bwd_tables_kernel, (n_pieces, n_groups, n_out),
                dy, x, breakpoints, anchors, partials, n, n_breakpoints, n_out, piece_size,
                STEPS=steps, COMPUTE=compute, BLOCK_ROWS=config.rows, BLOCK_COLS=config.cols,
                num_warps=config.warps,
            )  # fmt: skip
            sums = sum_pieces(partials, (n_pieces, n_sums), (0, 0), dy.dtype, compute)
            dvalues, dslopes = sums.view(2, *values.shape).unbind()
    return [dx, dvalues if need_dvalues else None, dslopes if need_dslopes else None]
