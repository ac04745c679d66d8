"""Files that are damaged byte by byte, sizes beyond all memory, a million steps, an uninstall."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import example, given
from hypothesis import strategies as st

import fastmlp
from fastmlp import functional, piecewise


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Bytes of a saved FitResult, and where to put damaged ones."""
    x = torch.linspace(-1, 1, 8)
    with fastmlp.backend("torch"):
        result = fastmlp.fit([fastmlp.SineSum(2)], x, x.sin(), epochs=2, progress=False)
    path = tmp_path_factory.mktemp("fit") / "run.pt"
    result.save(path)
    return path.read_bytes(), path.with_name("damaged.pt")


def test_a_damaged_fit_result_loads_whole_or_is_refused(saved):
    whole, path = saved

    @example(at=0, byte=0, end=4097, cut=True)  # PyTorch raises an OSError of the content
    @given(
        at=st.integers(0, len(whole) - 1),
        byte=st.integers(0, 255),
        end=st.integers(0, len(whole)),
        cut=st.booleans(),
    )
    def test(at, byte, end, cut):
        content = whole[:end] if cut else whole[:at] + bytes([byte]) + whole[at + 1 :]
        path.write_bytes(content)
        try:
            result = fastmlp.FitResult.load(path)
        except ValueError as error:
            assert "no saved FitResult, or damaged" in str(error)  # noqa: PT017
        else:
            # a byte of padding, or of a number
            assert result.train_loss.shape == (1, 2)

    test()


def test_a_damaged_table_loads_or_is_refused():
    torch.manual_seed(0)
    table = piecewise.from_module(fastmlp.ElementwiseMLP(3))
    text = table.to_json()
    keys = sorted(json.loads(text))
    anything = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=5,
    )

    def load(damaged):
        try:
            loaded = piecewise.PiecewiseLinear.from_json(damaged)
        except ValueError as error:
            assert str(error)  # noqa: PT017
        else:
            assert loaded.values.isfinite().all()

    @given(at=st.integers(0, len(text) - 1), new=st.characters(), end=st.integers(0, len(text)))
    def characters(at, new, end):
        load(text[:at] + new + text[at + 1 :])
        load(text[:end])

    @given(key=st.sampled_from(keys), value=anything)
    def entries(key, value):
        load(json.dumps({**json.loads(text), key: value}))

    characters()
    entries()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (functional.elementwise_mlp, [(3, 1), (3,), (1, 3), (1,)]),
        (functional.additive_mlp, [(3, 1), (3,), (1, 3), (1,), (1, 5), (1,)]),
        (functional.sine_sum, [(3,)]),
    ],
    ids=["elementwise_mlp", "additive_mlp", "sine_sum"],
)
def test_an_output_beyond_all_memory_is_refused_with_its_size(function, arguments, backend):
    # an expanded input needs no memory; 2 PB of output do
    rows = 2**49 if function is functional.additive_mlp else 2**47
    x = torch.zeros(1, 5, device=backend.device).expand(rows, 5)
    parameters = [torch.zeros(shape) for shape in arguments]
    with pytest.raises(RuntimeError, match=r"(?i)memory|allocate") as caught:
        function(x, *(p.to(x) for p in parameters))
    assert len(str(caught.value)) < 2000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_a_million_steps_of_fit_take_no_more_memory():
    pytest.importorskip("numba")
    x = torch.linspace(-1, 1, 60)

    def steps(n):
        nets = [fastmlp.SineSum(1) for _ in range(100)]
        result = fastmlp.fit(
            nets, x, x.sin(), epochs=n // 6000, batch_size=1, shuffle=False, progress=False
        )
        assert result.steps == n
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = steps(60_000)
    # the losses of 100 models over 167 epochs take 0.13 MB
    assert steps(1_002_000) - before < 4096


def test_after_uninstalling_no_file_is_left(tmp_path):
    """Import and use write nothing beside the package, and the compile cache nowhere but its own.

    The package is copied to a folder of its own, used there, and listed again.
    """
    pytest.importorskip("numba")
    site, cache = tmp_path / "site", tmp_path / "cache"
    code = """
import sys, shutil, pathlib
import fastmlp, fastmlp.kernels
site = pathlib.Path(sys.argv[1])
for package, target in ((fastmlp, "fastmlp"), (fastmlp.kernels, "fastmlp/kernels")):
    shutil.copytree(pathlib.Path(package.__file__).parent, site / target, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__"))
"""
    subprocess.run([sys.executable, "-c", code, str(site)], check=True, cwd=tmp_path)
    before = {path for path in tmp_path.rglob("*") if cache not in path.parents}
    use = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path.insert(0, sys.argv[1])
import torch, fastmlp
assert fastmlp.__file__.startswith(sys.argv[1]), fastmlp.__file__
with fastmlp.backend("numba"):
    fastmlp.SineSum(2)(torch.ones(3))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    subprocess.run(
        [sys.executable, "-B", "-c", use, str(site)], check=True, cwd=tmp_path, env=environment
    )
    after = {path for path in tmp_path.rglob("*") if cache not in path.parents} - {cache}
    assert after == before
    assert {path.name for path in cache.iterdir()} <= {"fastmlp"}
