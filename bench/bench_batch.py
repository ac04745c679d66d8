"""AdditiveMLP from one row to a million: where each provider starts to lose."""

from dataclasses import replace

import bench_additive_mlp
from common import MODES, Case

SUITE = replace(
    bench_additive_mlp.SUITE,
    name="batch",
    cases=tuple(
        Case(f"[{n}, 64], H = 14", (n, 64), modes=MODES[2:3], settings=bench_additive_mlp.SUBNET)
        for n in (1, 10, 100, 1000, 10_000, 100_000, 1_000_000)
    ),
)
