"""Every op on every backend against float64, on cases that Hypothesis draws.

Shapes, strides, dtypes and sizes of the numbers, each tensor's for itself: zero, all the same,
denormal, tiny, huge, or spread over many powers of two. The rule is that of `closeness`.
`pytest --hypothesis-profile thorough` draws 10 000 cases per op and backend.
"""

from itertools import pairwise
from types import MappingProxyType

import pytest
import torch
from closeness import (
    PIECEWISE_LINEAR,
    additive_mlp_terms,
    elementwise_mlp_terms,
    mlp_terms,
    sine_sum_terms,
)
from conftest import LAYOUTS
from general_cases import GeneralContract, general_terms
from op_contract import DTYPES, OpContract, away_from_kinks

pytest.importorskip("hypothesis")

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastmlp import reference

# powers of two by which the numbers of a tensor are spread, and the factor on all of them
_SPREAD = {"float32": 10, "float64": 10, "bfloat16": 4, "float16": 2}
_HUGE = {"float32": 1e6, "float64": 1e30, "bfloat16": 1e6, "float16": 8.0}
_TINY = {"float32": 1e-12, "float64": 1e-100, "bfloat16": 1e-12, "float16": 1e-2}
THOROUGH = 1000
SIZES = ("normal", "zero", "same", "denormal", "tiny", "huge", "spread")
# the tail of GELU below −10 is right to 1e-24, which is not to an ulp of numbers that small
MODERATE = ("normal", "zero", "same", "denormal", "tiny")
# angles are reduced in turns: a denormal one is rounded 2π times as coarsely as in radians
NORMAL_NUMBERS = ("normal", "zero", "same", "tiny", "huge", "spread")


def resize(t, size, name):
    """Normal numbers in float64, at another size; ``name`` is the dtype's."""
    dtype = DTYPES[name]
    if size == "zero":
        return torch.zeros_like(t)
    if size == "same":
        return t.reshape(-1)[:1].expand(t.numel()).reshape(t.shape).clone() if t.numel() else t
    if size == "spread":
        return t * 2.0 ** (t.roll(1, -1) * _SPREAD[name]).round().clamp(-30, 30)
    factor = {
        "normal": 1.0,
        "denormal": torch.finfo(dtype).smallest_normal / 8,
        "tiny": _TINY[name],
        "huge": _HUGE[name],
    }[size]
    return t * factor


@st.composite
def cases(draw, sizes=SIZES):
    """What all ops have in common, as a dictionary of numbers and names."""
    return {
        "rows": draw(st.integers(0, 40)),
        "columns": draw(st.integers(1, 20)),
        "hidden": draw(st.integers(1, 24)),
        "outputs": draw(st.integers(1, 4)),
        "dtype": draw(st.sampled_from(sorted(DTYPES))),
        "layout": draw(st.sampled_from(["plain", *LAYOUTS])),
        "sizes": draw(st.lists(st.sampled_from(sizes), min_size=8, max_size=8)),
        "biases": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }


def judge(contract, make, case, backend, *, kinks=False):
    """Draw the tensors of a case, and hold value and gradients against the rule."""
    generator = torch.Generator().manual_seed(case["seed"])

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {}
    for (name, t), size in zip(make(normal).items(), case["sizes"], strict=False):
        inputs[name] = None if t is None else resize(t, size, case["dtype"])
    inputs = {
        name: None if t is None else t.to(DTYPES[case["dtype"]]) for name, t in inputs.items()
    }
    if case["layout"] != "plain" and case["rows"]:
        inputs["x"] = LAYOUTS[case["layout"]](inputs["x"])
    if kinks:
        try:
            moved = away_from_kinks(inputs)
        except AssertionError:
            moved = None
        assume(moved is not None)
        if not torch.equal(moved["x"], inputs["x"]):
            inputs = moved
    contract.judge(inputs, normal, backend)


def for_all(backend, test, **strategies):
    """Call ``test`` on as many drawn cases as the profile says."""
    if backend.interpreted and settings.default.max_examples < THOROUGH:
        pytest.skip("Triton's interpreter takes seconds for a case: in the profile thorough only")
    given(**strategies)(test)()


