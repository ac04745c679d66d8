"""The example `x2_lightning.py`, run for a few batches."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", "2.6", reason="needs the extra: pip install fastmlp[lightning]")

import fastmlp

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def x2_lightning(monkeypatch):
    """The example, which finds its neighbour `x2_sum` as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("x2_lightning", "x2_sum")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module("x2_lightning")
    for name in names:
        del sys.modules[name]
    sys.modules.update(before)


def test_a_checkpoint_of_the_plain_module_trains_on(x2_lightning, tmp_path, capsys):
    argv = ["--epochs", "2", "--limit-batches", "5", "--quiet", "--out", str(tmp_path)]
    plain, fused = x2_lightning.main(argv)
    assert type(plain.net) is x2_lightning.PlainNet
    assert type(fused.net) is fastmlp.AdditiveMLP
    assert fused.net.dropout == 0.2
    assert all(module.training for module in fused.modules())
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert ours.shape == theirs.shape
        assert not torch.equal(ours, theirs)
    text = capsys.readouterr().out
    assert "largest relative difference of the predictions after loading" in text
    for name, n_epochs in (("plain", 1), ("fastmlp", 2)):
        version = tmp_path / name / "version_0"
        checkpoint = torch.load(version / "checkpoints" / "best.ckpt", weights_only=True)
        assert set(checkpoint["state_dict"]) == {f"net.{n}" for n in fused.net.state_dict()}
        (scheduler,) = checkpoint["lr_schedulers"]
        assert (scheduler["step_size"], scheduler["gamma"]) == (20, 0.9)
        with (version / "metrics.csv").open(encoding="utf-8") as file:
            rows = [row["val_loss"] for row in csv.DictReader(file) if row["val_loss"]]
        assert len(rows) == n_epochs


def test_networks_that_differ_end_the_script(x2_lightning, tmp_path, monkeypatch):
    monkeypatch.setattr(x2_lightning, "largest_difference", lambda *nets: 0.1)
    argv = ["--limit-batches", "1", "--quiet", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="should predict the same"):
        x2_lightning.main(argv)


def test_help_explains_the_options(x2_lightning, capsys):
    with pytest.raises(SystemExit) as ended:
        x2_lightning.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in ("--epochs", "--batch-size", "--strategy", "--devices", "--p", "--out"):
        assert option in text
