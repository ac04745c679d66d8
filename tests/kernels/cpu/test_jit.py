"""Compilation and its cache: in the user's directory, shared by processes, never in the way."""

import gc
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

import fastmlp.kernels  # noqa: E402
from fastmlp.kernels import cpu  # noqa: E402
from fastmlp.kernels.cpu import models  # noqa: E402
from fastmlp.kernels.cpu.lanes import models as lanes  # noqa: E402
from fastmlp.kernels.cpu.machine import cache, jit  # noqa: E402
from fastmlp.kernels.cpu.machine.digest import digest  # noqa: E402
from fastmlp.kernels.cpu.training import runs as rows  # noqa: E402

SCRIPT = """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import torch, fastmlp
    with fastmlp.backend("numba"):
        y = fastmlp.functional.elementwise_mlp(
            torch.tensor([-1.0, 2.0]), torch.ones(2, 1), None, torch.ones(1, 2), None
        )
        # its entry point is built of inner functions
        z = fastmlp.functional.sine_sum(torch.zeros(1), torch.ones(1))
assert y.tolist() == [0.0, 4.0], y
assert z.tolist() == [0.0], z
print("compiled", sum(e.is_start for _, e in recorder.buffer))
"""


NOTICE = re.compile(r"fastmlp: compiling kernels, .*\n")


def run(**environment):
    """Number of functions compiled by a fresh process; a variable of None is unset."""
    environment = {**os.environ, **environment}
    environment = {name: value for name, value in environment.items() if value is not None}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    # a machine that has more to do takes a second to compile, and says so
    assert result.stderr == "" or NOTICE.fullmatch(result.stderr), result.stderr
    return int(result.stdout.split()[-1])


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    """A cache directory that one process has filled."""
    directory = tmp_path_factory.mktemp("cache")
    assert run(XDG_CACHE_HOME=str(directory), NUMBA_CACHE_DIR=None) > 0
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other cache directories")
class TestCache:
    def test_compiled_code_is_in_the_users_directory(self, warm_cache):
        files = [path for path in warm_cache.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".kernel", ".lock"}
        assert all(path.relative_to(warm_cache).parts[0] == "fastmlp" for path in files)

    def test_nothing_is_written_into_the_package(self, warm_cache):
        installed = Path(fastmlp.kernels.__file__).parent
        assert not [*installed.rglob("*.nbi"), *installed.rglob("*.kernel")]

    def test_second_process_compiles_nothing(self, warm_cache):
        assert run(XDG_CACHE_HOME=str(warm_cache), NUMBA_CACHE_DIR=None) == 0

    def test_damaged_files_are_compiled_anew(self, warm_cache):
        damaged = sorted(warm_cache.rglob("*.kernel"))
        for i, path in enumerate(damaged):
            path.write_bytes(path.read_bytes()[:100] if i % 2 else b"")
        assert run(XDG_CACHE_HOME=str(warm_cache), NUMBA_CACHE_DIR=None) > 0
        assert run(XDG_CACHE_HOME=str(warm_cache), NUMBA_CACHE_DIR=None) == 0


def test_the_first_call_works_where_there_is_no_cache_directory():
    run(XDG_CACHE_HOME=None, HOME="/dev/null", LOCALAPPDATA=None, NUMBA_CACHE_DIR=None)


def test_the_first_call_works_without_a_home():
    run(XDG_CACHE_HOME=None, HOME=None, NUMBA_CACHE_DIR=None)


def test_directory_of_numba_is_respected(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert cache.user_cache_directory() == tmp_path / "fastmlp"


def test_read_only_cache_directory_is_survived(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write to read-only directories")
    tmp_path.chmod(0o500)
    assert run(XDG_CACHE_HOME=str(tmp_path), NUMBA_CACHE_DIR=None) > 0


def test_functions_are_compiled_once_whatever_constants_they_are_given(monkeypatch, tmp_path):
    # else it would be loaded the next time
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    @jit.inner
    def times(a, b, pair):
        return a * b + pair[0] + pair[1]

    @jit.inner_vectorized
    def plus(a, b):
        return a + b

    def kernel(a):
        return plus(times(a, 2, (1, a)), 5) + plus(times(a, 3, (a, 4)), 6)

    assert jit.kernel(kernel)(10) == (20 + 1 + 10 + 5) + (30 + 10 + 4 + 6)
    assert len(times.overloads) == 1
    assert len(plus.overloads) == 2


def test_every_kernel_can_be_kept():
    """One whose sources cannot be told apart from others is compiled anew in every process."""
    for info in pkgutil.walk_packages(cpu.__path__, f"{cpu.__name__}."):
        importlib.import_module(info.name)
    trainers = [rows.trainer_of(kind) for kind in models.VERBS]
    trainers += [lanes.trainer_of(kind) for kind in lanes.VERBS]
    solvers = [lanes.solver_of(kind) for kind in lanes.SOLVED]
    # their types: isinstance would ask a weak proxy whose object has gone
    sources = [o._sources for o in gc.get_objects() if type(o) is cache.KernelCache]
    # those of other tests are none of ours
    ours = [s for s in sources if any(map(_is_ours, s))]
    assert len(ours) >= 2 * len(trainers) + len(solvers)
    for source in ours:
        assert digest(source), source


def _is_ours(part):
    function = getattr(part, "py_func", part)
    return getattr(function, "__module__", "").startswith("fastmlp.kernels.")
