"""A subnet for each feature: where sums cannot be collapsed, and odd numbers of lanes and units."""

import pytest
import torch
from general_cases import SETTINGS, GeneralContract

pytest.importorskip("numba")
pytestmark = pytest.mark.parametrize("kernel_backend", ["numba"], indirect=True)


@pytest.fixture
def contract():
    contract = GeneralContract()
    contract.name, contract.stacked, contract.options = "additive_mlp", True, SETTINGS["relu"]
    return contract


@pytest.mark.parametrize("scale", [1e-30, 1e25], ids=["underflow", "overflow"])
def test_products_of_weights_outside_the_range(scale, contract, kernel_backend, draw):
    # v·w leaves the range of float32, v·relu(w·x) does not
    inputs = contract.inputs(draw, shape=(9, 5), biases=())
    inputs["fc1_weight"] *= scale
    inputs["fc2_weight"] *= scale
    inputs["x"] /= scale
    dy = contract.dy_for(inputs, draw) / scale
    contract.judge(inputs, draw, kernel_backend, dy=dy, wanted=["x", "fc3_weight"])


@pytest.mark.parametrize("n_in", [1, 2, 31, 33, 63, 64, 65, 130])
def test_features_fill_lanes_in_part(n_in, contract, kernel_backend, draw):
    for n_rows in (1, 257):
        inputs = contract.inputs(draw, shape=(n_rows, n_in), n_hidden=7, n_out=2)
        contract.judge(inputs, draw, kernel_backend)


def test_one_bad_row_leaves_the_others_alone(contract, kernel_backend, draw):
    # a tile with NaN goes another way than its neighbours
    inputs = contract.inputs(draw, shape=(100, 64), n_hidden=14)
    plain = contract.ours(inputs)["y"]
    inputs["x"][50] = torch.nan
    y = contract.judge(inputs, draw, kernel_backend)["y"]
    assert y[50].isnan().all()
    rest = torch.arange(100) != 50
    assert torch.equal(y[rest], plain[rest])
