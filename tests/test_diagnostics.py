"""dropout_report: the closed form against enumeration and against drawn masks, and good manners."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp import reference
from fastmlp.diagnostics import DropoutReport

PLACES = {
    "input": (0.3, 0.0, 0.0),
    "hidden": (0.0, 0.4, 0.0),
    "output": (0.0, 0.0, 0.25),
    "all": (0.2, 0.3, 0.4),
    "none": (0.0, 0.0, 0.0),
    "everything_dropped_at_the_input": (1.0, 0.3, 0.2),
    "everything_dropped_in_the_middle": (0.2, 1.0, 0.2),
    "everything_dropped_at_the_output": (0.2, 0.3, 1.0),
}


class Wrapped(nn.Module):
    """A model that is none of ours, so that masks must be drawn."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.fixture(params=PLACES)
def places(request):
    """Each place of dropout alone, all together, and the degenerate ones."""
    return PLACES[request.param]


def enumerated(net, x, y):
    """The report's four figures by enumeration of all masks of one feature, in float64."""
    p_input, p_hidden, p_output = net.dropout
    n_hidden, n_features = net.hidden_features, x.shape[1]
    w1, w2 = (getattr(net, name).weight.reshape(-1, n_hidden) for name in ("fc1", "fc2"))
    b1, b2 = net.fc1.bias.reshape(-1, n_hidden), net.fc2.bias.reshape(-1)
    activation = reference.ACTIVATIONS[net.activation]

    def factor(bit, p):
        return bit / (1 - p) if p < 1 else 0.0

    def f(x, bits):
        u = x * factor(bits[0], p_input)
        mask = torch.tensor([factor(bit, p_hidden) for bit in bits[1:-1]], dtype=x.dtype)
        hidden = activation(u.unsqueeze(-1) * w1 + b1) * mask
        return ((hidden * w2).sum(-1) + b2) * factor(bits[-1], p_output)

    probabilities = (p_input, *[p_hidden] * n_hidden, p_output)
    mean, second = torch.zeros_like(x), torch.zeros_like(x)
    for bits in itertools.product((0, 1), repeat=n_hidden + 2):
        pairs = zip(bits, probabilities, strict=True)
        weight = math.prod(1 - p if bit else p for bit, p in pairs)
        value = f(x, bits)
        mean, second = mean + weight * value, second + weight * value.square()
    v, c = net.fc3.weight, net.fc3.bias
    variance = (second - mean.square()) @ v.square().T
    assert v.shape[1] == n_features
    eval_mse = (y - net.eval()(x)).square().mean()
    mean_mse = (y - (mean @ v.T + c)).square().mean()
    return [mean_mse + variance.mean(), eval_mse, mean_mse - eval_mse, variance.mean()]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own_subnets"])
