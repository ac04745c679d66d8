"""The rules of `source_rules.py` find what is planted, and nothing else."""

import ast
from pathlib import Path

import pytest
import source_rules


def test_rings():
    graph = {"a": {"b.name"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"math"}, "f": {"a"}}
    assert source_rules.rings(graph) == ["a", "b", "c"]
    assert source_rules.rings({**graph, "c": {"d"}}) == []


def test_relative_imports_are_resolved():
    tree = ast.parse("from ..machine.jit import inner\nfrom . import rows\nimport math")
    found = [*source_rules.imported(tree, "fastmlp.kernels.cpu.subnet")]
    assert found == [
        "fastmlp.kernels.cpu.machine.jit.inner", "fastmlp.kernels.cpu.subnet.rows", "math",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("machine/launch.py", "from ..subnet.segments import Subnet", True),
        ("machine/launch.py", "def f():\n    from ..subnet import segments", True),
        ("numbers/search.py", "from ..subnet.canonical import BLOCK", True),
        ("layers/rows.py", "from ..subnet.canonical import append", True),
        ("subnet/verbs.py", "from .. import mlp", True),
        ("training/loop.py", "from ..levenberg_marquardt import solver", True),
        ("training/loop.py", "from ..layers.rows import padded", False),
        ("training/runs.py", "from ..models import VERBS", False),
        ("models.py", "from .training.loop import trainer", True),
        ("models.py", "from .layers import verbs", False),
        ("subnet/verbs.py", "from . import general", False),
        ("mlp.py", "from .layers.rows import forward", False),
        ("numbers/tile.py", "from ...spec import CODES", False),
    ],
)  # fmt: skip
def test_climbs(file, source, found):
    wing = Path("kernels/cpu")
    assert bool([*source_rules.climbs(wing, wing / file, ast.parse(source))]) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n    from fastmlp.training import compiled", True),
        ("def f():\n    import numpy", True),
        ("def f():\n    from matplotlib import pyplot", False),
        ("def f():\n    from fastmlp.kernels.cpu.machine import pool", False),
        ("from fastmlp.training import compiled", False),
    ],
)  # fmt: skip
def test_late_imports(source, found):
    assert bool([*source_rules.lazy(ast.parse(source))]) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from .launch import _total", True),
        ("from fastmlp.models import _step", True),
        ("from .. import sine_sum\nsine_sum._fwd[real]", True),
        ("from torch import _C", False),
        ("from .. import sine_sum\nself._fwd", False),
        ("from .rows import forward\nforward.__name__", False),
    ],
)  # fmt: skip
def test_private_names(source, found):
    assert bool([*source_rules.private(ast.parse(source))]) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("n = sizes[0]", True), ("n = structure.sizes[5]", True), ("SIZES[3 + 2 * n + l]", True),
        ("reals[1]", True), ("sizes[i]", False), ("sizes[2 * i + 1]", False),
        ("net[1 + layer]", True), ("data[7]", True), ("structure[:5]", False), ("net[at]", False),
        ("sizes[N_SIZES:]", False), ("sizes.n_hidden", False), ("widths[0]", False),
    ],
)  # fmt: skip
def test_positions(source, found):
    assert bool([*source_rules.positions(ast.parse(source))]) == found


def test_large_functions():
    body = "\n".join(f"    x = {i}" for i in range(9))
    source = f'def long():\n    """One\n\n\n    two."""\n{body}\n\ndef wide(a, b, *, c): pass'
    assert [*source_rules.large(ast.parse(source), 8, 2)] == ["long", "wide"]
    assert not [*source_rules.large(ast.parse(source), 9)]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("isinstance(m, AdditiveMLP)", True), ("isinstance(m, (nn.Linear, reference.MLP))", True),
        ("issubclass(type(m), tuple(NAMESAKES))", True), ("type(m) is fastmlp.SineSum", True),
        ("type(m) in NAMESAKES", True), ("NAMESAKES[type(m)]", True),
        ("isinstance(m, nn.Linear)", False), ("is_ours(m)", False), ("MLP(3, [4], 1)", False),
    ],
)  # fmt: skip
def test_what_counts_as_recognising_a_module(source, found):
    assert bool(list(source_rules.recognitions(ast.parse(source)))) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.zeros(3)", True), ("torch.zeros(3, device=x.device)", False),
        ("torch.fft.fftfreq(3)", True), ("torch.nn.Linear(1, 2)", True),
        ("nn.Linear(1, 2, **factory)", False), ("torch.zeros_like(x)", False),
        ("np.zeros(3)", False), ("x.new_zeros(3)", False), ("torch.from_numpy(x)", False),
    ],
)  # fmt: skip
def test_what_counts_as_an_allocation_without_device(source, found):
    assert bool(list(source_rules.without_device(ast.parse(source)))) == found
