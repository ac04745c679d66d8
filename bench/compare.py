"""Compare a run with an earlier one: which speed-ups fell by more than a fifth?

A speed-up is plain PyTorch's time over fastmlp's, of one case and mode in one run: a slower machine
slows both.
"""

from providers import BASELINE

TOLERANCE = 0.2


def speed_ups(results):
    """fastmlp's speed over plain PyTorch's by (op, case, mode, graph)."""
    times = {}
    for record in results:
        if not record["error"]:
            key = record["op"], record["case"], record["mode"], record["graph"]
            times.setdefault(key, {})[record["provider"]] = record["median_us"]
    return {
        key: by[BASELINE] / by["fastmlp"]
        for key, by in times.items()
        if {BASELINE, "fastmlp"} <= by.keys()
    }


def compare(results, earlier):
    """Lines of text, one for each case that both runs have, and whether none got worse."""
    now, before = speed_ups(results), speed_ups(earlier)
    lines, fine = [], True
    for key in now.keys() & before.keys():
        ratio = now[key] / before[key]
        worse = ratio < 1 - TOLERANCE
        fine = fine and not worse
        mark = "WORSE" if worse else "     "
        lines.append(f"{mark} {_named(key)}: {before[key]:.2f}× before, {now[key]:.2f}× now")
    lines += [f"      {_named(key)}: not measured now" for key in before.keys() - now.keys()]
    return sorted(lines, reverse=True), fine


def _named(key):
    op, case, mode, graph = key
    return f"{op} {case}, {mode}{', CUDA graph' if graph else ''}"
