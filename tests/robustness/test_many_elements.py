"""Tensors of more than 2^31 numbers, forward and backward: nothing may count them in 32 bits.

They take a minute and most of a large machine's memory: `make thorough` runs them, where there is
so much.
"""

import copy

import pytest
import torch
from closeness import assert_as_good_as_torch

pytest.importorskip("hypothesis")

from hypothesis import settings

import fastmlp

ROWS = 1_000_003
"""Rows that repeat: a prime number, so that 2^31 or 2^32 numbers further on are others."""

NUMBERS = 2_200_006_600
"""Of x: more than 2^31, and in bfloat16 more than 2^32 bytes."""

MEMORY = 18e9
"""Bytes: x, y or dy, dx, and what PyTorch takes for a moment beside them."""

MODULES = {
    "sine_sum": (1, lambda: fastmlp.SineSum(1)),
    "elementwise_mlp": (1, lambda: fastmlp.ElementwiseMLP(2)),
    "elementwise_tanh": (1, lambda: fastmlp.ElementwiseMLP(1, activation="tanh")),
    "additive_mlp": (4, lambda: fastmlp.AdditiveMLP(4, 2)),
    "mlp": (2, lambda: fastmlp.MLP(2, 2, 1)),
}
"""Numbers in a row, and the module."""


def available(device):
    """Bytes of memory that are free, or ``None`` where nobody tells."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kilobytes = dict(line.split(":") for line in lines)["MemAvailable"]
    except (OSError, KeyError):
        return None
    return 1024 * int(kilobytes.split()[0])


def computed(module, x):
    """y and the gradients of Σ y: of x, of each parameter."""
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y.sum(), [x, *module.parameters()])]


def assert_repeats(found, name, rounded, exact, terms):
    """Assert that each repetition of some rows is as it should be: most have the same bits."""
    rows = exact.shape[0]
    first = found[:rows]
    assert_as_good_as_torch(first, rounded, exact, terms=terms, name=name)
    for start in range(rows, found.shape[0], rows):
        again = found[start : start + rows]
        if not torch.equal(again, first):
            place = f"{name} from row {start}"
            assert_as_good_as_torch(again, rounded, exact, terms=terms, name=place)


@pytest.mark.parametrize("name", MODULES)
def test_more_than_two_to_the_31(name, kernel_backend):
    if settings.default.max_examples < 1000:
        pytest.skip("takes a minute and 18 GB: make thorough")
    if kernel_backend.interpreted:
        pytest.skip("takes weeks in Triton's interpreter")
    free = available(kernel_backend.device)
    if free is None or free < MEMORY:
        pytest.skip(f"takes {MEMORY / 1e9:.0f} GB of memory, free are {(free or 0) / 1e9:.0f}")
    n_in, make = MODULES[name]
    repeats = NUMBERS // (ROWS * n_in)
    module = make().to(kernel_backend.device, torch.bfloat16)
    few = torch.rand(ROWS, n_in, device=kernel_backend.device).mul_(4).sub_(2).bfloat16()

    exactly = copy.deepcopy(module).double()
    with fastmlp.backend("torch"):
        y, dx, *gradients = computed(exactly, few.double().requires_grad_())
        roundeds = computed(module, few.clone().requires_grad_())[:2]
    terms = [torch.maximum(t.abs(), t.abs().max()) for t in (y, dx)]

    x = few.repeat(repeats, 1).requires_grad_()
    assert x.numel() > 2**31
    ours_y = module(x)
    assert_repeats(ours_y.detach(), "y", roundeds[0], y, terms[0])
    total = ours_y.sum()
    del ours_y
    ours_dx, *ours = torch.autograd.grad(total, [x, *module.parameters()])
    assert_repeats(ours_dx, "dx", roundeds[1], dx, terms[1])
    for i, (our, exact) in enumerate(zip(ours, gradients, strict=True)):
        # no sum in bfloat16 is a measure: what it rounds to is
        whole = exact * repeats
        assert_as_good_as_torch(our, whole.bfloat16(), whole, name=f"gradient {i}")
