"""Programs in the places where people run them: caches, forks, many processes, switches."""

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import fastmlp.kernels
import pytest

import fastmlp

pytest.importorskip("numba")
CHANGED = "hi_i, a_i = hi[i], real(factor * a[i])"
CHANGED_TO = "hi_i, a_i = hi[i], real(2 * factor * a[i])"
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other directories")

COUNTED = """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import torch, fastmlp
    y = fastmlp.functional.sine_sum(torch.full((2,), 0.5), torch.ones(1), scale=torch.pi)
print(round(y[0].item(), 4), sum(e.is_start for _, e in recorder.buffer))
"""

TINY = """
import os, sys, threading, time
import numpy as np, torch
from numba.core import event
from fastmlp.kernels.cpu.machine.jit import entry

class Slow(event.Listener):
    "Compiling takes a while, and is counted."
    def on_start(self, e):
        os.write(2, b"compiles\\n")
        began.set()
        time.sleep(1)
    def on_end(self, e):
        pass

began = threading.Event()
event.register("numba:compile", Slow())

@entry
def kernels(real):
    def half(x):
        return real(x) / real(2)
    return half
"""


def start(code, *, args=(), **options):
    """A process; a variable of the environment that is ``None`` is unset."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": None, **options.pop("environment", {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.Popen(
        [sys.executable, *args, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
    )  # fmt: skip


def run(code, **options):
    """Standard output and error of a process that must succeed, in good time."""
    process = start(code, **options)
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"hangs: {process.communicate()}")
    assert process.returncode == 0, err
    return out, err


def counted(**options):
    """Value of an op in a new process, and how many functions that process compiled."""
    value, n_compiled = run(COUNTED, **options)[0].split()
    return float(value), int(n_compiled)


@pytest.fixture(scope="module")
def warm_cache():
    """A cache that one process has filled, and that everybody may read."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        assert counted(environment={"XDG_CACHE_HOME": directory})[1] > 0
        yield directory


