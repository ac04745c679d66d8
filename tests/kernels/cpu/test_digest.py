"""One number for all that a kernel is compiled from."""

import types

import pytest

pytest.importorskip("numba")

from fastmlp.kernels.cpu.machine import jit
from fastmlp.kernels.cpu.machine.digest import digest, forget


def of(source, name="f", **found):
    module = types.ModuleType("program")
    module.__dict__.update(found)
    exec(source, module.__dict__)
    forget()
    try:
        return digest(module.__dict__[name])
    finally:
        forget()


def test_what_is_compiled_counts():
    versions = [
        "def f(x): return x + 1",
        "def f(x): return x + 2",
        "def f(x): return x + 2.0",
        "def f(x): return x + True",
        "def f(x): return x - 1",
        "def f(x, y=3): return x + 1",
        "def f(x, y=4): return x + 1",
        "def g(x): return x\ndef f(x): return g(x)",
        "def g(x): return -x\ndef f(x): return g(x)",
        "def h(x): return x\ndef g(x): return h(x)\ndef f(x): return g(x)",
        "def h(x): return -x\ndef g(x): return h(x)\ndef f(x): return g(x)",
        "c = 1\ndef f(x): return x + c",
        "c = 2\ndef f(x): return x + c",
        "c = 1, 2\ndef f(x): return x + c[0]",
        "c = 1, 3\ndef f(x): return x + c[0]",
        "def m(c):\n def f(x): return x + c\n return f\nf = m(1)",
        "def m(c):\n def f(x): return x + c\n return f\nf = m(2)",
        "def f(x): return f(x - 1) if x else 1",
        "def f(x): return f(x - 1) if x else 2",
        "def g(x): return f(x)\ndef f(x): return g(x) if x else 1",
        "def g(x): return f(x)\ndef f(x): return g(x) if x else 2",
    ]
    assert len({of(source) for source in versions}) == len(versions)


def test_members_of_a_cycle_count_whoever_is_asked_first():
    source = "def g(x): return f(x) if x else {}\ndef f(x): return g(x)"
    for name in "fg":
        assert of(source.format(1), name) != of(source.format(2), name)


def test_the_place_in_the_file_does_not():
    source = "def f(x):\n return x + 1"
    assert of(source) == of("\n\n# a comment\n" + source.replace("\n", "\n\n"))


def test_options_count():
    def function(x):
        return x

    plain, ordered = jit.inner(function), jit.inner_in_order(function)
    alone = jit.inner_vectorized(function)
    assert len({digest(plain), digest(ordered), digest(alone)}) == 3


def test_the_unknown_is_refused():
    with pytest.raises(TypeError, match="cannot tell object objects apart"):
        digest(object())
    assert digest(jit.copy) == digest(jit.copy)
