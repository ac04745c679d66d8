"""`fit` against a plain loop with `torch.optim` on the same batches, for every combination."""

import copy
import functools
import itertools

import pytest
import torch
from closeness import assert_run_as_good_as_torch
from equivalence_cases import (
    BATCH,
    DTYPES,
    EPOCHS,
    MODELS,
    N_ROWS,
    ON_DEVICE,
    OPTIMIZERS,
    TRITON_DEVICE,
    assert_follows_the_torch_loop,
    data_for,
)
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp.training import first_order

LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
}
# the loop takes loss and optimizer each as a function of its own, and knows no model: one model has
# every pair, the richest of every other kind every optimizer and every loss, the others a few
KINDS = ("additive_mlp", "sine_sum_all", "additive_mlp_per_feature", "mlp")
ALL_PAIRS = list(itertools.product(OPTIMIZERS, LOSSES))
EACH_ONCE = list(zip(OPTIMIZERS, itertools.cycle(LOSSES)))
# a millisecond or two each, for the same epochs in every loop
order_of = functools.cache(fastmlp.training.batch_order)


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


@pytest.fixture
def in_lanes(request, monkeypatch):
    """Whether the CPU trains a model a lane, whatever the table of sizes says."""
    runs = pytest.importorskip("fastmlp.kernels.cpu.runs")
    monkeypatch.setattr(runs, "is_small", lambda *arguments: request.param)


PATHS = pytest.mark.parametrize("in_lanes", [False, True], ids=["rows", "lanes"], indirect=True)


# a model a test: two workers do not compile the same at the same time
@pytest.mark.parametrize("name", MODELS)
@PATHS
def test_fit_follows_torch_optim(in_lanes, name):
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
            with fastmlp.backend("numba"):
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
class TestRowsOfAnyShape:
    def follow(self, backend, name, epochs):
        dropout = {"additive_mlp_dropout": lambda: fastmlp.AdditiveMLP(3, 4, dropout=0.2)}
        build = {**MODELS, **dropout}[name]
        assert_follows_the_torch_loop(backend, build, x_shape=(10, 4, 3), epochs=epochs)

    @PATHS
    def test_numba(self, in_lanes, name):
        self.follow("numba", name, 20)

    def test_triton(self, name):
        self.follow("triton", name, TRITON_EPOCHS)


@pytest.mark.parametrize("name", DROPOUT_MODELS)
class TestDropoutHasTheMasksOfTheTorchLoop:
    def follow(self, backend, name, epochs):
        result = assert_follows_the_torch_loop(backend, DROPOUT_MODELS[name], epochs=epochs)
        # with dropout the loss of an epoch is not that of the evaluated model
        assert (result.train_loss - result.val_loss).abs().min() > 0

    @PATHS
    def test_numba(self, in_lanes, name):
        self.follow("numba", name, EPOCHS)

    def test_triton(self, name):
        self.follow("triton", name, TRITON_EPOCHS)


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
