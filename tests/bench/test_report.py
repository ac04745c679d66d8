"""The README's table and the figures come from the results file alone."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "intel-xeon-2.8ghz-2-cores.json"
FIT = RESULTS.with_name("intel-xeon-2.8ghz-2-cores-fit.json")


@pytest.fixture
def report(monkeypatch):
    """The module bench/report.py."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return importlib.import_module("report")


@pytest.mark.parametrize(("path", "every"), [("README.md", False), ("docs/performance.md", True)])
def test_the_tables_show_the_committed_results(report, path, every):
    text = (ROOT / path).read_text("utf-8")
    results = json.loads(RESULTS.read_text("utf-8"))
    section = report.section(results, str(RESULTS.relative_to(ROOT)), every)
    assert report.rewrite(text, section) == text


def test_the_readme_shows_the_committed_training_runs(report):
    text, results = (ROOT / "README.md").read_text("utf-8"), json.loads(FIT.read_text("utf-8"))
    section = report.training_section(results, str(FIT.relative_to(ROOT)))
    assert report.rewrite(text, section, report.TRAINING) == text


def test_a_peer_that_is_faster_is_shown_in_bold(report):
    results = json.loads(RESULTS.read_text("utf-8"))
    rows = report.section(results, "file", every=True).count("\n| ")
    assert report.section(results, "file").count("\n| ") < rows
    for record in results["results"]:
        if record["provider"] == "torch":
            record["median_us"] *= 1e-6
    assert "| **" in report.section(results, "file")
    assert report.section(results, "file").count("\n| ") == rows


def test_times_that_scatter_are_marked(report):
    results = json.loads(RESULTS.read_text("utf-8"))
    for record in results["results"]:
        if not record["error"]:
            record["low_us"] = record["high_us"] = record["median_us"]
    assert "×? |" not in report.section(results, "file", every=True)
    for record in results["results"]:
        if record["provider"] == "fastmlp":
            record["high_us"] *= 3.01
    assert "×? |" in report.section(results, "file")


def test_text_around_the_marks_stays(report):
    begin, end = (
        "<!-- measured speed: bench/report.py writes this -->",
        "<!-- end of measured speed -->",
    )
    new = report.rewrite(f"before\n{begin}\nold\n{end}\nafter\n", "new")
    assert new == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="no lines"):
        report.rewrite("nothing", "new")


def test_figures_are_drawn_from_json(report, tmp_path):
    pytest.importorskip("matplotlib")
    plot = importlib.import_module("plot")
    paths = [
        path
        for file in (RESULTS, FIT)
        for path in plot.draw(json.loads(file.read_text("utf-8")), tmp_path)
    ]
    assert len(paths) == 5
    assert all(path.stat().st_size > 10_000 for path in paths)
