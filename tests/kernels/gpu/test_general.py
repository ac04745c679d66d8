"""What only the Triton launchers of general subnets do; tests/ops judges values and gradients."""

import pytest
import torch
from closeness import assert_as_good_as_torch
from general_cases import SEED, general_terms, stacked_subnets
from subnet_cases import subnet

pytest.importorskip("triton")

import triton
import triton.language as tl
from fastmlp.kernels.gpu.numbers.philox import load_key, philox
from fastmlp.kernels.gpu.subnet.general import general_bwd, general_fwd

from fastmlp import dropout, reference

ALL = (True,) * 7  # gradients needed: of x and six parameters
DROPOUT = (0.25, 0.2, 0.1)


@triton.jit
def philox_kernel(seed_ptr, place_ptr, out_ptr, block, N: tl.constexpr):
    """The four words of N places, one after the other."""
    places = tl.arange(0, N)
    words = philox(load_key(seed_ptr), tl.load(place_ptr + places), block)
    for i in tl.static_range(4):
        tl.store(out_ptr + 4 * places + i, words[i].to(tl.int64))


def words_of(seed, places, block, device):
    seed = torch.tensor([seed], device=device)
    places = torch.tensor(places, device=device)
    out = torch.empty(len(places), 4, dtype=torch.int64, device=device)
    philox_kernel[(1,)](seed, places, out, block, N=len(places))
    return out


def test_philox_gives_the_known_answer(device):
    # the reference implementation's own: key 0, counter 0
    (words,) = words_of(0, [0], 0, device).tolist()
    assert [f"{word:08x}" for word in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


@pytest.mark.parametrize("seed", [1, 2**32, -1, 2**63 - 1])
def test_philox_is_the_definition_for_every_place_and_block(seed, device):
    places = [1, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**62, 12_345, 2**33 - 1]
    for block in (0, 1, 128):
        words = dropout._philox(torch.tensor([seed]), torch.tensor(places), block)
        assert torch.equal(words_of(seed, places, block, device).cpu(), torch.stack(words, -1))


def network(draw, n_in, n_hidden, n_out, device, stacked):
    nets = stacked_subnets(draw, n_in, n_hidden) if stacked else subnet(draw, n_hidden)
    params = [*nets.values(), draw(n_out, n_in), draw(n_out)]
    return [p.float().to(device) for p in params]


def judge(x, params, dy, activation, dropout):
    """Compare the launchers with plain PyTorch; return the value and the gradients."""
    seed = SEED.to(x.device) if any(dropout) else None
    results = []
    for dtype in (x.dtype, torch.float64):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *params)]
        y = reference.additive_mlp(*leaves, activation, dropout, seed)
        results.append((y, *torch.autograd.grad(y, leaves, dy.to(dtype))))
    y = general_fwd(x, *params, seed, activation, *dropout)
    gradients = general_bwd(dy, x, *params, seed, activation, *dropout, needs=ALL)
    exact_arguments = (t.double().cpu() for t in (dy, x, *params))
    terms = general_terms(*exact_arguments, activation, dropout, seed)
    names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "fc3_weight", "fc3_bias")
    ours = [y, *gradients]
    for name, our, plain, exact in zip(("y", "x", *names), ours, *results, strict=True):
        assert_as_good_as_torch(our, plain, exact, terms=terms[name], name=name)
    return ours


@pytest.mark.parametrize("stacked", [False, True], ids=["shared", "stacked"])
@pytest.mark.parametrize(
    ("n_rows", "n_in", "n_hidden", "n_out"),
    [
        pytest.param(129, 9, 2, 1, id="one_row_beyond_a_tile"),
        pytest.param(130, 65, 1, 1, id="two_pieces_two_blocks_of_features"),
        pytest.param(5, 3, 22, 1, id="groups_of_units_that_end_with_a_counter"),
        pytest.param(5, 3, 16, 2, id="groups_of_units_that_end_within_a_counter"),
        pytest.param(9, 17, 3, 9, id="two_blocks_of_outputs"),
    ],
)
def test_shapes_by_the_branch_they_reach(n_rows, n_in, n_hidden, n_out, stacked, device, draw):
    params = network(draw, n_in, n_hidden, n_out, device, stacked)
    x, dy = draw(n_rows, n_in).float().to(device), draw(n_rows, n_out).float().to(device)
    judge(x, params, dy, "tanh", DROPOUT)


def test_without_hidden_dropout_units_are_shared_out_evenly(device, draw):
    params = network(draw, 3, 29, 1, device, stacked=False)
    judge(draw(5, 3).float().to(device), params, draw(5, 1).float().to(device), "silu", (0, 0, 0))


@pytest.mark.parametrize("stacked", [False, True], ids=["shared", "stacked"])
def test_padding_shows_no_infinite_parameter(stacked, device, draw):
    # 3 features in a tile of 4, 5 rows in one of 64: relu of an infinite bias is infinite there
    params = network(draw, 3, 4, 1, device, stacked)
    params[1].view(-1)[0] = torch.inf
    x, dy = draw(5, 3).float().to(device), torch.ones(5, 1, device=device)
    leaves = [t.double().requires_grad_() for t in (x, *params)]
    y = reference.additive_mlp(*leaves, "relu")
    wanted = torch.autograd.grad(y, leaves, dy.double())
    gradients = general_bwd(dy, x, *params, None, "relu", needs=ALL)
    for ours, exact in zip(gradients, wanted, strict=True):
        assert torch.equal(ours.isnan(), exact.isnan())
        assert torch.equal(ours.isinf(), exact.isinf())


def test_the_seed_is_read_by_the_kernel(device, draw):
    params = network(draw, 3, 4, 1, device, stacked=False)
    x, seed = draw(40, 3).float().to(device), SEED.to(device)
    first = general_fwd(x, *params, seed, "relu", *DROPOUT)
    assert torch.equal(general_fwd(x, *params, seed, "relu", *DROPOUT), first)
    assert not torch.equal(general_fwd(x, *params, seed + 1, "relu", *DROPOUT), first)
    # the high word of the key counts
    assert not torch.equal(general_fwd(x, *params, seed + 2**32, "relu", *DROPOUT), first)


def test_no_rows_need_no_launch(device, draw):
    for stacked in (False, True):
        params = network(draw, 4, 3, 2, device, stacked)
        x, dy = torch.empty(0, 4, device=device), torch.empty(0, 2, device=device)
        assert general_fwd(x, *params, None, "tanh").shape == (0, 2)
        gradients = general_bwd(dy, x, *params, None, "tanh", needs=ALL)
        for gradient, argument in zip(gradients, (x, *params), strict=True):
            assert torch.equal(gradient, torch.zeros_like(argument))


def test_only_what_is_needed_is_computed(device, draw):
    params = network(draw, 3, 4, 2, device, stacked=True)
    x, dy = draw(5, 3).float().to(device), draw(5, 2).float().to(device)
    every = general_bwd(dy, x, *params, None, "tanh", needs=ALL)
    for i in range(7):
        needs = tuple(j == i for j in range(7))
        some = general_bwd(dy, x, *params, None, "tanh", needs=needs)
        assert [t is not None for t in some] == list(needs)
        assert torch.equal(some[i], every[i])
