"""What every fused op owes its caller, as a test class to inherit from: `OpContract`.

A subclass names the op, lists its cases (shapes chosen by the branch they reach) and builds the
inputs of a case; it inherits the suite, and adds what is special to the op.
"""

import math
from types import MappingProxyType

import pytest
import torch
from closeness import assert_as_good_as_torch

from fastmlp import functional, reference

SPECIAL = {"nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf}
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MIXED = {
    f"{x_name}_with_{name}": (DTYPES[x_name], DTYPES[name])
    for x_name, name in [
        ("float32", "float64"),
        ("float64", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
        ("float16", "bfloat16"),
        ("bfloat16", "float64"),
    ]
}


def evaluate(function, inputs, options, dy=None, wanted=()):
    """Value and gradients of one call, by name; the inputs themselves are used, not copies."""
    leaves = {
        name: t if t is None else t.detach().requires_grad_(name in wanted)
        for name, t in inputs.items()
    }
    y = function(**leaves, **options)
    results = {"y": y.detach()}
    if wanted:
        gradients = torch.autograd.grad(y, [leaves[name] for name in wanted], dy)
        results.update(zip(wanted, gradients, strict=True))
    return results


def to(inputs, *args):
    """All tensors of a dictionary on another device or in another dtype."""
    return {name: None if t is None else t.to(*args) for name, t in inputs.items()}


def away_from_kinks(inputs):
    """The inputs with x moved where rounding could not tell which side of a breakpoint it is on.

    At such an x the derivative may be either side's, in PyTorch too, and no rule could judge it.
    Exact ties stay: there the derivative is known to be 0.
    """
    x = inputs["x"].double()
    w1 = inputs["fc1_weight"].double().reshape(-1)
    b1 = inputs["fc1_bias"]
    b1 = torch.zeros_like(w1) if b1 is None else b1.double().reshape(-1)
    precise = inputs["x"].dtype == torch.float64
    eps = torch.finfo(torch.float64 if precise else torch.float32).eps
    for _ in range(100):
        z = x.unsqueeze(-1) * w1 + b1
        unclear = z.abs() <= 64 * eps * ((x.unsqueeze(-1) * w1).abs() + b1.abs())
        unclear = (unclear & (z != 0)).any(-1)
        if not unclear.any():
            return {**inputs, "x": x.to(inputs["x"].dtype)}
        x = torch.where(unclear, x * 1.01 + 0.001, x).to(inputs["x"].dtype).double()
    raise AssertionError("no place without a breakpoint nearby")


class OpContract:
    """Tests that hold for every op and backend.

    Attributes of a subclass:
        name: The op's name in `functional` and `reference`.
        terms: Function of ``(dy, *tensors, *options)`` from `closeness`.
        options: Keyword arguments that are no tensors.
        CASES: From id to the keyword arguments of ``make``; the key ``large`` marks those that
            are for compiled kernels only: too slow in Triton's interpreter.
    """

    options = MappingProxyType({})

    def make(self, draw, **case):
        """Tensors of a case by argument name, in float64."""
        raise NotImplementedError

    def inputs(self, draw, dtype=torch.float32, **case):
        """Tensors of a case, cast; no element at a place that rounding decides."""
        inputs = to(self.make(draw, **case), dtype)
        return away_from_kinks(inputs) if "fc1_weight" in inputs else inputs

    def function(self, module):
        """The op of `functional` or `reference` as a function of the tensors of `make`."""
        return getattr(module, self.name)

    def ours(self, inputs, dy=None, wanted=()):
        return evaluate(self.function(functional), inputs, self.options, dy, wanted)

    def plain(self, inputs, dy=None, wanted=()):
        return evaluate(self.function(reference), inputs, self.options, dy, wanted)

    def dy_for(self, inputs, draw):
        """A random upstream gradient in the shape and dtype of the output."""
        y = self.plain(to(inputs, "cpu"))["y"]
        return draw(*y.shape).to(y.dtype).to(inputs["x"].device)

    def judge(self, inputs, draw, backend, *, dy=None, wanted=None, order_matters=False):
        """Hold the value and the wanted gradients against the rule; return ours.

        With ``order_matters``, an infinity is as good as NaN: ``inf * (a - b)`` is one and
        ``inf * a - inf * b`` the other.
        """
        if wanted is None:
            wanted = [name for name, t in inputs.items() if t is not None]
        inputs = to(inputs, backend.device)
        if dy is None:
            dy = self.dy_for(inputs, draw)
        dy = dy.to(backend.device)
        ours = self.ours(inputs, dy, wanted)
        torchs = self.plain(inputs, dy, wanted)
        inputs64, dy64 = to(to(inputs, "cpu"), torch.float64), dy.cpu().double()
        exact = self.plain(inputs64, dy64, wanted)
        terms = type(self).terms(dy64, *inputs64.values(), *self.options.values())
        for name in ours:
            compared = [results[name] for results in (ours, torchs, exact)]
            if order_matters:
                compared = [t.masked_fill(~t.isfinite(), torch.nan) for t in compared]
            assert_as_good_as_torch(*compared, terms=terms[name], name=name)
            assert ours[name].device == inputs["x"].device
        return ours

    def test_value_and_gradients(self, case, backend, draw):
        case = dict(case)
        if case.pop("large", False) and not backend.compiled:
            pytest.skip("of interest for compiled kernels only")
        self.judge(self.inputs(draw, **case), draw, backend)

    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    def test_every_dtype(self, dtype, kernel_backend, draw):
        self.judge(self.inputs(draw, dtype=dtype), draw, kernel_backend)

    @pytest.mark.parametrize(("x_dtype", "dtype"), MIXED.values(), ids=MIXED)
    def test_mixed_dtypes_are_promoted(self, x_dtype, dtype, kernel_backend, draw):
        if kernel_backend.interpreted and (x_dtype, dtype) == (torch.bfloat16, torch.float64):
            pytest.skip("Triton's interpreter cannot store float64 as bfloat16")
        inputs = self.inputs(draw, dtype=dtype)
        inputs["x"] = inputs["x"].to(x_dtype)
        if "fc1_weight" in inputs:
            inputs = away_from_kinks(inputs)
        ours = self.judge(inputs, draw, kernel_backend)
        assert ours["y"].dtype == torch.promote_types(x_dtype, dtype)
        assert ours["x"].dtype == x_dtype

    def test_frozen_inputs_get_no_gradient(self, backend, draw):
        inputs = self.inputs(draw)
        names = [name for name, t in inputs.items() if t is not None]
        for name in names:
            self.judge(inputs, draw, backend, wanted=[name])
            self.judge(inputs, draw, backend, wanted=[other for other in names if other != name])

    def test_no_graph_without_gradients(self, backend, draw):
        inputs = to(self.inputs(draw), backend.device)
        with_graph = self.ours(inputs, self.dy_for(inputs, draw), list(inputs))["y"]
        function = self.function(functional)
        plain = {name: t.detach() for name, t in inputs.items()}
        y = function(**plain, **self.options)
        assert not y.requires_grad
        assert torch.equal(y, with_graph)
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        with torch.no_grad():
            y = function(**leaves, **self.options)
        assert not y.requires_grad
        assert torch.equal(y, with_graph)
        with torch.inference_mode():
            assert torch.equal(function(**leaves, **self.options), with_graph)

    def test_second_backward_equals_first(self, kernel_backend, draw):
        inputs = to(self.inputs(draw), kernel_backend.device)
        leaves = {name: t.requires_grad_() for name, t in inputs.items()}
        y = self.function(functional)(**leaves, **self.options)
        dy = draw(*y.shape).to(y)
        first = torch.autograd.grad(y, list(leaves.values()), dy, retain_graph=True)
        first = [t.clone() for t in first]
        second = torch.autograd.grad(y, list(leaves.values()), dy)
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b)

    def test_inputs_are_not_written_to(self, kernel_backend, draw):
        inputs = to(self.inputs(draw), kernel_backend.device)
        dy = self.dy_for(inputs, draw)
        tensors = [dy, *inputs.values()]
        before = [(t.clone(), t._version) for t in tensors]
        self.ours(inputs, dy, list(inputs))
        for t, (copy, version) in zip(tensors, before, strict=True):
            assert torch.equal(t, copy)
            assert t._version == version

    def test_only_inputs_are_saved_for_backward(self, kernel_backend, draw):
        inputs = to(self.inputs(draw), kernel_backend.device)
        leaves = {name: t.requires_grad_() for name, t in inputs.items()}
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            self.function(functional)(**leaves, **self.options)
        given = [*inputs.values(), *self.options.values()]
        addresses = {t.untyped_storage().data_ptr() for t in given if isinstance(t, torch.Tensor)}
        assert saved
        assert {t.untyped_storage().data_ptr() for t in saved} <= addresses

    def test_results_are_the_same_bit_for_bit(self, kernel_backend, draw):
        n = 300 if kernel_backend.interpreted else 140_003
        inputs = to(self.inputs(draw, n=n), kernel_backend.device)
        dy = self.dy_for(inputs, draw)
        first = self.ours(inputs, dy, list(inputs))
        n_threads = torch.get_num_threads()
        try:
            for threads in (1, 2, 3, 8):
                torch.set_num_threads(threads)
                again = self.ours(inputs, dy, list(inputs))
                assert all(torch.equal(again[name], first[name]) for name in first), threads
        finally:
            torch.set_num_threads(n_threads)

    def test_strides_do_not_matter(self, layout, kernel_backend, draw):
        inputs = self.inputs(draw)
        inputs["x"] = layout(inputs["x"])
        self.judge(inputs, draw, kernel_backend)

    def test_strided_parameters(self, kernel_backend, draw):
        inputs = self.inputs(draw)
        for name, t in inputs.items():
            if name != "x":
                inputs[name] = t.repeat_interleave(2, -1)[..., ::2]
                assert torch.equal(inputs[name], t)
        self.judge(inputs, draw, kernel_backend)

    def test_upstream_gradient_of_any_strides(self, kernel_backend, draw):
        inputs = self.inputs(draw)
        dy = self.dy_for(inputs, draw)
        strided = dy.repeat_interleave(2, -1)[..., ::2]
        for wanted in (None, ["x"]):
            self.judge(
                inputs, draw, kernel_backend, dy=torch.ones(()).expand(dy.shape), wanted=wanted
            )
            self.judge(inputs, draw, kernel_backend, dy=strided, wanted=wanted)
            self.judge(inputs, draw, kernel_backend, dy=dy.mT.contiguous().mT, wanted=wanted)

    @pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
    def test_special_values_in_x_follow_the_reference(self, special, kernel_backend, draw):
        inputs = self.inputs(draw)
        inputs["x"].view(-1)[3] = special
        self.judge(inputs, draw, kernel_backend)

    @pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
    def test_special_values_in_the_upstream_gradient_follow_the_reference(
        self, special, kernel_backend, draw
    ):
        inputs = self.inputs(draw)
        dy = self.dy_for(inputs, draw)
        dy.view(-1)[3] = special
        self.judge(inputs, draw, kernel_backend, dy=dy, order_matters=True)

    @pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
    def test_special_values_in_parameters_show(self, special, kernel_backend, draw):
        # the reference's gradients there hang on 0 * inf; ours must not all look healthy
        for name in self.inputs(draw):
            if name == "x":
                continue
            inputs = self.inputs(draw)
            inputs[name].view(-1)[0] = special
            self.judge(inputs, draw, kernel_backend, wanted=[], order_matters=True)
            if math.isnan(special):
                inputs = to(inputs, kernel_backend.device)
                dy = self.dy_for(inputs, draw)
                ours, plain = self.ours(inputs, dy, inputs), self.plain(inputs, dy, inputs)
                for results in (ours, plain):
                    results["all"] = torch.cat([results[grad].flatten() for grad in inputs])
                assert ours["all"].isnan().any() == plain["all"].isnan().any()

    def test_gradcheck(self, backend, draw):
        inputs = to(self.inputs(draw, dtype=torch.float64, small=True), backend.device)
        function = self.function(functional)

        def call(*tensors):
            return function(*tensors, **self.options)

        tensors = [t.requires_grad_() for t in inputs.values()]
        assert torch.autograd.gradcheck(call, tensors)

    def test_gradgradcheck(self, backend, draw):
        inputs = to(self.inputs(draw, dtype=torch.float64, small=True), backend.device)
        function = self.function(functional)

        def call(*tensors):
            return function(*tensors, **self.options)

        tensors = [t.requires_grad_() for t in inputs.values()]
        assert torch.autograd.gradgradcheck(call, tensors)

    def test_second_derivatives_in_float32(self, backend, draw):
        inputs = to(self.inputs(draw, small=True), backend.device)
        results = []
        for module, dtype in ((functional, None), (reference, None), (reference, torch.float64)):
            cast = to(inputs, dtype or torch.float32)
            leaves = [t.detach().requires_grad_() for t in cast.values()]
            y = self.function(module)(*leaves, **self.options)
            first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
            results.append(second)
        # the sizes of all terms are unknown here; the largest gradient bounds none of them from
        # below, so the whole tensor's own scale serves
        for ours, torchs, exact in zip(*results, strict=True):
            terms = exact.abs() + exact.abs().max()
            assert_as_good_as_torch(ours, torchs, exact, terms=terms, floor=64)
