"""What Levenberg–Marquardt costs and reaches: experiments 1 and 3, XOR, four functions.

    python bench/bench_levenberg_marquardt.py             # all questions
    python bench/bench_levenberg_marquardt.py step xor    # some
    python bench/bench_levenberg_marquardt.py --device cuda

`step`: AdditiveMLP(64, 14) on 90 000 rows, time of a step and memory beside the input, against the
Jacobian by torch.func and torch.linalg.lstsq. `sines`: 50 draws of 8 sines, 300 starts each, and
one spectral start each. `xor`: 200 starts. `functions`: ElementwiseMLP(10) on 10 000 points, best
of 20 starts, as a multiple of the error floor K⁻²·(∫|f''|^{2/5})^{5/2}/√(720·range), K = 11. That
is an asymptotic formula: free ends win a little, and of 1/x a few samples next to 0 hold nearly all
the error, so that a fit may be below it.
"""

import argparse
import math
import re
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import fastmlp
from fastmlp.training.levenberg_marquardt import train

SETTINGS = fastmlp.LevenbergMarquardt
QUESTIONS = ("step", "sines", "xor", "functions")


def _additive(rows, device):
    torch.manual_seed(0)
    x = (13 * torch.rand(rows, 64) - 5).to(device)
    return fastmlp.AdditiveMLP(64, 14).to(device), x, x.square().sum(1, keepdim=True)


def _plain_step(net, x, y):
    """An undamped step, the way torch.func and LAPACK give it: seconds."""
    from torch.func import functional_call, jacrev, vmap

    parameters = {name: p.detach().double() for name, p in net.named_parameters()}
    x, y = x.double(), y.double()

    def row(values, xi):
        return functional_call(net, values, (xi,))

    began = time.perf_counter()
    rows = vmap(jacrev(row), in_dims=(None, 0), chunk_size=9000)(parameters, x)
    jacobian = torch.cat([rows[name].flatten(1) for name in parameters], 1)
    residual = functional_call(net, parameters, (x,)) - y
    float(torch.linalg.lstsq(jacobian, residual).solution[0])  # waits for a device
    return time.perf_counter() - began


def step(device):
    """Time of a step and memory, interleaved with the plain way."""
    net, x, y = _additive(90_000, device)
    for solver in ("cholesky", "qr"):  # compiles, or loads what was compiled
        train([net], x, y, SETTINGS(solver=solver), max_steps=1)
    ours, qr, plain = [], [], []
    for _ in range(3):
        for solver, times in (("cholesky", ours), ("qr", qr)):
            net, _, _ = _additive(1, device)
            outcome = train([net], x, y, SETTINGS(solver=solver), max_steps=5)
            times.append(outcome.seconds / outcome.jacobians[0])
        plain.append(_plain_step(net, x, y))
    print(f"step of AdditiveMLP(64, 14), 90 000 rows, median and least of {len(plain)}:")
    for name, times in (("cholesky", ours), ("qr", qr), ("torch.func, lstsq", plain)):
        print(
            f"  {name:<20}{statistics.median(times):>8.3f} s{min(times):>8.3f} s"
            f"{statistics.median(plain) / statistics.median(times):>8.1f}×"
        )
    script = f"import bench_levenberg_marquardt as b; b.memory({device!r})"
    path = str(__file__).rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=path)


def memory(device):
    """Peak memory of a run beside the input; in a process of its own."""
    small = _additive(200, device)
    for solver in ("cholesky", "qr"):  # kernels and threads are there
        train([small[0]], *small[1:], SETTINGS(solver=solver), max_steps=1)
    net, x, y = _additive(90_000, device)
    size = x.nbytes + y.nbytes
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    else:
        torch.cuda.reset_peak_memory_stats()
    before = _peak(device)
    train([net], x, y, SETTINGS(), max_steps=5)
    print(f"  peak memory grew by {_peak(device) - before:.0f} MiB, input {size / 2**20:.0f} MiB")


