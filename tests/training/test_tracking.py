"""What `fit` minimises and records besides means: sums of squares, norms of gradients, and fixed
steps of Gauss and Newton."""

import copy
import math

import pytest
import torch
from closeness import assert_run_as_good_as_torch, assert_same_number
from fit_cases import quiet_fit, waves

import fastmlp
from fastmlp.training import first_order
from fastmlp.training.result import FitResult

TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODELS = {
    "additive_mlp_two_outputs": lambda: fastmlp.AdditiveMLP(3, 4, 2),
    "elementwise_mlp": lambda: fastmlp.ElementwiseMLP(6),
    "elementwise_mlp_deep": lambda: fastmlp.ElementwiseMLP([4, 3]),
    "mlp": lambda: fastmlp.MLP(3, [5, 4], 2, activation="sigmoid"),
    "sine_sum": lambda: fastmlp.SineSum(3),
    "sine_sum_all": lambda: fastmlp.SineSum(20, learn_amplitude=True, learn_phase=True, scale=2.0),
}
NUMBERS = {"mse": torch.square, "sse": torch.square, "l1": torch.abs}
KINDS = ["additive_mlp_two_outputs", "elementwise_mlp_deep", "mlp", "sine_sum_all"]


@pytest.fixture(params=["torch", "numba", "triton"])
def wing(request):
    if request.param != "torch":
        pytest.importorskip(request.param)
    with fastmlp.backend(request.param):
        yield request.param


