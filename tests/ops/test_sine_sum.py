"""The op `sine_sum` on every backend."""

import math
from types import MappingProxyType

import pytest
import torch
from closeness import sine_sum_terms
from op_contract import OpContract

_CASES = {
    "scalar": {"shape": ()},
    "no_rows": {"shape": (0,)},
    "no_columns": {"shape": (3, 0)},
    "one_element": {"shape": (1,)},
    "four_dimensions": {"shape": (2, 3, 1, 5)},
    **{f"{n}_elements": {"shape": (n,)} for n in (63, 64, 65, 511, 512, 513)},
    **{f"{n}_elements": {"shape": (n,), "width": 2} for n in (2047, 2048, 2049)},
    "two_gpu_pieces": {"shape": (8193,), "width": 2},
    "three_cpu_pieces": {"shape": (140_003,), "large": True},
    **{f"{n}_sines": {"width": n} for n in (1, 2, 3, 15, 16, 17, 33)},
    **{f"{n}_sines": {"width": n, "large": True} for n in (64, 65, 130)},
    "1000_sines": {"width": 1000, "large": True},
    "no_amplitude": {"without": ("amplitude",)},
    "no_phase": {"without": ("phase",)},
    "frequencies_only": {"without": ("amplitude", "phase")},
    "frequencies_only_three_cpu_pieces": {
        "without": ("amplitude", "phase"), "shape": (140_003,), "large": True
    },
    "1000_turns": {"frequency": 1e3},
    "a_million_turns": {"frequency": 1e6},
    "slow": {"frequency": 1e-6},
}  # fmt: skip


class SineSumContract(OpContract):
    name = "sine_sum"
    terms = sine_sum_terms
    CASES = _CASES

    def make(self, draw, shape=(13, 5), width=5, without=(), frequency=1.0, n=None, small=False):
        if small:
            shape, width = (2, 2), 3
        if n is not None:
            shape = (n,)
        return {
            "x": draw(*shape),
            "w": draw(width) * frequency,
            "amplitude": None if "amplitude" in without else draw(width),
            "phase": None if "phase" in without else draw(width),
        }


class TestSineSumMean(SineSumContract):
    options = MappingProxyType({"scale": math.pi, "reduction": "mean"})

    @pytest.mark.parametrize("special", [torch.nan, torch.inf], ids=["nan", "inf"])
    def test_zero_frequency_meets_special_values(self, special, backend, draw):
        inputs = self.inputs(draw)
        inputs["w"].zero_()
        inputs["x"][2, 3] = special
        self.judge(inputs, draw, backend)

    def test_quarter_turns(self, backend, draw):
        x = torch.arange(-8, 9, dtype=torch.float32) / 2
        inputs = {"x": x, "w": torch.ones(1), "amplitude": None, "phase": None}
        self.judge(inputs, draw, backend)

    def test_zero_frequency_is_a_constant(self, backend, draw):
        inputs = self.inputs(draw)
        inputs["w"].zero_()
        self.judge(inputs, draw, backend)


class TestSineSumOfRadians(SineSumContract):
    options = MappingProxyType({"scale": -1.0, "reduction": "sum"})
    CASES = MappingProxyType(
        {name: _CASES[name] for name in ("scalar", "no_rows", "3_sines", "17_sines", "no_phase")}
    )


class TestSineSumWithoutScale(SineSumContract):
    """A scale of 0: every sine is constant."""

    options = MappingProxyType({"scale": 0.0, "reduction": "sum"})
    CASES = MappingProxyType({"default": {}})
