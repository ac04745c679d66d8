"""The op `piecewise_linear` on every backend."""

import pytest
import torch
from closeness import assert_as_good_as_torch, piecewise_linear_terms
from op_contract import DTYPES, SPECIAL

from fastmlp import functional, reference

_CASES = {
    "scalar": {"shape": ()},
    "no_elements": {"shape": (0, 3)},
    "one_element": {"shape": (1,)},
    **{f"{n}_elements": {"shape": (n,)} for n in (1023, 1025, 2049)},
    "two_gpu_pieces": {"shape": (8193,)},
    "three_cpu_pieces": {"shape": (140_003,), "k": 30, "large": True},
    **{f"{k}_breakpoints": {"k": k} for k in (0, 1, 2, 3, 15, 16, 17)},
    "1023_breakpoints": {"k": 1023, "shape": (3000,), "large": True},
    "three_outputs": {"n_out": 3},
    "one_output_in_a_column": {"n_out": 1},
}


PARAMETERS = ("x", "values", "slopes")


def make(draw, shape=(13, 5), k=7, n_out=None, dtype=torch.float32):
    """Tensors by argument name; some x lie on breakpoints, some breakpoints are one."""
    t = (draw(k) / draw(k)).to(dtype).sort().values
    if k > 4:
        t[3] = t[2]
    x = draw(*shape).mul(3).to(dtype)
    on = min(x.numel() // 2, k)
    x.view(-1)[:on] = t[:on]
    segments = (k + 1,) if n_out is None else (k + 1, n_out)
    anchors = torch.cat([t[:1], t]) if k else torch.zeros(1, dtype=dtype)
    values, slopes = (draw(*segments).to(dtype) for _ in range(2))
    return {"x": x, "breakpoints": t, "anchors": anchors, "values": values, "slopes": slopes}


def evaluate(function, inputs, dy, wanted=PARAMETERS):
    leaves = {n: t.detach().requires_grad_(n in wanted) for n, t in inputs.items()}
    y = function(**leaves)
    gradients = torch.autograd.grad(y, [leaves[n] for n in wanted], dy.to(y))
    return {"y": y.detach(), **dict(zip(wanted, gradients, strict=True))}


def judge(inputs, draw, backend, dy=None, wanted=PARAMETERS):
    inputs = {name: t.to(backend.device) for name, t in inputs.items()}
    if dy is None:
        y = reference.piecewise_linear(**inputs)
        dy = draw(*y.shape).to(y)
    exact = {name: t.double() for name, t in inputs.items()}
    results = [
        evaluate(function, tensors, dy, wanted)
        for function, tensors in (
            (functional.piecewise_linear, inputs),
            (reference.piecewise_linear, inputs),
            (reference.piecewise_linear, exact),
        )
    ]
    terms = piecewise_linear_terms(dy.double(), **exact)
    for name in results[0]:
        assert_as_good_as_torch(*(r[name] for r in results), terms=terms[name], name=name)


@pytest.mark.parametrize("case", _CASES.values(), ids=_CASES)
def test_value_and_gradients(case, backend, draw):
    case = dict(case)
    if case.pop("large", False) and not backend.compiled:
        pytest.skip("of interest for compiled kernels only")
    judge(make(draw, **case), draw, backend)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype(dtype, kernel_backend, draw):
    judge(make(draw, dtype=dtype), draw, kernel_backend)


def test_x_of_another_dtype_is_promoted(kernel_backend, draw):
    inputs = make(draw, dtype=torch.float64)
    inputs["x"] = inputs["x"].float()
    judge(inputs, draw, kernel_backend)


def test_frozen_inputs_get_no_gradient(kernel_backend, draw):
    for name in PARAMETERS:
        judge(make(draw), draw, kernel_backend, wanted=(name,))


def test_strides_do_not_matter(layout, kernel_backend, draw):
    inputs = make(draw)
    inputs["x"] = layout(inputs["x"])
    judge(inputs, draw, kernel_backend)
    judge(inputs, draw, kernel_backend, dy=torch.ones(()).expand(inputs["x"].shape))


@pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
def test_special_values_in_x_follow_the_reference(special, kernel_backend, draw):
    inputs = make(draw)
    inputs["x"].view(-1)[40] = special
    judge(inputs, draw, kernel_backend)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1e30], ids=str)
def test_crowded_and_far_breakpoints(spread, kernel_backend, draw):
    # most of them in a small place, a few far away, on one side and on both
    for side in (1.0, -1.0):
        inputs = make(draw, shape=(500,), k=40)
        t = inputs["breakpoints"]
        t[5:] = (1 + draw(35).abs().float() * spread).clamp(max=1e38) * side
        inputs["breakpoints"] = t.sort().values
        inputs["x"][:35] = t[5:]
        judge(inputs, draw, kernel_backend)


