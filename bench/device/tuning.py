"""Sweeps of CONFIGS of kernels/gpu/machine/launch.py: each kernel of the main cases, one at a time.

Which kernels a case launches is seen, not listed: the table tells which of its entries were asked
for. A tile decides the order of a sum, so a new one changes results in their last bits.
"""

import functools

from fastmlp.kernels.gpu.machine import launch

from device import cases, ops, timing, warm
from device.report import first_line

RATIOS = (1, 0.5, 2, 4)
WARPS = (4, 8, 2)


class Watched(dict):
    """The table of configurations, which notes what is asked of it."""

    asked = frozenset()

    def __getitem__(self, name):
        self.asked |= {name}
        return super().__getitem__(name)


def candidates(name, config, largest=1 << 15, smallest=64):
    """Neighbours of a kernel's configuration, nearest first: other rows, columns, warps."""
    found = []
    for rows in RATIOS:
        for cols in RATIOS:
            for warps in dict.fromkeys((config.warps, *WARPS)):
                other = config._replace(
                    rows=int(config.rows * rows), cols=int(config.cols * cols), warps=warps
                )
                fits = smallest <= other.rows * other.cols <= largest
                # a kernel over one dimension keeps its row; a net's columns are its widths
                kept = (config.rows > 1 or other.rows == 1) and other.cols >= 16
                kept = kept and not (name.startswith("mlp") and cols != 1)
                if other != config and other.rows >= 1 and fits and kept:
                    distance = (rows != 1) + (cols != 1) + (warps != config.warps)
                    found.append((distance, other))
    return [other for _, other in sorted(found, key=lambda pair: pair[0])]


def kernels(report, table):
    """Each kernel with the first case that launches it: (case, mode, name, function of a call)."""
    seen = set()
    for case in cases.chosen(report.dry):
        if case.dtype != "float32" or case.precision != "highest":
            continue
        for mode in case.modes:
            suite, x, dy, plain = ops.prepare(report, case)
            module = ops.provider("fastmlp", suite, case, plain, report.dry)
            step = ops.step_of("fastmlp", module, x, dy, mode)
            table.asked = frozenset()
            step()
            for name in sorted(table.asked - seen):
                seen.add(name)
                yield case, mode, name, step


def under(table, name, config, step):
    """A step with another configuration of one kernel."""

    def configured():
        table[name] = config
        return step()

    return configured


def sweep(report, table, case, mode, name, step, limit):
    """Time the neighbours of one kernel's configuration, each in turn with the present one."""
    original = dict.__getitem__(table, name)
    about = {"what": "tuning", "kernel": name, "op": case.op, "case": case.name, "mode": mode}
    for config in candidates(name, original)[:limit]:
        if report.over():
            report.cut(f"{name} at {case.name} from {tuple(config)} on")
            return
        figure = {**about, "config": config._asdict(), "was": original._asdict()}
        both = {"own": config, "was": original}
        steps = {who: under(table, name, tile, step) for who, tile in both.items()}
        table.asked = frozenset()
        try:
            steps["own"]()
            if name not in table.asked:
                raise RuntimeError("the launch did not ask for its configuration again")
            # a graph keeps the configuration that it was captured with
            own, was = timing.measure(report, steps, 0.1, clocks=("graph",)).values()
            clock = "dry_us" if report.dry else "graph_us"
            if clock in own and clock in was:
                own = {**own, "was_us": was[clock], "gain": was[clock] / own[clock]}
            report.figure("tuning.json", **figure, **own)
        except Exception as error:  # too many registers, say
            report.figure("tuning.json", **figure, error=first_line(error))
        finally:
            table[name] = original


def run(report):
    """The step: first the kernels of the first cases, nearest neighbours first."""
    table = launch.CONFIGS = Watched(launch.CONFIGS)
    limit = 2 if report.dry else 12

    def jobs():
        found = []
        for _, _, name, step in kernels(report, table):
            original = dict.__getitem__(table, name)
            for config in candidates(name, original)[:limit]:
                found.append(functools.partial(compile_one, table, name, config, step))
            if report.dry:
                break
        return found

    with timing.backend(report):
        warm.up(report, jobs)
        for kernel in kernels(report, table):
            sweep(report, table, *kernel, limit)
            if report.dry:
                report.cut("the other kernels: dry run")
                return
            if report.over():
                report.cut("further kernels")
                return


def compile_one(table, name, config, step):
    """A call with another configuration of one kernel, and back."""
    original = dict.__getitem__(table, name)
    try:
        under(table, name, config, step)()
    finally:
        table[name] = original