def _peak(device):
    """The most memory that was in use since the mark was reset, MiB; of the host on Linux alone."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def sines(device):
    """Experiment 3 with 8 sines: restarts, and one spectral start."""
    x = torch.cat([torch.arange(-40, -10), torch.arange(10, 40)]).double() / 10
    inputs = x.to(device)
    warm = fastmlp.SineSum(8, dtype=torch.float64, device=device)
    for solver in ("cholesky", "qr"):
        train([warm], inputs, inputs.sin(), SETTINGS(solver=solver), max_steps=1)
    solved, spectral, seconds, errors = 0, 0, [], []
    for seed in range(50):
        # a seed that no start has: the same numbers would be drawn
        generator = torch.Generator().manual_seed(1000 + seed)
        w = 2 * torch.rand(8, generator=generator, dtype=torch.float64)
        y = torch.sin(math.pi * x[:, None] * w).mean(1)
        targets = y.to(device)
        net = fastmlp.SineSum(8, dtype=torch.float64, device=device)
        settings = SETTINGS(restarts=300)
        outcome = train([net], inputs, targets, settings, max_steps=200, seed=seed)
        seconds.append(outcome.seconds)
        if float(outcome.final.min()) / 60 <= 1e-24:
            solved += 1
            found = net.w.detach().cpu().abs().sort().values
            errors.append(float((found - w.sort().values).abs().max()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            start = fastmlp.spectral.frequencies(x, y, 8)
        with torch.no_grad():
            net.w.copy_(start.w)
        outcome = train([net], inputs, targets, SETTINGS(), max_steps=300)
        spectral += float(outcome.final[0]) / 60 <= 1e-24
    print(
        f"8 sines, 50 draws, training MSE ≤ 1e-24: {solved} from 300 starts "
        f"(median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s; frequencies to "
        f"{max(errors):.0e}), {spectral} from one spectral start"
    )


def xor(device):
    """XOR from 200 starts."""
    x = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64, device=device)
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64, device=device)
    warnings.simplefilter("ignore", UserWarning)
    for name, last in (("linear", []), ("sigmoid", [nn.Sigmoid()])):
        net = nn.Sequential(nn.Linear(2, 5), nn.Sigmoid(), nn.Linear(5, 1), *last).double()
        net = net.to(device)
        for solver in ("cholesky", "qr"):
            train([net], x, y, SETTINGS(solver=solver), max_steps=1)
        outcome = train([net], x, y, SETTINGS(restarts=200), max_steps=200)
        good = int((outcome.final < 1e-10).sum())
        print(f"XOR 2-5-1 sigmoid, {name} output: SSE < 1e-10 from {good} of 200 starts, "
              f"{outcome.seconds:.2f} s")  # fmt: skip


FUNCTIONS = {
    "exp": (torch.exp, torch.exp),
    "sin": (torch.sin, torch.sin),
    "1/x": (lambda x: 1 / x, lambda x: 2 / x**3),
    "step": (lambda x: (x > 0).double(), None),
}


def functions(device):
    """Univariate targets on [-5, 5]."""
    x = torch.linspace(-5, 5, 10_000, dtype=torch.float64, device=device)
    for name, (f, second) in FUNCTIONS.items():
        y = f(x)
        for restarts in (20, 500):
            net = fastmlp.ElementwiseMLP(10, dtype=torch.float64, device=device)
            outcome = train([net], x, y, SETTINGS(restarts=restarts), max_steps=1000)
            rms = math.sqrt(float(outcome.final.min()) / len(x))
            line = f"{name:<5}best of {restarts:>3}: RMS {rms:.3e}, {outcome.seconds:.2f} s"
            if second is not None:
                # the integral over the samples: for 1/x it does not converge towards 0
                integral = float(second(x).abs().pow(0.4).mean()) * 10
                floor = integral**2.5 / 11**2 / math.sqrt(720 * 10)
                line += f", {rms / floor:.2f} × floor"
            print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("questions", nargs="*", choices=[*QUESTIONS, []], metavar="question")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    for question in options.questions or QUESTIONS:
        globals()[question](options.device)
