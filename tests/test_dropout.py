"""Fused dropout: masks, seeds, generators, training mode; tests/ops judges values and gradients."""

import math

import pytest
import torch
from closeness import assert_same_number
from torch.utils.checkpoint import checkpoint

import fastmlp
from fastmlp import functional
from fastmlp.dropout import dropout_masks

SEED = torch.tensor([0x0123_4567_89AB_CDEF])
PLACES = {"input": (0.3, 0.0, 0.0), "hidden": (0.0, 0.3, 0.0), "output": (0.0, 0.0, 0.3)}


def identity_net(n_hidden, v=None):
    """f(x) = Σ_k v_k·x with H units: shows every mask; all of it is exact in float64."""
    v = torch.ones(n_hidden) if v is None else v
    return [torch.ones(n_hidden, 1), None, v.reshape(1, -1), None]


def value(x, net, dropout, activation="identity"):
    net = [None if t is None else t.to(x) for t in net]
    return functional.elementwise_mlp(x, *net, activation, dropout, SEED.to(x.device))


def generator_of(device):
    """The module whose ``get_rng_state`` is of the generator that the ops draw from there."""
    return torch.cuda if device == "cuda" else torch


@pytest.mark.parametrize("place", PLACES)
def test_kernels_draw_the_masks_of_the_definition(place, backend):
    n, n_hidden = 200, 14
    # powers of 4 as read-out: the sum tells which units were kept
    v = 4.0 ** torch.arange(n_hidden, dtype=torch.float64)
    p = PLACES[place]
    masks = dropout_masks(SEED, n, n_hidden, p, torch.float64)
    ones = torch.ones(n, dtype=torch.float64, device=backend.device)
    y = value(ones, identity_net(n_hidden, v), p)
    if place == "hidden":
        wanted = (masks[1] * v).sum(-1)
    else:
        wanted = masks[0 if place == "input" else 2] * v.sum()
    # a product of factors and 14 powers of 4: a few roundings, and no mask is as small
    torch.testing.assert_close(y.cpu(), wanted, rtol=1e-14, atol=0)


def test_philox_gives_the_published_words():
    # Random123's kat_vectors: philox4x32 10, counter and key 0
    words = 0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    key = torch.zeros(1, dtype=torch.int64)

    def kept(p):
        of_input, of_units, of_output = dropout_masks(key, 1, 6, (p, p, p))
        return [*(of_input > 0), *(of_output > 0), *(of_units[0] > 0)]

    # every mask switches between two neighbouring probabilities
    for mask, half in enumerate(halves):
        assert kept(half / 65536)[mask]
        assert not kept((half + 1) / 65536)[mask]


def test_statistics_of_the_masks():
    p, n, n_hidden = 0.2, 700_000, 14
    masks = dropout_masks(SEED, n, n_hidden, (p, p, p))
    kept = torch.cat([masks[0][:, None], masks[1], masks[2][:, None]], 1) > 0
    n_draws = kept.numel()
    assert n_draws > 1e7
    sigma = math.sqrt(p * (1 - p) / n_draws)
    assert abs(kept.double().mean() - (1 - p)) < 4 * sigma
    # correlations of N pairs have a standard deviation of 1/√N
    z = (kept.double() - (1 - p)) / math.sqrt(p * (1 - p))
    between_units = z.T @ z / n
    between_units.fill_diagonal_(0)
    n_pairs = 16 * 15 // 2
    assert between_units.abs().max() < (4 + math.sqrt(2 * math.log(n_pairs))) / math.sqrt(n)
    for lag in (1, 2, 3, 14, 64):
        assert (z[lag:] * z[:-lag]).mean().abs() < 4 / math.sqrt(n_draws)
    other = dropout_masks(SEED + 1, n, n_hidden, (p, 0.0, p))
    for place in (0, 2):
        a, b = ((m[place] > 0).double() - (1 - p) for m in (masks, other))
        assert (a * b).mean().abs() / (p * (1 - p)) < 4 / math.sqrt(n)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_backward_has_the_masks_of_forward(activation, kernel_backend, draw):
    # y is linear in the read-out, so its gradient, contracted, is y again: with the same masks
    device = kernel_backend.device
    x = draw(40, 5).to(device).requires_grad_()
    net = [draw(7, 1), draw(7), draw(1, 7), None, draw(1, 5), None]
    net = [None if t is None else t.to(device) for t in net]
    net[2].requires_grad_()
    y = functional.additive_mlp(x, *net, activation, (0.2, 0.3, 0.4))
    (dv,) = torch.autograd.grad(y.sum(), net[2])
    # 200 numbers in two orders; another mask would change the third digit
    torch.testing.assert_close((dv * net[2]).sum(), y.sum().detach(), rtol=1e-12, atol=1e-12)


def test_equal_seeds_are_equal_bit_for_bit_and_calls_differ(kernel_backend, draw):
    device = kernel_backend.device
    module = fastmlp.AdditiveMLP(5, 14, dropout=0.2).to(device)
    x = draw(9, 5).float().to(device)
    torch.manual_seed(3)
    first, second = module(x), module(x)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)
    assert torch.equal(module(x), second)
    assert not torch.equal(first, second)
    generator = generator_of(device)
    state = generator.get_rng_state()
    third = module(x)
    generator.set_rng_state(state)
    assert torch.equal(module(x), third)


