"""The op `piecewise_linear` with Numba: y = v_s + p_s·(x − a_s), s the segment of x.

Forward reads one number an element and writes one for each output. Backward reads x and dy once; it
sums dy and dy·(x − a) of each segment in float64.
"""

import numpy as np
import torch

from .machine.jit import array_at, copy, entry
from .machine.launch import any_needed, cut, prepare, prepare_as, result_at, run, run_summed, store
from .numbers.blocks import BLOCK
from .numbers.search import build_cells, find, lines_at, new_block, new_index, tables

# of an element: about that of so many ReLU units
_SEARCH_WORK = 32
_SUM_WORK = 16  # fewer and larger pieces, for each has its own sums


@entry
def _index(real):
    real_bytes = np.dtype(real).itemsize

    def piecewise_linear_index(v_at, p_at, t_at, a_at, n, n_out, n_cells, index_at):
        header, starts, thresholds, anchors, values, slopes = tables(
            index_at, n, n_cells, n_out, real, real_bytes
        )
        t, a = array_at(t_at, n, real), array_at(a_at, n + 1, real)
        v, p = array_at(v_at, (n + 1) * n_out, real), array_at(p_at, (n + 1) * n_out, real)
        copy(t, thresholds[:n])
        power = build_cells(header, starts, thresholds, n, n_cells, real)
        padded = 3 * n + 4
        for s in range(n + power):
            of = min(s, n)
            anchors[s] = a[of]
            for m in range(n_out):
                values[m * padded + s] = v[of * n_out + m]
                slopes[m * padded + s] = p[of * n_out + m]

    return piecewise_linear_index


@entry
def _fwd(real):
    real_bytes = np.dtype(real).itemsize

    def piecewise_linear_fwd(x_at, index_at, n, n_cells, n_out, y_at, first, last):
        header, starts, thresholds, anchors, values, slopes = tables(
            index_at, n, n_cells, n_out, real, real_bytes
        )
        padded = 3 * n + 4
        x, y = array_at(x_at, last, real), array_at(y_at, last * n_out, real)
        s, column = new_block(), np.empty(BLOCK, real)
        for start in range(first, last, BLOCK):
            stop = min(start + BLOCK, last)
            xb, sb = x[start:stop], s[: stop - start]
            find(xb, sb, header, starts, thresholds)
            for m in range(n_out):
                of = slice(m * padded, (m + 1) * padded)
                yb = y[start:stop] if n_out == 1 else column[: stop - start]
                lines_at(xb, sb, anchors, values[of], slopes[of], yb)
                if n_out > 1:
                    for e in range(stop - start):
                        y[(start + e) * n_out + m] = yb[e]

    return piecewise_linear_fwd


@entry
def _bwd(real):
    real_bytes = np.dtype(real).itemsize

    def piecewise_linear_bwd(
        dy_at,
        x_at,
        index_at,
        n,
        n_cells,
        n_out,
        dx_at,
        sums_at,
        dv_at,
        dp_at,
        first,
        last,
    ):
        header, starts, thresholds, anchors, _, slopes = tables(
            index_at, n, n_cells, n_out, real, real_bytes
        )
        padded = 3 * n + 4
        x, dy = array_at(x_at, last, real), array_at(dy_at, last * n_out, real)
        dx = array_at(dx_at, last, real)
        need_dx, need_sums = dx_at != 0, any_needed(sums_at, (dv_at, dp_at))
        s = new_block()
        n_values = (n + 1) * n_out
        sums = np.zeros(2 * n_values if need_sums else 0, np.float64)
        for start in range(first, last, BLOCK):
            size = min(start + BLOCK, last) - start
            xb, sb = x[start : start + size], s[:size]
            find(xb, sb, header, starts, thresholds)
            for e in range(size):
                se = np.uintp(sb[e])
                g_slope = real(0)
                of = np.uintp(min(sb[e], n)) * np.uintp(n_out)
                distance = xb[e] - anchors[se]
                for m in range(n_out):
                    g = dy[np.uintp((start + e) * n_out + m)]
                    g_slope += g * slopes[np.uintp(m * padded) + se]
                    if need_sums:
                        i = of + np.uintp(m)
                        sums[i] += g
                        sums[i + np.uintp(n_values)] += np.float64(g) * distance
                if need_dx:
                    dx[start + e] = g_slope
        if need_sums:
            store(sums, sums_at, (dv_at, dp_at), (n_values, n_values), real)

    return piecewise_linear_bwd


def _new_index(n_elements, tables, addresses, compute):
    values, _, breakpoints, _ = tables
    n = breakpoints.shape[0]
    n_out = 1 if values.dim() == 1 else values.shape[1]
    index, n_cells = new_index(n, n_out, n_elements, compute)
    _index[compute](*addresses, n, n_out, n_cells, index.data_ptr())
    return index, (index.data_ptr(), n, n_cells, n_out)


def piecewise_linear_fwd(x, values, slopes, breakpoints, anchors):
    """y [*] or [*, M], in the promoted dtype of the arguments."""
    dtype, compute, tensors, addresses = prepare(x, values, slopes, breakpoints, anchors)
    n = x.numel()
    y = x.new_empty((*x.shape, *values.shape[1:]), dtype=dtype)
    _held, arguments = _new_index(n, tensors[1:], addresses[1:], compute)
    y_at = result_at(y, compute)
    run(_fwd[compute], n, *cut(n, _SEARCH_WORK, BLOCK), addresses[0], *arguments, y_at)
    return y


def piecewise_linear_bwd(dy, x, values, slopes, breakpoints, anchors, *, needs):
    """Gradients of x, values and slopes; ``None`` where ``needs`` says so."""
    compute, tensors, addresses = prepare_as(dy.dtype, dy, x, values, slopes, breakpoints, anchors)
    n = x.numel()
    need_dx, *needs = needs
    dx = torch.empty_like(tensors[1], dtype=x.dtype) if need_dx else None
    _held, arguments = _new_index(n, tensors[2:], addresses[2:], compute)
    gradients = run_summed(
        _bwd[compute],
        n,
        *cut(n, _SUM_WORK, BLOCK),
        tensors[2:4],
        needs,
        dy.dtype,
        *addresses[:2],
        *arguments,
        result_at(dx, compute),
    )
    return [dx, *gradients]
