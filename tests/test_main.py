"""`python -m fastmlp`: the report and its exit status."""

import os
import subprocess
import sys

import pytest
import torch

import fastmlp
from fastmlp import __main__ as report
from fastmlp import backends, functional


def run(*args, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fastmlp", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "0", **environment},
    )


def test_report_names_versions_devices_and_backends():
    result = run()
    assert result.returncode == 0, result.stdout + result.stderr
    for text in (f"fastmlp {fastmlp.__version__}", torch.__version__, "threads", "All is well."):
        assert text in result.stdout
    assert "FAILED" not in result.stdout
    for op in functional.__all__:
        assert op in result.stdout
    if backends.is_installed("triton") and not torch.cuda.is_available():
        assert "triton   not tested: backend 'triton' needs CUDA tensors" in result.stdout


def test_help_explains_the_exit_status():
    result = run("--help")
    assert result.returncode == 0
    assert "exit status is 1" in result.stdout
    assert run("--unknown").returncode == 2


def test_triton_is_tested_in_its_interpreter(capsys):
    pytest.importorskip("triton")
    assert report.main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " triton " in line]
    assert [line.split()[-1] for line in lines if "tested" not in line][-3:] == ["ok"] * 3


def test_a_wrong_value_fails(monkeypatch, capsys):
    evaluate = report._evaluate

    def wrong(module, op, inputs, convert):
        results = evaluate(module, op, inputs, convert)
        if module is functional and op == "additive_mlp":
            results[0][3] *= 1.001
        return results

    monkeypatch.setattr(report, "_evaluate", wrong)
    assert report.main([]) == 1
    out = capsys.readouterr().out
    assert "Something is wrong" in out
    assert all("additive_mlp" in line for line in out.splitlines() if line.endswith("FAILED"))


def test_an_error_fails_and_is_shown(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(functional, "sine_sum", broken)
    assert report.main([]) == 1
    assert "FAILED: RuntimeError: no such kernel\n" in capsys.readouterr().out


def test_absent_backends_say_why(monkeypatch, capsys):
    monkeypatch.setattr(fastmlp.backends, "is_installed", lambda name: name == "torch")
    fastmlp.backends._default.cache_clear()
    try:
        assert report.main([]) == 0
    finally:
        fastmlp.backends._default.cache_clear()
    out = capsys.readouterr().out
    assert "numba    not tested: backend 'numba' needs the package numba" in out
    assert "backend torch" in out
