"""Subnets of any activation, with dropout or one a feature: both ops on every backend."""

import pytest
import torch
from closeness import assert_same_number
from general_cases import SEED, SETTINGS, GeneralContract, on_device
from op_contract import to

from fastmlp import functional, reference
from fastmlp.dropout import _philox, dropout_masks

_CASES = {
    "no_rows": {"shape": (0, 5)},
    "vector": {"shape": (5,)},
    "three_dimensions": {"shape": (2, 3, 5)},
    **{f"{n}_features": {"shape": (5, n)} for n in (1, 3, 16, 17, 65)},
    **{f"{n}_rows_of_3": {"shape": (n, 3)} for n in (63, 64, 257)},
    **{f"{n}_hidden": {"n_hidden": n} for n in (1, 6, 7, 14, 15, 23)},
    **{f"{n}_outputs": {"n_out": n} for n in (2, 9)},
    "one_of_everything": {"shape": (1, 1), "n_hidden": 1},
    "no_biases": {"biases": ()},
    "several_cpu_pieces": {"shape": (2101, 64), "n_hidden": 14, "large": True},
    "many_rows_of_one": {"shape": (140_003, 1), "large": True},
    "100_hidden": {"n_hidden": 100, "large": True},
    "1024_hidden": {"n_hidden": 1024, "large": True},
}
_SMOOTH_CASES = {
    "scalar": {"shape": ()},
    "two_gpu_pieces": {"shape": (8193,), "n_hidden": 2},
    **{f"{n}_hidden": {"n_hidden": n} for n in (1, 14, 15)},
    "no_rows": {"shape": (0,)},
    "no_biases": {"biases": ()},
    "three_cpu_pieces": {"shape": (140_003,), "n_hidden": 14, "large": True},
}


class TestSmoothElementwiseMLP(GeneralContract):
    name = "elementwise_mlp"
    options = SETTINGS["tanh"]
    CASES = _SMOOTH_CASES


class TestAdditiveMLPWithDropout(GeneralContract):
    name = "additive_mlp"
    options = SETTINGS["relu_dropout"]
    CASES = _CASES


class TestAdditiveMLPOfASubnetAFeature(GeneralContract):
    name = "additive_mlp"
    options = SETTINGS["relu"]
    stacked = True
    CASES = _CASES


NETWORKS = {
    "elementwise": {"name": "elementwise_mlp"},
    "shared": {"name": "additive_mlp"},
    "stacked": {"name": "additive_mlp", "stacked": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_setting(network, setting, kernel_backend, draw):
    contract = GeneralContract()
    for name, value in NETWORKS[network].items():
        setattr(contract, name, value)
    contract.options = SETTINGS[setting]
    n_out = {} if network == "elementwise" else {"n_out": 2}
    contract.judge(contract.inputs(draw, n_hidden=8, **n_out), draw, kernel_backend)


@pytest.mark.parametrize("n_hidden", [1, 6, 7, 14, 15, 20])
def test_masks_are_those_of_the_definition_bit_for_bit(n_hidden, kernel_backend):
    # an identity net of powers of two: the digits of the output are the masks
    dropout = (0.25, 0.5, 0.125)
    n_rows, n_in, device = 9, 3, kernel_backend.device
    seed = SEED.to(device)
    powers = 2.0 ** torch.arange(n_hidden, device=device)
    network = {
        "fc1_weight": torch.ones(n_hidden, 1, device=device),
        "fc1_bias": None,
        "fc2_weight": powers.reshape(1, -1),
        "fc2_bias": None,
        "fc3_weight": torch.eye(n_in, device=device),
        "fc3_bias": None,
    }
    masks = dropout_masks(seed, n_rows * n_in, n_hidden, dropout)
    for where in range(3):
        places = [0.0] * 3
        places[where] = dropout[where]
        x = torch.ones(n_rows, n_in, device=device, requires_grad=True)
        y = functional.additive_mlp(
            x, **network, activation="identity", dropout=tuple(places), seed=seed
        )
        wanted = masks[where]
        wanted = wanted @ powers if where == 1 else wanted * powers.sum()
        wanted = wanted.reshape(n_rows, n_in)
        # backward makes the same masks again
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        for ours in (y, dx):
            # the pattern is exact; a sum over units may round by its order
            assert torch.equal(ours != 0, wanted != 0)
            # PyTorch's bound for float32, far below the smallest power of two
            torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("place", range(3), ids=["input", "hidden", "output"])
def test_gradients_of_parameters_use_the_masks_of_forward(place, kernel_backend):
    n_hidden, device = 16, kernel_backend.device
    dropout = tuple(0.5 * (i == place) for i in range(3))
    options = on_device({"activation": "identity", "dropout": dropout, "seed": SEED}, device)
    inputs = {
        "x": torch.arange(1.0, 40.0, device=device),
        "fc1_weight": torch.ones(n_hidden, 1, device=device, requires_grad=True),
        "fc1_bias": torch.zeros(n_hidden, device=device, requires_grad=True),
        "fc2_weight": torch.ones(1, n_hidden, device=device, requires_grad=True),
        "fc2_bias": torch.zeros(1, device=device, requires_grad=True),
    }
    gradients = []
    for module in (functional, reference):
        y = module.elementwise_mlp(**inputs, **options)
        gradients.append(torch.autograd.grad(y.sum(), list(inputs.values())[1:]))
    # whole numbers: every order of summation gives the same
    for ours, exact in zip(*gradients, strict=True):
        assert torch.equal(ours, exact)


def test_nan_is_not_dropped(kernel_backend):
    device = kernel_backend.device
    x = torch.tensor([torch.nan, torch.inf, 1.0], device=device)
    ones = torch.ones(2, 1, device=device)
    options = on_device({"activation": "relu", "dropout": 1.0, "seed": SEED}, device)
    y = functional.elementwise_mlp(x, ones, None, ones.T, None, **options)
    assert y[:2].isnan().all()
    assert y[2] == 0


def test_stacked_copies_of_one_subnet_are_that_subnet(kernel_backend, draw):
    contract = GeneralContract()
    contract.name = "additive_mlp"
    shared = to(contract.make(draw, n_out=3), torch.float64)
    shared = to(shared, kernel_backend.device)
    stacked = {
        name: t.expand(5, *t.shape) if name[:3] in ("fc1", "fc2") else t
        for name, t in shared.items()
    }
    y = functional.additive_mlp(**shared, activation="tanh")
    assert_same_number(functional.additive_mlp(**stacked, activation="tanh"), y)


@pytest.mark.parametrize("place", range(3), ids=["input", "hidden", "output"])
def test_what_equals_the_limit_is_kept(place, kernel_backend):
    device = kernel_backend.device
    words = _philox(SEED, torch.tensor([0]), 0)
    half = int(((words[0] & 0xFFFF), (words[1] & 0xFFFF), (words[0] >> 16))[place])
    ones = torch.ones(1, 1, device=device)
    for limit in (half, half + 1):
        dropout = tuple(limit / 65536 * (i == place) for i in range(3))
        options = on_device({"activation": "identity", "dropout": dropout, "seed": SEED}, device)
        y = functional.elementwise_mlp(ones, ones, None, ones, None, **options)
        assert (y.item() > 0) == (limit == half)
