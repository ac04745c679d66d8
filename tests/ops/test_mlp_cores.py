"""The op `mlp` by the kernels for tensor cores: every kind of product, width and depth.

Triton's interpreter multiplies what the kernels hand to a product, here with the rounding of tf32
(`sanitizer/numerics.py`); sums that cut off are the matter of `kernels/gpu/test_cores.py`.
"""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from mlp_cases import MLPContract, options
from op_contract import evaluate, to
from tensor_cores import to_tf32

import fastmlp
from fastmlp import functional, reference

pytest.importorskip("triton")

from fastmlp.kernels.gpu import mlp
from fastmlp.kernels.gpu.layers import choices

# how float32 is multiplied is a setting of PyTorch's; 16 bits have one way
WAYS = {
    "float32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, "ieee"),
    "float16": (torch.float16, "ieee"),
}


@pytest.fixture(autouse=True)
def _triton():
    with fastmlp.backend("triton"):
        yield


@contextlib.contextmanager
def float32_precision(name):
    """What products of float32 may take on a CUDA device."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, name
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _Tf32Linear(torch.autograd.Function):
    """F.linear as PyTorch has it with tf32: what is multiplied is rounded, sums are float32."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        y = _rounded(x) @ _rounded(weight).T
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx, g):
        x, weight = map(_rounded, ctx.saved_tensors)
        short = _rounded(g)
        return short @ weight, short.T @ x, g.sum(0) if ctx.needs_input_grad[2] else None


def _rounded(t):
    return torch.from_numpy(to_tf32(np.ascontiguousarray(t.detach().cpu().numpy()))).to(t.device)


class Wide(MLPContract):
    """The contract's judge, with PyTorch's tf32 where that is the way."""

    def __init__(self, way, **options_of_net):
        self.dtype, self.precision = WAYS[way]
        self.options = options(**{"activation": "relu", **options_of_net})

    def away_from_kinks(self, inputs):
        has_kinks = self.options["activation"] in ("relu", "leaky_relu")
        return super().away_from_kinks(inputs) if has_kinks else inputs

    def plain(self, inputs, dy=None, wanted=()):
        if self.precision == "tf32" and inputs["x"].dtype == torch.float32:
            with pytest.MonkeyPatch.context() as patch:
                linear = _Tf32Linear.apply
                patch.setattr(torch.nn.functional, "linear", lambda x, w, b=None: linear(x, w, b))
                return evaluate(self.function(reference), inputs, self.at(inputs), dy, wanted)
        return super().plain(inputs, dy, wanted)

    def check(self, draw, backend, wanted=None, **case):
        inputs = self.inputs(draw, self.dtype, **{"shape": (70,), **case})
        with float32_precision(self.precision):
            return self.judge(inputs, draw, backend, wanted=wanted)


@pytest.fixture
def backend():
    from conftest import BACKENDS

    return BACKENDS["triton"]


# the two that share no code, for what is the same in all
TWO = ("float32", "bfloat16")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n", [1, 7, 16, 17, 33, 64, 100, 128])
def test_widths(n, way, draw, backend):
    Wide(way).check(draw, backend, widths=(n, n, 3))


@pytest.mark.parametrize("way", WAYS)
def test_narrow_layers_beside_wide_ones(way, draw, backend):
    Wide(way).check(draw, backend, widths=(1, 5, 31, 24))
    Wide(way).check(draw, backend, widths=(20, 65, 2), biases=False)


@pytest.mark.parametrize(
    ("n_layers", "way"),
    [*((n, way) for n in range(1, 10) for way in TWO), (9, "tf32"), (9, "float16")],
)
def test_depths(n_layers, way, draw, backend):
    net = Wide(way, activation="tanh")
    net.check(draw, backend, shape=(20,), widths=(20, *[16, 33] * 5)[: n_layers + 1])


@pytest.mark.parametrize("way", TWO)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_activations(activation, way, draw, backend):
    net = Wide(way, activation=activation, output_activation=activation)
    net.check(draw, backend, shape=(20,), widths=(7, 20, 16))


@pytest.mark.parametrize("way", TWO)
def test_dropout_in_every_segment(way, draw, backend):
    net = Wide(way, activation="tanh", dropout=0.3)
    net.check(draw, backend, shape=(20,), widths=(20, *[16] * 9, 2))
    Wide(way, dropout=1.0).check(draw, backend, shape=(20,), widths=(16, 16, 16))


@pytest.mark.parametrize("way", TWO)
@pytest.mark.parametrize("n", [0, 1, 64, 65, 129, 700])
def test_rows(n, way, draw, backend):
    Wide(way).check(draw, backend, shape=(n,), widths=(16, 20, 16))


