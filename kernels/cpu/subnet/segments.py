"""Wide ReLU subnets by their segments: a search and one line an element, however many units.

The units' breakpoints, sorted, cut the line into segments. Unit k with w > 0 is active where
x > τ_k, one with w < 0 where not, with τ_k rounded so that this is exact at ties, too
(`canonical.py`). So with s = number of τ below x:

    f(x) = f(a_s) + p_s·(x − a_s),  f'(x) = p_s,  a_s the point of the segment nearest to 0,

slopes and values summed in float64: the error is a few ε of the terms, for |f(a_s)| and
|p_s·(x − a_s)| are no larger than theirs at x. Backward sums g and g·x of each segment; sums over
all segments on a unit's active side give A_k and B_k, and with them all gradients.

The rule that chooses this form is :func:`wide_subnet`. What is infinite or NaN, and nets that the
canonical form cannot hold, are left to the plain form.
"""

import math

import numpy as np
import torch

from ..machine.jit import array_at, copy, entry, inner, inner_in_order, vector_at
from ..machine.launch import cut, run, run_summed, store
from ..numbers.blocks import BLOCK
from ..numbers.search import build_cells, find, lines_at, new_index, tables
from .canonical import all_finite, canonical_form, mend_values, sort_units
from .readout import add_readout_gradient, gradient_at_f, read_out

SEARCH_UNITS = 48
"""What a search among a subnet's segments costs an element, in ReLU units (half of it backward)."""

MIN_WIDE_UNITS = 64
MIN_WIDE_WORK = 1 << 21
"""Units saved that pay for sorting the segments: 0.1 ms a thousand units (2.8 GHz Ice Lake Xeon,
AVX-512, 2026-11)."""

# of an element, in units of the plain form
_WORK = 48
_SUM_WORK = 16  # fewer and larger pieces, for each has its own sums
_FITS, _IRREGULAR = 6, 7  # places in the header


@inner_in_order
def _add(total, carry, value):
    """total + carry + value, as a sum and what rounding took from it."""
    new = total + value
    if abs(total) >= abs(value):
        carry += (total - new) + value
    else:
        carry += (value - new) + total
    return new, carry


@inner
def _thresholds(w, b, t, order, n_flat, n_rising, real):
    """τ of the units that are not flat, sorted, and which units they are."""
    n = w.size - n_flat
    tau = np.empty(n, real)
    for i in range(n):
        tau[i] = t[n_flat + i]
        if n_flat + i >= n_rising:
            tau[i] = np.nextafter(tau[i], real(-math.inf))
    by_size = np.argsort(tau)
    units = np.empty(n, np.int64)
    for i in range(n):
        units[i] = order[n_flat + by_size[i]]
    return tau[by_size], units


@entry
def _index(real):
    real_bytes = np.dtype(real).itemsize

    def wide_index(w_at, b_at, v_at, d_at, n_hidden, n_cells, index_at, units_at):
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        order, n_flat, n_rising, t = sort_units(w, b, real)
        _, _, _, _, fits = canonical_form(w, b, v, d, real)
        header, starts, thresholds, anchors, values, slopes = tables(
            index_at, n_hidden, n_cells, 1, real, real_bytes
        )
        header[:] = 0
        if not (fits and all_finite(v, real)):
            return
        tau, sorted_units = _thresholds(w, b, t, order, n_flat, n_rising, real)
        n = tau.size
        copy(tau, thresholds[:n])
        power = build_cells(header, starts, thresholds, n, n_cells, real)
        copy(sorted_units, array_at(units_at, n_hidden, np.int64))
        # left of all thresholds the falling units are active
        p = p_carry = q_carry = 0.0
        q = np.float64(d)
        for i in range(n_hidden):
            k = order[i]
            if i < n_flat:
                q, q_carry = _add(q, q_carry, np.float64(v[k]) * max(np.float64(b[k]), 0.0))
            elif i >= n_rising:
                p, p_carry = _add(p, p_carry, np.float64(v[k]) * np.float64(w[k]))
                q, q_carry = _add(q, q_carry, np.float64(v[k]) * np.float64(b[k]))
        zero = real(0)
        for s in range(n + power):
            if 0 < s <= n:
                k = sorted_units[s - 1]
                side = 1.0 if w[k] > 0 else -1.0
                p, p_carry = _add(p, p_carry, side * np.float64(v[k]) * np.float64(w[k]))
                q, q_carry = _add(q, q_carry, side * np.float64(v[k]) * np.float64(b[k]))
            a = zero
            if s > 0 and tau[min(s, n) - 1] > a:
                a = tau[min(s, n) - 1]
            if s < n and tau[s] < a:
                a = tau[s]
            anchors[s] = a
            slopes[s] = real(p + p_carry)
            values[s] = real((p + p_carry) * np.float64(a) + (q + q_carry))
        fits = all_finite(slopes[: n + power], real) and all_finite(values[: n + power], real)
        header[_FITS] = 1 if fits else 0

    return wide_index


