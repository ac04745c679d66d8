"""Docstrings: every public name has one, its Args are the real parameters, its examples run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import fastmlp.kernels
import pytest

import fastmlp

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
]
NEEDS = {"fastmlp.kernels.gpu": "triton", "fastmlp.kernels.cpu": "numba"}


def _modules():
    for package in (fastmlp, fastmlp.kernels):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                yield module.name


MODULES = sorted(set(_modules()))


def load(name):
    for prefix, compiler in NEEDS.items():
        if name.startswith(prefix):
            pytest.importorskip(compiler)
    return importlib.import_module(name)


def public_objects(module):
    """Public functions, classes and their public methods that a module defines."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for method_name, method in vars(value).items():
                if inspect.isfunction(method) and not method_name.startswith("_"):
                    yield f"{name}.{method_name}", method


def documented_arguments(text):
    """Names in the section Args of a docstring, or None where there is no such section."""
    section = re.search(r"^( *)Args:\n((?:\1 +.*\n|\s*\n)+)", text + "\n", re.MULTILINE)
    if section is None:
        return None
    indent = len(section[1]) + 4
    return re.findall(rf"^ {{{indent}}}(\*{{0,2}}\w+):", section[2], re.MULTILINE)


def real_arguments(value):
    signature = inspect.signature(value)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        stars.get(p.kind, "") + name
        for name, p in signature.parameters.items()
        if name not in ("self", "cls")
    ]


@pytest.mark.parametrize("name", MODULES)
def test_documented_arguments_are_the_real_ones(name):
    for object_name, value in public_objects(load(name)):
        documented = documented_arguments(inspect.getdoc(value) or "")
        if documented is not None:
            assert documented == real_arguments(value), f"{name}.{object_name}"


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_documented(name):
    assert load(name).__doc__


def public_names():
    """The functions and classes that users import, by the name they have there."""
    for name in fastmlp.__all__:
        value = getattr(fastmlp, name)
        if inspect.ismodule(value):
            yield from ((f"{name}.{inner}", getattr(value, inner)) for inner in value.__all__)
        else:
            yield name, value


PUBLIC = dict(public_names())


def test_every_public_module_is_among_the_names():
    modules = {name.split(".")[0] for name in PUBLIC if "." in name}
    assert modules == {"convert", "functional", "optim", "piecewise", "plotting", "reference",
                       "spectral", "training"}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented_with_arguments_and_errors(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    assert text
    if name.startswith("reference."):
        # the plain layers refuse nothing, and their classes take the arguments of ours
        assert inspect.isclass(value) or documented_arguments(text) is not None
        return
    assert documented_arguments(text) is not None
    # a record is made by us, not by users
    is_record = inspect.isclass(value) and issubclass(value, tuple)
    if not is_record and name not in ("FitResult", "training.FitResult"):
        assert "Raises:" in text
    for method_name, method in vars(value).items() if inspect.isclass(value) else ():
        is_code = inspect.isroutine(method) or isinstance(method, property)
        if is_code and not method_name.startswith("_"):
            assert inspect.getdoc(getattr(value, method_name)), method_name


# Levenberg–Marquardt of our modules has kernels alone
NEED_NUMBA = {"fastmlp.optim", "fastmlp.training.least_squares", "README.md"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    if name in NEED_NUMBA:
        pytest.importorskip("numba")
    module = load(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags).failed == 0


def blocks_of(page):
    """Python code of a page of Markdown, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
def test_code_of_the_documentation_runs(page, monkeypatch):
    if page in NEED_NUMBA:
        pytest.importorskip("numba")
    if page.startswith("docs/experiments/"):
        # minutes as they stand; what comes of them, the examples' recorded output tells
        whole = fastmlp.fit

        def beginning(*arguments, epochs=100, **settings):
            return whole(*arguments, epochs=min(epochs, 3), **settings)

        monkeypatch.setattr(fastmlp, "fit", beginning)
    names = {}
    for block in blocks_of(page):
        exec(block, names)


def test_the_pages_have_code():
    assert len(blocks_of("README.md")) >= 3
    assert len(blocks_of("docs/guide.md")) >= 8


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_documentation_lead_somewhere(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text("utf-8")):
        if not target.startswith("https://"):
            path = folder / target
            assert path.is_file(), target
            if path.suffix == ".png":
                assert path.stat().st_size < 100_000, f"{target}: {path.stat().st_size} bytes"


def test_the_checks_can_fail():
    def wrong(a, b):
        """Do it.

        Args:
            a: First.
            c: Not there.

        Returns:
            Nothing.
        """

    assert documented_arguments(inspect.getdoc(wrong)) == ["a", "c"] != real_arguments(wrong)
    assert documented_arguments("One line.") is None
