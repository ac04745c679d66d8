"""AdditiveMLP over the batch, from one row to a million, and over the hidden width."""

from dataclasses import replace

import bench_additive_mlp
from common import MODES, Case


def _curve(name, points):
    """A suite of forward and backward alone, at (rows, hidden width)."""
    cases = tuple(
        Case(
            f"[{rows}, 64], H = {width}",
            (rows, 64),
            modes=MODES[2:3],
            settings={**bench_additive_mlp.SUBNET, "hidden_features": width},
        )
        for rows, width in points
    )
    return replace(bench_additive_mlp.SUITE, name=name, cases=cases)


BATCH = _curve("batch", [(10**i, 14) for i in range(7)])
WIDTH = _curve("width", [(1000, width) for width in (1, 4, 14, 64, 256, 1024)])
