"""The tables of README and guide, and the figures, come from the results files alone."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "intel-xeon-2.8ghz-2-cores.json"
FIT = RESULTS.with_name("intel-xeon-2.8ghz-2-cores-fit.json")


@pytest.fixture
def report(of_bench):
    """The module bench/report.py."""
    return of_bench("report")


@pytest.mark.parametrize("part", [0, 1], ids=["README.md", "docs/performance.md"])
def test_the_tables_show_the_committed_results(report, part):
    text = (ROOT / ("README.md", "docs/performance.md")[part]).read_text("utf-8")
    for what, section in report.sections()[part].items():
        assert report.rewrite(text, section, what) == text


def test_each_machine_has_its_table(report, tmp_path):
    for source in (RESULTS, FIT):
        results = json.loads(source.read_text("utf-8"))
        (tmp_path / f"a-{source.name}").write_text(json.dumps(results), "utf-8")
        results["metadata"]["cpu"] = "Another"
        (tmp_path / f"b-{source.name}").write_text(json.dumps(results), "utf-8")
    documents = tmp_path / "README.md", tmp_path / "guide.md"
    for document, original in zip(documents, ("README.md", "docs/performance.md"), strict=True):
        document.write_text((ROOT / original).read_text("utf-8"), "utf-8")
    results = tmp_path / "results"
    results.mkdir()
    for path in tmp_path.glob("*.json"):
        path.rename(results / path.name)
    report.main([str(results), "--readme", str(documents[0]), "--guide", str(documents[1])])
    readme, guide = (document.read_text("utf-8") for document in documents)
    assert (readme.count("**Intel"), readme.count("**Another**")) == (2, 2)
    assert (guide.count("**Intel"), guide.count("**Another**")) == (1, 1)
    assert readme.count("| SineNet sweep") == 2
    assert guide.count("| AdditiveMLP [1, 64], H = 14, inference |") == 2


def test_a_peer_that_is_faster_is_shown_in_bold(report):
    results = json.loads(RESULTS.read_text("utf-8"))
    rows = report.speed_table(results, "file", every=True).count("\n| ")
    assert report.speed_table(results, "file").count("\n| ") < rows
    for record in results["results"]:
        if record["provider"] == "torch":
            record["median_us"] *= 1e-6
    assert "| **" in report.speed_table(results, "file")
    assert report.speed_table(results, "file").count("\n| ") == rows


def test_times_that_scatter_are_marked(report):
    results = json.loads(RESULTS.read_text("utf-8"))
    for record in results["results"]:
        if not record["error"]:
            record["low_us"] = record["high_us"] = record["median_us"]
    assert "×? |" not in report.speed_table(results, "file", every=True)
    for record in results["results"]:
        if record["provider"] == "fastmlp":
            record["high_us"] *= 3.01
    assert "×? |" in report.speed_table(results, "file")


def test_text_around_the_marks_stays(report):
    begin, end = (
        "<!-- measured speed: bench/report.py writes this -->",
        "<!-- end of measured speed -->",
    )
    new = report.rewrite(f"before\n{begin}\nold\n{end}\nafter\n", "new", report.SPEED)
    assert new == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="no lines"):
        report.rewrite("nothing", "new", report.SPEED)


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
