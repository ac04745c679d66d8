"""`bench/merge.py`: pieces of a bench that were measured one after the other are one report."""

import json

import pytest


@pytest.fixture
def merge(of_bench):
    """The module bench/merge.py."""
    return of_bench("merge")


def piece(cases, load=0.0, **about):
    """What `run.py` writes of some cases, each with its median."""
    metadata = {"commit": "c", "cpu": "p", "load": load, "date": f"day {load:g}", **about}
    records = [
        {"op": "mlp", "case": case, "mode": "inference", "provider": who, "median_us": us}
        for case, us in cases.items()
        for who in ("torch", "fastmlp")
    ]
    return {"metadata": metadata, "results": records}


def test_the_first_piece_that_has_a_case_counts(merge, tmp_path):
    pieces = [piece({"a": 1.0, "b": 2.0}, 0.1), piece({"b": 3.0, "c": 4.0}, 0.2)]
    files = []
    for i, content in enumerate(pieces):
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(content), "utf-8")
    merge.main([*map(str, files), "--json", str(tmp_path / "whole.json")])
    whole = json.loads((tmp_path / "whole.json").read_text("utf-8"))
    found = [(r["case"], r["provider"], r["median_us"]) for r in whole["results"]]
    times = {"a": 1.0, "b": 2.0, "c": 4.0}
    assert found == [(case, who, times[case]) for case in "abc" for who in ("torch", "fastmlp")]
    assert whole["metadata"]["commit"] == "c"
    assert whole["metadata"]["pieces"] == [
        {"date": "day 0.1", "load": 0.1},
        {"date": "day 0.2", "load": 0.2},
    ]


def test_runs_of_fit_keep_their_counts(merge):
    runs = [
        {"metadata": {"cpu": "p"}, "results": [{"case": "a", "steps": 1}]},
        {"metadata": {"cpu": "p"}, "results": [], "steps_per_second": [{"models": 1}]},
        {"metadata": {"cpu": "p"}, "results": [{"case": "b", "steps": 2}]},
    ]
    whole = merge.merged(runs)
    assert [record["case"] for record in whole["results"]] == ["a", "b"]
    assert whole["steps_per_second"] == [{"models": 1}]


def test_what_was_not_measured_alike_is_refused(merge):
    with pytest.raises(ValueError, match="differ in cpu: 'p' and 'q'"):
        merge.merged([piece({"a": 1.0}), piece({"b": 1.0}, cpu="q")])
    with pytest.raises(ValueError, match="differ in jax: None and '1'"):
        merge.merged([piece({"a": 1.0}), piece({"b": 1.0}, jax="1")])
    fit = {"metadata": piece({})["metadata"], "results": [{"case": "a"}]}
    with pytest.raises(ValueError, match=r"both run\.py and bench_fit\.py"):
        merge.merged([piece({"a": 1.0}), fit])
