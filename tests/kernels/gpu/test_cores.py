"""Products on tensor cores: as inexact as those are, emulated in NumPy; and what is compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_as_good_as_torch
from tensor_cores import dot, split_product, terms_of, to_bfloat16, to_tf32

RNG = np.random.default_rng(0)
SHAPE = 64, 64


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def cancelling():
    """Large terms whose sum is small: each column of b is twice there, once nearly negated."""
    a, b = normal(*SHAPE), normal(*SHAPE)
    a[:, 32:] = a[:, :32]
    b[32:] = -b[:32] * (1 + 1e-4 * normal(32, 64)).astype(np.float32)
    return a, b


OPERANDS = {
    "normal": lambda: (normal(*SHAPE), normal(*SHAPE)),
    "positive": lambda: (np.abs(normal(*SHAPE)), np.abs(normal(*SHAPE))),
    "cancelling": cancelling,
    "sizes apart": lambda: (normal(*SHAPE) * np.exp(5 * normal(*SHAPE)), normal(*SHAPE)),
    "tiny": lambda: (normal(*SHAPE) * np.float32(1e-18), normal(*SHAPE) * np.float32(1e-12)),
    "huge": lambda: (normal(*SHAPE) * np.float32(1e18), normal(*SHAPE) * np.float32(1e18)),
    "inner dimension of 128": lambda: (normal(64, 128), normal(128, 64)),
    "few bits": lambda: (to_bfloat16(normal(*SHAPE)), normal(*SHAPE)),
}


def judge(product, a, b):
    tensors = [torch.from_numpy(np.ascontiguousarray(t, np.float32)) for t in (a, b)]
    exact = tensors[0].double() @ tensors[1].double()
    terms = tensors[0].double().abs() @ tensors[1].double().abs()
    ours = torch.from_numpy(product(a, b))
    assert_as_good_as_torch(ours, tensors[0] @ tensors[1], exact, terms=terms)


@pytest.mark.parametrize("name", OPERANDS)
def test_products_of_split_numbers_are_as_good_as_pytorchs(name):
    judge(split_product, *OPERANDS[name]())


def test_terms_sum_up_to_the_number():
    x = normal(10_000) * np.exp(10 * normal(10_000))
    assert (sum(t.astype(np.float64) for t in terms_of(x)) == x).all()


def test_fewer_terms_are_told_apart():
    """Three products of two terms, one of tf32: the rule takes neither."""
    a, b = OPERANDS["normal"]()

    def of_two_terms(a, b):
        left, right = terms_of(a), terms_of(b)
        total = dot(left[1], right[0], np.zeros(SHAPE))
        return dot(left[0], right[0], dot(left[0], right[1], total))

    for product in (of_two_terms, lambda a, b: dot(to_tf32(a), to_tf32(b), np.zeros(SHAPE), 8)):
        with pytest.raises(AssertionError):
            judge(product, a, b)


def test_sums_over_tiles_are_rounded():
    """4096 rows of one sign: what a tensor core cuts off of its own sum adds up."""
    h, g = np.abs(normal(4096, 16)), np.abs(normal(4096, 16))

    def rounded(a, b):
        total = np.zeros((16, 16), np.float32)
        for tile in range(0, 4096, 64):
            total = total + split_product(a[:, tile : tile + 64], b[tile : tile + 64])
        return total

    judge(rounded, h.T, g)
    with pytest.raises(AssertionError):
        judge(split_product, h.T, g)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Figures of kernels compiled for cards that are not there; no GPU is needed."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    environment.pop("TRITON_INTERPRET", None)
    bench = Path(__file__).parents[3] / "bench"
    program = Path(__file__).with_name("tensor_core_figures.py")
    run = subprocess.run(
        [sys.executable, str(program), str(bench)], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_compiled_kernels_use_tensor_cores(compiled):
    found, without = compiled
    assert len(found) >= 12
    for where, row in found.items():
        assert sum(row["tensor_core"].values()) > 0, where
        assert row["fp64"] == 0, where
    assert without == 0


def test_compiled_kernels_stay_in_registers(compiled):
    for where, row in compiled[0].items():
        most = 64 if where.endswith("bwd") else 0
        assert row["stack"] <= most, (where, row)


def test_gradients_are_written_behind_the_loop(compiled):
    """The kernels were compiled without dx: no loop over tiles stores anything."""
    for where, row in compiled[0].items():
        assert (row["stores_in_loop"] == 0) == where.endswith("bwd"), (where, row)
