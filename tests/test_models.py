"""One answer to what a module is: `fuse`, `fit`, Levenberg–Marquardt, tables and reports give it.

Each module of the table is compared with what its layers compute when they are called one after
the other. What is not known exactly computes as it is, or is refused with the reason.
"""

import contextlib
import copy
import re

import pytest
import torch
from closeness import assert_same_number
from model_cases import CASES, plain

import fastmlp
from fastmlp import convert, piecewise, reference
from fastmlp.models import spec_of
from fastmlp.training.structures import describe


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def module(case):
    torch.manual_seed(len(case.family))
    return case.build()


def data(case, n=40):
    generator = torch.Generator().manual_seed(1)
    shape = {"additive": (n, 3), "chain": (n, 1)}.get(case.family, (n,))
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    y = x.square().sum(1, keepdim=True) if x.dim() == 2 else x.square()
    return (x, y) if case.double else (x.float(), y.float())


def assert_same(value, wanted):
    """One computation twice, in whatever dtype; sums of the layers in another order."""
    if wanted.dtype == torch.float64:
        assert_same_number(value, wanted)
    else:
        assert torch.equal(value, wanted)


def test_the_table_is_long_and_each_answer_is_the_stated_one(case, module):
    assert len(CASES) >= 40
    spec = spec_of(module)
    assert re.search(case.answer or "^None$", str(spec.obstacle)), spec
    if case.answer is None:
        assert re.search(case.layout or "^None$", str(spec.layout)), spec
        if case.layout is None and spec.record is not None:
            shapes = [tuple(module.get_parameter(name).shape) for name in spec.names]
            assert shapes == list(spec.record.shapes)


def test_a_call_is_what_the_layers_compute(case, module):
    x, _ = data(case)
    x.requires_grad_()
    y, wanted = module(x), plain(module, x)
    assert_same(y, wanted)
    leaves = [x, *(p for p in module.parameters() if p.requires_grad)]
    if not wanted.requires_grad:
        return
    for _ in range(2):  # what was computed once must not be kept
        ours, theirs = (
            torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
            for out in (module(x), plain(module, x))
        )
        if case.answer == "it has hooks: forward":
            assert_same(ours[0], theirs[0])
        for our, their in zip(ours, theirs, strict=True):
            assert (our is None) == (their is None)
            if our is not None:
                assert_same(our, their)


def test_fuse(case, module):
    x, _ = data(case)
    wanted = plain(module, x)
    (root,) = [m for m in convert.find(module) if m.path == ""] or [None]
    if case.swapped:
        assert root.reason is None, root
    else:
        assert root is None or root.reason is not None, root
    fused = fastmlp.fuse(module)
    assert (fused is not module) == case.swapped
    assert_same(fused(x), wanted)
    assert_same(fastmlp.unfuse(fused)(x), wanted) if case.swapped else None


def test_fit(case, module):
    x, y = data(case)
    reason = case.answer or case.layout or case.fit
    run = {"epochs": 2, "optimizer": fastmlp.SGD(lr=1e-3), "progress": False}
    before = [p.detach().clone() for p in module.parameters()]
    if reason is not None or not case.double:
        with pytest.raises(ValueError, match=reason):
            fastmlp.fit(module, x, y, **run)
        assert all(map(torch.equal, before, module.parameters()))
        return
    twin, losses = copy.deepcopy(module).eval(), []
    if "dropout" in str(spec_of(module).record) and any(spec_of(module).record.dropout):
        return  # a run draws masks; tests/training compares those
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        loss = (plain(twin, x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    result = fastmlp.fit(module, x, y, **run)
    assert_same_number(result.train_loss[0], torch.tensor(losses, dtype=torch.float64))
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        assert_same_number(ours, theirs, terms=max(theirs.detach().abs().max(), 1.0))


def test_fit_in_pytorch_takes_parameters_by_name():
    case, models = CASES["pruned_for_good"], []
    x, y = data(case)
    for backend in ("torch", None):
        torch.manual_seed(0)
        models.append(case.build())
        with fastmlp.backend(backend) if backend else contextlib.nullcontext():
            fastmlp.fit(models[-1], x, y, epochs=2, progress=False)
    for ours, theirs in zip(*(m.parameters() for m in models), strict=True):
        assert_same_number(ours, theirs)


def test_levenberg_marquardt(case, module):
    x, y = data(case)
    known = case.answer is None and case.layout is None and case.kernel
    assert (describe(module) is not None) == known
    run = {"epochs": 3, "optimizer": fastmlp.LevenbergMarquardt(), "progress": False}
    start = (plain(module, x) - y).square().sum()
    if case.refused:
        with pytest.raises((ValueError, RuntimeError), match=case.refused):
            fastmlp.fit(module, x, y, **run)
        return
    result = fastmlp.fit(module, x, y, **run)
    (outcome,) = result.runs
    assert_same_number(outcome.sse[0, 0], start)
    end = (plain(module, x) - y).square().sum()
    assert end < start
    # of the size of the targets, whatever is left of them
    assert_same_number(outcome.final[0], end, terms=y.square().sum())


def test_tables(case, module):
    x, _ = data(case)
    spec = spec_of(module)
    kinks = {step.name for step in spec.steps} <= {
        "linear", "relu", "leaky_relu", "identity", "dropout",
    }  # fmt: skip
    if case.answer is None and spec.steps and kinks:
        table = piecewise.from_module(module.eval())
        assert_same(table(x.squeeze(-1)), plain(module, x).squeeze(-1).detach())
        return
    with pytest.raises((TypeError, ValueError), match=case.answer or "not known|not piecewise"):
        piecewise.from_module(module)


def test_reports(case, module):
    x, y = data(case)
    report = fastmlp.dropout_report(module, x, y, samples=3)
    closed = case.family == "additive" or (
        case.family == "elementwise" and len(spec_of(module).layers) == 2
    )
    assert (report.samples == 0) == (closed and case.answer is None)
    with torch.no_grad():
        wanted = (plain(module.eval(), x) - y).square().double().mean()
    if case.double:
        assert_same_number(report.eval_mse, wanted)
    else:
        assert report.eval_mse == pytest.approx(wanted.item(), rel=1e-5)  # float32 rows


def test_a_chain_from_a_module_has_a_layer_as_often_as_it_is_called():
    for name in ("deep_tied", "mlp", "elementwise_resized", "elementwise_hooked"):
        case = CASES[name]
        module, (x, _) = case.build(), data(case)
        module.activation = "tanh"
        rows = x if case.family == "chain" else x[:, None]
        ours = convert.to_sequential(module)(rows)
        assert_same(ours.reshape(x.shape), plain(module, x))
    with pytest.raises(ValueError, match="it has a forward of its own"):
        convert.to_sequential(CASES["elementwise_patched"].build())


def test_what_no_module_is():
    with pytest.raises(TypeError, match=r"^module must be an nn\.Module, got int"):
        spec_of(3)


def test_equal_records_are_equal_functions():
    one, other = CASES["additive"].build(), reference.AdditiveMLP(3, 5)
    assert spec_of(one).record == spec_of(other).record
    assert spec_of(one).record != spec_of(CASES["resized"].build()).record
