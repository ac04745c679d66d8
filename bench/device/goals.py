"""What is to be reached on an H200, as data: beside it the summary puts what was measured.

An H100 has 0.7 of the bandwidth and the same arithmetic.
"""

from typing import NamedTuple


class Key(NamedTuple):
    """One figure: a field of the record of a file that has these values."""

    file: str
    field: str
    where: dict


class Goal(NamedTuple):
    """One goal.

    Args:
        work: What is measured.
        unit: Of all four figures; ``×`` is a ratio.
        before: On one H200 on 2026-11-28, ``None`` where it was not measured.
        bound: The goal.
        least: Whether the figure should be at least the goal; else at most.
        figure: Key of the figure.
        scale: By which the figure is multiplied for the unit.
        over: Key of the figure that it is divided by, for ratios.
        inverse: Whether a ratio is turned over, or a time made a rate.
    """

    work: str
    unit: str
    before: float | None
    bound: float
    least: bool
    figure: Key
    scale: float = 1.0
    over: Key | None = None
    inverse: bool = False


def op(op, case, mode, provider="fastmlp", field="graph_us"):
    return Key(
        "ops.json", field, {"op": op, "case": case, "mode": mode, "provider": provider}
    )  # fmt: skip


def fit(case, field="seconds"):
    return Key("fit.json", field, {"what": "fit", "case": case, "provider": "fastmlp"})


def host(what, name, module="AdditiveMLP(64, 14)", **where):
    return Key("host.json", "eager_us", {"what": what, "name": name, "module": module, **where})


I, FB = "inference", "forward_backward"
ADDITIVE, ELEMENTWISE = "additive_mlp", "elementwise_mlp"
LARGE, MILLION, NINETY = "[4M, 64], H = 14", "[1M, 64], H = 14", "[90k, 64], H = 14"
ELEMENTS, ELEMENTS_BF16 = "[64M] + dx, H = 14", "[8, 2048, 4096] bf16 + dx, H = 14"
NET, SINES = "[1M, 64], 64-64-64-16", "[1M], W = 64"
NET_BF16 = "[1M, 64] bf16, 64-64-64-16"


def _times(work, before, bound, slower, faster, least=True):
    """A ratio: how many times as long ``slower`` takes."""
    return Goal(work, "×", before, bound, least, slower, over=faster)


def _wide(hidden, mode, bound):
    name = {I: "forward", FB: "f + b"}[mode]
    slow, fast = op(ADDITIVE, f"[1M, 64], H = {hidden}", mode), op(ADDITIVE, MILLION, mode)
    return _times(f"H = {hidden} over H = 14, [1M, 64], {name}", None, bound, slow, fast, False)


def _net(case, mode, before, bound, label):
    name = {I: "forward", FB: "f + b"}[mode]
    plain, ours = op("mlp", case, mode, "torch"), op("mlp", case, mode)
    return _times(f"MLP 64-64-64-16 [1M] {label}, {name}, plain's time", before, bound, plain, ours)


GOALS = (
    Goal("AdditiveMLP [4M, 64] forward", "ms", 0.457, 0.30, False, op(ADDITIVE, LARGE, I), 1e-3),
    Goal("AdditiveMLP [4M, 64] f + b", "ms", 1.106, 0.80, False, op(ADDITIVE, LARGE, FB), 1e-3),
    _times("ElementwiseMLP f + b with dx over GELU's", 1.75, 1.25, op(ELEMENTWISE, ELEMENTS, FB),
           op(ELEMENTWISE, ELEMENTS, FB, "gelu"), False),
    _times("the same in bf16", 2.25, 1.5, op(ELEMENTWISE, ELEMENTS_BF16, FB),
           op(ELEMENTWISE, ELEMENTS_BF16, FB, "gelu"), False),
    _wide(128, I, 3), _wide(128, FB, 3), _wide(1024, I, 4), _wide(1024, FB, 4),
    Goal("H = 128 [90k, 64] forward", "µs", 136, 80, False, op(ADDITIVE, "[90k, 64], H = 128", I)),
    Goal("H = 1024 [90k, 64] forward", "µs", 1053, 80, False,
         op(ADDITIVE, "[90k, 64], H = 1024", I)),
    # 64 million sines
    Goal("SineSum(64) 1M forward", "T sines/s", 1.9, 2.5, True, op("sine_sum", SINES, I),
         scale=64.0, inverse=True),
    _net(NET_BF16, I, 0.11, 3, "bf16"), _net(NET_BF16, FB, 0.10, 3, "bf16"),
    _net(NET, I, 0.3, 2.5, "fp32"), _net(NET, FB, 0.24, 1.4, "fp32"),
    _net(f"{NET}, tf32", I, None, 3, "tf32"), _net(f"{NET}, tf32", FB, None, 2.5, "tf32"),
    _times("eager inference of AdditiveMLP [100, 64] over nn.Linear(64, 1)'s", None, 2,
           host(I, "fastmlp"),
           Key("host.json", "eager_us", {"what": "launch", "name": "nn.Linear(64, 1), inference"}),
           False),
    _times("eager f + b [90k, 64], plain's time", 2.1, 8, op(ADDITIVE, NINETY, FB, "torch",
           "eager_us"), op(ADDITIVE, NINETY, FB, field="eager_us")),
    _times("eager f + b [100, 64] over a Function that does nothing", None, 1.5,
           host(FB, "fastmlp", threaded=True), host(FB, "nothing", threaded=True), False),
    Goal("XOR × 4096, 5000 steps, without one epoch's time", "s", 3.1, 0.01, False,
         fit("MLP(2, 5, 1) × 4096, sigmoid, XOR, full batch of 4, 5000 epochs, SGD",
             "seconds_beyond_one_epoch")),
    Goal("10 000 SineSum(8), 1000 steps, whole call", "s", 0.93, 0.05, False,
         fit("SineSum(8) × 10 000, full batch of 60, 1000 epochs, AdamW")),
    Goal("AdditiveMLP × 1024, batch 100, a step of a model", "µs", 2.2, 0.1, False,
         fit("AdditiveMLP(64, 14) × 1024, batch 100, 1 epoch of 9000 rows, Adam", "us_per_step")),
    # as two cores of a 2.8 GHz Ice Lake Xeon
    Goal("AdditiveMLP × 1, batch 100, a step", "µs", 49, 33, False,
         fit("AdditiveMLP(64, 14), batch 100, 5 epochs of 9000 rows, Adam", "us_per_step")),
    Goal("ElementwiseMLP(3 × 10), full batch of 400 000, 5000 steps", "s", None, 0.44, False,
         fit("ElementwiseMLP(3 × 10), full batch of 400 000, 5000 epochs, Adam")),
)  # fmt: skip


def value(figures, goal):
    """What was measured for a goal, in its unit; ``None`` where it was not."""
    measured = look_up(figures, goal.figure)
    if measured is None:
        return None
    if goal.over is not None:
        other = look_up(figures, goal.over)
        return None if other is None else measured / other
    return goal.scale / measured if goal.inverse else measured * goal.scale


def look_up(figures, key):
    """The last figure of a key, without those of a dry run."""
    found = [
        record[key.field]
        for record in figures[key.file]
        if not record["dry"]
        and all(record.get(k) == v for k, v in key.where.items())
        and record.get(key.field) is not None
    ]
    return found[-1] if found else None
