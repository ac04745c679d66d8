"""The example `xor_parity.py`, run for a few epochs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "examples" / "xor_parity.py"


@pytest.fixture(scope="module")
def xor_parity():
    spec = importlib.util.spec_from_file_location("xor_parity", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_programs_give_one_curve(xor_parity, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    largest = xor_parity.main(["--epochs", "40", "--out", str(tmp_path)])
    for (dtype, _), difference in largest.items():
        assert difference <= xor_parity.LIMITS[dtype]
    text = capsys.readouterr().out
    assert all(name in text for name in xor_parity.DIFFERENCES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["differences.png", "identical.png"]


@pytest.mark.parametrize("change", ["bias", "half", "times_loss", "seed"])
def test_each_difference_shows(xor_parity, change):
    changes = {"bias": False, "half": True, "times_loss": True, "seed": 9}
    plain = xor_parity.train_by_hand(40, 2.0)
    other = xor_parity.train_by_hand(40, 2.0, **{change: changes[change]})
    assert np.abs(plain - other).max() > 1e-3


def test_the_hand_written_gradient_is_that_of_the_loss(xor_parity):
    # one small step lowers the loss by lr·|gradient|², which halving the rate halves
    first, second = xor_parity.train_by_hand(2, 1e-4)
    _, half = xor_parity.train_by_hand(2, 5e-5)
    assert first > second
    # to first order in the step: the second is 1e-4 of it
    assert (first - second) == pytest.approx(2 * (first - half), rel=1e-3)
