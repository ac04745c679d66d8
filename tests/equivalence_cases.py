"""Models, settings and data that hold `fit` against plain loops, and that comparison."""

import copy

import pytest
import torch
from closeness import assert_run_as_good_as_torch

import fastmlp

N_ROWS, BATCH, EPOCHS = 24, 8, 100  # 300 steps
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
DTYPES = (torch.float32, torch.float64)


def data_for(model, dtype, x_shape=(N_ROWS, 3)):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64).to(dtype)
    shape = model(x.to(dtype)).shape
    y = torch.rand(shape, generator=generator, dtype=torch.float64)
    return x, y.to(dtype)


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