@torch.no_grad()
def test_closed_form_equals_the_sum_over_all_masks(places, shared, draw):
    net = reference.AdditiveMLP(
        3, 4, 2, shared=shared, activation="tanh", dropout=places, dtype=torch.float64
    )
    x, y = draw(6, 3), draw(6, 2)
    report = fastmlp.dropout_report(net, x, y)
    assert report.samples == 0
    ours = [report.train_mse, report.eval_mse, report.shift, report.variance]
    for value, right in zip(ours, enumerated(net, x, y), strict=True):
        # the judge adds up 64 products of probabilities in float64
        assert value == pytest.approx(float(right), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("name", ["input", "hidden", "output", "all", "none"])
@pytest.mark.parametrize("kind", ["additive", "own_subnets", "elementwise"])
def test_closed_form_agrees_with_drawn_masks(name, kind, draw):
    options = {"dropout": PLACES[name]}
    with fastmlp.backend("torch"):
        if kind == "elementwise":
            net, x, y = fastmlp.ElementwiseMLP(14, **options), draw(40, 5), draw(40, 5)
        else:
            net = fastmlp.AdditiveMLP(8, 14, shared=kind == "additive", **options)
            x, y = draw(40, 8), draw(40, 1)
        exact = fastmlp.dropout_report(net, x.float(), y.float())
        drawn = fastmlp.dropout_report(Wrapped(net), x.float(), y.float(), samples=200)
    assert (exact.samples, drawn.samples) == (0, 200)
    # float32 beside float64: the rounding of a net of 14 units
    assert drawn.eval_mse == pytest.approx(exact.eval_mse, rel=1e-5)
    for field in ("train_mse", "shift", "variance"):
        error = getattr(drawn, field + "_error")
        # float32 rounds, also where no mask is drawn
        allowed = 4 * error + 1e-5 * exact.train_mse
        assert abs(getattr(drawn, field) - getattr(exact, field)) < allowed, field
        assert (error > 1e-9) == (name != "none"), field


def test_kernels_draw_what_the_closed_form_says(kernel_backend, draw):
    if kernel_backend.interpreted:
        pytest.skip("the interpreter needs minutes for these many masks")
    net = fastmlp.AdditiveMLP(16, 14, dropout=0.2).to(kernel_backend.device)
    x, y = (t.float().to(kernel_backend.device) for t in (draw(50, 16), draw(50, 1)))
    exact = fastmlp.dropout_report(net, x, y)
    drawn = fastmlp.dropout_report(Wrapped(net), x, y, samples=400)
    for field in ("train_mse", "shift", "variance"):
        error = getattr(drawn, field + "_error")
        assert abs(getattr(drawn, field) - getattr(exact, field)) < 4 * error


def test_the_parts_add_up(places, draw):
    net = fastmlp.AdditiveMLP(5, 6, dropout=places)
    report = fastmlp.dropout_report(net, draw(9, 5).float(), draw(9, 1).float())
    total = report.eval_mse + report.shift + report.variance
    # one sum of three numbers in float64
    assert report.train_mse == pytest.approx(total, rel=1e-12)
    if places[0] == 0 and 1 not in places:
        # the difference of two such sums
        assert report.shift == pytest.approx(0, abs=1e-12 * report.eval_mse)


def test_standard_errors_are_those_of_repetition(draw):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1), nn.Tanh())
    x, y = draw(5, 4).float(), draw(5, 1).float()
    runs = [fastmlp.dropout_report(net, x, y, samples=16, seed=seed) for seed in range(200)]
    for field in ("train_mse", "shift", "variance"):
        values = torch.tensor([getattr(run, field) for run in runs])
        claimed = torch.tensor([getattr(run, field + "_error") for run in runs])
        # 200 repetitions tell a standard deviation to 5 %; four of them
        assert claimed.square().mean().sqrt() == pytest.approx(float(values.std()), rel=0.25)


def test_chunks_do_not_matter(draw, monkeypatch):
    net = fastmlp.AdditiveMLP(5, 6, 2, dropout=0.2)
    x, y = draw(2, 17, 5).float(), draw(2, 17, 2).float()
    whole = fastmlp.dropout_report(net, x, y)
    monkeypatch.setattr("fastmlp.diagnostics._CHUNK", 100)
    parts = fastmlp.dropout_report(net, x, y)
    # the same terms in float64, added chunk by chunk
    assert parts.train_mse == pytest.approx(whole.train_mse, rel=1e-12)
    plain = nn.Sequential(nn.Linear(5, 2))  # no dropout: batches cannot change the masks
    one, many = (
        fastmlp.dropout_report(plain, x[0], y[0], samples=3, batch_size=size) for size in (17, 5)
    )
    # PyTorch multiplies matrices of other sizes in float32: a few ulps
    assert many.train_mse == pytest.approx(one.train_mse, rel=1e-6)
    assert one.variance == pytest.approx(0, abs=1e-12)