@entry
def _fwd(real):
    real_bytes = np.dtype(real).itemsize

    def wide_fwd(
        x_at, w_at, b_at, v_at, d_at, readout_at, c_at, n_hidden, n_in, n_out, index_at, n_cells,
        y_at, first, last,
    ):  # fmt: skip
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v, d = vector_at(v_at, n_hidden, real), vector_at(d_at, 1, real)[0]
        header, starts, thresholds, anchors, values, slopes = tables(
            index_at, n_hidden, n_cells, 1, real, real_bytes
        )
        c = vector_at(c_at, n_out, real)
        x, y = array_at(x_at, last * n_in, real), array_at(y_at, last * n_out, real)
        block_rows = max(BLOCK // n_in // 4 * 4, 1)
        f, s = np.zeros(block_rows * n_in, real), np.empty(block_rows * n_in, np.int32)
        for start in range(first, last, block_rows):
            n_rows = min(block_rows, last - start)
            size = n_rows * n_in
            xb, fb = x[start * n_in : start * n_in + size], f[:size]
            find(xb, s, header, starts, thresholds)
            # without a read-out the op is elementwise
            plain = readout_at == 0
            if plain:
                fb = y[start : start + n_rows]
            lines_at(xb, s, anchors, values, slopes, fb)
            if plain:
                if not all_finite(fb, real):
                    mend_values(xb, True, w, b, v, d, fb, real)
                continue
            readout = array_at(readout_at, n_out * n_in, real)
            special = read_out(fb, readout, c, n_rows, n_in, n_out, y, start, real)
            if special != 0:
                mend_values(xb, True, w, b, v, d, fb, real)
                read_out(fb, readout, c, n_rows, n_in, n_out, y, start, real)

    return wide_fwd


@inner
def _add_segment_sums(x, g, s, n, stride, sums):
    """sums[s] += g, sums[stride + s] += g·x over a block."""
    last, stride = np.uintp(n), np.uintp(stride)
    for e in range(x.size):
        i = np.uintp(s[e])
        if i > last:
            i = last
        ge = np.float64(g[e])
        sums[i] += ge
        sums[i + stride] += ge * np.float64(x[e])


@entry
def _bwd(real):
    real_bytes = np.dtype(real).itemsize

    def wide_bwd(
        dy_at, x_at, readout_at, n_hidden, n_in, n_out, index_at, n_cells, dx_at, sums_at,
        sums_of_one_at, first, last,
    ):  # fmt: skip
        header, starts, thresholds, anchors, values, slopes = tables(
            index_at, n_hidden, n_cells, 1, real, real_bytes
        )
        n = header[0]
        dy, x = array_at(dy_at, last * n_out, real), array_at(x_at, last * n_in, real)
        dx = array_at(dx_at, last * n_in, real)
        plain = readout_at == 0
        need_dx, need_sums = dx_at != 0, sums_at != 0 or sums_of_one_at != 0
        readout = array_at(readout_at, 0 if plain else n_out * n_in, real)
        block_rows = max(BLOCK // n_in, 1)
        block = block_rows * n_in
        s, f, g = np.empty(block, np.int32), np.empty(block, real), np.empty(block, real)
        n_readout = 0 if plain else n_out * n_in
        dv = np.zeros(n_readout, real)
        at_dv = 2 * (n_hidden + 1)
        sums = np.zeros(at_dv + n_readout + n_out, np.float64)
        for start in range(first, last, block_rows):
            n_rows = min(block_rows, last - start)
            size = n_rows * n_in
            xb = x[start * n_in : start * n_in + size]
            dyb = dy[start * n_out : (start + n_rows) * n_out]
            if not (all_finite(xb, real) and all_finite(dyb, real)):
                header[_IRREGULAR] = 1
                return
            find(xb, s, header, starts, thresholds)
            gb = dyb
            if not plain:
                gb = g[:size]
                gradient_at_f(dyb, readout, n_rows, n_in, n_out, gb)
            if need_dx:
                out = dx[start * n_in : start * n_in + size]
                for e in range(size):
                    out[e] = gb[e] * slopes[np.uintp(s[e])]
            if need_sums:
                _add_segment_sums(xb, gb, s, n, n_hidden + 1, sums)
                for i in range(n_rows):
                    for m in range(n_out):
                        sums[at_dv + n_readout + m] += dyb[i * n_out + m]
                if not plain:
                    lines_at(xb, s, anchors, values, slopes, f[:size])
                    add_readout_gradient(dyb, f, n_rows, n_in, n_out, dv)
        if need_sums:
            for j in range(n_readout):
                sums[at_dv + j] = dv[j]
            store(sums, sums_at, (sums_of_one_at,), (sums.size,), np.float64)

    return wide_bwd


@entry
def _finish(real):
    real_bytes = np.dtype(real).itemsize

    def wide_finish(
        sums_at, w_at, b_at, v_at, n_hidden, n_rest, index_at, n_cells, units_at, result_at
    ):
        """From the sums of the segments to [dw, db, dv, dd, the rest of the sums]."""
        w, b = vector_at(w_at, n_hidden, real), vector_at(b_at, n_hidden, real)
        v = vector_at(v_at, n_hidden, real)
        header, _, _, _, _, _ = tables(index_at, n_hidden, n_cells, 1, real, real_bytes)
        n = header[0]
        units = array_at(units_at, n_hidden, np.int64)
        sums = array_at(sums_at, 2 * (n_hidden + 1) + n_rest, np.float64)
        result = array_at(result_at, 3 * n_hidden + 1 + n_rest, real)
        a, bx = np.zeros(n_hidden), np.zeros(n_hidden)
        # of all units that are always active
        total_a = total_b = 0.0
        for s in range(n + 1):
            total_a += sums[s]
            total_b += sums[n_hidden + 1 + s]
        for k in range(n_hidden):
            if w[k] == 0 and b[k] > 0:
                a[k], bx[k] = total_a, total_b
        below_a = below_b = 0.0
        for q in range(n):
            below_a += sums[q]
            below_b += sums[n_hidden + 1 + q]
            k = units[q]
            if w[k] < 0:
                a[k], bx[k] = below_a, below_b
        above_a = above_b = 0.0
        for i in range(n):
            q = n - 1 - i
            above_a += sums[q + 1]
            above_b += sums[n_hidden + 2 + q]
            k = units[q]
            if w[k] > 0:
                a[k], bx[k] = above_a, above_b
        for k in range(n_hidden):
            result[k] = v[k] * bx[k]
            result[n_hidden + k] = v[k] * a[k]
            result[2 * n_hidden + k] = w[k] * bx[k] + b[k] * a[k]
        result[3 * n_hidden] = total_a
        for i in range(n_rest):
            result[3 * n_hidden + 1 + i] = sums[2 * (n_hidden + 1) + i]

    return wide_finish


class Subnet:
    """The segments of one subnet: an index in memory, for one call.

    Args:
        compute: Dtype of the arithmetic.
        addresses: Of fc1_weight, fc1_bias, fc2_weight and fc2_bias; 0 for none.
        n_hidden: Hidden units.
        n_elements: How many numbers it will be evaluated on.

    Attributes:
        fits: Whether the net has finite segments; otherwise the plain form must do.
    """

    def __init__(self, compute, addresses, n_hidden, n_elements):
        self._memory, n_cells = new_index(n_hidden, 1, n_elements, compute)
        self._units = torch.empty(n_hidden, dtype=torch.int64, device="cpu")
        self._compute, self._addresses, self._n_hidden = compute, addresses, n_hidden
        self._index = self._memory.data_ptr(), n_cells
        _index[compute](
            *addresses, n_hidden, n_cells, self._memory.data_ptr(), self._units.data_ptr()
        )
        self.fits = bool(self._memory[_FITS])

    def forward(self, x_at, readout_at, c_at, n_rows, n_in, n_out, y_at):
        """Write y [n_rows, n_out]; with readout_at = 0, y = f(x)."""
        run(
            _fwd[self._compute], n_rows, *cut(n_rows, _WORK * n_in, 4), x_at, *self._addresses,
            readout_at, c_at, self._n_hidden, n_in, n_out, *self._index, y_at,
        )  # fmt: skip

    def backward(
        self, dy_at, x_at, readout_at, n_rows, n_in, n_out, dx_at, parameters, needs, dtype
    ):
        """Write dx, if not at 0; return the parameters' gradients, ``None`` where not needed.

        Returns ``None`` where something is infinite or NaN: the plain form must do all again.
        """
        h = self._n_hidden
        n_rest = (n_out * n_in if readout_at else 0) + n_out
        sums = torch.empty(2 * (h + 1) + n_rest, dtype=torch.float64, device="cpu")
        (sums,) = run_summed(
            _bwd[self._compute], n_rows, *cut(n_rows, _SUM_WORK * n_in, 4), (sums,), (any(needs),),
            torch.float64, dy_at, x_at, readout_at, h, n_in, n_out, *self._index,
            dx_at,
        )  # fmt: skip
        if self._memory[_IRREGULAR]:
            return None
        if sums is None:
            return [None] * len(parameters)
        result = torch.empty(3 * h + 1 + n_rest, dtype=self._compute, device="cpu")
        _finish[self._compute](
            sums.data_ptr(), *self._addresses[:3], h, n_rest, *self._index,
            self._units.data_ptr(), result.data_ptr(),
        )  # fmt: skip
        sizes = [h, h, h, 1, *((n_out * n_in, n_out) if readout_at else ())]
        parts = result[: sum(sizes)].split(sizes)
        return [
            part.to(dtype, copy=True).view(parameter.shape) if need else None
            for part, parameter, need in zip(parts, parameters, needs, strict=True)
        ]


def wide_subnet(compute, addresses, n_hidden, n_elements):
    """The segments of a ReLU subnet where they pay, else ``None``.

    Args:
        compute: Dtype of the arithmetic.
        addresses: Of fc1_weight, fc1_bias, fc2_weight and fc2_bias; 0 for none.
        n_hidden: Hidden units.
        n_elements: Numbers that the subnet is applied to.
    """
    if n_hidden < MIN_WIDE_UNITS or n_elements * (n_hidden - SEARCH_UNITS) < MIN_WIDE_WORK:
        return None
    subnet = Subnet(compute, addresses, n_hidden, n_elements)
    return subnet if subnet.fits else None
