"""`fit` against a plain loop with `torch.optim` on the same batches, for every combination."""

import copy
import functools
import itertools

import pytest
import torch
from closeness import assert_run_as_good_as_torch
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp.training import first_order

N_ROWS, BATCH, EPOCHS = 24, 8, 100  # 300 steps
LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}
OPTIMIZERS = {
    "sgd": (fastmlp.SGD(lr=0.01), torch.optim.SGD, {"lr": 0.01}),
    "sgd_momentum": (
        fastmlp.SGD(lr=0.01, momentum=0.9, dampening=0.1, weight_decay=0.1),
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    ),
    "nesterov": (
        fastmlp.SGD(lr=0.003, momentum=0.9, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.003, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (
        fastmlp.Adam(lr=3e-3, weight_decay=0.1),
        torch.optim.Adam,
        {"lr": 3e-3, "weight_decay": 0.1},
    ),
    "adamw": (
        fastmlp.AdamW(lr=3e-3, betas=(0.8, 0.95), eps=1e-6),
        torch.optim.AdamW,
        {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6},
    ),
}
MODELS = {
    "elementwise_mlp": lambda: fastmlp.ElementwiseMLP(6),
    "elementwise_mlp_no_bias": lambda: fastmlp.ElementwiseMLP(3, bias=False),
    "additive_mlp": lambda: fastmlp.AdditiveMLP(3, 5),
    "additive_mlp_two_outputs": lambda: fastmlp.AdditiveMLP(3, 4, 2),
    "additive_mlp_no_bias": lambda: fastmlp.AdditiveMLP(3, 4, bias=False),
    "elementwise_mlp_tanh": lambda: fastmlp.ElementwiseMLP(4, activation="tanh"),
    "additive_mlp_per_feature": lambda: fastmlp.AdditiveMLP(
        3, 4, 2, shared=False, activation="silu", bias=False
    ),
    "elementwise_mlp_deep": lambda: fastmlp.ElementwiseMLP([4, 3]),
    "mlp": lambda: fastmlp.MLP(3, [5, 4], 2, activation="sigmoid"),
    "mlp_no_bias": lambda: fastmlp.MLP(3, [6], 2, bias=False, output_activation="tanh"),
    "mlp_three_outputs": lambda: fastmlp.MLP(3, 4, 3),
    "sine_sum": lambda: fastmlp.SineSum(3),
    "sine_sum_wide": lambda: fastmlp.SineSum(20),
    "sine_sum_amplitude": lambda: fastmlp.SineSum(3, learn_amplitude=True, reduction="sum"),
    "sine_sum_all": lambda: fastmlp.SineSum(20, learn_amplitude=True, learn_phase=True, scale=2.0),
    "sine_sum_phase": lambda: fastmlp.SineSum(17, learn_phase=True),
}
# the loop takes loss and optimizer each as a function of its own, and knows no model: one model has
# every pair, the richest of every other kind every optimizer and every loss, the others a few
KINDS = ("additive_mlp", "sine_sum_all", "additive_mlp_per_feature", "mlp")
ALL_PAIRS = list(itertools.product(OPTIMIZERS, LOSSES))
EACH_ONCE = list(zip(OPTIMIZERS, itertools.cycle(LOSSES)))
DTYPES = (torch.float32, torch.float64)

# a millisecond or two each, for the same epochs in every loop
order_of = functools.cache(fastmlp.training.batch_order)


def data_for(model, dtype, x_shape=(N_ROWS, 3)):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64).to(dtype)
    shape = model(x.to(dtype)).shape
    y = torch.rand(shape, generator=generator, dtype=torch.float64)
    return x, y.to(dtype)


def plain_loop(model, x, y, loss, optimizer, *, seed=0, place=0, epochs=EPOCHS, batch=BATCH):
    """Mean loss of every epoch; the model is trained in place."""
    losses = []
    with fastmlp.backend("torch"):
        for epoch in range(epochs):
            order = order_of(len(x), epoch=epoch, model=place, seed=seed)
            total = 0.0
            for rows in order.split(batch):
                optimizer.zero_grad()
                value = loss(model(x[rows]), y[rows])
                value.backward()
                optimizer.step()
                total += value.item() * len(rows)
            losses.append(total / len(x))
    return torch.tensor(losses, dtype=torch.float64)


# a model a test: two workers do not compile the same at the same time
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["numba"])
def test_fit_follows_torch_optim(backend, name):
    pytest.importorskip(backend)
    torch.manual_seed(3)
    start = MODELS[name]()
    # float64 judges both, from numbers that float32 has too
    x, y = data_for(start, torch.float32)
    pairs = EACH_ONCE if name in KINDS else [("adam", "mse"), ("nesterov", "huber")]
    if name == "elementwise_mlp":
        pairs = ALL_PAIRS
    for optimizer, loss in pairs:
        settings, cls, options = OPTIMIZERS[optimizer]
        plain = {}
        for dtype in DTYPES:
            net = copy.deepcopy(start).to(dtype)
            steps = cls(net.parameters(), **options)
            losses = plain_loop(net, x.to(dtype), y.to(dtype), LOSSES[loss], steps)
            plain[dtype] = [losses, *net.parameters()]
        for dtype in DTYPES:
            model = copy.deepcopy(start).to(dtype)
            with fastmlp.backend(backend):
                result = fastmlp.fit(
                    model, x.to(dtype), y.to(dtype), epochs=EPOCHS, batch_size=BATCH,
                    optimizer=settings, loss=loss, progress=False,
                )  # fmt: skip
            assert result.stopped == ["epochs"], (optimizer, loss)
            assert result.steps == 300
            ours = [result.train_loss[0], *model.parameters()]
            assert_run_as_good_as_torch(ours, *plain.values(), dtype=dtype)


