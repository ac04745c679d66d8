"""MLP kernels compiled for every card, kind of product, width and depth: `make thorough`."""

import pytest
import tensor_core_figures

pytest.importorskip("triton")
settings = pytest.importorskip("hypothesis").settings

SHARES = 8


@pytest.mark.parametrize("share", range(SHARES))
def test_compiled_kernels_are_as_wanted(share, tmp_path):
    if settings.default.max_examples < 1000:
        pytest.skip("takes minutes: make thorough")
    compiled = tensor_core_figures.figures_of(f"{share}/{SHARES}", tmp_path)
    found = {where: tensor_core_figures.problems(where, row) for where, row in compiled.items()}
    assert {where: what for where, what in found.items() if what} == {}
