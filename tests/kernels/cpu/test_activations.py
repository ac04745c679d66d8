"""The activations of the Numba wing, number by number, against PyTorch in float64."""

from functools import cache

import numpy as np
import pytest
import torch
from closeness import assert_as_good_as_torch

pytest.importorskip("numba")

import numba
from fastmlp.kernels.cpu.machine.jit import FASTMATH
from fastmlp.kernels.cpu.numbers.activations import ACTIVATIONS

from fastmlp import reference

REALS = {"float32": np.float32, "float64": np.float64}

# sizes of what PyTorch's formulas add up; a rounding of z alone turns a sine by |z| ulps
TERMS = {
    "sigmoid": lambda z, s, _: (s, s + s * s),
    "tanh": lambda z, t, _: (t, 1 + t * t),
    "silu": lambda z, y, _: (y, z.sigmoid() * (1 + 2 * z.abs())),
    "gelu": lambda z, y, _: (z, 1 + z.abs() * (-z * z / 2).exp()),
    "softplus": lambda z, y, s: (y + z.abs() * s, s + s * s),
    "sin": lambda z, sin, cos: (sin.abs() + (z * cos).abs(), cos.abs() + (z * sin).abs()),
}


@cache
def loop(name, real):
    """σ and σ' of a whole array, as one compiled loop."""
    pair = ACTIVATIONS[name][real].value_and_derivative

    @numba.njit(fastmath=FASTMATH, error_model="numpy")
    def loop(z, value, derivative):
        for i in range(z.size):
            value[i], derivative[i] = pair(z[i])

    return loop


def evaluate(name, z):
    value, derivative = np.empty_like(z), np.empty_like(z)
    loop(name, z.dtype.type)(z, value, derivative)
    return torch.from_numpy(value), torch.from_numpy(derivative)


def plain(name, z):
    z = z.clone().requires_grad_()
    value = reference.ACTIVATIONS[name](z)
    (derivative,) = torch.autograd.grad(value, z, torch.ones_like(value))
    return value.detach(), derivative


def numbers(real):
    """Numbers of every size, the kink, both zeros and where exponentials under- and overflow."""
    # not from 709 to 745, where the judge itself, 1/(1 + exp(-z)) in float64, overflows
    sizes = np.concatenate([10.0 ** np.arange(-45, 2.8, 0.25), 10.0 ** np.arange(3, 7, 0.25)])
    edges = [0.0, 1e-40, 0.3466, 0.6931, 1.0, np.pi, 2 * np.pi, 18.0, 87.3, 88.7, 104.0, 709.0]
    z = np.concatenate([sizes, edges, np.linspace(0, 20, 2001), np.linspace(0, 709, 501)])
    z = np.concatenate([z, -z]).astype(real)
    return z[: len(z) // 4 * 4 + 1]  # the loop's remainder is reached too


@pytest.mark.parametrize("real", REALS.values(), ids=REALS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative(name, real):
    z = numbers(real)
    ours = evaluate(name, z)
    torchs = plain(name, torch.from_numpy(z))
    wide = torch.from_numpy(z).double()
    exact = plain(name, wide)
    terms = TERMS.get(name, lambda z, value, derivative: (value, derivative))(wide, *exact)
    for kind, *results, size in zip(("σ", "σ'"), ours, torchs, exact, terms, strict=True):
        assert_as_good_as_torch(*results, terms=size.abs(), name=kind)


@pytest.mark.parametrize("real", REALS.values(), ids=REALS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_special_values_are_pytorchs(name, real):
    z = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], real)
    # in float64: PyTorch's vectorised float32 gelu makes NaN of infinity
    torchs = plain(name, torch.from_numpy(z).double())
    for our, exact in zip(evaluate(name, z), torchs, strict=True):
        # eight ulps of float32; what counts here is zero, infinite, or NaN
        assert torch.allclose(our.double(), exact, rtol=1e-6, atol=0, equal_nan=True), (our, exact)


@pytest.mark.parametrize("real", REALS.values(), ids=REALS)
def test_tails_keep_their_digits(real):
    """Where 1 − tanh² and 1 + erf cancel, against mathematics itself."""
    z = np.arange(1.0, 8.0, 0.0625).astype(real)
    wide, eps = torch.from_numpy(z).double(), np.finfo(real).eps
    for ours, exact in (
        (evaluate("tanh", z)[1], 1 / wide.cosh().square()),
        (evaluate("sigmoid", -z)[0], 1 / (1 + wide.exp())),
        (evaluate("gelu", -z)[0], -wide * torch.erfc(wide / 2**0.5) / 2),
        (evaluate("softplus", -z)[0], (-wide).exp().log1p()),
    ):
        # erfc(z/√2) itself loses z² roundings of its argument
        assert ((ours.double() / exact - 1).abs() < 8 * eps + wide.square() * 2.2e-16).all()


def test_loops_are_vectorised():
    """No call and no division of single numbers in the loops."""
    for name in ACTIVATIONS:
        z = np.ones(64, np.float32)
        evaluate(name, z)
        (assembly,) = loop(name, np.float32).inspect_asm().values()
        packed = assembly.count("vfmadd") or assembly.count("vmulps") or assembly.count("vmaxps")
        assert packed or name in ("relu", "identity"), name
        for libm in ("expf", "logf", "log1pf", "tanhf", "erff", "sinf", "cosf"):
            assert f"${libm}" not in assembly, (name, libm)
