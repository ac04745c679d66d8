"""One small program where people run it: the same numbers everywhere, bit for bit.

Several surroundings share a process where they do not hide each other.
"""

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("numba")

CHECK = """
import hashlib, torch, fastmlp

def check(_=None):
    with fastmlp.backend("numba"):
        torch.manual_seed(0)
        net = fastmlp.SineSum(3)
        x = torch.tensor([-1.0, -0.75, -0.3, 0.0, 0.2, 0.5, 1.0], requires_grad=True)
        y = net(x)
        y.backward(x.detach())
        # several pieces, dealt to threads; linspace and sums would differ with their number
        wide = net(torch.arange(400_000) / 2**15).detach()
        x = x.detach()
        loss = fastmlp.fit([net], x, x * x, epochs=3, progress=False).train_loss
    digest = hashlib.sha256()
    for t in y.detach(), net.w.grad, net.w.detach(), wide, loss:
        digest.update(t.numpy().tobytes())
    return digest.hexdigest()
"""

STRICT = """
import sys, warnings, numba  # what other packages warn of on import is not ours
warnings.simplefilter("error")
assert sys.flags.optimize == 2 and sys.flags.isolated
print(check())
"""

BARE = """
import os
from pathlib import Path
assert not Path("/proc/self").exists()
try:
    Path(__file__).with_name("new").touch()
except OSError:
    print(check())
"""

TRACED = """
import gc, os, resource, sys, threading
results = [check()]

# debuggers and coverage
sys.settrace(lambda *a: None)
sys.setprofile(lambda *a: None)
threading.settrace(lambda *a: None)
results.append(check())
sys.settrace(None), sys.setprofile(None), threading.settrace(None)

# small stacks, threads that come and go
threading.stack_size(256 * 1024)
threads = [threading.Thread(target=lambda: results.append(check())) for _ in range(3)]
for thread in threads: thread.start(); thread.join()

for n in (1, 3, 16):
    torch.set_num_threads(n)
    results.append(check())
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results.append(check())
assert len(results) >= 8 and len(set(results)) == 1, results
print(results[0])

# growth
def calls(n_calls, n_fits):
    net, x = fastmlp.SineSum(3), torch.linspace(-1, 1, 7)
    with torch.no_grad():
        for _ in range(n_calls):
            net(x)
    for _ in range(n_fits):
        fastmlp.fit([net], x, x.sin(), epochs=1, progress=False)
        net(x).sum().backward()
    gc.collect()

calls(2_000, 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
calls(100_000, 200)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown * (1024 if sys.platform == "linux" else 1) < 4e6, grown
"""

STARTED = """
import multiprocessing, sys

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, i): return check()

if __name__ == "__main__":
    results = [check()]
    for method in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context(method).Pool(1) as pool:
            results += pool.map(check, [0])
    for batch in torch.utils.data.DataLoader(Rows(), num_workers=2):
        results += batch
    try:
        from joblib.externals import loky
    except ModuleNotFoundError:
        pass
    else:
        results += loky.get_reusable_executor(max_workers=1).map(check, [0])
    assert len(set(results)) == 1, results
    print(results[0])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of a name that scripts stumble over, with a cache in it."""
    from fastmlp.kernels.cpu.machine.cache import user_cache_directory

    folder = tmp_path_factory.mktemp("environments") / "a place: ü 'é'"
    kept = folder / "ca che" / "fastmlp"
    kept.mkdir(parents=True)
    # not to compile again what other tests have compiled
    for path in (user_cache_directory() or folder).glob("*.kernel"):
        if path.name.startswith(("sine_sum.", "training.", "launch.", "team.")):
            shutil.copy(path, kept)
    return folder


@pytest.fixture(scope="module")
def expected(place):
    return run(place, "")


def run(place, code, *flags, before=(), **environment):
    """What the program says in these surroundings; a variable that is ``None`` is unset."""
    path = place / "prógram 1.py"
    path.write_text(CHECK + (code or "print(check())"), "utf-8")
    cache = str(place / "ca che")
    environment = {
        **os.environ, "XDG_CACHE_HOME": cache, "NUMBA_CACHE_DIR": None, **environment
    }  # fmt: skip
    environment = {name: value for name, value in environment.items() if value is not None}
    result = subprocess.run(
        [*before, sys.executable, *flags, str(path)],
        env=environment, cwd=place, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_optimized_isolated_strict_and_homeless(place, expected):
    value = run(place, STRICT, "-OO", "-I", HOME=None, LC_ALL="C", PYTHONUTF8="0")
    assert value == expected


def test_tracers_stacks_threads_and_growth(place, expected):
    before = () if shutil.which("bash") is None else ("bash", "-c", 'ulimit -s 512; exec "$@"', "_")
    value = run(place, TRACED, before=before, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1")
    assert value == expected


def test_ways_to_start_processes(place, expected):
    assert run(place, STARTED) == expected


def test_no_proc_and_nothing_to_write_to(place, expected):
    mounts = "mount -t tmpfs none /proc && mount -o remount,bind,ro / && "
    mounts += 'mount --bind "$PWD" "$PWD" && mount -o remount,bind,ro "$PWD" && '
    before = ("unshare", "-m", "bash", "-c", mounts + 'exec "$@"', "_")
    if shutil.which("unshare") is None or subprocess.run(
        [*before, "true"], cwd=place, capture_output=True, check=False
    ).returncode:  # fmt: skip
        pytest.skip("this user may not mount")
    assert run(place, BARE, before=before) == expected
