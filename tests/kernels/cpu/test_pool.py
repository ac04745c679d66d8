"""The thread pool, alone and below the ops: many callers, forks, errors."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("numba")

from fastmlp.kernels.cpu.machine import pool

import fastmlp

N_MANY_PIECES = 300_000


@pytest.fixture(params=[1, 2, 5], ids="{}_threads".format)
def n_threads(request):
    """Number of threads that PyTorch is set to."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_pieces", [0, 1, 2, 3, 100])
def test_every_piece_is_called_once(n_pieces, n_threads):
    calls = []
    pool.run_pieces(calls.append, n_pieces)
    assert sorted(calls) == list(range(n_pieces))


def test_no_more_threads_than_asked(n_threads):
    wanted = min(n_threads, (os.cpu_count() or 1) + 1)
    names, all_there = set(), threading.Event()

    def call(piece):
        names.add(threading.get_ident())
        if len(names) == wanted:
            all_there.set()
        all_there.wait(10)  # a busy machine lets some threads begin late
        time.sleep(0.001)  # and one more would come now

    pool.run_pieces(call, 40)
    assert len(names) == wanted


def test_an_error_is_raised_when_all_threads_are_done(n_threads):
    done = []

    def call(piece):
        if piece == 1:
            raise ValueError("piece 1")
        done.append(piece)

    with pytest.raises(ValueError, match="piece 1"):
        pool.run_pieces(call, 20)
    n_done = len(done)
    pool.run_pieces(lambda piece: None, 20)
    assert len(done) == n_done


def test_no_piece_is_begun_after_an_interrupt():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    begun = []

    def call(piece):
        begun.append(piece)
        time.sleep(0.001)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run_pieces(call, 1000)
        n_begun = len(begun)
        # each thread ends the piece that it is at, and may have begun a few on a busy machine
        assert n_begun < 500
        time.sleep(0.01)
        assert len(begun) == n_begun
    finally:
        torch.set_num_threads(before)


def test_an_interrupt_while_others_finish_waits_for_them():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    ended = []

    def call(piece):
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.01)  # the other thread takes the second piece
            return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.3)
        ended.append(piece)

    try:
        with pytest.raises(KeyboardInterrupt):
            pool.run_pieces(call, 2)
        assert len(ended) == 1
    finally:
        torch.set_num_threads(before)


# what runs when the interpreter ends starts no threads: from atexit, in a thread that outlives the
# main one, in a forked child
AT_EXIT = """
import atexit, os, sys, threading, torch, fastmlp
torch.set_num_threads(2)
module = fastmlp.ElementwiseMLP(5)
x = torch.randn(300_000, requires_grad=True)

def use(where):
    module(x).sum().backward()
    line = x[:50].detach()
    nets = [fastmlp.SineSum(2) for _ in range(3)]
    fastmlp.fit(nets, line, line.sin(), epochs=2, progress=False)
    lm = fastmlp.LevenbergMarquardt()
    fastmlp.fit(nets, line, line.sin(), epochs=2, optimizer=lm, progress=False)
    os.write(1, f"{where}\\n".encode())

def late():
    threading.main_thread().join()
    use("thread")

with fastmlp.backend("numba"):
    use("main")
    pid = os.fork()
    atexit.register(use, "child" if pid == 0 else "atexit")
    if pid:
        os.waitpid(pid, 0)
        threading.Thread(target=late).start()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_everything_runs_while_the_interpreter_ends():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_EXIT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.split() == ["main", "child", "thread", "atexit"], result.stderr
    # a process that compiles says so, after a second of it
    assert re.sub(r"fastmlp: compiling kernels, .*\n", "", result.stderr) == ""


def test_pieces_may_use_the_pool_themselves(n_threads):
    calls = []
    pool.run_pieces(lambda piece: pool.run_pieces(calls.append, 3), 4)
    assert sorted(calls) == sorted([0, 1, 2] * 4)


def _value_and_gradients(module, x):
    # no call to backward(): threads would add to the same .grad
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return [y, *torch.autograd.grad(y.sum(), [leaf, *module.parameters()])]


@pytest.mark.parametrize("n", [10, N_MANY_PIECES], ids=["one_piece", "many_pieces"])
def test_several_threads_call_one_module(n, draw):
    with fastmlp.backend("numba"):
        module = fastmlp.ElementwiseMLP(5)
        x = draw(n).float()
        expected = _value_and_gradients(module, x)

        def call(_):
            with fastmlp.backend("numba"):
                return _value_and_gradients(module, x)

        with ThreadPoolExecutor(8) as threads:
            for results in threads.map(call, range(16)):
                for a, b in zip(results, expected, strict=True):
                    assert torch.equal(a, b)


# a process of its own: here, other tests have started OpenMP, which PyTorch loses in a fork
FORK = """
import os, signal, torch, fastmlp
torch.set_num_threads(2)
module = fastmlp.ElementwiseMLP(5)
x = torch.randn(300_000, requires_grad=True)
dy = torch.randn(300_000)
leaves = [x, *module.parameters()]

def run():
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

with fastmlp.backend("numba"):
    before = run()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        after = run()
        os._exit(0 if all(map(torch.equal, before, after)) else 1)
    _, status = os.waitpid(child, 0)
    assert all(map(torch.equal, before, run()))
print("status", status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_computes():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, check=False
    )
    assert result.stdout == "status 0\n", result.stderr


class _Dataset(torch.utils.data.Dataset):
    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, i):
        with torch.no_grad():
            return self.module(torch.full((N_MANY_PIECES,), float(i)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_data_loader_workers_compute():
    module = fastmlp.ElementwiseMLP(5)
    dataset = _Dataset(module)
    expected = torch.stack([dataset[i] for i in range(4)])
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=1, timeout=60)
    assert torch.equal(next(iter(loader)), expected)
