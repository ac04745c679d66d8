"""The rule must be able to fail: what it accepts, what it refuses, and the sizes of the terms."""

import pytest
import torch
from closeness import (
    additive_mlp_terms,
    assert_as_good_as_torch,
    assert_modules_agree,
    assert_run_as_good_as_torch,
    assert_same_number,
    elementwise_mlp_terms,
    sine_sum_terms,
)

from fastmlp import reference

EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def exact(draw):
    return draw(50).to(torch.float32).double()


def nudged(exact, ulps, where=7):
    """The float32 values with one element off by a number of ulps of itself."""
    factor = torch.ones_like(exact)
    factor[where] += ulps * EPS
    return (exact * factor).float()


def test_equal_values_pass(exact):
    assert_as_good_as_torch(exact.float(), exact.float(), exact)


def test_a_few_ulps_pass(exact):
    assert_as_good_as_torch(nudged(exact, 3), exact.float(), exact)


def test_many_ulps_of_one_element_fail(exact):
    with pytest.raises(AssertionError, match=r"1 of 50 elements .* at \[7\]"):
        assert_as_good_as_torch(nudged(exact, 10), exact.float(), exact)


def test_torchs_own_error_counts_twice(exact):
    torchs = nudged(exact, 100, where=3)
    assert_as_good_as_torch(nudged(exact, 190), torchs, exact)
    with pytest.raises(AssertionError, match="not as good"):
        assert_as_good_as_torch(nudged(exact, 230), torchs, exact)


def test_error_of_a_large_element_excuses_no_small_one(exact):
    exact[3] = 2.0**20
    torchs = nudged(exact, 4, where=3)
    ours = exact.float()
    ours[7] += 1e-2
    with pytest.raises(AssertionError, match="not as good"):
        assert_as_good_as_torch(ours, torchs, exact)


def test_ulps_are_of_the_terms(exact):
    ours = exact.float() + 100 * EPS
    terms = 100 + exact.abs()
    assert_as_good_as_torch(ours, exact.float(), exact, terms=terms)
    with pytest.raises(AssertionError, match="not as good"):
        assert_as_good_as_torch(ours, exact.float(), exact)


def test_terms_below_their_sum_are_refused(exact):
    with pytest.raises(AssertionError, match="terms are smaller"):
        assert_as_good_as_torch(exact.float(), exact.float(), exact, terms=exact.abs() / 2)


def test_zero_must_be_zero():
    exact = torch.zeros(3, dtype=torch.float64)
    ours = torch.tensor([0.0, 1e-30, 0.0])
    with pytest.raises(AssertionError, match="not as good"):
        assert_as_good_as_torch(ours, torch.zeros(3), exact)
    assert_as_good_as_torch(-torch.zeros(3), torch.zeros(3), exact)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf], ids=["nan", "inf", "-inf"])
def test_special_values_must_be_in_place(exact, special):
    exact[5] = special
    torchs = exact.float()
    assert_as_good_as_torch(torchs.clone(), torchs, exact)
    for wrong in (0.0, torch.nan, torch.inf, -torch.inf):
        ours = torchs.clone()
        ours[5] = wrong
        if not torch.equal(ours.nan_to_num(nan=0.5), torchs.nan_to_num(nan=0.5)):
            with pytest.raises(AssertionError, match=r"at \[5\]"):
                assert_as_good_as_torch(ours, torchs, exact)
    ours = torchs.clone()
    ours[6] = special
    with pytest.raises(AssertionError, match=r"at \[6\]"):
        assert_as_good_as_torch(ours, torchs, exact)


def test_overflow_is_excused_where_torch_overflows():
    exact = torch.tensor([1e39, 1.0], dtype=torch.float64)
    torchs = torch.tensor([torch.inf, 1.0])
    assert_as_good_as_torch(torch.tensor([torch.inf, 1.0]), torchs, exact)
    with pytest.raises(AssertionError, match=r"at \[1\]"):
        assert_as_good_as_torch(torch.tensor([torch.inf, torch.inf]), torchs, exact)
    with pytest.raises(AssertionError, match=r"at \[0\]"):
        assert_as_good_as_torch(torch.tensor([1.0, 1.0]), torchs, exact)


def test_shape_dtype_and_judge_are_checked(exact):
    with pytest.raises(AssertionError, match="shape"):
        assert_as_good_as_torch(exact.float()[:-1], exact.float(), exact)
    with pytest.raises(AssertionError, match="float64"):
        assert_as_good_as_torch(exact, exact.float(), exact)
    with pytest.raises(AssertionError, match="judge"):
        assert_as_good_as_torch(exact.float(), exact.float(), exact.float())


