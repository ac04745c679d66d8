"""What is installed, what importing costs, and what works when an optional package is absent."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastmlp

ROOT = Path(__file__).resolve().parent.parent

BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError("blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""
USE = """
import torch, fastmlp
module = fastmlp.AdditiveMLP(3, 4)
module(torch.ones(2, 3)).sum().backward()
print(fastmlp.backends.choose("cpu"))
"""


def python(code, cwd, *flags):
    environment = {**os.environ, "FASTMLP_BACKEND": ""}
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )


def test_kernels_is_no_import_of_ours(tmp_path):
    code = "import kernels; print(kernels.__file__)"
    result = python(code, tmp_path)
    if result.returncode == 0:
        assert str(ROOT) not in result.stdout
    else:
        assert "No module named 'kernels'" in result.stderr


def test_kernels_are_installed_in_the_package(tmp_path):
    result = python("import fastmlp.kernels as k; print(k.__name__)", tmp_path)
    assert result.stdout == "fastmlp.kernels\n", result.stderr


def test_the_folder_refuses_its_bare_name():
    result = python("import kernels", ROOT)
    assert "this folder is the package `fastmlp.kernels`" in result.stderr


def test_import_is_light(tmp_path):
    code = """
import sys, torch
before = set(sys.modules)
import fastmlp
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "fastmlp" in loaded
    assert not loaded & {"triton", "numba", "llvmlite", "matplotlib", "tqdm", "lightning"}


@pytest.mark.parametrize(
    ("absent", "backend"),
    [
        ({"numba", "llvmlite", "triton"}, "torch"),
        ({"numba", "llvmlite"}, "torch"),
        ({"triton"}, "numba"),
        ({"matplotlib", "tqdm"}, "numba"),
    ],
    ids=["no_numba_no_triton", "no_numba", "no_triton", "no_matplotlib"],
)
def test_works_without(absent, backend, tmp_path):
    if backend == "numba":
        pytest.importorskip("numba")
    result = python(BLOCK.format(names=absent) + USE, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == backend


def test_absent_backend_is_refused_by_name(tmp_path):
    code = BLOCK.format(names={"numba", "llvmlite"}) + (
        "import fastmlp\nwith fastmlp.backend('numba'): pass"
    )
    result = python(code, tmp_path)
    assert "ValueError: backend 'numba' needs the package numba" in result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of a wheel built from a copy of what git tracks or would track."""
    pytest.importorskip("setuptools", minversion="68")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("fastmlp", "kernels", "tests", "bench", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".typed", ".json"):
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name == f"fastmlp-{fastmlp.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastmlp", f"fastmlp-{fastmlp.__version__}.dist-info"}
    for folder, target in (("fastmlp", "fastmlp"), ("kernels", "fastmlp/kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"{target}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "fastmlp/py.typed" in names


def test_installed_wheel_works_elsewhere(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    code = f"""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
sys.path.insert(0, {str(tmp_path / "site")!r})
import fastmlp.kernels
assert fastmlp.__file__.startswith({str(tmp_path)!r}), fastmlp.__file__
with fastmlp.backend("torch"):
    import torch
    fastmlp.AdditiveMLP(3, 4)(torch.ones(2, 3)).sum().backward()
if fastmlp.backends.is_installed("numba"):
    import fastmlp.kernels.cpu.additive_mlp
"""
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_version_is_written_once():
    text = "".join(
        (ROOT / name).read_text("utf-8") for name in ("setup.py", "pyproject.toml", "README.md")
    )
    assert f'"{fastmlp.__version__}"' not in text


def test_checkout_that_is_not_installed_says_what_to_do(tmp_path):
    # -S: without site-packages there is no editable install
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import fastmlp
"""
    result = python(code, tmp_path, "-S")
    assert "this checkout is not installed: run `pip install -e .` in it" in result.stderr
