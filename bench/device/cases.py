"""The cases that are measured on a device: an op, its size, its dtype, and beside whom.

Cases that a goal names come first, then those of other paths through the kernels.
"""

from dataclasses import dataclass

from common import Case

INFERENCE, TRAINING = ("inference",), ("inference", "forward_backward")
PLAIN, COMPILED = ("torch",), ("torch", "torch_compile")
SMALL, NET = {"widths": (1, 10, 10, 10, 1)}, {"widths": (64, 64, 64, 16)}
SQUARE = {"widths": (128, 128, 128)}
ROWS, ROWS_BF16 = "[1M, 64], 64-64-64-16", "[1M, 64] bf16, 64-64-64-16"
FEATURES = {"in_features": 64, "hidden_features": 14}


@dataclass(frozen=True, eq=False)
class DeviceCase(Case):
    """A case on a device.

    Args:
        op: Name of its suite in `run.py`.
        dtype: Of parameters and input.
        peers: Providers beside ours.
        precision: Of float32 matrix products, :func:`torch.set_float32_matmul_precision`.
        judged: Whether a rule for its terms exists: else the tests alone judge it.
        dry: Shape of its input in a dry run.
    """

    op: str = ""
    dtype: str = "float32"
    peers: tuple = PLAIN
    precision: str = "highest"
    judged: bool = True
    dry: tuple = ()


def _case(op, name, shape, dry, peers=PLAIN, settings=None, modes=TRAINING, **options):
    return DeviceCase(
        name, shape, modes, settings or {}, op=op, dry=dry, peers=peers, **options
    )  # fmt: skip


def _additive(name, rows, peers=PLAIN, dry=(), hidden=14, settings=None, **options):
    settings = {**FEATURES, "hidden_features": hidden, **(settings or {})}
    return _case("additive_mlp", name, (rows, 64), dry, peers, settings, **options)


CASES = (
    _additive("[90k, 64], H = 14", 90_000, COMPILED, dry=(3, 64), quick=True),
    _additive("[4M, 64], H = 14", 4_000_000, peers=()),
    _case(
        "elementwise_mlp", "[64M] + dx, H = 14", (64_000_000,), (50,), ("gelu",), x_grad=True,
        quick=True,
    ),
    _case("sine_sum", "[1M], W = 64", (1_000_000,), (50,), COMPILED, {"width": 64}, quick=True),
    _case(
        "piecewise_linear", "[64M] + dx, 256 segments", (64_000_000,), (50,), x_grad=True,
        settings={"hidden_features": 255}, quick=True,
    ),
    _case("mlp", ROWS_BF16, (1_000_000, 64), (5, 64), PLAIN, NET, dtype="bfloat16"),
    _case("mlp", ROWS, (1_000_000, 64), (5, 64), PLAIN, NET),
    _case("mlp", f"{ROWS}, tf32", (1_000_000, 64), (5, 64), PLAIN, NET, precision="high"),
    _case("mlp", "[1280, 1], 1-10-10-10-1", (1280, 1), (5, 1), COMPILED, SMALL, quick=True),
    _additive("[100, 64], H = 14", 100, COMPILED),
    _additive("[1M, 64], H = 14", 1_000_000, COMPILED),
    _additive("[1M, 64], H = 128", 1_000_000, peers=(), hidden=128),
    _additive("[1M, 64], H = 1024", 1_000_000, peers=(), hidden=1024),
    _additive("[90k, 64], H = 128", 90_000, peers=(), hidden=128),
    _additive("[90k, 64], H = 1024", 90_000, peers=(), hidden=1024),
    _case(
        "elementwise_mlp", "[8, 2048, 4096] bf16 + dx, H = 14", (8, 2048, 4096), (2, 3, 5),
        ("gelu",), x_grad=True, dtype="bfloat16",
    ),
    _case("elementwise_mlp", "[5.76M] + dx, H = 14", (5_760_000,), (50,), COMPILED, x_grad=True),
    _case("mlp", "[65536, 64], 64-64-64-16", (65_536, 64), (5, 64), COMPILED, NET),
    _case("mlp", "[65536, 128], 128-128-128", (65_536, 128), (5, 128), PLAIN, SQUARE),
    _case("mlp", "[1M, 1], 1-10-10-10-1", (1_000_000, 1), (5, 1), COMPILED, SMALL),
    _additive("[1M, 64] bf16, H = 14", 1_000_000, dtype="bfloat16"),
    _additive(
        "[90k, 64], H = 14, dropout 0.2", 90_000, COMPILED, modes=TRAINING[1:],
        settings={"dropout": 0.2}, judged=False,
    ),
    _additive(
        "[90k, 64], H = 14, not shared", 90_000, settings={"shared": False}, judged=False
    ),
    _additive(
        "[90k, 64], H = 14, tanh", 90_000, settings={"activation": "tanh"}, judged=False
    ),
    _additive("[90k, 64] fp64, H = 14", 90_000, dtype="float64"),
    _case("sine_sum", "[1M], W = 1024", (1_000_000,), (50,), (), {"width": 1024}),
)  # fmt: skip


def chosen(dry):
    """The cases of a run; in a dry one a case an op."""
    return [case for case in CASES if case.quick or not dry]