def test_empty_tensors_pass():
    empty = torch.empty(0, 3)
    assert_as_good_as_torch(empty, empty, empty.double())


def run_that_is_off(exact, ulps, dtype=torch.float32):
    """Losses and parameters of a run, some ulps of the largest number off in one place."""
    off = exact.clone()
    off[3] += ulps * torch.finfo(dtype).eps * exact.abs().max()
    return [off, exact[:1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_run_may_be_off_as_many_ulps_as_rounding_grows_to_in_either_dtype(exact, dtype):
    right, torchs = [exact, exact[:1]], run_that_is_off(exact, 500)
    for ulps in (0, 1050, -1050):
        ours = run_that_is_off(exact, ulps, dtype)
        assert_run_as_good_as_torch(ours, torchs, right, dtype=dtype)
    with pytest.raises(AssertionError, match=r"tensor 0 of the run: .* 2 × 500 \+ 64 ulps"):
        assert_run_as_good_as_torch(run_that_is_off(exact, 1080, dtype), torchs, right, dtype=dtype)
    # without errors of PyTorch's the few ulps are left
    assert_run_as_good_as_torch(run_that_is_off(exact, 60, dtype), right, right, dtype=dtype)
    with pytest.raises(AssertionError, match="tensor 0"):
        assert_run_as_good_as_torch(run_that_is_off(exact, 70, dtype), right, right, dtype=dtype)


def test_a_run_that_is_not_finite_or_has_other_tensors_is_refused(exact):
    for wrong in ([exact * torch.nan], [exact[1:]], [exact, exact]):
        with pytest.raises(AssertionError):
            assert_run_as_good_as_torch(wrong, [exact], [exact], dtype=torch.float64)


def test_two_computations_in_float64_differ_by_few_ulps_of_their_terms(exact):
    eps = torch.finfo(torch.float64).eps
    size = exact.abs().max()
    assert_same_number(exact + 60 * eps * size, exact)
    assert_same_number(exact + 600 * eps * size, exact, terms=10 * size)
    assert_same_number(exact + 600 * eps * size, exact, condition=10)
    assert_same_number(float("nan"), float("nan"))
    for ours, theirs in (
        (exact + 80 * eps * size, exact),
        (exact[1:], exact),
        (float("nan"), 1.0),
        (1e-300, 0.0),
    ):
        with pytest.raises(AssertionError):
            assert_same_number(ours, theirs)


def test_modules_that_differ_by_more_than_rounding_are_refused(draw):
    plain, x = torch.nn.Linear(5, 3), draw(9, 5).float()
    assert_modules_agree(lambda x: plain(x) * (1 + 8 * EPS), plain, x)
    with pytest.raises(AssertionError, match="result 0"):
        assert_modules_agree(lambda x: plain(x) * (1 + 1e-4), plain, x)
    other = torch.nn.Linear(5, 3)
    other.load_state_dict(plain.state_dict())
    assert_modules_agree(other, plain, x, gradients=True)
    other.bias.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(AssertionError, match="result 2"):
        assert_modules_agree(other, plain, x, gradients=True)


TERMS = {
    "elementwise_mlp": (elementwise_mlp_terms, [(5, 1), (5,), (1, 5), (1,)], ()),
    "additive_mlp": (additive_mlp_terms, [(5, 1), (5,), (1, 5), (1,), (2, 3), (2,)], ()),
    "sine_sum_mean": (sine_sum_terms, [(5,), (5,), (5,)], (2.0, "mean")),
    "sine_sum_sum": (sine_sum_terms, [(5,), (5,), (5,)], (-2.0, "sum")),
}


@pytest.mark.parametrize("case", TERMS)
def test_terms_bound_values_and_gradients_tightly(case, draw):
    terms_of, shapes, options = TERMS[case]
    function = getattr(reference, terms_of.__name__.removesuffix("_terms"))
    tensors = [draw(4, 3), *(draw(*shape) for shape in shapes)]
    for t in tensors:
        t.requires_grad_()
    y = function(*tensors, *options)
    dy = draw(*y.shape)
    gradients = torch.autograd.grad(y, tensors, dy)
    with torch.no_grad():
        terms = terms_of(dy, *tensors, *options)
    for exact, size in zip([y, *gradients], _in_order(terms), strict=True):
        assert exact.shape == size.shape
        assert bool((size >= exact.abs() * (1 - 1e-12)).all())
        # a bound that is far too large could not catch anything
        assert size.sum() < 100 * exact.abs().sum()


def _in_order(terms):
    order = ["y", "x", *(f"fc{i}_{kind}" for i in (1, 2, 3) for kind in ("weight", "bias"))]
    order += ["w", "amplitude", "phase"]
    return [terms[name] for name in order if name in terms]
