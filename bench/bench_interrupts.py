"""How long Ctrl-C takes: from the signal until a call raises, or ``fit`` returns what there is.

    python bench/bench_interrupts.py [--times 20] [KIND …]

Prints the median and the worst of the times by kind, in milliseconds.
"""

import argparse
import random
import signal
import statistics
import time

import torch
from torch import nn

import fastmlp


def op(*, backward=False, pool=False):
    module, x = fastmlp.AdditiveMLP(64, 64, activation="tanh"), torch.randn(300_000, 64)

    def run():
        if not backward:
            with torch.no_grad():
                return module(x)
        return module(x).sum().backward()

    if not pool:
        return run

    def on_our_threads():
        from fastmlp.kernels.cpu.machine import team

        runtime, team._runtime = team._runtime, lambda: None
        try:
            return run()
        finally:
            team._runtime = runtime

    return on_our_threads


def fit(make, n_models, x, y, **settings):
    # compiles, and has PyTorch import what it wants: an import that is cut short is not taken up
    fastmlp.fit([make()], x, y, epochs=2, progress=False, **settings)

    def run():
        models = [make() for _ in range(n_models)]
        # a history of n_models x epochs is in memory
        fastmlp.fit(models, x, y, epochs=min(10**5, 10**7 // n_models), progress=False, **settings)

    return run


def with_torch(run):
    def run_with_torch():
        with fastmlp.backend("torch"):
            run()

    return run_with_torch


LINE = torch.linspace(-1, 1, 2000)
TABLE = torch.rand(20_000, 64) * 2 - 1
SQUARES = TABLE.square().sum(1, keepdim=True)
# with no decrease too small and no damping too large, a run does not end by itself
ENDLESS = fastmlp.LevenbergMarquardt(ftol=0.0, gtol=0.0, xtol=0.0)


def unknown_net():
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1))


KINDS = {
    "op": op,
    "op_backward": lambda: op(backward=True),
    "op_on_our_threads": lambda: op(pool=True),
    "fit_one_net": lambda: fit(lambda: fastmlp.SineSum(8), 1, LINE, LINE.sin()),
    "fit_3000_nets": lambda: fit(lambda: fastmlp.SineSum(8), 3000, LINE, LINE.sin()),
    "fit_large_steps": lambda: fit(lambda: fastmlp.AdditiveMLP(64, 14), 1, TABLE, SQUARES),
    "fit_in_torch": lambda: with_torch(fit(lambda: fastmlp.SineSum(8), 1, LINE, LINE.sin())),
    "lm_3000_nets": lambda: fit(
        lambda: fastmlp.SineSum(8), 3000, LINE, LINE.sign(), optimizer=ENDLESS
    ),
    "lm_3000_hinges": lambda: fit(
        lambda: fastmlp.ElementwiseMLP(14), 3000, LINE, LINE.sin(), optimizer=ENDLESS
    ),
    "lm_one_net": lambda: fit(
        lambda: fastmlp.AdditiveMLP(64, 14), 1, TABLE, SQUARES.sqrt(), optimizer=ENDLESS
    ),
    "lm_unknown_net": lambda: fit(unknown_net, 1, TABLE, SQUARES.sqrt(), optimizer=ENDLESS),
}


def latency(run, delay):
    """Seconds from a signal ``delay`` seconds after the start; None where the call was over."""
    fired = []

    def interrupt(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        fired.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    due = time.perf_counter() + delay
    signal.setitimer(signal.ITIMER_REAL, delay)
    try:
        run()
    except KeyboardInterrupt:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - due if fired else None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args(argv)
    chance = random.Random(0)
    for name in arguments.kinds or KINDS:
        run = KINDS[name]()
        latency(run, 3.0 if name.startswith(("fit", "lm")) else 60.0)  # compiles
        seconds = []
        for _ in range(10 * arguments.times):
            slow = 0.5 if name.startswith(("fit", "lm")) else 0.05
            if (late := latency(run, chance.uniform(0.2, 1.0) * slow)) is not None:
                seconds.append(late)
            if len(seconds) == arguments.times:
                break
        if not seconds:
            print(f"{name:20} ended before every signal", flush=True)
            continue
        median, worst = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
        print(f"{name:20} median {median:6.0f} ms   worst {worst:6.0f} ms", flush=True)


if __name__ == "__main__":
    main()
