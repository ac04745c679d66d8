"""Pieces on PyTorch's own threads: every row once, whatever the threads, and errors come out."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from fastmlp.kernels.cpu.machine import launch, team
from fastmlp.kernels.cpu.machine.jit import array_at, entry
from fastmlp.kernels.cpu.machine.team import Strided


@entry
def _scaled_rows(real):
    def scaled_rows(x_at, factor, sums_at, y_at, first, last):
        if factor < 0:
            raise MemoryError
        x, y = array_at(x_at, last, real), array_at(y_at, last, real)
        sums = array_at(sums_at, 2, np.int64)
        for i in range(first, last):
            y[i] += factor * x[i]
            sums[0] += 1
        sums[1] = first

    return scaled_rows


@pytest.fixture(params=["team", "pool"])
def threads(request, monkeypatch):
    """PyTorch's threads, or those of the pool where they cannot be had."""
    if request.param == "pool":
        monkeypatch.setattr(team, "_runtime", lambda: None)
    elif team._runtime() is None:
        pytest.skip("PyTorch has no OpenMP runtime here that can be called from outside")
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


def _run(n_rows, rows, factor=2.5):
    n_pieces = -(-n_rows // rows)
    x, y = torch.arange(n_rows, dtype=torch.float32), torch.ones(n_rows)
    sums = torch.zeros(n_pieces, 2, dtype=torch.int64)
    each = Strided(sums.data_ptr(), 16)
    arguments = x.data_ptr(), factor, each, y.data_ptr()
    launch.run(_scaled_rows[torch.float32], n_rows, rows, n_pieces, *arguments)
    return x, y, sums


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize(("n_rows", "rows"), [(10, 3), (4000, 1), (4096, 1024)])
def test_every_row_is_done_once_with_its_pieces_arguments(threads, n_threads, n_rows, rows):
    torch.set_num_threads(n_threads)
    x, y, sums = _run(n_rows, rows)
    assert torch.equal(y, 1 + 2.5 * x)
    assert sums[:, 0].sum() == n_rows
    assert torch.equal(sums[:, 1], torch.arange(0, n_rows, rows))


def test_a_kernel_that_has_no_memory_raises(threads):
    with pytest.raises(MemoryError):
        _run(100, 10, factor=-1.0)
    assert torch.equal(_run(100, 10)[1], 1 + 2.5 * torch.arange(100.0))


def test_an_interrupt_ends_a_call_between_its_slices(monkeypatch):
    if team._runtime() is None:
        pytest.skip("PyTorch has no OpenMP runtime here that can be called from outside")
    monkeypatch.setattr(team, "_SLICE_SECONDS", 0.0)
    n_rows = 2000
    x, y = torch.ones(n_rows), torch.zeros(n_rows)
    sums = torch.zeros(n_rows, 2, dtype=torch.int64)
    clock, ticks = time.perf_counter, iter(range(10**9))

    def looked_at_between_slices():
        if next(ticks) == 100:
            signal.raise_signal(signal.SIGINT)
        return clock()

    monkeypatch.setattr(team.time, "perf_counter", looked_at_between_slices)
    arguments = x.data_ptr(), 1.0, Strided(sums.data_ptr(), 16), y.data_ptr()
    with pytest.raises(KeyboardInterrupt):
        launch.run(_scaled_rows[torch.float32], n_rows, 1, n_rows, *arguments)
    assert 0 < y.sum() < n_rows
    assert not y[int(y.sum()) :].any()


ODD_FILE = """
import mmap, os, sys, tempfile, torch, fastmlp
with tempfile.NamedTemporaryFile(prefix=os.fsdecode(bytes([255])), dir=sys.argv[1]) as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
    with fastmlp.backend("numba"), torch.no_grad():
        fastmlp.ElementwiseMLP(5)(torch.randn(300_000))
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems demand names in Unicode")
def test_a_mapped_file_may_have_any_name(tmp_path):
    command = [sys.executable, "-c", ODD_FILE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "done\n", result.stderr


@pytest.mark.skipif(
    sys.platform != "linux" or not torch.backends.openmp.is_available(),
    reason="only PyTorch's Linux builds are known to have a runtime that can be called",
)
def test_pytorchs_own_runtime_is_found():
    assert team._runtime() is not None
