"""What is installed, what importing costs, and what works when an optional package is absent."""

import email
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastmlp
from fastmlp import frozen

ROOT = Path(__file__).resolve().parent.parent

USE = """
import torch, fastmlp
module = fastmlp.AdditiveMLP(3, 4)
module(torch.ones(2, 3)).sum().backward()
print(fastmlp.backends.choose("cpu"))
"""


def python(code, cwd, *flags, absent=""):
    """Run code in a process of its own, from which packages are hidden."""
    environment = {**os.environ, "FASTMLP_BACKEND": ""}
    if absent:
        environment |= {"ABSENT": absent, "PYTHONPATH": str(ROOT / "tests" / "absent")}
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
        ("numba llvmlite triton", "torch"),
        ("numba llvmlite", "torch"),
        ("triton", "numba"),
        ("matplotlib tqdm", "numba"),
    ],
    ids=["no_numba_no_triton", "no_numba", "no_triton", "no_matplotlib"],
)
def test_works_without(absent, backend, tmp_path):
    if backend == "numba":
        pytest.importorskip("numba")
    result = python(USE, tmp_path, absent=absent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == backend


def test_absent_backend_is_refused_by_name(tmp_path):
    code = "import fastmlp\nwith fastmlp.backend('numba'): pass"
    result = python(code, tmp_path, absent="numba llvmlite")
    assert "ValueError: backend 'numba' needs the package numba" in result.stderr


def test_levenberg_marquardt_without_numba_is_refused_by_name(tmp_path):
    code = (
        "import torch, fastmlp\n"
        "x = torch.linspace(-1, 1, 9)\n"
        "lm = fastmlp.LevenbergMarquardt()\n"
        "fastmlp.fit(fastmlp.SineSum(2), x, x, epochs=2, optimizer=lm, progress=False)"
    )
    result = python(code, tmp_path, absent="numba llvmlite")
    message = "kernels of levenberg_marquardt.py need the package numba, which is not installed"
    assert f"ModuleNotFoundError: the {message}" in result.stderr


FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md",
         "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml")  # fmt: skip
FOLDERS = ("fastmlp", "kernels", "tests", "bench", "examples", "docs")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what git tracks or would track, with the left-overs of a build long ago."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in FILES:
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in FOLDERS:
        leave_out = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / folder, source / folder, ignore=leave_out)
    stale = source / "build" / "lib" / "fastmlp" / "deleted_since.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    return source


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    """Folder of an unpacked sdist."""
    out = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    result = python(code, source)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.tar.gz")
    shutil.unpack_archive(path, out, filter="data")
    return out / f"fastmlp-{fastmlp.__version__}"


def build_wheel(folder, out):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(out), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Path of a wheel built from the sdist."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def contents(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_from_the_checkout_equals_that_from_the_sdist(source, wheel, tmp_path):
    # the checkout has a build/ with a module that has been deleted since
    assert contents(build_wheel(source, tmp_path)) == contents(wheel)


def test_metadata_are_complete_and_links_are_absolute(wheel, sdist):
    (name,) = (name for name in contents(wheel) if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(contents(wheel)[name])
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"]
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert {"Homepage", "Repository", "Issues"} <= urls.keys()
    requirements = {re.split(r"[^\w-]", line)[0] for line in metadata.get_all("Requires-Dist")}
    assert {"torch", "numpy", "numba", "llvmlite", "tqdm", "triton"} <= requirements
    text = metadata.get_payload()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert f"{urls['Repository']}/raw/main/docs/figures/x2_sum-function.png" in links
    assert f"{urls['Repository']}/blob/main/docs/index.md" in links
    assert all(link.startswith(("https://", "#")) for link in links)
    for link in links:
        if link.startswith(urls["Repository"]):
            page = re.sub(r".*/main/|#.*", "", link)
            assert (sdist / page).is_file(), link


def test_twine_takes_what_is_built(wheel):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_pyinstaller_is_told_every_module_that_is_imported_by_name(wheel):
    pytest.importorskip("PyInstaller")
    (name,) = (name for name in contents(wheel) if name.endswith("/entry_points.txt"))
    assert b"[pyinstaller40]\nhook-dirs = fastmlp.frozen:hook_dirs" in contents(wheel)[name]
    (folder,) = frozen.hook_dirs()
    hook = runpy.run_path(str(Path(folder) / "hook-fastmlp.py"))
    modules = {
        name.removesuffix(".py").replace("/", ".")
        for name in contents(wheel)
        if re.fullmatch(r"fastmlp/(kernels|training)/.*[^_]\.py", name)
    }
    assert len(modules) > 60
    assert modules <= set(hook["hiddenimports"])
    assert "py" in hook["module_collection_mode"].split("+")


def test_sdist_holds_what_tests_and_documentation_need(sdist):
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*")}
    assert held >= set(FILES)
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.*"):
            name = path.relative_to(ROOT)
            if "__pycache__" not in name.parts and not path.name.startswith("."):
                assert name.as_posix() in held


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


def test_a_checkout_in_front_of_the_installed_package_works():
    # as for `pip install .` and then `python -m fastmlp`, both in the checkout
    code = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
import fastmlp, fastmlp.kernels.runs
print(fastmlp.kernels.runs.__file__)
"""
    result = python(code, ROOT)
    assert result.stdout == f"{ROOT / 'kernels' / 'runs.py'}\n", result.stderr