@pytest.mark.parametrize("way", TWO)
def test_parts_of_the_gradients(way, draw, backend):
    for widths in ((16, 20, 3), (20, *[16] * 9)):
        n = len(widths) - 1
        net = Wide(way, activation="sigmoid")
        for wanted in (["x"], [f"weight{n - 1}"], ["bias0"]):
            net.check(draw, backend, wanted, widths=widths, shape=(9,))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value"), [("x", "inf"), ("x", "nan"), ("weight0", "-inf")])
def test_special_values(name, value, way, draw, backend):
    net = Wide(way)
    inputs = net.inputs(draw, net.dtype, shape=(20,), widths=(16, 20, 18, 3))
    # a zero weight times an infinity is NaN, whatever it is split into
    inputs["weight0"][0, 5] = 0.0
    inputs[name].view(-1)[5] = float(value)
    # the reference's gradients hang on 0 * inf where a parameter is infinite
    wanted = None if name == "x" else []
    with float32_precision(net.precision):
        net.judge(inputs, draw, backend, wanted=wanted, order_matters=name != "x")


@pytest.mark.parametrize("way", WAYS)
def test_large_and_small_numbers(way, draw, backend):
    net = Wide(way)
    for size in (1e-4, 1e3) if way == "float16" else (1e-30, 1e30):
        inputs = net.inputs(draw, net.dtype, shape=(20,), widths=(16, 20, 3))
        inputs["x"] = inputs["x"] * size
        with float32_precision(net.precision):
            net.judge(inputs, draw, backend, order_matters=True)


def test_repeated_runs_have_the_same_bits(draw, backend):
    net = Wide("float32")
    inputs = net.inputs(draw, shape=(300,), widths=(16, 20, 3))
    first, second = (net.judge(inputs, draw, backend, dy=inputs["x"][:, :3]) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name])


def test_float32_follows_the_setting_at_every_call(draw, backend):
    inputs = to(MLPContract().make(draw, shape=(9,), widths=(16, 20, 2)), torch.float32)
    x, *parameters = (t.to(backend.device) for t in inputs.values())

    def call():
        return functional.mlp(x, parameters[::2], parameters[1::2])

    found = {}
    for name in ("ieee", "tf32", "none", "tf32", "ieee"):
        with float32_precision(name):
            found.setdefault(name, []).append(call())
    (first, second), (short, again), (default,) = found["ieee"], found["tf32"], found["none"]
    assert torch.equal(first, second)
    assert torch.equal(short, again)
    assert torch.equal(first, default)
    assert not torch.equal(first, short)
    before = torch.get_float32_matmul_precision()
    for name, wanted in (("high", short), ("medium", short), ("highest", first)):
        torch.set_float32_matmul_precision(name)
        try:
            assert torch.equal(call(), wanted), name
        finally:
            torch.set_float32_matmul_precision(before)


def test_nets_that_gain_go_to_tensor_cores():
    wide, narrow = (17, 3, 1), (16, 16, 1)
    for target in (80, 86, 89, 90, 100, 120):
        for widths in (wide, narrow, (2, 5, 1)):
            for dtype, bits in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
                products = choices.products_of(widths, dtype, target, tf32=False)
                assert (products.operand.name, products.terms) == (bits, 1)
            short = choices.products_of(widths, torch.float32, target, tf32=True)
            assert (short.operand.name, short.terms) == ("fp32", 1)
            assert choices.products_of(widths, torch.float64, target, tf32=True) is None
        split = choices.products_of(wide, torch.float32, target, tf32=False)
        assert split is None if target in choices.SMALL else split.terms == 3
        assert choices.products_of(narrow, torch.float32, target, tf32=False) is None
    for target in (0, 70, 75):
        assert choices.products_of(wide, torch.bfloat16, target, tf32=True) is None


NETS = ((16, 16, 16), (64, 64, 64, 16), (128, 128, 128), (1, 10, 10, 10, 1), (64,) * 12)


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def test_segments_follow_one_another_within_what_a_card_takes():
    for target, widths, tf32 in itertools.product((80, 86, 89, 90, 100, 120), NETS, (True, False)):
        for dtype, activation in itertools.product(_DTYPES, ("relu", "tanh")):
            products = choices.products_of(widths, dtype, target, tf32)
            if products is None:
                continue
            net = mlp._net(widths, products, activation, "identity", 0.0)
            for name in ("mlp_fwd", "mlp_bwd"):
                tile = choices.tile_of(name, net, target)
                cuts = choices.segments(widths, tile)
                assert [first for first, _ in cuts[1:]] == [last for _, last in cuts[:-1]]
                assert (cuts[0][0], cuts[-1][1]) == (0, len(widths) - 1)
                assert all(last - first <= choices.MAX_LAYERS for first, last in cuts)
