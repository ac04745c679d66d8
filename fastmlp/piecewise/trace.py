"""Follow a univariate net layer by layer, as a piecewise-linear function of its input.

The state is a list of nodes on the line: the breakpoints so far, and the origin (the point of the
interval nearest to 0), where no breakpoint need be. Known are the values of all units at the nodes
and their slopes between. An affine step maps both. A kink adds a node wherever a unit's
pre-activation changes sign inside a gap, where that unit's value is 0 by definition, not by
arithmetic: so breakpoints that coincide stay one, and what is built on them sees exact zeros.
"""

import numpy as np

from fastmlp.piecewise.layers import Affine

# a pre-activation this close to 0, in ulps of its terms, is 0: float64 cannot tell
_ZERO_ULPS = 8


class Trace:
    """A vector function of x on the line, linear between nodes.

    Args:
        lo: Lower end of the interval, or −inf.
        hi: Upper end, or inf.

    Attributes:
        nodes: Sorted, distinct. Shape ``[P]``.
        is_break: Whether a node is a breakpoint. Shape ``[P]``.
        values: At the nodes. Shape ``[P, n]``.
        slopes: In the gaps before, between and after the nodes. Shape ``[P + 1, n]``.
        alive: For each kink passed, whether a unit is active anywhere in the interval. ``[n]``
            each.
    """

    def __init__(self, lo, hi):
        self.lo, self.hi = lo, hi
        self.origin = min(max(0.0, lo), hi)
        self.nodes = np.array([self.origin])
        self.is_break = np.array([False])
        self.values = np.array([[self.origin]])
        self.slopes = np.ones((2, 1))
        self.alive = []

    def run(self, steps):
        """Apply all steps; return self."""
        for step in steps:
            if isinstance(step, Affine):
                self._affine(step.weight, step.bias)
            else:
                self._kink(step.negative_slope)
        if not (np.isfinite(self.values).all() and np.isfinite(self.slopes).all()):
            raise ValueError("the net's function overflows float64")
        return self

    def _affine(self, weight, bias):
        with np.errstate(over="ignore", invalid="ignore"):
            self.values = _matmul(self.values, weight, bias)
            self.slopes = _matmul(self.slopes, weight, np.zeros_like(bias))

    def _kink(self, negative_slope):
        crossings, left, right = self._crossings()
        gaps, places = np.nonzero(np.isfinite(crossings))
        found = crossings[gaps, places]
        order = np.lexsort((found, gaps))
        gaps, places, found = gaps[order], places[order], found[order]
        # the same place in the same gap, from several units, is one node
        first = np.ones(len(found), bool)
        first[1:] = (found[1:] != found[:-1]) | (gaps[1:] != gaps[:-1])
        new_nodes, new_gaps = found[first], gaps[first]
        new_values = self._values_in_gaps(new_nodes, new_gaps)
        new_values[np.cumsum(first) - 1, places] = 0.0

        # a gap with m new nodes becomes m + 1 gaps
        parts = np.bincount(new_gaps, minlength=len(self.slopes)) + 1
        gap = np.repeat(np.arange(len(parts)), parts)
        at = np.searchsorted(self.nodes, new_nodes)
        self.nodes = np.insert(self.nodes, at, new_nodes)
        self.is_break = np.insert(self.is_break, at, True)
        self.values = np.insert(self.values, at, new_values, axis=0)
        ends = np.append(self.nodes, np.inf)
        before = ~(ends[:, None] > crossings[gap])  # true where there is no crossing, too
        sign = np.where(before, left[gap], right[gap])

        # a sign that changes at the origin makes it a breakpoint
        at = int(np.flatnonzero(self.nodes == self.origin)[0])
        if self.lo < self.origin < self.hi and ((sign[at] > 0) != (sign[at + 1] > 0)).any():
            self.is_break[at] = True
        inside = (np.append(self.nodes, np.inf) > self.lo) & (
            np.insert(self.nodes, 0, -np.inf) < self.hi
        )
        self.alive.append((sign[inside] > 0).any(0) | (negative_slope != 0))
        factor = np.where(sign > 0, 1.0, np.where(sign < 0, negative_slope, 0.0))
        self.slopes = self.slopes[gap] * factor
        self.values = np.where(self.values > 0, self.values, self.values * negative_slope)
        # where the slope is negative_slope = 0, a negative value became -0.0
        self.values += 0.0

    def _crossings(self):
        """Where each unit changes sign inside each gap (NaN: nowhere), and its sign on both sides.

        Shapes ``[P + 1, n]``. A crossing that rounds onto a node makes the value there 0.
        """
        nodes, slopes, n = self.nodes, self.slopes, self.values.shape[1]
        while True:
            values = self.values
            sign = np.sign(values)
            left = np.vstack([np.zeros((1, n)), sign])
            right = np.vstack([sign, np.zeros((1, n))])
            # what comes from infinity
            outward = np.sign(slopes[[0, -1]]) * [[-1.0], [1.0]]
            left[0] = np.where(outward[0] != 0, outward[0], sign[0])
            right[-1] = np.where(outward[1] != 0, outward[1], sign[-1])
            changes = left * right < 0
            gaps, units = np.nonzero(changes)
            # measured from the end with the smaller value
            size = np.vstack([np.full((1, n), np.inf), np.abs(values), np.full((1, n), np.inf)])
            from_right = size[gaps + 1, units] < size[gaps, units]
            base = np.where(from_right, gaps, gaps - 1)
            lower = np.insert(nodes, 0, -np.inf)[gaps]
            upper = np.append(nodes, np.inf)[gaps]
            with np.errstate(all="ignore"):
                place = nodes[base] - values[base, units] / slopes[gaps, units]
            # against rounding, or a slope that contradicts the values
            place = np.where(np.isnan(place), nodes[base], place)
            low, high = place <= lower, place >= upper
            onto = (low & np.isfinite(lower)) | (high & np.isfinite(upper))
            if not onto.any():
                break
            values = values.copy()
            values[np.where(low, gaps - 1, gaps)[onto], units[onto]] = 0.0
            self.values = values
        crossings = np.full((len(slopes), n), np.nan)
        crossings[gaps, units] = place
        outside = ~((crossings > self.lo) & (crossings < self.hi) & np.isfinite(crossings))
        # beyond the interval a sign is of no interest: it stays what it is inside
        gone = changes & outside
        left[0] = np.where(gone[0], right[0], left[0])
        right[-1] = np.where(gone[-1], left[-1], right[-1])
        crossings[outside] = np.nan
        # zero at one end of a gap: the sign is the other end's
        left, right = np.where(left == 0, right, left), np.where(right == 0, left, right)
        return crossings, left, right

    def _values_in_gaps(self, places, gaps):
        lower = np.insert(self.nodes, 0, -np.inf)[gaps]
        upper = np.append(self.nodes, np.inf)[gaps]
        base = np.where(places - lower <= upper - places, gaps - 1, gaps)
        distance = (places - self.nodes[base])[:, None]
        return self.values[base] + self.slopes[gaps] * distance

    def table(self):
        """Breakpoints [K], slopes [K + 1, n], and values [K + 1, n] at the anchors.

        The anchor of a segment is its point nearest to the origin.
        """
        at = int(np.flatnonzero(self.nodes == self.origin)[0])
        if self.is_break[at]:
            values = np.insert(self.values, at, self.values[at], axis=0)
            slopes = self.slopes
        else:
            # the gaps on both sides of the origin are one segment; beyond the interval's end
            # there may be something else
            values = self.values
            slopes = np.delete(self.slopes, at + 1 if self.origin == self.hi else at, axis=0)
        return self.nodes[self.is_break], slopes, values


def _matmul(h, weight, bias):
    """h·Wᵀ + b, with 0 for what is within rounding of 0."""
    z = h @ weight.T + bias
    terms = np.abs(h) @ np.abs(weight).T + np.abs(bias)
    z[np.abs(z) <= _ZERO_ULPS * np.finfo(float).eps * terms] = 0.0
    return z
