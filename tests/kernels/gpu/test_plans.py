"""Replayed launches: right values for whatever comes after the call that was recorded.

Kernels run in the interpreter, behind a stand-in for Triton's compiler: a first call compiles them
for the kinds of its arguments, and what it gives refuses any other kinds, as a card would compute
nonsense.
"""

import importlib
import math
import pkgutil
import threading
from types import SimpleNamespace

import pytest
import torch
from stand_in import Compiler, Launches

triton = pytest.importorskip("triton")

from fastmlp.kernels import gpu  # noqa: E402
from fastmlp.kernels.gpu.machine import launch, plans  # noqa: E402

import fastmlp  # noqa: E402
from fastmlp.ops import ensemble, planned  # noqa: E402

pytestmark = pytest.mark.skipif(
    not launch.INTERPRET, reason="the stand-in for the compiler runs kernels in the interpreter"
)
OPS = {
    name: getattr(importlib.import_module(f"fastmlp.ops.{name}"), name)
    for name in ("additive_mlp", "elementwise_mlp", "sine_sum", "mlp", "piecewise_linear")
}
OPS |= {f"{name} of many": getattr(ensemble, name) for name in ("additive_mlp", "mlp")}
MODULES = {
    "additive": lambda: fastmlp.AdditiveMLP(5, 6),
    "additive_without_bias": lambda: fastmlp.AdditiveMLP(5, 6, bias=False),
    "additive_many_out": lambda: fastmlp.AdditiveMLP(5, 6, 3),
    "general": lambda: fastmlp.AdditiveMLP(5, 6, activation="tanh"),
    "stacked": lambda: fastmlp.AdditiveMLP(5, 6, shared=False),
    "elementwise": lambda: fastmlp.ElementwiseMLP(6),
    "sines": lambda: fastmlp.SineSum(5),
    "sines_with_all": lambda: fastmlp.SineSum(5, learn_amplitude=True, learn_phase=True),
    "mlp": lambda: fastmlp.MLP(5, [7], 2),
    "mlp_on_tensor_cores": lambda: fastmlp.MLP(5, [20], 2),
}


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    driver = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: "stream"
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    # all before one is changed, for they import one another's kernels
    for module in [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(gpu.__path__, f"{gpu.__name__}.")
    ]:
        for name, kernel in vars(module).items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Compiler(kernel))
    for op in OPS.values():
        monkeypatch.setattr(op.plans, "_known", {})
        monkeypatch.setattr(op.plans, "_n_known", 0)
    monkeypatch.setattr(fastmlp.backends, "_interpreted", lambda: True)
    with fastmlp.backend("triton"):
        yield


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]()


def run(module, x, dy=None):
    """The launches, what came out of them, and how many were by plan."""
    before = Launches.planned
    named = [("x", x), *module.named_parameters()]
    with torch.no_grad(), fastmlp.backend("torch"):
        plain = module(x)
    shape, dtype = plain.shape, plain.dtype
    if dy is None:
        dy = torch.linspace(-1, 1, math.prod(shape), dtype=dtype).view(shape)
    Launches.local.names = {t.data_ptr(): name for name, t in [*named, ("dy", dy)]}
    Launches.local.log = log = []
    y = module(x)
    assert (y.shape, y.dtype) == (shape, dtype)
    inputs = [t for _, t in named if t.requires_grad]
    gradients = torch.autograd.grad(y, inputs, dy)
    assert all(g.shape == t.shape for g, t in zip(gradients, inputs, strict=True))
    return (log, [y.detach(), *gradients]), Launches.planned - before


def unplanned(monkeypatch, *arguments):
    """The same by launchers."""
    with monkeypatch.context() as patch:
        patch.setattr(plans, "_CAN_REPLAY", False)
        for op in OPS.values():
            patch.setattr(op.plans, "_known", {})
        found, n_planned = run(*arguments)
    assert n_planned == 0
    return found


def same(found, wanted):
    assert found[0] == wanted[0]
    if Launches.interpreted:
        for a, b in zip(found[1], wanted[1], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["additive", "stacked", "mlp", "mlp_on_tensor_cores"])
def test_kernels_run_by_plan_give_the_same(name, draw, monkeypatch):
    monkeypatch.setattr(Launches, "interpreted", True)
    module = MODULES[name]()
    for i in range(2):
        x = draw(7, 5).float().requires_grad_()
        found, n_planned = run(module, x)
        assert bool(n_planned) == (i > 0)
        same(found, unplanned(monkeypatch, module, x))


@pytest.mark.parametrize("name", ["stacked", "mlp"])
def test_an_ensemble_is_run_by_plan(name, draw, monkeypatch):
    monkeypatch.setattr(Launches, "interpreted", True)
    module = fastmlp.Ensemble(MODULES[name](), 3, seed=0)
    for i in range(2):
        # of rows that need a gradient and that all share it is summed by PyTorch
        x = draw(7, 5).float()
        found, n_planned = run(module, x)
        assert bool(n_planned) == (i > 0)
        same(found, unplanned(monkeypatch, module, x))


