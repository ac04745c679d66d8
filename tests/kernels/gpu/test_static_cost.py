"""Every Triton kernel compiles for every target and costs no more than the kept figures.

One subprocess per target, for Triton must not be in interpreter mode there; no GPU is needed.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[3] / "bench" / "static_cost.py"
KEPT = json.loads(SCRIPT.with_suffix(".json").read_text("utf-8"))

# instructions per element of the inner loop on sm_90, for 14 units in float32
PROMISED = {"additive_mlp_fwd": 32, "additive_mlp_bwd_params": 60, "sine_sum_fwd": 12}


@pytest.fixture
def static_cost(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("static_cost")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_and_cost_no_more(target, static_cost, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    figures = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--target", target, "--json", str(figures)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert figures.exists(), run.stderr
    results = json.loads(figures.read_text("utf-8"))
    assert set(results[target]) == set(KEPT[target])
    assert static_cost.worse(results, KEPT) == []
    assert run.returncode == 0, run.stderr


def test_kept_figures_hold_what_is_promised():
    costs = {label: KEPT["sm_90"][label]["per_element"] for label in PROMISED}
    assert all(costs[label] <= PROMISED[label] for label in PROMISED), costs


def test_kept_figures_have_no_spills_and_no_unasked_fp64():
    for target, rows in KEPT.items():
        for label, row in rows.items():
            assert row["spills"] == 0, (target, label)
            # a training run keeps its losses and rates in float64
            most = 100 if label.startswith("train") else 0
            assert row.get("fp64", 0) <= most or label.endswith("fp64"), (target, label)


def test_worse_figures_are_found(static_cost):
    row = {"registers": 64, "spills": 0, "fp64": 0, "per_element": 30.0}
    kept = {"sm_90": {"kernel": row}}
    assert static_cost.worse(kept, kept) == []
    for change in ({"spills": 1}, {"fp64": 1}, {"per_element": 30.1}):
        assert len(static_cost.worse({"sm_90": {"kernel": {**row, **change}}}, kept)) == 1
    assert len(static_cost.worse({"sm_90": {"new kernel": row}}, kept)) == 1


def test_loops_are_found_in_machine_code(static_cost):
    instructions = [
        "MOV R0, R1",
        "FFMA R2, R2, R3, R4",
        "BRA `(.L_x_1)",
        "FADD R0, R0, R1",
        "BRA `(.L_x_0)",
        "BRA `(.L_x_2)",
    ]
    labels = {".L_x_0": 0, ".L_x_1": 1, ".L_x_2": 5}
    # the outer loop holds another, the last branch is padding
    assert static_cost.innermost_loops(instructions, labels) == [(1, 2)]
