"""What a call costs besides its arithmetic: AdditiveMLP(64, 14), forward + backward of one row.

A step of Adam on the parameters of that module, and on eight of 128 numbers, is timed too. Beside
the call an `autograd.Function` that does nothing with the same tensors: it saves them, returns an
empty output, and an empty gradient for each parameter. No module of PyTorch's can be quicker.
"""

import argparse
import statistics
import time
from functools import partial

import common
import torch

import fastmlp
from fastmlp import functional
from fastmlp.ops.additive_mlp import additive_mlp


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shape, *parameters):
        ctx.save_for_backward(x, *parameters)
        return x.new_empty((x.shape[0], *shape))

    @staticmethod
    def backward(ctx, dy):
        return None, None, *(torch.empty_like(p) for p in ctx.saved_tensors[1:])


def step_of(call, parameters, dy):
    def step():
        call().backward(dy)
        for p in parameters:
            p.grad = None

    return step


def measure(n_rows, rounds, calls=100):
    """Microseconds of every round for each name; the names take turns."""
    torch.manual_seed(0)
    x, dy = torch.randn(n_rows, 64), torch.randn(n_rows, 1)
    fused, plain = fastmlp.AdditiveMLP(64, 14), fastmlp.reference.AdditiveMLP(64, 14)
    parameters = list(fused.parameters())
    steps = {
        "nothing": step_of(lambda: Nothing.apply(x, (1,), *parameters), parameters, dy),
        "fastmlp": step_of(lambda: fused(x), parameters, dy),
        "torch": step_of(lambda: plain(x), list(plain.parameters()), dy),
    }
    return take_turns(steps, rounds, calls)


def take_turns(steps, rounds, calls):
    """Microseconds of every round for each name, after one that is not counted."""
    samples = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(calls):
                step()
            if number:
                samples[name].append((time.perf_counter() - began) / calls * 1e6)
    return samples


def price_of_the_guard(rounds, calls=1000):
    """Microseconds of every round for what decides whether such a call may reach a kernel."""
    tensors = torch.randn(1, 64), *fastmlp.AdditiveMLP(64, 14).parameters()
    functional.additive_mlp(*tensors)
    samples = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(calls):
            assert additive_mlp.known(tensors)
        samples.append((time.perf_counter() - began) / calls * 1e6)
    return samples


def measure_adam(rounds, calls=50):
    """Microseconds of every round of a step, by parameters, then by optimizer; these take turns."""
    torch.manual_seed(0)
    shapes = {
        "AdditiveMLP": [p.shape for p in fastmlp.AdditiveMLP(64, 14).parameters()],
        "8 tensors": [(16, 8)] * 8,
    }
    classes = {
        "fastmlp": fastmlp.optim.Adam,
        "torch": torch.optim.Adam,
        "fused": partial(torch.optim.Adam, fused=True),
    }
    samples = {}
    for what, sizes in shapes.items():
        numbers = [(torch.randn(size), torch.randn(size)) for size in sizes]
        steps = {}
        for name, make in classes.items():
            parameters = [torch.nn.Parameter(p.clone()) for p, _ in numbers]
            for p, (_, gradient) in zip(parameters, numbers, strict=True):
                p.grad = gradient.clone()
            steps[name] = make(parameters).step
        samples[what] = take_turns(steps, rounds, calls)
    return samples


def main(argv=None):
    """Run from the command line; return the samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1, help="rows of x (default 1)")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each (default 30)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    about = common.metadata(torch.device("cpu"))
    print(f"{about['cpu']}, {about['threads']} threads, load {about['load']:.1f}")
    samples = measure(options.rows, options.rounds)
    nothing = statistics.median(samples["nothing"])
    for name, values in samples.items():
        median = statistics.median(values)
        print(
            f"  {name:<8}{median:>8.1f} µs, min {min(values):.1f} µs; "
            f"{median / nothing:.2f} × a Function that does nothing"
        )
    for what, of_step in measure_adam(options.rounds).items():
        medians = {name: statistics.median(values) for name, values in of_step.items()}
        others = [f"{name} {medians[name]:.1f} µs" for name in ("torch", "fused")]
        least = min(of_step["fastmlp"])
        print(
            f"  Adam    {medians['fastmlp']:>8.1f} µs, min {least:.1f} µs, a step on {what}; "
            f"{', '.join(others)}"
        )
    guard = price_of_the_guard(options.rounds)
    print(f"  guard   {statistics.median(guard):>8.2f} µs a call, min {min(guard):.2f} µs")
    return samples


if __name__ == "__main__":
    main()
