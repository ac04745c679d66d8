"""Both solvers of Levenberg–Marquardt decide alike about a trial."""

from itertools import product

import pytest
import torch
from fastmlp.kernels.lm import FASTEST_DECREASE, MIN_GAIN, verdict

NUMBERS = (
    (1.0, 1e-12, 0.0), (0.0, 0.5, 0.9999, 1.0, 1.0 + 1e-13, 3.0, float("nan"), float("inf")),
    (0.0, 1e-13, 0.3, 0.5, 1e-4, 4.0, -1.0, float("nan")), (0.0, 1e-13, 1.0), (1.0, 0.0),
)  # fmt: skip
CASES = list(product(*NUMBERS))


def by_hand(sse, new, predicted, moved, size, ftol, xtol):
    """The same as sentences."""
    gain = (sse - new) / predicted if predicted > 0 else 0.0
    flat = abs(sse - new) <= ftol * sse and predicted <= ftol * sse and gain <= 2
    bent = 2.0 * (gain if gain < 1 else 1.0) - 1.0
    factor = max(1.0 - bent * bent * bent, FASTEST_DECREASE)
    return gain > MIN_GAIN, flat, moved <= xtol * size, factor


def test_of_one_and_of_many():
    numba = pytest.importorskip("numba")
    from fastmlp.kernels.cpu.levenberg_marquardt import steps

    compiled = numba.njit(error_model="numpy")(verdict(steps.where))
    tensors = [torch.tensor(column, dtype=torch.float64) for column in zip(*CASES, strict=True)]
    many = torch.stack([t.double() for t in verdict(torch.where)(*tensors, 1e-12, 1e-12)], 1)
    for case, row in zip(CASES, many.tolist(), strict=True):
        wanted = [float(part) for part in by_hand(*case, 1e-12, 1e-12)]
        one = [float(part) for part in compiled(*case, 1e-12, 1e-12)]
        assert one == row == wanted, case


def test_the_cases_tell_decisions_apart():
    rows = {by_hand(*case, 1e-12, 1e-12)[:3] for case in CASES}
    assert len(rows) >= 6