@linux
def test_byte_code_without_sources_runs_its_own_kernels(tmp_path):
    values = []
    for version in (1, 2):
        site = tmp_path / f"site{version}"
        shutil.copytree(Path(fastmlp.__file__).parent, site / "fastmlp")
        shutil.copytree(Path(fastmlp.kernels.__file__).parent, site / "fastmlp" / "kernels")
        path = site / "fastmlp" / "kernels" / "cpu" / "sines" / "rows.py"
        text = path.read_text("utf-8")
        assert text.count(CHANGED) == 1
        if version == 2:
            path.write_text(text.replace(CHANGED, CHANGED_TO), "utf-8")
        compileall.compile_dir(site, quiet=2, legacy=True)
        for source in site.rglob("*.py"):
            source.unlink()
        # one place, as an upgrade in place
        place = tmp_path / "site"
        shutil.rmtree(place, ignore_errors=True)
        site.rename(place)
        environment = {"PYTHONPATH": str(place), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        values.append(counted(environment=environment, cwd=tmp_path)[0])
    assert values == [1.0, 2.0]
    # the same code in an archive has the same kernels
    environment["PYTHONPATH"] = shutil.make_archive(str(place), "zip", place)
    shutil.rmtree(place)
    assert counted(environment=environment, cwd=tmp_path) == (2.0, 0)


@linux
def test_an_install_path_that_is_no_text(tmp_path, warm_cache):
    site = tmp_path / os.fsdecode(b"\xc3\xa9l\xc3\xa8ve \xff")
    shutil.copytree(Path(fastmlp.__file__).parent, site / "fastmlp")
    shutil.copytree(Path(fastmlp.kernels.__file__).parent, site / "fastmlp" / "kernels")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    # the path may not be told in the environment: it is an entry of sys.path here
    code = (
        f"import sys; sys.path.insert(0, {os.fsencode(site)!r}.decode('ascii', 'surrogateescape'))"
    )
    code += COUNTED + "print(ascii(fastmlp.__file__), sys.getfilesystemencoding())\n"
    value, n_compiled, *where = run(
        code, environment={"XDG_CACHE_HOME": warm_cache, **plain}, cwd=tmp_path
    )[0].split()
    assert (float(value), int(n_compiled)) == (1.0, 0)
    assert "udcff" in "".join(where)


@linux
def test_a_cache_that_may_not_be_written_is_read(warm_cache):
    def mount(*options):
        command = ["mount", "-o", *options, warm_cache, warm_cache]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    if os.geteuid() != 0:
        Path(warm_cache, "fastmlp").chmod(0o500)
    elif not (mount("bind") and mount("remount,bind,ro")):
        pytest.skip("this root may not mount")
    try:
        assert counted(environment={"XDG_CACHE_HOME": warm_cache}) == (1.0, 0)
    finally:
        if os.geteuid() != 0:
            Path(warm_cache, "fastmlp").chmod(0o755)
        else:
            subprocess.run(["umount", warm_cache], check=True)


@linux
def test_a_relative_cache_directory_is_ignored(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    environment = {"XDG_CACHE_HOME": "rel", "HOME": str(home)}
    assert run(TINY + "kernels[torch.float64](1.0)", environment=environment, cwd=here)
    assert list(here.iterdir()) == []
    assert list((home / ".cache").iterdir()) == [home / ".cache" / "fastmlp"]


def test_an_isolated_interpreter_and_a_strange_directory(tmp_path):
    code = TINY + "assert kernels[torch.float64](1.0) == 0.5"
    for _ in range(2):
        _, err = run(
            # what other packages warn of on import is not ours
            "import warnings, torch, numba\nwarnings.simplefilter('error')\n" + code,
            args=["-I"],
            environment={"XDG_CACHE_HOME": str(tmp_path / "a cache é")},
        )
    assert "compiles" not in err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
class TestForks:
    WAIT = (
        "deadline = time.monotonic() + 60\n"
        "while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):\n"
        "    if time.monotonic() > deadline: os.kill(child, 9); sys.exit('the child hangs')\n"
        "    time.sleep(0.05)\n"
        "assert os.waitstatus_to_exitcode(ended[1]) == 7, ended\n"
        "thread.join()\n"
    )

    def test_while_a_thread_compiles(self, tmp_path):
        code = TINY + (
            "thread = threading.Thread(target=kernels[torch.float64], args=(1.0,))\n"
            "thread.start(); began.wait()\n"
            "child = os.fork()\n"
            "assert kernels[torch.float32](1.0) == 0.5 and kernels[torch.float64](3.0) == 1.5\n"
            "if child == 0: os._exit(7)\n"
        )
        run(code + self.WAIT, environment={"XDG_CACHE_HOME": str(tmp_path)})

    def test_an_interrupt_meanwhile_comes_after_the_fork(self, tmp_path):
        code = TINY + (
            "import signal\n"
            "thread = threading.Thread(target=kernels[torch.float64], args=(1.0,))\n"
            "thread.start(); began.wait()\n"
            "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
            "interrupted = False\n"
            "try:\n"
            "    child = os.fork()\n"
            "    if child == 0:\n"
            "        assert kernels[torch.float32](1.0) == kernels[torch.float64](1.0) == 0.5\n"
            "        os._exit(7)\n"
            "    time.sleep(30)\n"
            "except KeyboardInterrupt:\n"
            "    interrupted = True\n"
            "assert interrupted\n"
            "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        )
        _, err = run(code + self.WAIT, environment={"XDG_CACHE_HOME": str(tmp_path)})
        assert "Exception ignored" not in err

    def test_intels_openmp_preloaded(self, warm_cache):
        # PyTorch's own launcher for CPUs preloads it
        library = Path(sysconfig.get_path("data"), "lib", "libiomp5.so")
        if not library.exists():
            pytest.skip("libiomp5.so is not installed: the package intel-openmp brings it")
        code = COUNTED + (
            "import os, threading\n"
            "w, x = torch.ones(1), torch.full((4_000_000,), 0.5)\n"
            "def large(): return fastmlp.functional.sine_sum(x, w, scale=torch.pi).mean().item()\n"
            "def fork():\n"
            "    if (child := os.fork()) == 0: os._exit(7 if abs(large() - 1) < 1e-6 else 1)\n"
            "    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
            "ended = []\n"
            "for _ in range(9):\n"
            "    large()\n"
            "    thread = threading.Thread(target=fork); thread.start(); thread.join()\n"
            "assert ended == [7] * 9, ended\n"
        )
        environment = {"XDG_CACHE_HOME": warm_cache, "LD_PRELOAD": str(library)}
        run(code, environment=environment)

    def test_one_of_many_processes_compiles(self, tmp_path):
        code = TINY + (
            "children, root = [], True\n"
            "for _ in range(3):\n"
            "    child = os.fork()\n"
            "    children, root = ([], False) if child == 0 else ([*children, child], root)\n"
            "assert kernels[torch.float64](1.0) == 0.5\n"
            "for child in children: assert os.waitpid(child, 0)[1] == 0\n"
            "if not root: os._exit(0)\n"
        )
        # each child forks again: eight in all
        _, err = run(code, environment={"XDG_CACHE_HOME": str(tmp_path)})
        assert err.count("compiles") == 1

    def test_variants_saved_at_once_stay_apart(self, tmp_path):
        code = TINY + (
            "replace = os.replace\n"
            "def slow(*a): time.sleep(0.2); replace(*a)\n"
            "os.replace = slow\n"
            "wide = os.fork() == 0\n"
            "kernels[torch.float64 if wide else torch.float32](1.0)\n"
            "if wide: os._exit(0)\n"
            "os.wait()\n"
        )
        environment = {"XDG_CACHE_HOME": str(tmp_path)}
        run(code, environment=environment)
        check = TINY + (
            "third = kernels[torch.float64](2 / 3), kernels[torch.float32](2 / 3)\n"
            "assert third == (1 / 3, np.float32(1 / 3)), third\n"
        )
        assert "compiles" not in run(check, environment=environment)[1]


class TestWithoutTheCompiler:
    CODE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, fastmlp
    net, x = fastmlp.SineSum(3), torch.linspace(-1, 1, 20)
    for _ in range(2):
        assert torch.equal(net(x), fastmlp.reference.sine_sum(x, net.w, scale=net.scale))
    fastmlp.fit([net], x, x.sin(), epochs=2, progress=False)
    assert fastmlp.backends.choose("cpu") == "torch"
ours = [str(w.message) for w in caught if "NUMBA_DISABLE_JIT" in str(w.message)]
assert len(ours) == 1, caught
try:
    with fastmlp.backend("numba"):
        pass
except ValueError as error:
    print(error)
"""

    def test_the_reference_runs_and_says_so_once(self):
        out, _ = run(self.CODE, environment={"NUMBA_DISABLE_JIT": "1", "FASTMLP_BACKEND": None})
        assert "NUMBA_DISABLE_JIT switches off" in out
