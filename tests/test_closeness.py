"""The rule must be able to fail: what it accepts, what it refuses, and the sizes of the terms."""

import pytest
import torch
from closeness import (
    additive_mlp_terms,
    assert_as_good_as_torch,
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
