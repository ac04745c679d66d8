"""What `fit` and the file format refuse, branch by branch; nothing is trained by kernels here."""

import pytest
import torch
from fit_cases import nets, quiet_fit, waves
from torch import nn

import fastmlp
from fastmlp import LevenbergMarquardt

DAMAGE = {
    "it was not written by FitResult.save": lambda c: c.update(format="other"),
    "this fastmlp reads": lambda c: c.update(version=99),
    "it lacks tensors": lambda c: c["tensors"].pop("theta"),
    "it lacks states": lambda c: c["states"].pop("step"),
    "it lacks settings": lambda c: c.update(seconds="long"),
    "it lacks numbers": lambda c: c["tensors"].update(theta=[1.0]),
    "its buffers do not match": lambda c: c["tensors"].update(moment1=torch.zeros(1)),
    "its states do not match its models": lambda c: c["states"].update(step=torch.zeros(9)),
    "its losses do not match its models": lambda c: c["tensors"].update(train_loss=torch.zeros(2)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("refused") / "run.pt"
    with fastmlp.backend("torch"):
        quiet_fit(nets(2), *waves(), epochs=1).save(path)
    return path


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_file_that_is_no_result_says_why(saved, tmp_path, reason):
    content = torch.load(saved, weights_only=True)
    DAMAGE[reason](content)
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=reason):
        fastmlp.FitResult.load(tmp_path / "run.pt")


def test_weights_go_to_modules_of_the_saved_structure_only(saved):
    with pytest.raises(ValueError, match="models must have the structures of the saved run"):
        fastmlp.FitResult.load(saved, nets(2)[:1])


@pytest.mark.parametrize("as_what", [torch.tensor, list, lambda v: range(1, 3)])
def test_a_setting_for_each_model_may_be_any_sequence(as_what):
    x, y = waves()
    with fastmlp.backend("torch"):
        losses, expected = (
            quiet_fit(nets(2), x, y, epochs=2, optimizer=fastmlp.SGD(lr)).train_loss
            for lr in (as_what([1, 2]), (1.0, 2.0))
        )
    assert torch.equal(losses, expected)
    assert not torch.equal(losses[0], losses[1])


def test_a_net_without_a_training_kernel_is_refused():
    x = torch.linspace(-1, 1, 4).unsqueeze(1)
    model = nn.Sequential(
        nn.Linear(1, 3), nn.ReLU(), nn.Dropout(0.1), nn.Dropout(), nn.Linear(3, 1)
    )
    with pytest.raises(ValueError, match="two Dropout in one place have no kernel"):
        quiet_fit(model, x, x, epochs=1)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"models": []}, ValueError, "models must hold at least one module"),
        ({"seed": [1, 2]}, TypeError, "seed must be an int with LevenbergMarquardt, got list"),
        ({"y": torch.zeros(0, 1)}, ValueError, "y must have at least one row, got shape"),
        ({"models": nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))}, ValueError, "batch norm"),
        ({"models": nn.Sequential(nn.Linear(1, 2), nn.Dropout())}, ValueError, "active dropout"),
    ],
    ids=["no_models", "seeds", "no_targets", "batch_norm", "dropout"],
)
def test_levenberg_marquardt_refuses(options, error, text):
    pytest.importorskip("numba")
    x = torch.linspace(-1, 1, 4).unsqueeze(1)
    models = options.get("models", fastmlp.MLP(1, [2], 1))
    y = options.get("y", x)
    with pytest.raises(error, match=text):
        quiet_fit(
            models, x, y, epochs=1, optimizer=LevenbergMarquardt(), seed=options.get("seed", 0)
        )
