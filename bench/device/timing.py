"""Clocks of a device: of kernels alone, by CUDA graph, and of what a caller waits for.

In a dry run there is one clock, and its figures have names of their own.
"""

import contextlib
import time

import common  # which finds the modules of tests/
import interpreter
import torch

import fastmlp
from device.report import first_line

SAMPLE = 1e-3
"""Seconds that a graph should last: launching one costs some microseconds."""


def backend(report):
    """Context in which fastmlp's ops run their Triton kernels, interpreted in a dry run."""
    if not report.dry:
        return contextlib.nullcontext()
    interpreter.hasten()
    return fastmlp.backend("triton")


def capture(step):
    """One function as a CUDA graph of several calls: the replay, and how many calls it holds.

    Warmed up on a side stream, as captures want it: kernels compile there.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    calls = max(1, min(50, round(SAMPLE / max(start.elapsed_time(end) * 1e-3, 1e-6))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            step()
    return graph.replay, calls


def measure(report, steps, seconds=0.3, clocks=("graph", "eager")):
    """Time functions in turn by each clock.

    The second level cache is warm: calls repeat on the same tensors, so inputs below its size are
    read from it.

    Args:
        report: The step's report, whose device is meant.
        steps: Dictionary from name to function.
        seconds: About how long each clock may take.
        clocks: ``"graph"`` is the kernels' time alone, ``"eager"`` one call after another from
            Python, waited for at the end of some 20 ms.

    Returns:
        Dictionary from name to fields of a figure: ``graph_us`` and ``eager_us``, medians, with
        the bounds of the middle 60 %, ``graph_error`` or ``eager_error`` where that failed; in a
        dry run ``dry_us``, of Triton's interpreter, instead.
    """
    figures = {name: {} for name in steps}
    if report.dry:
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            figures[name]["dry_us"] = (time.perf_counter() - began) * 1e6
        return figures
    for clock in clocks:
        ready, calls = {}, {}
        for name, step in steps.items():
            try:
                if clock == "graph":
                    ready[name], calls[name] = capture(step)
                else:
                    step()
                    ready[name] = step
                torch.cuda.synchronize()
            except Exception as error:  # recorded, and the others are timed
                figures[name][f"{clock}_error"] = first_line(error)
        options = {"seconds": seconds, "wait": torch.cuda.synchronize}
        _take(figures, clock, ready, calls, **options)
    return figures


def _take(figures, clock, steps, calls, **options):
    for name, times in common.time_interleaved(steps, **options).items():
        n = calls.get(name, 1)
        for key in ("median", "low", "high"):
            figures[name][f"{clock}_{key}_us".replace("_median", "")] = times[f"{key}_us"] / n
        figures[name]["n_samples"] = times["n_samples"]