def test_nothing_of_the_program_changes(draw):
    class Power(nn.Module):
        """Training mode moves a buffer, as spectral normalisation does."""

        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += self.training
            return F.dropout(x, 0.5, self.training)

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Power(), nn.Linear(4, 1))
    model[1].eval()
    modes = [m.training for m in model.modules()]
    state = {name: t.clone() for name, t in model.state_dict().items()}
    before = torch.get_rng_state()
    x, y = draw(6, 3).float(), draw(6, 1).float()
    first = fastmlp.dropout_report(model, x, y, samples=5)
    assert first == fastmlp.dropout_report(model, x, y, samples=5)
    assert first != fastmlp.dropout_report(model, x, y, samples=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(p.grad is None for p in model.parameters())

    def broken(module, args):
        raise RuntimeError("broken")

    model.eval()
    model[3].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        fastmlp.dropout_report(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(m.training for m in model.modules())


def test_batch_normalisation_adds_no_variance(draw):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    report = fastmlp.dropout_report(model, draw(6, 3).float(), draw(6, 1).float(), samples=3)
    # one computation twice
    assert report.train_mse == pytest.approx(report.eval_mse, rel=1e-12)


def test_models_that_do_more_than_ours_get_drawn_masks(draw):
    class Squared(fastmlp.AdditiveMLP):
        def forward(self, x):
            return super().forward(x).square()

    x, y = draw(4, 3).float(), draw(4, 1).float()
    hooked = fastmlp.AdditiveMLP(3, 4)
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    for net in (Squared(3, 4), hooked):
        report = fastmlp.dropout_report(net, x, y, samples=3)
        assert report.samples == 3
        # PyTorch's mean in float32 beside ours in float64
        assert report.eval_mse == pytest.approx(F.mse_loss(net(x), y).item(), rel=1e-5)


def test_a_second_hidden_layer_gets_drawn_masks(draw):
    net, x = fastmlp.ElementwiseMLP((4, 5), dropout=(0.0, 0.2, 0.0)), draw(6).float()
    report = fastmlp.dropout_report(net, x, x, samples=3)
    assert report.samples == 3
    assert report.variance > 0


def test_text():
    large = str(DropoutReport(84.0, 4.0, -1.0, 81.0, 2.0, 0.5, 1.5, 64))
    assert large.splitlines() == [
        "dropout report (64 masks a row)",
        "eval-mode MSE                   4",
        "+ shift of the mean            -1 ± 0.5",
        "+ dropout variance             81 ± 1.5",
        "= train-mode MSE               84 ± 2",
        "Variance dominates (96 %): the loss can fall while predictions in eval mode get worse.",
    ]
    small = str(DropoutReport(5.0, 4.0, 0.0, 1.0))
    assert "closed form" in small
    assert "dominates" not in small
    assert "±" not in small
    assert DropoutReport(0.0, 0.0, 0.0, 0.0).variance_share == 0


X, Y = torch.zeros(4, 3), torch.zeros(4, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": len}, TypeError, "model must be an nn.Module, got builtin"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"x": torch.zeros(0, 3)}, ValueError, r"x must hold at least one value, got .*\[0, 3\]"),
        ({"x": torch.zeros(4, 2)}, ValueError, r"x must have shape \[\*, 3\]"),
        ({"x": X.to("meta")}, ValueError, "x must be on the device of model, cpu, got meta"),
        ({"y": None}, TypeError, "y must be a Tensor, got NoneType"),
        ({"y": Y.long()}, TypeError, "y must be floating point, got int64"),
        ({"y": Y[:, 0]}, ValueError, r"y must have the shape of model\(x\), \[4, 1\], got \[4\]"),
        ({"y": Y.to("meta")}, ValueError, "y must be on the device of .*cpu, got meta"),
        ({"samples": 2}, ValueError, "samples must be at least 3, got 2"),
        ({"samples": 3.0}, TypeError, "samples must be an int, got float"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"seed": None}, TypeError, "seed must be an int, got NoneType"),
        ({"model": nn.Linear(3, 2)}, ValueError, r"y must have the shape .*\[4, 2\], got \[4, 1\]"),
        ({"model": nn.LSTM(3, 1)}, TypeError, "model must return a Tensor, got tuple"),
        ({"model": nn.Flatten(0)}, ValueError, r"model must return one row for each .*4, got \[12"),
        (
            {"model": nn.Identity(), "x": torch.zeros(())},
            ValueError,
            "x must have rows along its first dimension",
        ),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"model": fastmlp.AdditiveMLP(3, 4), "x": X, "y": Y, **change}
    with pytest.raises(error, match=message):
        fastmlp.dropout_report(**arguments)
