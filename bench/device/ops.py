"""Floors of the machine, then kernel and eager time of every op beside its peers."""

import copy
import functools

import common
import torch
from providers import PROVIDERS
from run import SUITES

from device import cases, jobs, machine, timing, warm
from device.report import first_line

HEAD = 1 << 18
"""Elements of the input on which a case is judged."""


def floors(report):
    """Rates of this machine: reading and copying, and matrix products by their precision."""
    n, width = (1 << 10, 32) if report.dry else (1 << 28, 8192)
    source = torch.rand(n, device=report.device)
    target = torch.empty_like(source)
    a, b = (torch.rand(width, width, device=report.device) for _ in range(2))
    halves = a.bfloat16(), b.bfloat16()
    moves = {"read": (source.sum, 4 * n), "copy": (lambda: target.copy_(source), 8 * n)}
    times = timing.measure(report, {k: f for k, (f, _) in moves.items()}, clocks=("graph",))
    for name, (_, n_bytes) in moves.items():
        rate = _rate(n_bytes, times[name], report)
        report.figure("ops.json", what="floor", name=name, unit="GB/s", rate=rate, **times[name])
    products = {
        "fp32 products": ("highest", lambda: a @ b),
        "tf32 products": ("high", lambda: a @ b),
        "bf16 products": ("highest", lambda: halves[0] @ halves[1]),
    }
    for name, (precision, step) in products.items():
        torch.set_float32_matmul_precision(precision)
        (times,) = timing.measure(report, {name: step}, clocks=("graph",)).values()
        rate = _rate(2 * width**3, times, report)
        report.figure("ops.json", what="floor", name=name, unit="GFLOP/s", rate=rate, **times)
    torch.set_float32_matmul_precision("highest")
    if not report.dry:
        report.figure("machine.json", clocks_after_floors=machine.nvidia_smi(machine.CLOCKS))


def _rate(work, times, report):
    us = times.get("dry_us" if report.dry else "graph_us")
    return work / us / 1e3 if us else None


def provider(name, suite, case, plain, dry):
    """The module of a provider, in the case's dtype."""
    if name == "gelu":  # what a learned activation replaces
        return torch.nn.GELU()
    if name == "torch_compile" and dry:
        torch._dynamo.reset()
        return torch.compile(copy.deepcopy(plain), backend="eager")
    return PROVIDERS[name](suite, case, plain)


def step_of(name, module, x, dy, mode):
    """What is timed; GELU has no parameters to derive by."""
    if name == "gelu" and mode == "forward_backward":
        return lambda: torch.autograd.grad(module(x), x, dy)
    return common.make_step(module, x, dy, mode)


def prepare(report, case):
    """Suite, input, output gradient and plain module of a case, on the device."""
    suite, dtype = SUITES[case.op], getattr(torch, case.dtype)
    torch.manual_seed(1)
    shape = case.dry if report.dry else case.shape
    with torch.device(report.device):
        x = suite.draw(common.Case(case.name, shape)).to(dtype).requires_grad_(case.x_grad)
        plain = suite.reference(case).to(report.device, dtype)
    with torch.no_grad():
        width = plain(x[:1].detach()).shape[1:]
    dy = torch.randn(len(x), *width, device=report.device).to(dtype)
    return suite, x, dy, plain


def judge(suite, case, module, x, dy, plain):
    """Raise AssertionError unless a module is as good as plain PyTorch on the first rows."""
    if x[:1].numel() > HEAD:  # of any shape, for an op on every element
        x, dy = x.flatten(), dy.flatten()
    rows = max(HEAD // max(x[:1].numel(), 1), 1)
    head = x[:rows].detach().requires_grad_(case.x_grad)
    gate = common.Gate(suite, plain, head, dy[:rows])
    gate.check(common.make_step(module, head, dy[:rows], "forward_backward")())


def measure(report, case, names):
    """Time some providers of a case in turn, in each of its modes."""
    torch.set_float32_matmul_precision(case.precision)
    suite, x, dy, plain = prepare(report, case)
    fixed = {"what": "op", "op": case.op, "case": case.name, "shape": list(x.shape)}
    fixed["dtype"] = case.dtype
    modules = {}
    for name in names:
        try:
            module = provider(name, suite, case, plain, report.dry)
            if name == "fastmlp" and case.judged:
                judge(suite, case, module, x, dy, plain)
            modules[name] = module
        except Exception as error:  # not timed; the others are
            report.figure("ops.json", **fixed, provider=name, error=first_line(error))
    for mode in case.modes:
        if report.over():
            report.cut(f"{case.op} {case.name}, {mode} and what follows it: {', '.join(names)}")
            return
        steps = {name: step_of(name, module, x, dy, mode) for name, module in modules.items()}
        works = {}
        for name, step in steps.items():
            try:
                step()
                works[name] = step
            except Exception as error:
                about = {**fixed, "provider": name, "mode": mode}
                report.figure("ops.json", **about, error=first_line(error))
        for name, times in timing.measure(report, works).items():
            report.figure("ops.json", **fixed, provider=name, mode=mode, **times)


def rounds_of(todo):
    """Cases and their providers: ours and plain PyTorch for all, then those that compile."""
    names = [(case, ["fastmlp", *case.peers]) for case in todo]
    plain = [(case, [name for name in ours if name != "torch_compile"]) for case, ours in names]
    return plain + [(case, ["fastmlp", "torch_compile"]) for case, ours in names if len(ours) > 2]


def warm_up(report, case, name):
    """One call of a provider in each mode of a case: it compiles."""
    torch.set_float32_matmul_precision(case.precision)
    suite, x, dy, plain = prepare(report, case)
    module = provider(name, suite, case, plain, report.dry)
    for mode in case.modes:
        step_of(name, module, x, dy, mode)()


def run(report):
    """The step: floors, then the cases."""
    todo = cases.chosen(report.dry)
    rounds = rounds_of(todo)

    def ahead():
        pairs = dict.fromkeys((case, names[-1]) for case, names in rounds[len(todo) :])
        pairs |= dict.fromkeys((case, "fastmlp") for case in todo)
        return [functools.partial(warm_up, report, *pair) for pair in pairs]

    def one(case, names):
        measure(report, case, names)
        if not report.dry:
            torch.cuda.empty_cache()

    work = {"floors": functools.partial(floors, report)} | {
        f"{case.op} {case.name} ({', '.join(names)})": functools.partial(one, case, names)
        for case, names in rounds
    }
    with timing.backend(report):
        if not report.dry:  # nothing is compiled there
            warm.up(report, ahead)
        jobs.each(report, work)
