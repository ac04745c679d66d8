"""The example `x2_lightning.py`, run for a few batches, with Lightning and without."""

import csv
import sys

import pytest
import torch

ARGUMENTS = ["--limit-batches", "5", "--quiet"]


@pytest.fixture
def without_lightning(as_script, monkeypatch):
    """The example where Lightning cannot be imported."""
    monkeypatch.setitem(sys.modules, "lightning", None)
    sys.modules.pop("x2_lightning", None)
    yield as_script("x2_lightning")
    sys.modules.pop("x2_lightning", None)


@pytest.fixture(scope="module")
def x2_lightning(as_script):
    pytest.importorskip(
        "lightning", "2.6", reason="needs the extra: pip install fastmlp[lightning]"
    )
    sys.modules.pop("x2_lightning", None)
    return as_script("x2_lightning")


def assert_both_were_trained(example, plain, fused, text):
    """The author's class was trained as it is and fused, from the same weights."""
    assert type(plain) is example.SumOfSquares
    assert isinstance(fused, example.SumOfSquares)
    assert type(fused) is not example.SumOfSquares
    assert set(plain.state_dict()) == set(fused.state_dict())
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert ours.shape == theirs.shape
        assert not torch.equal(ours, theirs)
    assert "predictions differ by" in text
    assert text.count("extrapolated") == 2


def rows_of(file):
    with file.open(encoding="utf-8") as lines:
        return [row["val_loss"] for row in csv.DictReader(lines) if row["val_loss"]]


def test_the_class_trains_as_it_is_and_fused(x2_lightning, tmp_path, capsys):
    plain, fused = x2_lightning.main([*ARGUMENTS, "--out", str(tmp_path)])
    assert_both_were_trained(x2_lightning, plain, fused, capsys.readouterr().out)
    for name in ("plain", "fused"):
        version = tmp_path / name / "version_0"
        checkpoint = torch.load(version / "checkpoints" / "best.ckpt", weights_only=True)
        assert set(checkpoint["state_dict"]) == set(plain.state_dict())
        (scheduler,) = checkpoint["lr_schedulers"]
        assert (scheduler["step_size"], scheduler["gamma"]) == (20, 0.9)
        assert len(rows_of(version / "metrics.csv")) == 2


def test_without_lightning_a_loop_does_the_same(without_lightning, tmp_path, capsys):
    arguments = [*ARGUMENTS, "--epochs", "1", "--out", str(tmp_path)]
    plain, fused = without_lightning.main(arguments)
    text = capsys.readouterr().out
    assert "Lightning is not installed, `pip install fastmlp[lightning]` adds it" in text
    assert_both_were_trained(without_lightning, plain, fused, text)
    for name in ("plain", "fused"):
        assert (tmp_path / name / "best.ckpt").exists()
        assert len(rows_of(tmp_path / name / "metrics.csv")) == 1


def test_networks_that_differ_end_the_script(without_lightning, tmp_path, monkeypatch):
    monkeypatch.setattr(without_lightning, "largest_difference", lambda *nets: 0.1)
    with pytest.raises(SystemExit, match="should predict the same"):
        without_lightning.main([*ARGUMENTS, "--epochs", "1", "--out", str(tmp_path)])


def test_help_explains_the_options(without_lightning, capsys):
    with pytest.raises(SystemExit) as ended:
        without_lightning.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--epochs", "--batch-size", "--strategy", "--devices", "--p", "--out"):
        assert option in text