def test_gradcheck_to_second_order(backend, draw):
    inputs = make(draw, shape=(6,), k=3, n_out=2, dtype=torch.float64)
    inputs["x"] = inputs["x"] + 0.01  # off the breakpoints
    inputs = {name: t.to(backend.device) for name, t in inputs.items()}

    def call(x, values, slopes):
        return functional.piecewise_linear(
            x, inputs["breakpoints"], inputs["anchors"], values, slopes
        )

    tensors = [inputs[name].requires_grad_() for name in PARAMETERS]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_registered_op(kernel_backend, draw):
    inputs = {name: t.to(kernel_backend.device) for name, t in make(draw).items()}
    compiled = torch.compile(functional.piecewise_linear, backend="aot_eager", fullgraph=True)
    plain = functional.piecewise_linear(**inputs)
    assert torch.equal(compiled(**inputs), plain)


def test_results_are_the_same_bit_for_bit(kernel_backend, draw):
    n = 300 if kernel_backend.interpreted else 140_003
    inputs = {name: t.to(kernel_backend.device) for name, t in make(draw, shape=(n,)).items()}
    dy = draw(n).to(inputs["x"])
    first = evaluate(functional.piecewise_linear, inputs, dy)
    n_threads = torch.get_num_threads()
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            again = evaluate(functional.piecewise_linear, inputs, dy)
            assert all(torch.equal(again[name], first[name]) for name in first), threads
    finally:
        torch.set_num_threads(n_threads)


def test_inputs_are_not_written_to(kernel_backend, draw):
    inputs = {name: t.to(kernel_backend.device) for name, t in make(draw).items()}
    dy = draw(*inputs["x"].shape).to(inputs["x"])
    tensors = [dy, *inputs.values()]
    before = [(t.clone(), t._version) for t in tensors]
    evaluate(functional.piecewise_linear, inputs, dy)
    for t, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(t, copy)
        assert t._version == version


def test_only_inputs_are_saved_for_backward(kernel_backend, draw):
    inputs = {name: t.to(kernel_backend.device) for name, t in make(draw).items()}
    leaves = {name: t.requires_grad_(name in PARAMETERS) for name, t in inputs.items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        functional.piecewise_linear(**leaves)
    assert saved
    addresses = {t.untyped_storage().data_ptr() for t in leaves.values()}
    assert {t.untyped_storage().data_ptr() for t in saved} <= addresses


def test_function_transforms(backend, draw):
    inputs = {name: t.to(backend.device) for name, t in make(draw).items()}

    def total(module):
        def call(x, values):
            return module.piecewise_linear(**{**inputs, "x": x, "values": values}).square().sum()

        return torch.func.grad(call, argnums=(0, 1))(inputs["x"], inputs["values"])

    # under torch.func both are plain PyTorch
    torch.testing.assert_close(total(functional), total(reference))


def test_export(draw):
    inputs = make(draw)

    class Table(torch.nn.Module):
        def forward(self, x):
            return functional.piecewise_linear(**{**inputs, "x": x})

    batch = torch.export.Dim("batch")
    program = torch.export.export(Table(), (inputs["x"],), dynamic_shapes=({0: batch},))
    larger = draw(40, 5).float()
    assert torch.equal(program.module()(larger), Table()(larger))


def test_opcheck(kernel_backend, draw):
    inputs = {name: t.to(kernel_backend.device) for name, t in make(draw).items()}
    names = ("x", "values", "slopes", "breakpoints", "anchors")
    arguments = [inputs[name].requires_grad_(name in PARAMETERS) for name in names]
    torch.library.opcheck(torch.ops.fastmlp.piecewise_linear_fwd.default, arguments)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("x", [1.0], TypeError, "x must be a Tensor"),
        ("breakpoints", torch.zeros(2, 2), ValueError, r"breakpoints must have shape \[K\]"),
        ("anchors", torch.zeros(7), ValueError, r"anchors must have shape \[8\]"),
        ("values", torch.zeros(9), ValueError, r"values must have shape \[8\] or \[8, M\]"),
        ("slopes", torch.zeros(8, 2), ValueError, r"slopes must have shape \[8\]"),
        ("slopes", torch.zeros(8).double(), TypeError, "slopes must have the dtype of values"),
    ],
)
def test_bad_arguments_are_named(name, wrong, error, message, draw):
    with pytest.raises(error, match=message):
        functional.piecewise_linear(**{**make(draw), name: wrong})
