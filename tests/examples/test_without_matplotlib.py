"""No example computes for minutes and then ends in a traceback, for want of a plotting package."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest

DRAWING = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
    if "import matplotlib" in path.read_text("utf-8")
]


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.stem)
def test_plots_are_left_out_and_it_says_so(path, monkeypatch, capsys):
    if "sklearn" in path.read_text("utf-8"):
        pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.syspath_prepend(path.parent)  # as a script has it: one example builds on another
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, example)  # data classes want it there
    spec.loader.exec_module(example)
    # it looks before it touches what was computed
    example.draw(*[None] * len(inspect.signature(example.draw).parameters))
    assert "matplotlib is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("path", DRAWING, ids=lambda path: path.stem)
def test_nothing_else_imports_it(path):
    importing = {
        function.name
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any("import matplotlib" in ast.unparse(line) for line in ast.walk(function))
    }
    assert importing == {"draw"}
