"""The arithmetic of the watched interpreter is a card's: inexact, and no more so than PTX says."""

from fractions import Fraction

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
if triton.knobs.runtime.interpret is False:
    pytest.skip("kernels are compiled here: nothing is interpreted", allow_module_level=True)

from sanitizer import numerics  # noqa: E402

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(0.1, 10, 4096).astype(np.float32)
Y = GENERATOR.uniform(0.1, 10, 4096).astype(np.float32)


def errors(result, exact):
    """In ulps of the result."""
    return np.abs(result - exact) / np.spacing(np.abs(exact).astype(np.float32))


CASES = {
    "divide": (numerics.divide, lambda x, y: x / y, (X, Y), 2),
    "square root": (numerics.square_root, np.sqrt, (X,), 1),
    "inverse root": (numerics.inverse_root, lambda x: 1 / np.sqrt(x), (X,), 2),
    "power of two": (numerics.power_of_two, np.exp2, (X,), 2),
    "logarithm": (numerics.logarithm, np.log, (X,), 2),
}


@pytest.mark.parametrize("name", CASES)
def test_errors_fill_the_bound(name):
    function, exact, operands, ulps = CASES[name]
    result = function(*operands)
    error = errors(result, exact(*(x.astype(np.float64) for x in operands)))
    assert result.dtype == np.float32
    assert 0.75 * ulps < error.max() <= ulps
    assert np.array_equal(result, function(*operands))


def test_an_exponential_has_the_error_of_the_product_before_it():
    x = np.float32([-80.3, -1.7, 0.0, 1.7, 80.3])
    error = errors(numerics.exponential(x), np.exp(x.astype(np.float64)))
    assert (error <= 2 + np.abs(x)).all()
    assert numerics.exponential(x)[2] == 1


def test_special_values():
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    with np.errstate(all="ignore"):
        quotients = numerics.divide(np.float32([1, 0, inf, nan, 3]), np.float32([0, 5, 2, 1, 4]))
    np.testing.assert_array_equal(quotients, np.float32([inf, 0, inf, nan, 0.75]))
    np.testing.assert_array_equal(numerics.square_root(np.float32([0, 1e-39])), [0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fma_is_the_nearest_float(dtype):
    x, y = X[:500].astype(dtype), Y[:500].astype(dtype)
    z = (-x * y * GENERATOR.choice([0.5, 1.0, 1 + 1e-6], x.shape)).astype(dtype)
    ours = numerics.fma(x, y, z)
    half = np.spacing(np.abs(ours)) / 2
    for a, b, c, result, bound in zip(*(v.tolist() for v in (x, y, z, ours, half)), strict=True):
        assert abs(Fraction(a) * Fraction(b) + Fraction(c) - Fraction(result)) <= Fraction(bound)


def test_fma_is_rounded_once():
    # x² lies 2⁻⁴⁶ beyond the float below it, which −1 − 2⁻²² takes away
    x = np.float32([1 + 2.0**-23])
    assert numerics.fma(x, x, np.float32([-1 - 2.0**-22])) == 2.0**-46
    x = np.array([1 + 2.0**-52])
    assert numerics.fma(x, x, np.array([-1 - 2.0**-51])) == 2.0**-104
    # a sum just above the middle of two floats, which float64 rounds to the middle
    x, y, z = np.float32([1 + 2.0**-12]), np.float32([1 + 2.0**-12]), np.float32([2.0**-60])
    assert numerics.fma(x, y, z) == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert numerics.fma(x, y, -z) == np.float32(1 + 2.0**-11)


@triton.jit
def arithmetic_kernel(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(out_ptr + i, x / y)
    tl.store(out_ptr + BLOCK + i, tl.fma(x, x, -y))
    tl.store(out_ptr + 2 * BLOCK + i, tl.sqrt(x))


def test_the_interpreter_has_it():
    out = torch.zeros(3, 4096)
    arithmetic_kernel[(1,)](torch.tensor(X), torch.tensor(Y), out, BLOCK=4096)
    expected = [numerics.divide(X, Y), numerics.fma(X, X, -Y), numerics.square_root(X)]
    np.testing.assert_array_equal(out.numpy(), np.stack(expected))
