"""Wide subnets by their segments are as good as PyTorch, and used where they pay."""

import pytest
import torch
from closeness import additive_mlp_terms, assert_as_good_as_torch, elementwise_mlp_terms
from op_contract import away_from_kinks
from subnet_cases import subnet

import fastmlp
from fastmlp import functional, reference

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _numba():
    with fastmlp.backend("numba"):
        yield


@pytest.fixture
def wide_calls(monkeypatch):
    """How often a subnet was cut into segments."""
    from fastmlp.kernels.cpu.subnet import segments

    calls = []
    build = segments.Subnet.__init__

    def counting(self, *arguments):
        build(self, *arguments)
        calls.append(self.fits)

    monkeypatch.setattr(segments.Subnet, "__init__", counting)
    return calls


def judge(name, terms, inputs, draw):
    """Value and all gradients of one op against plain PyTorch and float64; returns ours."""
    y = getattr(reference, name)(**inputs)
    dy = draw(*y.shape).to(y.dtype)
    results = []
    for module, dtype in ((functional, None), (reference, None), (reference, torch.float64)):
        leaves = {
            n: None if t is None else t.to(dtype or t.dtype).requires_grad_()
            for n, t in inputs.items()
        }
        y = getattr(module, name)(**leaves)
        wanted = {n: t for n, t in leaves.items() if t is not None}
        gradients = torch.autograd.grad(y, list(wanted.values()), dy.to(y.dtype))
        results.append({"y": y.detach(), **dict(zip(wanted, gradients, strict=True))})
    sizes = terms(dy.double(), *(None if t is None else t.double() for t in inputs.values()))
    for key in results[0]:
        ours, plain, exact = (r[key] for r in results)
        assert_as_good_as_torch(ours, plain, exact, terms=sizes[key], name=key)
    return results[0]


def additive(draw, n, n_in, n_hidden, n_out, dtype=torch.float32, **changes):
    inputs = {"x": draw(n, n_in), **subnet(draw, n_hidden)}
    inputs["fc3_weight"], inputs["fc3_bias"] = draw(n_out, n_in), draw(n_out)
    inputs = {**inputs, **changes}
    inputs = {name: None if t is None else t.to(dtype) for name, t in inputs.items()}
    return away_from_kinks(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_out", [1, 3])
def test_additive(n_out, dtype, draw, wide_calls):
    judge("additive_mlp", additive_mlp_terms, additive(draw, 700, 33, 200, n_out, dtype), draw)
    assert wide_calls == [True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elementwise(dtype, draw, wide_calls):
    inputs = {"x": draw(20_001), **subnet(draw, 300)}
    inputs = away_from_kinks({name: t.to(dtype) for name, t in inputs.items()})
    judge("elementwise_mlp", elementwise_mlp_terms, inputs, draw)
    assert wide_calls == [True, True]


def test_degenerate_units(draw, wide_calls):
    w1, b1 = draw(128), draw(128)
    w1[:20] = 0  # flat, some active
    b1[20:40] = -0.5 * w1[20:40]  # one breakpoint, repeated
    w1[40:60] *= 1e-6  # far breakpoints
    b1[60:80] = 0
    x = draw(2000, 40)
    x[::3] = 0  # ties, where the derivative is 0
    x[1::3, ::2] = 0.5
    inputs = additive(draw, 2000, 40, 128, 1, fc1_weight=w1[:, None], fc1_bias=b1)
    inputs["x"] = x.float()
    ours = judge("additive_mlp", additive_mlp_terms, inputs, draw)
    assert wide_calls == [True, True]
    assert torch.isfinite(ours["fc1_weight"]).all()


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_follow_the_reference(special, draw, wide_calls):
    inputs = additive(draw, 2000, 20, 128, 1)
    inputs["x"][7, 3] = special
    judge("additive_mlp", additive_mlp_terms, inputs, draw)
    assert wide_calls == [True, True]


def test_nets_that_have_no_finite_segments_are_left_to_the_dense_form(draw, wide_calls):
    inputs = additive(draw, 2000, 20, 128, 1)
    inputs["fc2_weight"][0, 5] = torch.inf
    y = functional.additive_mlp(**inputs)
    assert wide_calls == [False]
    assert torch.equal(y.isnan(), reference.additive_mlp(**inputs).isnan())


def test_narrow_nets_and_few_elements_are_left_to_the_dense_form(draw, wide_calls):
    functional.additive_mlp(**additive(draw, 5000, 20, 63, 1))
    functional.additive_mlp(**additive(draw, 10, 20, 1024, 1))
    assert wide_calls == []


def test_results_are_the_same_bit_for_bit(draw):
    inputs = additive(draw, 30_000, 8, 200, 2)
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}
    n_threads = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = functional.additive_mlp(**leaves)
            results.append([y, *torch.autograd.grad(y.sum(), list(leaves.values()))])
    finally:
        torch.set_num_threads(n_threads)
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))
