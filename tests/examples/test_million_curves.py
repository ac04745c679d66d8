"""The example `million_curves.py`, with a few curves."""

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "million_curves.py"

pytest.importorskip("numba")
pytest.importorskip("resource")


@pytest.fixture(scope="module")
def million_curves():
    spec = importlib.util.spec_from_file_location("million_curves", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["sines", "mlp"])
def test_both_fit_and_are_shown(million_curves, kind, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    scipy = "2" if importlib.util.find_spec("scipy") else "0"
    arguments = ["--n", "60", "--model", kind, "--scipy", scipy, "--quiet", "--out", str(tmp_path)]
    results = million_curves.main(arguments)
    for name, (models, losses, _) in results.items():
        assert len(models) == len(losses) == 60
        # a start in ten or more ends at the noise
        assert losses.quantile(0.1) < 4 * million_curves.NOISE**2, name
    adam, lm = (results[name][1].median() for name in ("Adam", "LM"))
    assert lm <= 1.1 * adam
    assert "µs a curve" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
