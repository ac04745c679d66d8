"""The activations of the Triton wing, number by number, against PyTorch in float64."""

import pytest
import torch
from closeness import assert_as_good_as_torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from fastmlp.kernels.gpu.numbers.activations import ACTIVATIONS

from fastmlp import reference

DTYPES = {"float32": torch.float32, "float64": torch.float64}

# sizes of what PyTorch's formulas add up; a rounding of z alone turns a sine by |z| ulps
TERMS = {
    "sigmoid": lambda z, s, _: (s, s + s * s),
    "tanh": lambda z, t, _: (t, 1 + t * t),
    "silu": lambda z, y, _: (y, z.sigmoid() * (1 + 2 * z.abs())),
    "gelu": lambda z, y, _: (z, 1 + z.abs() * (-z * z / 2).exp()),
    "softplus": lambda z, y, s: (y + z.abs() * s, s + s * s),
    "sin": lambda z, sin, cos: (sin.abs() + (z * cos).abs(), cos.abs() + (z * sin).abs()),
}


@triton.jit
def activation_kernel(z_ptr, value_ptr, derivative_ptr, n, ACT: tl.constexpr, BLOCK: tl.constexpr):
    """σ and σ' of z [n], one program per BLOCK elements."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + offsets, mask=offsets < n, other=0.0)
    value, derivative = ACT(z)
    tl.store(value_ptr + offsets, value, mask=offsets < n)
    tl.store(derivative_ptr + offsets, derivative, mask=offsets < n)


def evaluate(name, z):
    value, derivative = torch.empty_like(z), torch.empty_like(z)
    grid = (triton.cdiv(len(z), 1024),)
    activation_kernel[grid](z, value, derivative, len(z), ACT=ACTIVATIONS[name], BLOCK=1024)
    return value, derivative


def plain(name, z):
    z = z.clone().requires_grad_()
    value = reference.ACTIVATIONS[name](z)
    (derivative,) = torch.autograd.grad(value, z, torch.ones_like(value))
    return value.detach(), derivative


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative(name, dtype, device):
    sizes = 10.0 ** torch.arange(-45, 2.8, 0.25, dtype=torch.float64)
    edges = torch.tensor([0.0, 0.3466, 0.6931, 1.0, torch.pi, 87.3, 88.7, 104.0, 1e3, 1e5, 1e6])
    z = torch.cat([sizes, edges.double(), torch.linspace(0, 20, 500).double()])
    z = torch.cat([z, -z]).to(device, dtype)
    ours, torchs, exact = evaluate(name, z), plain(name, z), plain(name, z.double())
    terms = TERMS.get(name, lambda z, value, derivative: (value, derivative))(z.double(), *exact)
    for kind, *results, size in zip(("σ", "σ'"), ours, torchs, exact, terms, strict=True):
        assert_as_good_as_torch(*results, terms=size.abs(), name=kind)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_special_values_are_pytorchs(name, dtype, device):
    z = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0], dtype=dtype, device=device)
    # in float64: PyTorch's vectorised float32 gelu makes NaN of infinity
    for our, exact in zip(evaluate(name, z), plain(name, z.double()), strict=True):
        # eight ulps of float32; what counts here is zero, infinite, or NaN
        assert torch.allclose(our.double(), exact, rtol=1e-6, atol=0, equal_nan=True), (our, exact)