DROPOUT_MODELS = {
    "elementwise": lambda: fastmlp.ElementwiseMLP(6, dropout=0.2),
    "additive": lambda: fastmlp.AdditiveMLP(3, 9, dropout=(0.1, 0.3, 0.0)),
    "mlp": lambda: fastmlp.MLP(3, [9, 4], 2, activation="tanh", dropout=0.3),
    "mlp_relu": lambda: fastmlp.MLP(3, [5, 9], 2, bias=False, dropout=0.2),
    "deep": lambda: fastmlp.ElementwiseMLP([4, 9, 3], dropout=(0.1, 0.3, 0.2)),
    "deep_input": lambda: fastmlp.ElementwiseMLP([8, 8], bias=False, dropout=(0.3, 0.0, 0.0)),
    "deep_tanh_output": lambda: fastmlp.ElementwiseMLP(
        [3, 17], activation="tanh", dropout=(0.0, 0.2, 0.3)
    ),
    "every_layer_another": lambda: nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(3, 9),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(9, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
        nn.Tanh(),
        nn.Dropout(0.2),
    ),
    "one_layer": lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2), nn.Dropout(0.1)),
    "no_hidden_masks": lambda: fastmlp.AdditiveMLP(3, 9, dropout=(0.3, 0.0, 0.2)),
    "per_feature": lambda: fastmlp.AdditiveMLP(
        3, 4, 2, shared=False, activation="gelu", dropout=0.2
    ),
}
ON_DEVICE = torch.cuda.is_available()
TRITON_DEVICE = "cuda" if ON_DEVICE else "cpu"


def assert_follows_the_torch_loop(
    backend, build, *, dtype=torch.float64, x_shape=(N_ROWS, 3), **options
):
    """Train on a backend and by the torch loop in both dtypes; return the result of the former."""
    pytest.importorskip(backend)
    device = TRITON_DEVICE if backend == "triton" else "cpu"
    torch.manual_seed(3)
    start = build().eval()  # fit trains, whatever the mode, and leaves the mode alone
    # numbers that float32 has too: so both loops of PyTorch begin alike
    x, y = data_for(start, torch.float32, x_shape)
    options = {"batch_size": BATCH + 2, **options}
    runs = []
    for name, kind in (("torch", torch.float32), ("torch", torch.float64), (backend, dtype)):
        net = copy.deepcopy(start).to(device, kind)
        x_there, y_there = (t.to(device, kind) for t in (x, y))
        validation = x_there[:5], y_there[:5]
        with fastmlp.backend(name):
            result = fastmlp.fit(
                net, x_there, y_there, progress=False, validation=validation, **options
            )
        assert not net.training
        runs.append([result.train_loss, result.val_loss, *net.parameters()])
    short, exact, ours = runs
    assert_run_as_good_as_torch(ours, short, exact, dtype=dtype)
    return result


