"""Vectors of numbers as a type of compiled functions, and the machine code that comes of it."""

import math
import platform
import re

import numpy as np
import pytest

pytest.importorskip("numba")

import numba
from fastmlp.kernels.cpu.lanes.layers import layers_forward
from fastmlp.kernels.cpu.lanes.normal_equations import add_products, place, solve_damped
from fastmlp.kernels.cpu.lanes.places import PLACES
from fastmlp.kernels.cpu.machine.jit import (
    array_at,
    fma,
    kernel,
    narrowed,
    rint,
    select,
    sign_of_odd,
    widened,
)
from fastmlp.kernels.cpu.machine.vectors import (
    LANE_BYTES,
    all_lanes,
    any_lane,
    lanes_of,
    load,
    load_wide,
    splat,
    splat_wide,
    store,
)
from llvmlite import binding as llvm


@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_operators_are_those_of_numbers(real):
    two, seven = real(2), real(7)

    def compute(x_at, y_at, out_at):
        x, y, at = load(x_at, real), load(y_at, real), out_at
        total = splat(two, real)
        total += x
        total *= y
        total -= x
        for value in (
            x + y, two * x - y, x / y, -x, abs(x), math.sqrt(abs(x)), fma(x, y, two), rint(x),
            select(x < y, x, seven), select((x >= y) | (y != y), two, y), total,
            narrowed(widened(x) * splat_wide(3.0, real), real),
            select((x > 0) & (y <= 0), x, y), select(x == y, x, two),
            sign_of_odd(x),
        ):  # fmt: skip
            store(at, value)
            at += LANE_BYTES
        return lanes_of(real)

    n = LANE_BYTES // real().itemsize
    x = np.linspace(-3, 4, n).astype(real)
    y = np.linspace(2, -1.7, n).astype(real)
    x[0], y[1], x[2], x[3] = np.nan, np.nan, np.inf, -np.inf
    y[4] = x[4]
    out = np.zeros((15, n), real)
    assert kernel(compute)(x.ctypes.data, y.ctypes.data, out.ctypes.data) == n
    with np.errstate(all="ignore"):
        bits = x.view(np.int32 if real is np.float32 else np.int64) & 1
        expected = [
            x + y, 2 * x - y, x / y, -x, abs(x), np.sqrt(abs(x)),
            (x.astype(np.longdouble) * y + 2).astype(real), np.rint(x),
            np.where(x < y, x, seven), np.where((x >= y) | (y != y), two, y), (2 + x) * y - x,
            (x.astype(float) * 3).astype(real), np.where((x > 0) & (y <= 0), x, y),
            np.where(x == y, x, two), np.where(bits, real(-1), real(1)),
        ]  # fmt: skip
    ulps = np.finfo(real).eps * 16
    for ours, theirs in zip(out, expected, strict=True):
        assert (np.isnan(ours) == np.isnan(theirs)).all()
        with np.errstate(invalid="ignore"):
            close = abs(ours - theirs) <= ulps * np.maximum(1, abs(theirs))
        assert (close | (ours == theirs) | np.isnan(theirs)).all(), (ours, theirs)


def test_questions_about_all_lanes():
    def ask(x_at):
        x, wide = load(x_at, np.float32), load_wide(x_at, np.float32)
        return 8 * any_lane(x > 1) + 4 * all_lanes(x > 1) + 2 * any_lane(wide != wide)

    n = LANE_BYTES // 4
    x = np.zeros(2 * n, np.float32)  # as many bytes as the wider one has
    answers = []
    for at, value in ((0, 0.0), (n - 1, 2.0), (slice(None), 2.0)):
        x[at] = value
        answers.append(kernel(ask)(x.ctypes.data))
    assert answers == [0, 8, 12]


def loops_of(assembly):
    """Instructions of the innermost loops: from a label to the jump back to it."""
    lines = [line.strip() for line in assembly.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    for i, line in enumerate(lines):
        jump = re.fullmatch(r"j\w+\s+(\.L\w+)", line)
        if jump and labels.get(jump[1], i) < i:
            body = lines[labels[jump[1]] + 1 : i]
            if not any(re.fullmatch(r"\.L\w+:", other) for other in body):
                yield body


of_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="counts the instructions of x86-64"
)
fuses = pytest.mark.skipif(
    not llvm.get_host_cpu_features().get("fma"),
    reason="this processor has no fused multiply-add",
)