def test_every_element_and_unit_has_a_mask_of_its_own(kernel_backend):
    x = torch.ones(50, 3, dtype=torch.float64, device=kernel_backend.device)
    net = [torch.ones(10, 1), None, 4.0 ** torch.arange(10.0).reshape(1, -1), None]
    y = value(x, net, (0.0, 0.5, 0.0))
    assert len(y.flatten().unique()) > 125  # of 150 draws from 1024 patterns


def test_evaluation_has_no_dropout_and_draws_nothing(draw):
    x = draw(9, 5).float()
    for module in (fastmlp.AdditiveMLP(5, dropout=0.5), fastmlp.ElementwiseMLP(dropout=0.5)):
        plain = type(module)(*([5] if "Additive" in type(module).__name__ else []))
        plain.load_state_dict(module.state_dict())
        state = torch.get_rng_state()
        assert torch.equal(module.eval()(x), plain(x))
        assert torch.equal(module.train().eval()(x), plain(x))
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(module.train()(x), plain(x))


def test_probability_zero_is_the_module_without_dropout(draw):
    x = draw(9, 5).float()
    module = fastmlp.AdditiveMLP(5, dropout=(0.0, 0, 0.0))
    state = torch.get_rng_state()
    assert torch.equal(module(x), module.eval()(x))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("place", PLACES)
def test_probability_one_gives_what_pytorch_gives(place, backend, draw):
    p = tuple(float(q > 0) for q in PLACES[place])
    shapes = (30,), (4, 1), (4,), (1, 4), (1,)
    leaves = [draw(*shape).to(backend.device).requires_grad_() for shape in shapes]
    y = functional.elementwise_mlp(*leaves, dropout=p)
    wanted = fastmlp.reference.elementwise_mlp(*leaves, dropout=p)  # torch's own dropout
    assert_same_number(y, wanted)
    dy = draw(30).to(backend.device)
    ours, plain = (torch.autograd.grad(out, leaves, dy) for out in (y, wanted))
    for our, theirs in zip(ours, plain, strict=True):
        assert_same_number(our, theirs)


def test_the_mean_over_masks_is_the_value_without_dropout():
    # hidden and output dropout leave the mean alone
    x = torch.full((200_000,), 0.7, dtype=torch.float64)
    net = [torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([0.1, 2.0, 0.3]),
           torch.tensor([[1.0, 0.4, -2.0]]), torch.tensor([0.3])]  # fmt: skip
    y = value(x, net, (0.0, 0.2, 0.1), activation="relu")
    exact = value(x[:1], net, 0.0, activation="relu")
    assert (y.mean() - exact).abs() < 4 * y.std() / math.sqrt(len(y))


def test_checkpointing_repeats_the_masks(kernel_backend, draw):
    device = kernel_backend.device
    module = fastmlp.AdditiveMLP(5, 14, dropout=0.3).to(device)
    x = draw(8, 5).float().to(device)
    results = []
    for wrapped in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(1)
        y = wrapped(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_gradients_of_a_given_seed_are_right_to_second_order(backend, draw):
    shapes = (2, 3), (3, 1), (3,), (1, 3), (1,), (2, 3), (2,)
    leaves = [draw(*shape).to(backend.device).requires_grad_() for shape in shapes]
    seed = SEED.to(backend.device)

    def call(*leaves):
        return functional.additive_mlp(*leaves, "tanh", (0.2, 0.3, 0.1), seed)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_vmap_randomness(randomness, draw):
    # whole numbers, and a factor of 2 for what is kept: rows with the same masks are equal bit for
    # bit in whatever order PyTorch adds, which differs between the rows of one matrix
    module = fastmlp.AdditiveMLP(5, 14, dropout=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((3 * draw(*parameter.shape)).round())
    x = (3 * draw(5)).round().float().expand(6, 5)
    y = torch.func.vmap(module, randomness=randomness)(x.unsqueeze(1))
    assert (len(y.unique()) == 1) == (randomness == "same")


@pytest.mark.parametrize(
    ("dropout", "error", "message"),
    [
        (-0.1, ValueError, "between 0 and 1, got -0.1"),
        (1.5, ValueError, "between 0 and 1, got 1.5"),
        (math.nan, ValueError, "between 0 and 1, got nan"),
        ((0.1, 0.2), ValueError, "got 2 values"),
        ((0.1, 0.2, 3), ValueError, "between 0 and 1, got 3"),
        ("half", TypeError, "got str"),
        (True, TypeError, "got bool"),
        (None, TypeError, "got NoneType"),
    ],
    ids=str,
)
def test_bad_probabilities_are_refused_by_name(dropout, error, message):
    for build in (fastmlp.AdditiveMLP, fastmlp.ElementwiseMLP):
        with pytest.raises(error, match=rf"dropout must be.*{message}"):
            build(dropout=dropout)
    with pytest.raises(error, match=rf"dropout must be.*{message}"):
        functional.elementwise_mlp(torch.zeros(2), *identity_net(2), dropout=dropout)


def test_bad_seeds_are_refused_by_name():
    call = functional.elementwise_mlp
    for seed in (3, torch.zeros(1)):
        with pytest.raises(TypeError, match="seed must be an int64 Tensor"):
            call(torch.zeros(2), *identity_net(2), dropout=0.1, seed=seed)
    for seed in (torch.tensor(3), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"seed must have shape \[1\]"):
            call(torch.zeros(2), *identity_net(2), dropout=0.1, seed=seed)