# in the interpreter few steps: it is slow; on a device the same kernels run compiled
TRITON_EPOCHS = EPOCHS if ON_DEVICE else 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_triton_trains_every_model(name, dtype):
    assert_follows_the_torch_loop("triton", MODELS[name], dtype=dtype, epochs=TRITON_EPOCHS)


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [("adamw", loss) for loss in LOSSES] + [(optimizer, "huber") for optimizer in OPTIMIZERS],
)
def test_triton_has_every_optimizer_and_loss(optimizer, loss):
    assert_follows_the_torch_loop(
        "triton", lambda: fastmlp.SineSum(2), epochs=2 * TRITON_EPOCHS, shuffle=False, loss=loss,
        optimizer=OPTIMIZERS[optimizer][0], sample_weight=torch.linspace(0.5, 2, N_ROWS),
        clip_norm=0.5, patience=50,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["additive_mlp_two_outputs", "additive_mlp_per_feature", "mlp", "sine_sum_all"]
)
def test_triton_walks_over_the_tiles_of_a_batch(name, monkeypatch):
    verbs = pytest.importorskip("fastmlp.kernels.gpu.machine.verbs")
    monkeypatch.setattr(verbs, "TILE", 512)
    # an MLP takes 32 rows at a time
    options = {"x_shape": (43, 3), "batch_size": 40, "shuffle": False}
    assert_follows_the_torch_loop("triton", MODELS[name], epochs=TRITON_EPOCHS, **options)


@pytest.mark.parametrize("name", ["mlp", "additive_mlp_two_outputs", "additive_mlp_dropout"])
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_rows_may_have_any_shape(backend, name):
    build = {**MODELS, "additive_mlp_dropout": lambda: fastmlp.AdditiveMLP(3, 4, dropout=0.2)}[name]
    assert_follows_the_torch_loop(
        backend, build, x_shape=(10, 4, 3), epochs=20 if backend == "numba" else TRITON_EPOCHS
    )


@pytest.mark.parametrize("name", DROPOUT_MODELS)
@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_dropout_has_the_masks_of_the_torch_loop(backend, name):
    result = assert_follows_the_torch_loop(
        backend, DROPOUT_MODELS[name], epochs=EPOCHS if backend == "numba" else TRITON_EPOCHS
    )
    # with dropout the loss of an epoch is not that of the evaluated model
    assert (result.train_loss - result.val_loss).abs().min() > 0


def test_backward_takes_the_input_as_it_was_dropped():
    # so wide that backward multiplies by rows of x, where nothing is dropped
    def build():
        return nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 17), nn.ReLU(), nn.Linear(17, 1))

    for dtype in DTYPES:
        assert_follows_the_torch_loop("numba", build, dtype=dtype, x_shape=(N_ROWS, 16), epochs=20)


def test_triton_trains_a_model_alike_whatever_the_others_and_the_launches(monkeypatch):
    pytest.importorskip("triton")
    x, y = (t.to(TRITON_DEVICE) for t in data_for(fastmlp.MLP(3, 4, 3), torch.float32))
    x, y = x[:9], y[:9]
    others = [MODELS["mlp_three_outputs"](), fastmlp.SineSum(2), DROPOUT_MODELS["elementwise"]()]
    models = [MODELS["mlp_three_outputs"](), *others, DROPOUT_MODELS["elementwise"]()]
    models = [model.to(TRITON_DEVICE) for model in models]
    alone = [copy.deepcopy(models[0]), copy.deepcopy(models[-1])]
    seeds = [1, 2, 3, 4, 5]
    with fastmlp.backend("triton"):
        options = {"epochs": 1, "batch_size": 5, "progress": False}
        fastmlp.fit(models, x, y, seed=seeds, **options)
        # the others in one launch, these step by step
        monkeypatch.setattr(first_order, "FIRST_STEPS", 1)
        monkeypatch.setattr(first_order, "LAUNCH_SECONDS", 1e-9)
        for model, seed in zip(alone, (1, 5), strict=True):
            fastmlp.fit(model, x, y, seed=[seed], **options)
    for trained, again in zip((models[0], models[-1]), alone, strict=True):
        for ours, theirs in zip(trained.parameters(), again.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_triton_names_a_model_that_has_no_kernel():
    pytest.importorskip("triton")
    models = [fastmlp.SineSum(width, device=TRITON_DEVICE) for width in (2, 10_000)]
    before = models[0].w.clone()
    x = torch.linspace(-1, 1, 8, device=TRITON_DEVICE)
    with (
        fastmlp.backend("triton"),
        pytest.raises(ValueError, match=r"models\[1\], SineSum\(width=10000.* 16384 .* 8192"),
    ):
        fastmlp.fit(models, x, x, epochs=1, progress=False)
    assert torch.equal(models[0].w, before)