@of_x86
@fuses
def test_products_are_packed_over_models_and_stay_in_registers():
    forward = layers_forward(np.float32)

    @numba.njit(fastmath={"contract"})
    def run(places, x, rows, net, n_net):
        return forward(array_at(places, 1, PLACES)[0], x, rows, net, n_net, -1)

    run.compile((numba.int64,) * 5)
    assembly = run.inspect_asm(run.signatures[0])
    products = [b for b in loops_of(assembly) if any("vfmadd" in i for i in b)]
    assert products
    packed = [b for b in products if any(re.match(r"vfmadd\w+ps", i) for i in b)]
    assert len(packed) == len(products), "a product of single numbers"
    # four rows share the load of a weight, and no sum leaves its register
    sums = [b for b in packed if not any(re.match(r"v(mul|add|sub|div)p", i) for i in b)]
    assert any(sum(i.startswith("vfmadd") for i in b) in (4, 8, 16) for b in sums)
    for body in sums:
        assert not any("(%rsp" in i for i in body if "ymm" in i or "zmm" in i)


@of_x86
@fuses
def test_sums_of_products_are_packed_over_models_and_stay_in_registers():
    @numba.njit(fastmath={"contract"})
    def run(rows, n, columns, stride, sums):
        add_products(rows, n, columns, stride, sums)

    run.compile((numba.int64,) * 5)
    assembly = run.inspect_asm(run.signatures[0])
    products = [b for b in loops_of(assembly) if any("vfmadd" in i for i in b)]
    assert products
    for body in products:
        fused = [i for i in body if "vfmadd" in i]
        assert all(re.match(r"vfmadd\w+pd", i) for i in fused), "a product of single numbers"
        assert not any("(%rsp" in i for i in body if "ymm" in i or "zmm" in i)

    # four products share four loads
    def count(pattern, body):
        return sum(bool(re.search(pattern, i)) for i in body)

    assert any(count("vfmadd", b) == count(r"^v.*\(.*\),", b) for b in products)


LANES = LANE_BYTES // 8


def triangle(matrices):
    """The lower triangles [entries, lanes] of [lanes, n, n]."""
    at = np.tril_indices(matrices.shape[1])
    return np.ascontiguousarray(matrices[:, at[0], at[1]].T)


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 7])
def test_sums_of_products(columns):
    run = kernel(add_products.py_func)
    rng = np.random.default_rng(0)
    stride = columns + columns % 2
    rows = np.zeros((5, stride, LANES))
    rows[:, :columns] = rng.standard_normal((5, columns, LANES))
    start = rng.standard_normal((LANES, columns, columns))
    sums = triangle(start)
    run(rows.ctypes.data, 5, columns, stride * LANE_BYTES, sums.ctypes.data)
    exact = start + np.einsum("ril,rjl->lij", rows[:, :columns], rows[:, :columns])
    np.testing.assert_allclose(sums, triangle(exact), rtol=0, atol=64 * np.finfo(float).eps)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 9, 21])
def test_damped_steps_and_the_lanes_that_have_none(p):
    real = np.float64

    def run(sums, inverse, damping, low, step, out):
        ok, inside, norm = solve_damped(sums, inverse, load(damping, real), p, low, step)
        store(out, select(ok, splat(1.0, real), 0.0))
        store(out + LANE_BYTES, inside)
        store(out + 2 * LANE_BYTES, norm)
        return place(p, p)

    rng = np.random.default_rng(0)
    jacobian = rng.standard_normal((LANES, 30, p + 1))
    sums = np.einsum("lri,lrj->lij", jacobian, jacobian)
    scale = rng.uniform(0.5, 2, (LANES, p))
    damping = 10.0 ** rng.uniform(-3, 1, LANES)
    # less than all eigenvalues, so that some pivot is below 0
    damping[2] = -1e3
    inverse = np.full((p + 1, LANES), -1.0)
    inverse[:p] = 1 / scale.T
    step, out = np.zeros((p, LANES)), np.zeros((3, LANES))
    low = np.zeros(((p + 1) * (p + 2) // 2, LANES))
    packed = triangle(sums)
    arrays = packed, inverse, damping, low, step, out
    kernel(run)(*(a.ctypes.data for a in arrays))
    for l in range(LANES):
        assert out[0, l] == (l != 2)
        if l == 2:
            continue
        scaled = sums[l, :p, :p] / np.outer(scale[l], scale[l])
        exact = np.linalg.solve(scaled + damping[l] * np.eye(p), -sums[l, p, :p] / scale[l])
        bound = 64 * np.finfo(float).eps * np.linalg.cond(scaled + damping[l] * np.eye(p))
        assert abs(step[:, l] - exact).max() <= bound * abs(exact).max()
        inside = -exact @ (sums[l, p, :p] / scale[l])
        assert abs(out[1, l] - inside) <= bound * abs(inside)
        assert abs(out[2, l] - exact @ exact) <= bound * (exact @ exact)