def test_the_second_call_is_by_plan_and_the_same(module, draw, monkeypatch):
    for i in range(3):
        x = draw(7, 5).float().requires_grad_()
        found, n_planned = run(module, x)
        assert bool(n_planned) == (i > 0)
        same(found, unplanned(monkeypatch, module, x))
    with torch.no_grad():
        for i in range(2):
            before = Launches.planned
            y = module(draw(7, 5).float())
            assert (Launches.planned > before) == bool(i)
            assert not y.requires_grad


def test_a_plan_is_for_one_precision_of_float32(draw, monkeypatch):
    module, x = MODULES["mlp_on_tensor_cores"](), draw(7, 5).float().requires_grad_()
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for i, name in enumerate(("ieee", "tf32", "ieee", "tf32")):
            matmul.fp32_precision = name
            found, n_planned = run(module, x)
            assert bool(n_planned) == (i > 1)
            same(found, unplanned(monkeypatch, module, x))
        # backward follows the setting at its own time
        y = module(x)
        matmul.fp32_precision = "ieee"
        Launches.local.log = log = []
        torch.autograd.grad(y.sum(), x)
        assert ", 3)" in str(log)
    finally:
        matmul.fp32_precision = before


def test_a_plan_made_without_gradients_serves_no_call_that_records_them(module, draw, monkeypatch):
    x = draw(7, 5).float()
    for _ in range(2):
        with torch.no_grad():
            assert not module(x).requires_grad
    for i in range(2):
        found, n_planned = run(module, x)
        assert bool(n_planned) == (i > 0)
        same(found, unplanned(monkeypatch, module, x))
    before = Launches.planned
    with torch.no_grad():
        assert not module(x).requires_grad
    assert Launches.planned > before


def variants(x, draw):
    """Inputs that come right after a recorded, aligned one; which of them a plan may not serve."""
    yield "offset", torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape), False
    yield "strides of 17", draw(7, 17).float()[:, :5], False
    yield "stride 1", x.mT.contiguous().mT, False
    yield "one row", draw(1, 5).float(), False
    yield "16 rows", draw(16, 5).float(), False
    yield "32 rows", draw(32, 5).float(), False
    yield "expanded", x[:1].expand(7, 5), False
    yield "no rows", draw(0, 5).float(), False
    yield "same again", x + 1, True


