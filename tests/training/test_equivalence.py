"""`fit` against a plain loop with `torch.optim` on the same batches, for every combination."""

import copy

import pytest
import torch
from torch.nn import functional as F

import fastmlp

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
    "sine_sum": lambda: fastmlp.SineSum(3),
    "sine_sum_wide": lambda: fastmlp.SineSum(20),
    "sine_sum_amplitude": lambda: fastmlp.SineSum(3, learn_amplitude=True, reduction="sum"),
    "sine_sum_all": lambda: fastmlp.SineSum(20, learn_amplitude=True, learn_phase=True, scale=2.0),
    "sine_sum_phase": lambda: fastmlp.SineSum(17, learn_phase=True),
}
# of every kind the richest, for every optimizer and loss; the others for a few
KINDS = ("elementwise_mlp", "additive_mlp", "sine_sum_all", "additive_mlp_per_feature", "mlp")
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10}


def data_for(model, dtype):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(N_ROWS, 3, generator=generator, dtype=torch.float64).to(dtype)
    shape = model(x.to(dtype)).shape
    y = torch.rand(shape, generator=generator, dtype=torch.float64)
    return x, y.to(dtype)


def plain_loop(model, x, y, loss, optimizer, *, seed=0, place=0, epochs=EPOCHS, batch=BATCH):
    """Mean loss of every epoch; the model is trained in place."""
    losses = []
    with fastmlp.backend("torch"):
        for epoch in range(epochs):
            order = fastmlp.training.batch_order(len(x), epoch=epoch, model=place, seed=seed)
            total = 0.0
            for rows in order.split(batch):
                optimizer.zero_grad()
                value = loss(model(x[rows]), y[rows])
                value.backward()
                optimizer.step()
                total += value.item() * len(rows)
            losses.append(total / len(x))
    return torch.tensor(losses, dtype=torch.float64)


def assert_close(ours, theirs, tolerance):
    """Within a relative distance of the largest number."""
    assert ((ours - theirs).abs().max() <= tolerance * theirs.abs().max()).item(), (ours, theirs)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["numba"])
def test_fit_follows_torch_optim(backend, optimizer, loss, dtype):
    pytest.importorskip(backend)
    settings, cls, options = OPTIMIZERS[optimizer]
    names = MODELS if (optimizer, loss) in (("adam", "mse"), ("nesterov", "huber")) else KINDS
    for name in names:
        build = MODELS[name]
        torch.manual_seed(3)
        model = build().to(dtype)
        plain = copy.deepcopy(model)
        x, y = data_for(model, dtype)
        expected = plain_loop(plain, x, y, LOSSES[loss], cls(plain.parameters(), **options))
        with fastmlp.backend(backend):
            result = fastmlp.fit(
                model, x, y, epochs=EPOCHS, batch_size=BATCH, optimizer=settings, loss=loss,
                progress=False,
            )  # fmt: skip
        assert result.stopped == ["epochs"], name
        assert result.steps == 300
        assert_close(result.train_loss[0], expected, TOLERANCES[dtype])
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert_close(ours, theirs, TOLERANCES[dtype])


def test_rows_of_an_mlp_may_have_any_shape():
    pytest.importorskip("numba")
    x = torch.randn(10, 4, 3, dtype=torch.float64)
    y = torch.randn(10, 4, 2, dtype=torch.float64)
    model = fastmlp.MLP(3, 5, 2).double()
    plain = copy.deepcopy(model)
    for net, backend in ((model, "numba"), (plain, "torch")):
        with fastmlp.backend(backend):
            fastmlp.fit(net, x, y, epochs=20, batch_size=3, progress=False)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_triton_follows_the_torch_loop(optimizer, loss):
    """Few steps: the interpreter is slow; on a device the same kernels run compiled."""
    pytest.importorskip("triton")
    on_device = torch.cuda.is_available()
    device = "cuda" if on_device else "cpu"
    epochs = EPOCHS if on_device else 2
    for name in KINDS[:3]:
        torch.manual_seed(3)
        model = MODELS[name]().double().to(device)
        plain = copy.deepcopy(model)
        x, y = data_for(copy.deepcopy(model).cpu(), torch.float64)
        x, y = x.to(device), y.to(device)
        results = []
        for backend, net in (("torch", plain), ("triton", model)):
            with fastmlp.backend(backend):
                results.append(
                    fastmlp.fit(
                        net, x, y, epochs=epochs, batch_size=BATCH, loss=loss, progress=False,
                        optimizer=OPTIMIZERS[optimizer][0], validation=(x[:5], y[:5]),
                        sample_weight=torch.linspace(0.5, 2, N_ROWS), clip_norm=0.5, patience=50,
                    )
                )  # fmt: skip
        assert_close(results[1].train_loss, results[0].train_loss, 1e-10)
        assert_close(results[1].val_loss, results[0].val_loss, 1e-10)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize(
    "build",
    [
        lambda: fastmlp.ElementwiseMLP(6, dropout=0.2),
        lambda: fastmlp.AdditiveMLP(3, 9, dropout=(0.1, 0.3, 0.0)),
        lambda: fastmlp.AdditiveMLP(3, 4, 2, shared=False, activation="gelu", dropout=0.2),
    ],
    ids=["elementwise", "additive", "per_feature"],
)
def test_dropout_has_the_masks_of_the_torch_loop(build):
    pytest.importorskip("numba")
    torch.manual_seed(3)
    model = build().double().eval()  # fit trains, whatever the mode, and leaves the mode alone
    plain = copy.deepcopy(model)
    x, y = data_for(model, torch.float64)
    results = []
    for backend, net in (("torch", plain), ("numba", model)):
        with fastmlp.backend(backend):
            results.append(
                fastmlp.fit(
                    net, x, y, epochs=EPOCHS, batch_size=BATCH, validation=(x, y), progress=False
                )
            )
    assert not model.training
    assert_close(results[1].train_loss, results[0].train_loss, 1e-10)
    assert_close(results[1].val_loss, results[0].val_loss, 1e-10)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert_close(ours, theirs, 1e-10)
    # with dropout the loss of an epoch is not that of the evaluated model
    assert (results[0].train_loss - results[0].val_loss).abs().min() > 0