def data_for(model, dtype):
    """24 rows of inputs and targets."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(24, 3, generator=generator)
    p = next(model.parameters())
    shape = model(x.to(p)).shape
    return x.to(p.device, dtype), torch.rand(shape, generator=generator).to(p.device, dtype)


def gradient(model, x, y, loss="mse", weight=None):
    """Of the loss over all rows by the trained parameters, one vector, float64."""
    model = copy.deepcopy(model).double().cpu()
    with fastmlp.backend("torch"):
        numbers = NUMBERS[loss](model(x.double().cpu()) - y.double().cpu()).reshape(len(x), -1)
        weight = torch.ones(len(x)) if weight is None else weight
        total = (numbers * weight.double()[:, None]).sum()
        if loss != "sse":
            total = total / (weight.double().sum() * numbers.shape[1])
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, trained)])


def train_stepwise(model, x, y, epochs, **options):
    """Results after 1, 2, … epochs, each from the start, with the models that they left."""
    for n in range(1, epochs + 1):
        net = copy.deepcopy(model)
        yield quiet_fit(net, x, y, epochs=n, track=("grad_norm",), **options), net


@pytest.mark.parametrize("loss", NUMBERS)
@pytest.mark.parametrize("name", KINDS)
def test_grad_norm_is_that_of_all_rows_after_the_epoch(wing, name, loss):
    torch.manual_seed(3)
    device = TRITON_DEVICE if wing == "triton" else "cpu"
    model = MODELS[name]().double().to(device)
    x, y = data_for(model, torch.float64)
    weight = torch.linspace(0.5, 2, len(x), dtype=torch.float64, device=device)
    first = next(model.parameters()).requires_grad_(False)
    options = {
        "batch_size": 10, "loss": loss, "sample_weight": weight, "clip_norm": 0.1,
        "optimizer": fastmlp.SGD(lr=1e-3, momentum=0.9),
    }  # fmt: skip
    for result, net in train_stepwise(model, x, y, 1 if wing == "triton" else 3, **options):
        exact = gradient(net, x, y, loss, weight)
        assert result.grad_norm.shape == result.train_loss.shape
        assert_same_number(result.grad_norm[0, -1], exact.norm(), terms=exact.abs().sum())
        assert torch.equal(next(net.parameters()), first)


@pytest.mark.parametrize("name", ["elementwise_mlp", "elementwise_mlp_deep"])
def test_grad_norm_where_steps_take_sums_of_segments(name):
    pytest.importorskip("numba")
    torch.manual_seed(3)
    model = MODELS[name]().double()
    x, y = (t.double() for t in waves(2000))
    with fastmlp.backend("numba"):
        for result, net in train_stepwise(model, x, y, 2):
            exact = gradient(net, x, y)
            terms = exact.abs().sum()
            assert_same_number(result.grad_norm[0, -1], exact.norm(), terms=terms, ulps=2000)


@pytest.mark.parametrize("wanted", ["elementwise_mlp", "mlp", "sine_sum"])
def test_tracking_changes_nothing_else(wing, wanted, monkeypatch):
    torch.manual_seed(3)
    device = TRITON_DEVICE if wing == "triton" else "cpu"
    model = MODELS[wanted]().to(device)
    x, y = data_for(model, torch.float32)
    options = {"epochs": 2, "batch_size": 20, "validation": (x, y)}
    alone, net = copy.deepcopy(model), copy.deepcopy(model)
    plain = quiet_fit(alone, x, y, **options)
    # a step a launch
    monkeypatch.setattr(first_order, "LAUNCH_SECONDS", 1e-9)
    result = quiet_fit(net, x, y, track=("grad_norm",), **options)
    assert plain.grad_norm is None
    assert torch.equal(plain.train_loss, result.train_loss)
    assert torch.equal(plain.val_loss, result.val_loss)
    for p, q in zip(alone.parameters(), net.parameters(), strict=True):
        assert torch.equal(p, q)


def test_grad_norm_is_held_saved_and_resumed(tmp_path):
    x, y = waves(12)
    torch.manual_seed(0)
    start = fastmlp.SineSum(2)
    options = {"batch_size": 5, "track": ("grad_norm",)}
    net, again = copy.deepcopy(start), copy.deepcopy(start)
    whole = quiet_fit(net, x, y, epochs=4, **options)
    half = quiet_fit(again, x, y, epochs=2, **options)
    half.save(tmp_path / "half")
    half = FitResult.load(tmp_path / "half", again)
    assert torch.equal(half.grad_norm, whole.grad_norm[:, :2])
    assert torch.equal(quiet_fit(again, x, y, epochs=4, resume=half, **options).grad_norm,
                       whole.grad_norm)  # fmt: skip
    untracked = quiet_fit(copy.deepcopy(start), x, y, epochs=2, batch_size=5)
    with pytest.raises(ValueError, match="resume must come from a run with the same track"):
        quiet_fit(again, x, y, epochs=4, resume=untracked, **options)
    stopped = quiet_fit(
        copy.deepcopy(start), x, y, epochs=50, patience=1, validation=(x, -y), **options
    )
    seen = int(stopped.epochs[0])
    assert seen < 50
    assert (stopped.grad_norm[0, seen:] == stopped.grad_norm[0, seen - 1]).all()


def test_a_file_without_grad_norm_is_read(tmp_path):
    x, y = waves(12)
    quiet_fit(fastmlp.SineSum(2), x, y, epochs=1).save(tmp_path / "file")
    content = torch.load(tmp_path / "file", weights_only=True)
    del content["tensors"]["grad_norm"]
    torch.save(content, tmp_path / "file")
    assert FitResult.load(tmp_path / "file").grad_norm is None


@pytest.mark.parametrize(
    ("track", "error", "match"),
    [
        ("grad_norm", TypeError, "track must be a sequence of str, got str"),
        (3, TypeError, "track must be a sequence of str, got int 3"),
        (("loss",), ValueError, "track must hold names of grad_norm, got 'loss'"),
        ((3,), ValueError, "track must hold names of grad_norm, got 3"),
    ],
)
@pytest.mark.parametrize("optimizer", [None, fastmlp.LevenbergMarquardt()], ids=["adam", "lm"])
def test_bad_track(optimizer, track, error, match):
    x, y = waves(12)
    with pytest.raises(error, match=match):
        quiet_fit(fastmlp.SineSum(2), x, y, epochs=1, optimizer=optimizer, track=track)


def test_no_grad_norm_of_random_gradients():
    x, y = waves(12)
    with pytest.raises(ValueError, match=r"track must be empty with models\[1\], whose dropout"):
        quiet_fit(
            [fastmlp.ElementwiseMLP(3), fastmlp.ElementwiseMLP(3, dropout=0.1)], x, y, epochs=1,
            track=("grad_norm",),
        )  # fmt: skip


class TestSumOfSquares:
    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("backend", ["numba", "triton"])
    def test_follows_the_torch_loop(self, backend, name):
        pytest.importorskip(backend)
        torch.manual_seed(3)
        start = MODELS[name]().to(TRITON_DEVICE if backend == "triton" else "cpu")
        x, y = data_for(start, torch.float32)
        weight = torch.linspace(0.5, 2, 24).to(x)
        runs = []
        for loop, dtype in (
            ("torch", torch.float32), ("torch", torch.float64), (backend, torch.float64),
        ):  # fmt: skip
            net = copy.deepcopy(start).to(dtype)
            with fastmlp.backend(loop):
                result = quiet_fit(
                    net, x.to(dtype), y.to(dtype), epochs=1 if backend == "triton" else 20,
                    batch_size=10, loss="sse", optimizer=fastmlp.SGD(lr=1e-4),
                    sample_weight=weight, validation=(x[:5].to(dtype), y[:5].to(dtype)),
                )  # fmt: skip
            runs.append([result.train_loss, result.val_loss, *net.parameters()])
        short, exact, ours = runs
        assert_run_as_good_as_torch(ours, short, exact, dtype=torch.float64)

    def test_is_the_sum_over_rows_and_outputs(self, wing):
        torch.manual_seed(3)
        device = TRITON_DEVICE if wing == "triton" else "cpu"
        start = MODELS["mlp"]().to(device)
        x, y = data_for(start, torch.float32)
        runs = []
        for dtype in (torch.float32, torch.float64):
            net = copy.deepcopy(start).to(dtype)
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
            with fastmlp.backend("torch"):
                total = 0.0
                for rows in torch.arange(len(x), device=device).split(7):
                    optimizer.zero_grad()
                    loss = (net(x[rows].to(dtype)) - y[rows].to(dtype)).square().sum()
                    loss.backward()
                    optimizer.step()
                    total += loss.item()
                val_loss = (net(x.to(dtype)) - y.to(dtype)).square().sum().item()
            losses = torch.tensor([total, val_loss], dtype=torch.float64)
            runs.append([losses, *net.parameters()])
        net = copy.deepcopy(start)
        result = quiet_fit(
            net, x, y, epochs=1, batch_size=7, shuffle=False, loss="sse", validation=(x, y),
            optimizer=fastmlp.SGD(lr=1e-3),
        )  # fmt: skip
        losses = torch.cat([result.train_loss[0], result.val_loss[0]])
        assert_run_as_good_as_torch([losses, *net.parameters()], *runs, dtype=torch.float32)


def linear_net(n_rows=8):
    """W₁·W₂ with the freedom of any 2 × 2 matrix between the two, float64."""
    torch.manual_seed(3)
    net = fastmlp.MLP(3, [2], 2, activation="identity", bias=False).double()
    x = torch.randn(n_rows, 3, dtype=torch.float64)
    return net, x, x @ torch.randn(3, 2, dtype=torch.float64)


def gauss_newton(net, x, y, step, n_steps, damping=0.0):
    """The method in plain PyTorch: θ ← θ − step·J⁺·r, J and r with √λ·D below.

    Returns sums of squares and norms of their gradient before every step and after the last, and
    the largest condition number of JᵀJ on its range: of what the steps lose in rounding.
    """
    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    shapes = [p.shape for p in net.parameters()]

    def residual(theta):
        parts = theta.split([s.numel() for s in shapes])
        first, second = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return (x @ first.T @ second.T - y).reshape(-1)

    losses, norms, scale, condition = [], [], torch.zeros_like(theta), 1.0
    for _ in range(n_steps + 1):
        r, jacobian = residual(theta), torch.func.jacrev(residual)(theta)
        losses.append(r.square().sum())
        norms.append(2 * (r @ jacobian).norm())
        if damping > 0:
            scale = torch.maximum(scale, jacobian.norm(dim=0))
            scale = torch.maximum(scale, 0.1 * scale.max())
            jacobian = torch.cat([jacobian, damping**0.5 * scale.diag()])
            r = torch.cat([r, torch.zeros_like(scale)])
        values = torch.linalg.svdvals(jacobian)
        values = values[values > 1e-10 * values[0]]
        condition = max(condition, float(values[0] / values[-1]) ** 2)
        solved = torch.linalg.lstsq(jacobian, r[:, None], driver="gelsd")
        theta = theta - step * solved.solution[:, 0]
    return torch.stack(losses), torch.stack(norms), condition


class TestFixedStep:
    @pytest.mark.parametrize(
        ("backend", "damping", "solver", "n_steps"),
        [
            ("numba", 0.0, "auto", 12), ("numba", 0.3, "auto", 12), ("numba", 0.3, "qr", 12),
            ("triton", 0.0, "auto", 2), ("triton", 0.3, "auto", 2), ("triton", 0.3, "qr", 2),
        ],
    )  # fmt: skip
    def test_follows_plain_gauss_newton(self, backend, damping, solver, n_steps):
        pytest.importorskip("numba")
        pytest.importorskip(backend)
        net, x, y = linear_net()
        losses, norms, condition = gauss_newton(net, x, y, 0.3, n_steps, damping)
        device = TRITON_DEVICE if backend == "triton" else "cpu"
        net, x, y = net.to(device), x.to(device), y.to(device)
        with fastmlp.backend(backend):
            result = quiet_fit(
                net, x, y, epochs=n_steps, track=("grad_norm",), validation=(x, y),
                optimizer=fastmlp.LevenbergMarquardt(
                    damping=damping, step=0.3, accept="always", solver=solver
                ),
            )  # fmt: skip
        numbers, same = y.numel(), {"condition": condition}
        assert_same_number(result.train_loss[0] * numbers, losses[:-1], **same)
        assert_same_number(result.val_loss[0, -1] * numbers, losses[-1], terms=losses[0], **same)
        assert_same_number(result.grad_norm[0] * numbers, norms[1:], terms=norms[0], **same)
        assert result.stopped == ["max_steps"]
        assert result.epochs.tolist() == [n_steps]

    @pytest.mark.parametrize("damping", [0.0, 1e-6])
    @pytest.mark.parametrize("backend", ["numba", "triton"])
    def test_takes_steps_that_make_it_worse(self, backend, damping):
        """Newton's step for sin u = 1/2 from u = 1.4 ends at -1.46."""
        pytest.importorskip("numba")
        pytest.importorskip(backend)
        device = TRITON_DEVICE if backend == "triton" else "cpu"
        net = fastmlp.SineSum(1, scale=1.0).double().to(device)
        net.w.data.fill_(1.4)
        x = torch.ones(1, dtype=torch.float64, device=device)
        settings = fastmlp.LevenbergMarquardt(damping=damping, accept="always")
        with fastmlp.backend(backend):
            result = quiet_fit(net, x, x / 2, epochs=2, optimizer=settings)
        assert result.epochs.tolist() == [2]
        assert result.train_loss[0, 1] > 4 * result.train_loss[0, 0]

    def test_the_least_of_all_steps(self):
        """Of a unit that is there twice only the sum is known: both move alike."""
        pytest.importorskip("numba")
        net = fastmlp.MLP(1, [2], 1, activation="identity", bias=False).double()
        for p in net.parameters():
            p.data.fill_(1.0)
        x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        settings = fastmlp.LevenbergMarquardt(damping=0.0, accept="always")
        quiet_fit(net, x, 3 * x, epochs=20, optimizer=settings)
        first, second = (p.detach().reshape(-1) for p in net.parameters())
        assert_same_number(first @ second, 3.0)
        assert_same_number(first[0], first[1])
        assert_same_number(second[0], second[1])

    def test_a_shorter_step_that_has_to_descend(self):
        """Half of the way at every step, so the loss falls to a quarter: 40 steps make 1e-24."""
        pytest.importorskip("numba")
        net, x, y = linear_net()
        settings = fastmlp.LevenbergMarquardt(step=0.5, xtol=0.0, ftol=0.0)
        result = quiet_fit(net, x, y, epochs=60, optimizer=settings)
        assert result.final_loss[0] <= 1e-20 * result.train_loss[0, 0]

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"damping": 0.0}, "damping must be finite and positive, got 0"),
            ({"damping": -1.0, "accept": "always"}, "damping must be finite and not negative"),
            ({"step": 0.0}, "step must be finite and positive, got 0"),
            ({"step": 1.5}, "step must be at most 1, got 1.5"),
            ({"step": math.nan}, "step must be finite and positive, got nan"),
            ({"accept": "never"}, "accept must be one of descent, always, got 'never'"),
            (
                {"damping": 0.0, "accept": "always", "solver": "cholesky"},
                "damping must be positive with solver='cholesky'",
            ),
            (
                {"damping": 0.0, "accept": "always", "variable_projection": True},
                "damping must be positive with solver='cholesky' or variable_projection",
            ),
        ],
    )
    def test_bad_settings(self, options, match):
        with pytest.raises(ValueError, match=match):
            fastmlp.LevenbergMarquardt(**options)
