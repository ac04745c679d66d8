"""Products on tensor cores: as inexact as those are, emulated in NumPy; and what is compiled."""

import numpy as np
import pytest
import tensor_core_figures
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
    return tensor_core_figures.figures_of("sample", tmp_path_factory.mktemp("cache"))


def test_compiled_kernels_are_as_wanted(compiled):
    assert len(compiled) > 2 * len(tensor_core_figures.SAMPLE)
    found = {where: tensor_core_figures.problems(where, row) for where, row in compiled.items()}
    assert {where: what for where, what in found.items() if what} == {}


def test_every_kind_of_tensor_core_is_used(compiled):
    """Those of the newest cards too, which have the instructions of older ones."""
    wanted = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "sm_120": "HMMA"}
    for where, row in compiled.items():
        target, way, *_ = where.split()
        if way == "bf16" and target in wanted:
            assert wanted[target] in row["tensor_core"], where
    assert any("DMMA" in row["tensor_core"] for row in compiled.values())


def test_what_kernels_must_not_have_is_found():
    good = {
        "tensor_core": {"HMMA": 1}, "registers": 255, "stack": 0, "shared_kb": 99.0,
        "tensor_memory": 0, "fp64": 0, "stored_per_row": 32.0, "written_per_row": 32,
    }  # fmt: skip
    where = "sm_86 bf16 16-16-16 relu backward 0 mlp_cores_bwd"
    assert tensor_core_figures.problems(where, good) == []
    faults = {
        "tensor_core": {}, "stack": 72, "shared_kb": 99.1, "tensor_memory": 528, "fp64": 1,
        "stored_per_row": 40.0,
    }  # fmt: skip
    for name, value in faults.items():
        assert len(tensor_core_figures.problems(where, {**good, name: value})) == 1, name
    forward = where.replace("backward", "forward")
    assert len(tensor_core_figures.problems(forward, {**good, "stack": 8})) == 1
