"""Starts of univariate hinge nets 1 → H → 1, drawn from the data: knots where they are wanted, the
read-out solved for.

A unit a·σ(±(x − t)) has its knot at t. The best L2 fit with many knots has them with density
|f''|^(2/5). Of the error E of a line through neighbouring rows, E^(1/5) is proportional to the
integral of that density over them, so nothing is differentiated: rows are halved where E is
largest, noise makes all parts alike, and a jump is just a large E.
"""

import torch

from fastmlp import backends

PARTS_PER_UNIT = 8
"""Parts that the rows are cut into."""
MAX_CANDIDATES = 8
"""Placings of the knots that one start is the best of."""
WORK_OF_A_START = 10**7
"""Cubes of widths that the candidates of one start may cost together."""
MAX_ENTRIES = 1 << 24
"""Of the matrices that are solved at once: 128 MB."""


def draw(n_units, slope, x, sums, centre, n_starts, generator):
    """Weights of ``n_starts`` nets, ``[n_starts, 3·H + 1]`` in the order of ``parameters()``.

    A start is the best of a few placings. Its knots are rows, one from each of H equal shares of a
    density that mixes the one above with that of the rows, in random parts. One piece between two
    knots has no unit that is on, the one that is flattest in the data: units left of it face left,
    those right of it right. Linear least squares gives the read-out.

    Args:
        n_units: Hidden units H.
        slope: Of the activation below 0.
        x: Sorted inputs, ``[N]``.
        sums: Prefix sums of w, w·x, w·y, w·x², w·x·y, w·y² of centred numbers, ``[6, N + 1]``.
        centre: Where x and y are centred, ``[2]``.
        n_starts: How many.
        generator: Source of the random numbers.

    Source: de Boor 1973, "Good approximation by splines with variable knots", for the density.
    """
    cube = (n_units + 1) ** 3
    n_candidates = min(MAX_CANDIDATES, max(1, WORK_OF_A_START // cube))
    at_once = max(1, MAX_ENTRIES // (n_candidates * 2 * (n_units + 1) ** 2))
    density = _knot_density(n_units, sums)
    starts = []
    for first in range(0, n_starts, at_once):
        n = min(at_once, n_starts - first)
        knots = _knots(n_units, x, *density, n * n_candidates, generator)
        signs, weights, sse = _readouts(knots, slope, x, sums, centre)
        best = torch.arange(n, device="cpu") * n_candidates + sse.view(n, -1).argmin(1)
        starts.append(_weights(knots[best], signs[best], weights[best]))
    return torch.cat(starts)


def _weights(knots, signs, readout):
    """The parameters of units with |w| = |v|, so that either layer has its share of the slope."""
    kinks, constant = readout[:, :-1], readout[:, -1:]
    size = kinks.abs().sqrt()
    # a unit without a kink may still get one
    least = 1e-3 * size.square().mean(1, keepdim=True).sqrt()
    size = size.clamp_min(torch.where(least > 0, least, 1.0))
    w = signs * size
    return torch.cat([w, -w * knots, kinks / size, constant], 1)


def _line_errors(sums, first, last):
    """Squared error that the best line leaves of the rows first … last, and its terms."""
    w, x, y, xx, xy, yy = sums[:, last] - sums[:, first]
    inverse = torch.where(w > 0, 1 / w, 0.0)
    mean_x, mean_y = x * inverse, y * inverse
    s_xx = (xx - x * mean_x).clamp_min(0)
    s_xy = xy - x * mean_y
    s_xx = torch.where(last - first > 1, s_xx, 0.0)
    slope = torch.where(s_xx > 0, s_xy / s_xx, 0.0)
    left = (yy - y * mean_y - slope * s_xy).clamp_min(0)
    return left, w, mean_x, mean_y, s_xx, slope


def _knot_density(n_units, sums):
    """Rows cut into parts, where they begin and end, and what share of the knots each wants."""
    n, n_parts = sums.shape[1] - 1, PARTS_PER_UNIT * n_units
    cuts = torch.tensor([0, n], device="cpu")
    while True:
        # with its neighbours, so that a jump between two parts is seen
        first = torch.cat([cuts[:1], cuts[:-2]])
        last = torch.cat([cuts[2:], cuts[-1:]])
        errors = _line_errors(sums, first, last)[0]
        splittable = torch.where(cuts.diff() > 1, errors, 0.0)
        if len(errors) >= n_parts or not bool((splittable > 0).any()):
            wanted = errors.pow(0.2)
            rows = cuts.diff() / n
            return cuts, wanted / wanted.sum() if bool(wanted.sum() > 0) else rows
        at_once = min(max(1, len(errors) // 8), n_parts - len(errors))
        worst = splittable.topk(at_once)
        parts = worst.indices[worst.values > 0]
        cuts = torch.cat([cuts, (cuts[parts] + cuts[parts + 1]) // 2]).sort().values


def _knots(n_units, x, cuts, wanted, n_sets, generator):
    """Sorted knots at rows, ``[n_sets, n_units]``."""

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")

    n, rows = len(x), cuts.diff() / len(x)
    mix = uniform(n_sets, 1).square()
    shares = torch.zeros(n_sets, len(cuts), dtype=torch.float64, device="cpu")
    shares[:, 1:] = ((1 - mix) * wanted + mix * rows).cumsum(1)
    shares /= shares[:, -1:].clone()
    middle = torch.arange(n_units, dtype=torch.float64, device="cpu") + 0.5
    at = middle + uniform(n_sets, 1) * (uniform(n_sets, n_units) - 0.5)
    at = (at / n_units).contiguous()
    part = torch.searchsorted(shares[:, 1:-1].contiguous(), at)
    low, high = shares.gather(1, part), shares.gather(1, part + 1)
    inside = torch.where(high > low, (at - low) / (high - low), 0.0)
    row = (cuts[part] + inside * cuts.diff()[part]).long()
    if n >= n_units:  # no two at one row
        order = torch.arange(n_units, device="cpu")
        row = (row - order).cummax(1).values + order
        row = torch.minimum(row, n - n_units + order)
    return x[row.clamp_max(n - 1)]


def _readouts(knots, slope, x, sums, centre):
    """Least squares for sets of knots: signs ``[sets, H]`` of the units' directions, weights
    ``[sets, H + 1]``, squared errors ``[sets]``.

    Between two knots the net is a line: two rows stand for all that are there, one for the value
    at their mean and one for the slope.
    """
    linalg_least_squares = backends.launchers("numba", "numbers.linalg").linalg_least_squares
    n_sets, n_units = knots.shape
    cuts = torch.zeros(n_sets, n_units + 2, dtype=torch.int64, device="cpu")
    cuts[:, 1:-1] = torch.searchsorted(x, knots.flatten(), right=True).view(n_sets, n_units)
    cuts[:, -1] = len(x)
    terms = _line_errors(sums, cuts[:, :-1].flatten(), cuts[:, 1:].flatten())
    left, w, mean_x, mean_y, s_xx, line = (t.view(n_sets, n_units + 1) for t in terms)
    # with the pieces beside it, for one row alone has no slope
    first = torch.cat([cuts[:, :1], cuts[:, :-2]], 1).flatten()
    last = torch.cat([cuts[:, 2:], cuts[:, -1:]], 1).flatten()
    *_, around_xx, around = _line_errors(sums, first, last)
    flattest = (around.square() * around_xx).view_as(w).argmin(1, keepdim=True)
    signs = torch.where(torch.arange(n_units, device="cpu") < flattest, -1.0, 1.0).double()
    heavy, wide = w.sqrt().unsqueeze(2), s_xx.sqrt().unsqueeze(2)
    facing = signs.unsqueeze(1).expand(-1, n_units + 1, -1)  # [sets, pieces, H]
    z = facing * ((mean_x + centre[0]).unsqueeze(2) - knots.unsqueeze(1))
    design = torch.zeros(n_sets, n_units + 1, 2 * (n_units + 1), dtype=torch.float64, device="cpu")
    values, slopes = design.mT.split(n_units + 1, 1)  # as rows; in memory column by column
    values[:, :, :n_units] = heavy * torch.where(z > 0, z, slope * z)
    values[:, :, n_units:] = heavy
    slopes[:, :, :n_units] = wide * torch.where(z > 0, facing, slope * facing)
    targets = torch.cat([heavy.squeeze(2) * mean_y, wide.squeeze(2) * line], 1)
    weights = torch.empty(n_sets, n_units + 1, dtype=torch.float64, device="cpu")
    sse = torch.empty(n_sets, dtype=torch.float64, device="cpu")
    # not LAPACK, whose bits depend on the number of threads
    linalg_least_squares(
        design.data_ptr(), targets.data_ptr(), n_sets, 2 * (n_units + 1), n_units + 1,
        weights.data_ptr(), sse.data_ptr(),
    )  # fmt: skip
    weights[:, n_units] += centre[1]
    return signs, weights, sse + left.sum(1)
