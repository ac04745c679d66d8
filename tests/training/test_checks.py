"""What every driver of `fit` refuses, and what it takes: data, settings, memory of parameters."""

import copy
import re

import numpy as np
import pytest
import torch
from closeness import assert_same_number
from fit_cases import quiet_fit, waves, weights
from torch import nn

import fastmlp
from fastmlp.training import checks
from fastmlp.training.generic import Linearisation

X, Y = waves(20)


def of_adam(models, x=X, y=Y, **options):
    with fastmlp.backend("torch"):
        return quiet_fit(models, x, y, **{"epochs": 2} | options)


def of_least_squares(models, x=X, y=Y, **options):
    pytest.importorskip("numba")
    settings = fastmlp.LevenbergMarquardt()
    return quiet_fit(models, x, y, **{"epochs": 2, "optimizer": settings} | options)


@pytest.fixture(params=[of_adam, of_least_squares], ids=["adam", "levenberg_marquardt"])
def fit(request):
    return request.param


def sines(n=2):
    torch.manual_seed(0)
    return [fastmlp.SineSum(3) for _ in range(n)]


def hooked(net):
    net.register_forward_hook(lambda *_: None)  # a module with hooks is left to PyTorch
    return net


class Scalars(nn.Module):
    """Rows of a vector to rows of a vector, known to no kernel."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, 0.1]))

    def forward(self, x):
        return self.w[0] * x + self.w[1]


WRONG = {
    "x_list": ({"x": [1.0, 2.0]}, TypeError, "x must be a Tensor or a NumPy array, got list"),
    "x_text": ({"x": "1, 2"}, TypeError, "x must be a Tensor or a NumPy array, got str"),
    "x_ints": ({"x": np.arange(20)}, TypeError, "x must hold float16, float32 or float64, got int"),
    "x_objects": ({"x": np.array([None] * 20)}, TypeError, "x must hold float16.*got object"),
    "x_masked": ({"x": np.ma.masked_array(X.numpy())}, TypeError, "got MaskedArray"),
    "x_complex": ({"x": X.to(torch.complex64)}, TypeError, "x must be a floating-point tensor"),
    "x_sparse": ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got sparse"),
    "x_scalar": ({"x": torch.tensor(1.0)}, ValueError, "x must have at least one row"),
    "x_meta": ({"x": X.to("meta")}, TypeError, "x must hold numbers, got one without memory"),
    "y_none": ({"y": None}, TypeError, "y must be a Tensor or a NumPy array, got NoneType"),
    "y_shape": ({"y": Y[:, None]}, ValueError, r"y must have the shape of models\[0\]\(x\)"),
    "y_rows": ({"y": Y[:7]}, ValueError, "x and y must have as many rows, got 20 and 7"),
    "epochs_2.5": ({"epochs": 2.5}, TypeError, "epochs must be an int, got float 2.5"),
    "epochs_text": ({"epochs": "2"}, TypeError, "epochs must be an int, got str"),
    "epochs_bool": ({"epochs": True}, TypeError, "epochs must be an int, got bool"),
    "epochs_0": ({"epochs": np.int64(0)}, ValueError, "epochs must be at least 1, got 0"),
    "validation_shape": (
        {"validation": (X, Y[:, None])},
        ValueError,
        r"validation y must have the shape of models\[0\]\(validation x\), \[20\], got \[20, 1\]",
    ),
    "validation_one": ({"validation": X}, TypeError, r"validation must be a pair \(x, y\)"),
    "validation_three": ({"validation": (X, Y, Y)}, TypeError, "validation must be a pair.*got 3"),
    "validation_lists": ({"validation": ([1.0], [1.0])}, TypeError, "validation x must be a Ten"),
    "weight_list": ({"sample_weight": [1.0] * 20}, TypeError, "sample_weight must be a Tensor or"),
    "weight_shape": ({"sample_weight": X[:3]}, ValueError, r"sample_weight must have shape \[20\]"),
    "weight_sign": ({"sample_weight": X}, ValueError, "sample_weight must be finite and not neg"),
    "weight_zero": ({"sample_weight": 0 * X}, ValueError, "sample_weight must be above 0"),
    "seed_text": ({"seed": "one"}, TypeError, "seed must be an int, got str"),
    "seed_real": ({"seed": np.float64(1)}, TypeError, "seed must be an int, got float64 1.0"),
    "seed_below": ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^63\), got -1"),
    "progress": ({"progress": 1}, TypeError, "progress must be a bool, got int 1"),
    "models_none": ({"models": None}, TypeError, "models must be a Module or a list of them"),
    "models_text": ({"models": ["net"]}, TypeError, r"models\[0\] must be a Module, got str"),
    "models_dict": ({"models": {"a": 1}}, TypeError, "models must be a Module or a list of them"),
    "models_empty": ({"models": ()}, ValueError, "models must hold at least one module"),
    "loss_list": ({"loss": ["mse"]}, (TypeError, ValueError), "loss must be"),
    "loss_array": ({"loss": np.ones(3)}, (TypeError, ValueError), "loss must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_argument_is_named_whatever_the_driver(fit, name):
    change, error, text = WRONG[name]
    arguments = {"models": sines(), **change}
    before = weights(arguments["models"]) if name[:6] != "models" else None
    with pytest.raises(error, match=text):
        fit(**arguments)
    if before is not None:
        assert torch.equal(weights(arguments["models"]), before)


@pytest.mark.parametrize("model", [Scalars, lambda: hooked(fastmlp.SineSum(2))])
def test_a_module_without_kernels_has_its_shapes_checked_before_it_is_trained(model):
    model = model()
    before = weights([model])
    for change in ({"y": Y[:, None]}, {"validation": (X, Y[:, None])}):
        with pytest.raises(ValueError, match=r"y must have the shape of models\[0\]"):
            of_least_squares(model, **change)
    assert torch.equal(weights([model]), before)


class TestNumPy:
    def test_data_may_be_arrays(self, fit):
        models = [sines() for _ in range(3)]
        weight = X.abs() + 0.1
        data = (X, Y, weight)
        in_order = [t.double().numpy() for t in data]
        # read-only, backwards in memory, of the other order of bytes
        strange = [np.ascontiguousarray(t.double().numpy()[::-1])[::-1] for t in data]
        strange = [a.astype(">f8") if i else a for i, a in enumerate(strange)]
        strange[0].setflags(write=False)
        results = [
            fit(m, x, y, validation=(x[:4], y[:4]), sample_weight=w)
            for m, (x, y, w) in zip(models, (data, in_order, strange), strict=True)
        ]
        for other, result in zip(models[1:], results[1:], strict=True):
            assert torch.equal(weights(models[0]), weights(other))
            assert torch.equal(results[0].final_loss, result.final_loss)

    def test_counts_and_seeds_may_be_scalars(self, fit):
        ours, theirs = sines(), sines()
        fit(ours, epochs=np.int64(3), seed=np.int32(5), progress=np.bool_(False))
        fit(theirs, epochs=3, seed=5)
        assert torch.equal(weights(ours), weights(theirs))

    def test_settings_of_adam_runs_may_be_scalars(self):
        ours, theirs = sines(), sines()
        of_adam(
            ours, batch_size=np.int16(7), patience=np.uint8(2), clip_norm=np.float32(0.5),
            shuffle=np.bool_(True), validation=(X, Y), seed=np.array([1, 2]),
        )  # fmt: skip
        of_adam(theirs, batch_size=7, patience=2, clip_norm=0.5, validation=(X, Y), seed=[1, 2])
        assert torch.equal(weights(ours), weights(theirs))

    def test_settings_of_levenberg_marquardt_may_be_scalars(self):
        settings = fastmlp.LevenbergMarquardt(
            max_attempts=np.int64(9), restarts=np.int8(2), ftol=np.float32(0),
            damping=np.float64(2), variable_projection=np.bool_(False),
        )  # fmt: skip
        assert of_least_squares(sines(), optimizer=settings).final_loss.isfinite().all()
        for field in ("max_attempts", "ftol", "solver", "variable_projection"):
            with pytest.raises(TypeError, match=f"{field} must be"):
                fastmlp.LevenbergMarquardt(**{field: [1]})

    def test_a_step_takes_arrays(self):
        pytest.importorskip("numba")
        losses = []
        for convert in (torch.Tensor.clone, torch.Tensor.numpy):
            (net,) = sines(1)
            optimizer = fastmlp.optim.LevenbergMarquardt(net)
            data = [convert(t) for t in (X, Y, X.abs() + 0.1)]
            losses.append([optimizer.step(*data) for _ in range(3)])
        assert losses[0] == losses[1]
        for wrong, text in (
            (([1.0], Y), "inputs must be a Tensor or a NumPy array, got list"),
            ((X, "y"), "targets must be a Tensor or a NumPy array, got str"),
            ((X, Y, [1.0]), "sample_weight must be a Tensor or a NumPy array, got list"),
        ):
            with pytest.raises(TypeError, match=text):
                optimizer.step(*wrong)
        with pytest.raises(ValueError, match=r"as many rows, got shapes \[20\] and \[\]"):
            optimizer.step(X, torch.tensor(1.0))


def shared_parameter():
    first, second = sines()
    second.w = first.w
    return [first, second]


def shared_under_another_name():
    first, second = (fastmlp.MLP(1, [3], 1) for _ in range(2))
    dict(second.named_parameters())["0.weight"].data = first.get_submodule("2").weight.data.T
    return [first, second]


def assigned():
    first, second = sines()
    second.load_state_dict(first.state_dict(), assign=True)
    return [first, second]


def overlapping():
    memory, nets = torch.zeros(5), sines()
    for net, first in zip(nets, (0, 2), strict=True):
        net.w.data = memory[first : first + 3]
    return nets


def expanded():
    (net,) = sines(1)
    net.w.data = torch.zeros(1).expand(3)
    return [net]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (shared_parameter, "models[1] and models[0] share the parameter w: every model must have"),
        (assigned, "models[1].w and models[0].w share memory: every trained parameter must have"),
        (overlapping, "models[1].w and models[0].w share memory"),
        (expanded, "models[0].w overlaps itself"),
    ],
)
def test_parameters_that_share_memory_are_refused_by_name(fit, make, text):
    models = make()
    before = weights(models)
    with pytest.raises(ValueError, match=re.escape(text)):
        fit(models)
    assert torch.equal(weights(models), before)


def test_names_of_both_parameters_are_told(fit):
    with pytest.raises(
        ValueError, match=r"models\[\d\]\.\S+ and models\[\d\]\.\S+ share memory"
    ) as e:
        fit(shared_under_another_name(), X[:, None], Y[:, None])
    assert {"models[0].2.weight", "models[1].0.weight"} <= set(str(e.value).split())


def test_disjoint_views_of_one_storage_train(fit):
    apart, views = sines(), sines()
    columns = torch.stack([net.w.data for net in views], 1)  # one's numbers between the other's
    for i, net in enumerate(views):
        net.w.data = columns[:, i]
    fit(apart)
    fit(views)
    assert torch.equal(weights(apart), weights(views))
    assert views[0].w.data_ptr() == columns.data_ptr()


def test_frozen_parameters_may_be_shared(fit):
    nets = [fastmlp.ElementwiseMLP(3) for _ in range(2)]
    for net in nets:
        net.fc1.requires_grad_(False)
    nets[1].fc1.weight = nets[0].fc1.weight
    before = weights(nets)
    fit(nets)
    assert not torch.equal(weights(nets), before)


def test_an_optimizer_refuses_parameters_that_share_memory():
    pytest.importorskip("numba")
    net = fastmlp.MLP(1, [1], 1)
    net.get_submodule("2").weight.data = net.get_submodule("0").weight.data
    optimizer = fastmlp.optim.LevenbergMarquardt(net)
    with pytest.raises(ValueError, match=r"module\.\d\.weight and module\.\d\.weight share"):
        optimizer.step(X[:, None], Y[:, None])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda net: net.to("meta"), "w must hold numbers, got one without memory on meta"),
        (lambda net: nn.LazyLinear(1), "must have a shape: call the lazy module once"),
    ],
)
def test_parameters_without_memory_are_refused(spoil, text):
    with pytest.raises((TypeError, ValueError), match=text):
        of_least_squares(spoil(fastmlp.SineSum(2)))


def test_overlap_is_told_by_single_numbers():
    memory = torch.zeros(12)
    for views, apart in (
        ((memory[::2], memory[1::2]), True),
        ((memory[::2], memory[::3]), False),
        ((memory.view(3, 4)[:, :2], memory.view(3, 4)[:, 2:]), True),
        ((memory.view(3, 4)[:, :3], memory.view(3, 4)[:, 2:]), False),
        ((memory[:6], memory[6:]), True),
        ((memory[:7], memory[6:]), False),
        ((memory[:0], memory), True),
    ):
        models = [nn.Module() for _ in views]
        for model, view in zip(models, views, strict=True):
            model.w = nn.Parameter(torch.zeros(0))
            model.w.data = view
        if apart:
            checks.parameters(models)
        else:
            with pytest.raises(ValueError, match=r"models\[.\].w and models\[.\].w share memory"):
                checks.parameters(models)


class TestModulesOfPyTorch:
    @pytest.fixture(autouse=True)
    def compiler(self):
        pytest.importorskip("numba")

    @pytest.mark.parametrize("slopes", [1, 3])
    def test_prelu_has_the_jacobian_of_autograd(self, draw, slopes):
        net = nn.Sequential(nn.Linear(2, 3), nn.PReLU(slopes), nn.Linear(3, 1)).double()
        x, y = draw(30, 2), draw(30, 1)
        from fastmlp.training.levenberg_marquardt import flat, train

        theta, problem = flat(net), Linearisation(net)
        rows = problem._jacobian(problem._way_that_is_right(theta, x[:3], 1), theta, x)
        for row, one in zip(rows, x, strict=True):
            parts = torch.autograd.grad(net(one[None])[0, 0], net.parameters())
            assert_same_number(row[0], torch.cat([p.flatten() for p in parts]))
        before = (net(x) - y).square().sum().item()
        (net(x) - y).square().sum().backward()
        wanted = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
        outcome = train([net], x, y, fastmlp.LevenbergMarquardt(), max_steps=20)
        assert_same_number(outcome.gradient_norm[0, 0], wanted)
        assert outcome.final[0] < before

    @pytest.mark.parametrize(
        "part",
        [
            nn.Dropout(1.0),
            nn.Dropout(1),
            nn.Dropout(np.float32(0.5)),
            nn.AlphaDropout(1),
            nn.RReLU(),
        ],
        ids=str,
    )
    def test_random_layers_are_refused_and_train_in_eval_mode(self, part):
        net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), part, nn.Linear(3, 1))
        x, y = X[:, None], Y[:, None]
        with pytest.raises(ValueError, match=r"call module\.eval"):
            of_least_squares(net, x, y)
        if isinstance(part, nn.RReLU):
            return  # PyTorch has no rule for it under vmap
        result = of_least_squares(net.eval(), x, y)
        # the loss of float32 outputs, which each way rounds for itself
        assert result.final_loss.item() == pytest.approx(
            (net(x) - y).square().mean().item(), rel=1e-5
        )

    def test_any_randomness_is_refused(self):
        class Noisy(Scalars):
            def forward(self, x):
                return super().forward(x) + 0.01 * torch.randn_like(x)

        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=r"models\[0\] must give the same outputs every time"):
            of_least_squares(Noisy())
        assert torch.equal(torch.get_rng_state(), state)

    def test_weights_of_rows_hold_for_all_their_outputs(self):
        x = torch.stack([X, X + 1], 1)  # elementwise models take any shape: two outputs a row
        weight = X.abs() + 0.1
        nets = sines(2)
        nets[1] = copy.deepcopy(nets[0])
        of_least_squares(nets[0], x, x.sin(), sample_weight=weight)
        of_least_squares(nets[1], x.reshape(-1), x.reshape(-1).sin(),
                         sample_weight=weight.repeat_interleave(2))  # fmt: skip
        assert torch.equal(nets[0].w, nets[1].w)