def test_what_comes_after_an_aligned_call(module, draw, monkeypatch):
    x = draw(7, 5).float()
    run(module, x)
    for name, other, by_plan in variants(x, draw):
        found, n_planned = run(module, other)
        assert bool(n_planned) == by_plan, name
        same(found, unplanned(monkeypatch, module, other))
    for _, other, _ in variants(x, draw):
        # by plans of their own where they have one
        same(run(module, other)[0], unplanned(monkeypatch, module, other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_dtype_after_float32(module, dtype, draw, monkeypatch):
    x = draw(7, 5).float()
    run(module, x)
    mixed = run(module, x.to(dtype))
    assert mixed[1] == 0
    same(mixed[0], unplanned(monkeypatch, module, x.to(dtype)))
    module.to(dtype)
    for i in range(2):
        found, n_planned = run(module, x.to(dtype))
        assert bool(n_planned) == (i > 0)
        same(found, unplanned(monkeypatch, module, x.to(dtype)))


def test_a_parameter_at_another_address_and_alignment(module, draw, monkeypatch):
    x = draw(7, 5).float()
    run(module, x)
    for name, p in module.named_parameters():
        for offset in (1, 0):
            room = torch.cat([p.data.flatten()[:1], p.data.flatten(), p.data.flatten()[:1]])
            p.data = room[offset : offset + p.numel()].view(p.shape)
            found, n_planned = run(module, x)
            assert bool(n_planned) == (offset == 0), name
            same(found, unplanned(monkeypatch, module, x))


def test_another_need_of_gradients(module, draw, monkeypatch):
    x = draw(7, 5).float()
    run(module, x)
    first = next(module.parameters())
    for tensor, needed in ((x, True), (first, False)):
        tensor.requires_grad_(needed)
        for _ in range(2):
            same(run(module, x)[0], unplanned(monkeypatch, module, x))


def test_another_gradient_of_the_output(module, draw, monkeypatch):
    x = draw(7, 5).float()
    shape = module(x).shape
    for dy in (torch.ones(()).expand(shape), draw(*shape).float(), draw(*shape[::-1]).float().mT):
        for _ in range(2):
            found, _ = run(module, x, dy)
            same(found, unplanned(monkeypatch, module, x, dy))


def test_a_net_of_another_depth(draw, monkeypatch):
    x = draw(7, 5).float()
    for hidden in ([5], [5, 5], [5, 5, 5], [5, 5], [5]):
        module = fastmlp.MLP(5, hidden, 5)
        for _ in range(2):
            same(run(module, x)[0], unplanned(monkeypatch, module, x))


def test_a_bias_that_is_gone_after_a_call_with_it(draw, monkeypatch):
    """Of one op and one shape of x, whatever of the parameters is there."""
    x = draw(7, 5).float()
    for name in ("additive", "additive_without_bias", "additive"):
        module = MODULES[name]()
        same(run(module, x)[0], unplanned(monkeypatch, module, x))


def test_tensors_in_one_another(draw, monkeypatch):
    # x and the gradient of y are the same tensor, once
    module = MODULES["elementwise"]()
    x = draw(7, 5).float()
    for dy in (x, draw(7, 5).float(), x):
        found, _ = run(module, x, dy)
        same(found, unplanned(monkeypatch, module, x, dy))


def test_a_second_thread(module, draw, monkeypatch):
    x = draw(7, 5).float()
    wanted, found = unplanned(monkeypatch, module, x), []
    run(module, x)

    def work():
        with fastmlp.backend("triton"):
            found.extend(run(module, x)[0] for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for one in found:
        same(one, wanted)


def test_a_hook_that_is_set_in_between(module, draw):
    x = draw(7, 5).float()
    wanted, _ = run(module, x)
    for name in ("launch_enter_hook", "launch_exit_hook"):
        hooks = getattr(triton.knobs.runtime, name)
        hooks.add(print)
        try:
            found, n_planned = run(module, x)
        finally:
            hooks.remove(print)
        assert n_planned == 0
        same(found, wanted)
    assert run(module, x)[1] > 0


def test_another_device_than_the_current_one(module, draw, monkeypatch):
    x = draw(7, 5).float()
    wanted, _ = run(module, x)
    for patterns in (op.plans._known for op in OPS.values()):
        for calls in patterns.values():
            for call in calls:
                for pattern in (call, *call._backward):
                    pattern._plan._current_device = lambda: 1
    found, n_planned = run(module, x)
    assert n_planned == 0
    same(found, wanted)


def test_what_was_launched_on_another_device_is_not_replayed():
    """A launcher enters the context of its tensors' device; a replay would not."""
    part = plans.Part(0, (7,), (1,), 0)
    for index, replayable in ((0, True), (1, False)):
        there = plans.Allocation((7,), (1,), torch.float32, torch.device("cuda", index))
        arguments = [there], [], [], [], [], [part]
        if replayable:
            plans.Plan(*arguments)
        else:
            with pytest.raises(plans._NotReplayableError):
                plans.Plan(*arguments)


def test_modes_and_backends_are_asked_at_every_call(module, draw):
    x = draw(7, 5).float()
    run(module, x)
    before = Launches.planned
    with fastmlp.backend("torch"):
        module(x)
    with pytest.raises(ValueError, match="device"):
        module(x.to("meta"))
    with torch.autograd.forward_ad.dual_level():
        module(torch.autograd.forward_ad.make_dual(x, x))
    assert Launches.planned == before


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_after_a_plan_do_what_they_do_without(layout, draw):
    x = draw(7, 5).float()
    nested = torch.nested.nested_tensor([x[:2], x[2:]], layout=layout)
    module = MODULES["additive"]()
    for _ in range(2):
        run(module, x)
    refusals = TypeError, ValueError, RuntimeError
    parameters, before = list(module.parameters()), Launches.planned
    for arguments in ((nested, *parameters), (x, torch.nn.Parameter(nested), *parameters[1:])):
        with pytest.raises(refusals) as wanted, fastmlp.backend("torch"):
            fastmlp.functional.additive_mlp(*arguments)
        with pytest.raises(wanted.type):
            fastmlp.functional.additive_mlp(*arguments)
    # a gradient of y, by a hook
    y = module(x)
    y.grad_fn.register_prehook(lambda gradients: (nested,))
    with pytest.raises(refusals):
        y.sum().backward()
    assert Launches.planned == before + 1


def test_bad_input_is_refused_after_a_plan_as_before(draw):
    x, module = draw(7, 5).float(), MODULES["sines"]()
    run(module, x)
    for reduction in ("max", [], None):
        with pytest.raises((TypeError, ValueError), match="reduction"):
            fastmlp.functional.sine_sum(x, module.w, reduction=reduction)
    module = MODULES["additive"]()
    run(module, x)
    for wrong in (draw(7, 4).float(), x.int(), [1.0], None):
        with pytest.raises((TypeError, ValueError), match="x"):
            module(wrong)


def test_patterns_are_bounded(draw, monkeypatch):
    monkeypatch.setattr(planned, "MAX_PATTERNS", 3)
    module, op = MODULES["sines"](), OPS["sine_sum"]
    with torch.no_grad():
        for n in range(1, 9):
            module(draw(n, 5).float())
            assert len(op.plans._known) <= 3
