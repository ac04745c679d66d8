"""Every op on the device once, against float64: `python -m fastmlp`, a figure an op."""

from device import timing
from device.report import first_line
from fastmlp import __main__ as checks
from fastmlp import functional


def run(report):
    """The step."""
    for op in functional.__all__:
        if report.over():
            report.cut(f"{op} and what follows it")
            return
        figure = {"what": "self-test", "op": op}
        try:
            with timing.backend(report):
                ours, torchs = checks.self_test(op, "triton", report.device)
        except Exception as error:  # the other ops are tested
            report.figure("ops.json", **figure, ok=False, error=first_line(error))
            continue
        bounds = [checks.SLACK * error + checks.FLOOR for error in torchs]
        report.figure(
            "ops.json", **figure, ok=all(o <= b for o, b in zip(ours, bounds, strict=True)),
            ulps=ours, torch_ulps=torchs,
        )  # fmt: skip
