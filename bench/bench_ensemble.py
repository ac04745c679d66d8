"""Many models at once: `Ensemble`, `vmap` over stacked modules, a loop over modules; `fit`'s start.

Beside `vmap` its floor, `vmap` of `functional_call` of a module with the same parameters that does
nothing: no module of anybody's can be quicker. The last lines are what a call of `fit` costs a
model besides its steps, of a list and of an ensemble.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import common
import torch
from bench_overhead import take_turns
from torch.func import functional_call, grad, vmap

import fastmlp

ROUND_SECONDS = 0.02
"""About what a name's turn takes."""


class Many(NamedTuple):
    """Models of a structure, and the shape of the rows that all share."""

    make: object
    n: int
    rows: tuple


CASES = {
    "SineSum(8) x 1000": Many(lambda: fastmlp.SineSum(8), 1000, (60,)),
    "ElementwiseMLP(10) x 200": Many(lambda: fastmlp.ElementwiseMLP(10), 200, (100,)),
    "AdditiveMLP(16, 8) x 64": Many(lambda: fastmlp.AdditiveMLP(16, 8), 64, (100, 16)),
    "MLP(4, [16, 16], 2) x 100": Many(lambda: fastmlp.MLP(4, [16, 16], 2), 100, (100, 4)),
    "SineSum(8) x 10000": Many(lambda: fastmlp.SineSum(8), 10_000, (60,)),
    "ElementwiseMLP(10) x 10000": Many(lambda: fastmlp.ElementwiseMLP(10), 10_000, (100,)),
    "AdditiveMLP(16, 8) x 10000": Many(lambda: fastmlp.AdditiveMLP(16, 8), 10_000, (20, 16)),
    "MLP(4, [16, 16], 2) x 10000": Many(lambda: fastmlp.MLP(4, [16, 16], 2), 10_000, (20, 4)),
}
MAX_LOOPED = 100
"""Models that the loop goes over; of more its time is that of these, times how many more."""


class Nothing(torch.nn.Module):
    """Parameters of a module, of which one is read."""

    def __init__(self, module):
        super().__init__()
        for i, p in enumerate(module.parameters()):
            self.register_parameter(f"p{i}", torch.nn.Parameter(p.detach().clone()))

    def forward(self, x):
        return self.p0.neg()


def _mapped(module):
    """Functions of stacked parameters and x: outputs, and gradients of their sum."""

    def call(parameters, x):
        return functional_call(module, parameters, (x,))

    def total(parameters, x):
        return call(parameters, x).sum()

    return vmap(call, in_dims=(0, None)), vmap(grad(total), in_dims=(0, None))


def steps_of(case):
    """Functions without arguments by mode and name."""
    torch.manual_seed(0)
    ensemble = fastmlp.Ensemble(case.make(), case.n, seed=0)
    x = torch.randn(case.rows)
    modules = [case.make() for _ in range(min(case.n, MAX_LOOPED))]
    stacked = {name: p.detach() for name, p in ensemble.named_parameters()}
    nothing = Nothing(modules[0])
    alike = dict(zip(dict(nothing.named_parameters()), stacked.values(), strict=True))
    parameters = list(ensemble.parameters())
    of_all = [p for m in modules for p in m.parameters()]
    ones = [torch.ones(case.n)]
    outputs, gradients = _mapped(modules[0])
    floor, floor_gradients = _mapped(nothing)

    def sums_of_each():  # as vmap takes them
        return [ensemble(x).flatten(1).sum(1)]

    def loop():
        return [m(x) for m in modules]

    def without(call):
        def step():
            with torch.no_grad():
                return call()

        return step

    forward = {
        "ensemble": lambda: ensemble(x),
        "vmap": lambda: outputs(stacked, x),
        "vmap of nothing": lambda: floor(alike, x),
        "loop": loop,
    }
    backward = {
        "ensemble": lambda: torch.autograd.grad(sums_of_each(), parameters, ones),
        "vmap": lambda: gradients(stacked, x),
        "vmap of nothing": lambda: floor_gradients(alike, x),
        "loop": lambda: torch.autograd.grad(sum(y.sum() for y in loop()), of_all),
    }
    assert torch.equal(forward["vmap"](), forward["ensemble"]())
    pairs = zip(backward["vmap"]().values(), backward["ensemble"](), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    return {
        "forward": {name: without(call) for name, call in forward.items()},
        "gradients": backward,
    }


def measure(case, rounds):
    """Median microseconds of all models by mode and name; the names take turns."""
    medians = {}
    for mode, steps in steps_of(case).items():
        began = time.perf_counter()
        steps["vmap"]()
        calls = max(1, int(ROUND_SECONDS / (time.perf_counter() - began)))
        samples = take_turns(steps, rounds, calls)
        medians[mode] = {name: statistics.median(values) for name, values in samples.items()}
        medians[mode]["loop"] *= max(1, case.n / MAX_LOOPED)
    return medians


def starts(rounds, n_listed=1000, n=10_000):
    """Median microseconds a model of a call of `fit` for one epoch of one row."""
    x = torch.zeros(1)
    options = {"epochs": 1, "progress": False}
    medians = {}
    for label, make in (("SineSum(2)", lambda: fastmlp.SineSum(2)), ("MLP(2, [2], 1)", _xor)):
        rows = x if label.startswith("Sine") else x.expand(1, 2)
        targets = x if label.startswith("Sine") else x.expand(1, 1)
        models, ensemble = [make() for _ in range(n_listed)], fastmlp.Ensemble(make(), n, seed=0)
        steps = {
            "list": lambda m=models, r=rows, t=targets: fastmlp.fit(m, r, t, **options),
            "ensemble": lambda m=ensemble, r=rows, t=targets: fastmlp.fit(m, r, t, **options),
        }
        samples = take_turns(steps, rounds, 1)
        counts = {"list": n_listed, "ensemble": n}
        medians[label] = {k: statistics.median(v) / counts[k] for k, v in samples.items()}
    return medians


def _xor():
    return fastmlp.MLP(2, [2], 1)


def main(argv=None):
    """Run from the command line; return the medians of the calls and of the starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11, help="turns of each (default 11)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    about = common.metadata(torch.device("cpu"))
    print(f"{about['cpu']}, {about['threads']} threads, load {about['load']:.1f}")
    medians = {}
    for name, case in CASES.items():
        if options.only in name:
            medians[name] = measure(case, options.rounds)
            for mode, of_mode in medians[name].items():
                times = ", ".join(f"{label} {value:.0f}" for label, value in of_mode.items())
                ratio = of_mode["vmap"] / of_mode["ensemble"]
                print(f"  {name:<28}{mode:<10}{ratio:5.2f} x the ensemble; us: {times}")
    medians["fit"] = starts(options.rounds)
    for label, of_start in medians["fit"].items():
        times = ", ".join(f"{name} {value:.2f}" for name, value in of_start.items())
        print(f"  fit, us a model of {label}: {times}")
    return medians


if __name__ == "__main__":
    main()