class Subnets(GeneralContract):
    """Both ops of subnets; where all features share a ReLU one, kernels sum by breakpoints."""

    def __init__(self, name, stacked, activation):
        self.name, self.stacked = name, stacked
        self.options = {"activation": activation, "dropout": (0.0, 0.0, 0.0), "seed": None}

    @staticmethod
    def terms(dy, *arguments):
        *tensors, activation, dropout, seed = arguments
        if activation != "relu" or tensors[1].dim() == 3:
            return general_terms(dy, *tensors, activation, dropout, seed)
        by_breakpoints = elementwise_mlp_terms if len(tensors) == 5 else additive_mlp_terms
        return by_breakpoints(dy, *tensors)


def judge_general(backend, name, stacked=False, activations=("relu",), sizes=SIZES):
    def judge_subnet(case, activation):
        contract = Subnets(name, stacked, activation)

        def make(draw):
            return contract.make(
                draw,
                shape=(case["rows"], case["columns"]),
                n_hidden=case["hidden"],
                n_out=case["outputs"],
                biases=("fc1_bias", "fc2_bias", "fc3_bias") if case["biases"] else (),
            )

        judge(contract, make, case, backend, kinks=activation in PIECEWISE_LINEAR)

    for_all(backend, judge_subnet, case=cases(sizes), activation=st.sampled_from(activations))


def test_elementwise_mlp(kernel_backend):
    judge_general(kernel_backend, "elementwise_mlp")


def test_elementwise_mlp_of_any_activation(kernel_backend):
    names = sorted(reference.ACTIVATIONS)
    judge_general(kernel_backend, "elementwise_mlp", activations=names, sizes=MODERATE)


def test_additive_mlp(kernel_backend):
    judge_general(kernel_backend, "additive_mlp")


def test_additive_mlp_with_a_subnet_a_feature(kernel_backend):
    judge_general(kernel_backend, "additive_mlp", stacked=True)


class SineSum(OpContract):
    name = "sine_sum"
    terms = sine_sum_terms

    def __init__(self, scale, reduction):
        self.options = {"scale": scale, "reduction": reduction}


def test_sine_sum(kernel_backend):
    def judge_sines(case, scale, reduction):
        def make(draw):
            width = case["hidden"]
            return {
                "x": draw(case["rows"], case["columns"]),
                "w": draw(width),
                "amplitude": draw(width) if case["biases"] else None,
                "phase": draw(width) if case["outputs"] > 1 else None,
            }

        judge(SineSum(scale, reduction), make, case, kernel_backend)

    for_all(
        kernel_backend,
        judge_sines,
        case=cases(NORMAL_NUMBERS),
        scale=st.sampled_from([1.0, torch.pi, -0.5]),
        reduction=st.sampled_from(sorted(reference.REDUCTIONS)),
    )


class MLP(OpContract):
    name = "mlp"
    options = MappingProxyType({"activation": "silu", "output_activation": "identity"})

    @staticmethod
    def terms(dy, x, *arguments):
        *parameters, activation, output_activation = arguments
        terms = mlp_terms(dy, x, parameters[::2], parameters[1::2], activation, output_activation)
        named = {"y": terms["y"], "x": terms["x"]}
        for i, (weight, bias) in enumerate(zip(terms["weights"], terms["biases"], strict=True)):
            named.update({f"weight{i}": weight, f"bias{i}": bias})
        return named

    def function(self, module):
        def mlp(x, activation, output_activation, **named):
            parameters = list(named.values())
            return module.mlp(x, parameters[::2], parameters[1::2], activation, output_activation)

        return mlp


def test_mlp(kernel_backend):
    def judge_mlp(case):
        widths = (case["columns"], case["hidden"], case["hidden"], case["outputs"])

        def make(draw):
            inputs = {"x": draw(case["rows"], widths[0])}
            for i, (n_in, n_out) in enumerate(pairwise(widths)):
                inputs[f"weight{i}"] = draw(n_out, n_in)
                inputs[f"bias{i}"] = draw(n_out) if case["biases"] else None
            return inputs

        judge(MLP(), make, case, kernel_backend)

    for_all(kernel_backend, judge_mlp, case=cases())
