"""`bench/on_device.py`: a dry run, steps that go wrong, and the page that it writes."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
JSON = {"machine.json", "ops.json", "host.json", "fit.json", "tuning.json"}
NAMES = JSON | {"tests.txt", "summary.md"}


def read(folder):
    """The files of a run: all there, nothing else, the JSON whole."""
    assert {path.name for path in folder.iterdir()} == NAMES
    assert all(path.stat().st_size < 16 << 20 for path in folder.iterdir())
    return {name: json.loads((folder / name).read_text("utf-8")) for name in JSON}


def gone(pid):
    """Whether a process has ended, or does so within a second."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def as_if_measured(folder):
    """Turn the files of a dry run into those of a device, in form."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        for record in (content, *content.get("figures", ())):
            record["dry"] = False
            if "dry_us" in record:
                record["graph_us"] = record["eager_us"] = record.pop("dry_us")
        path.write_text(json.dumps(content), "utf-8")


def test_a_dry_run_fills_every_file_within_its_seconds(of_bench, tmp_path):
    # most of these seconds are for a machine that does something else beside
    out, began, seconds = tmp_path / "new" / "results", time.monotonic(), 240
    script = [sys.executable, str(BENCH / "on_device.py")]
    done = subprocess.run(
        [*script, "--dry", "--seconds", str(seconds), "--out", str(out)],
        capture_output=True, text=True, timeout=seconds + 20, check=True,
    )  # fmt: skip
    assert time.monotonic() - began < seconds
    files = read(out)
    assert all(file["dry"] is True for file in files.values())
    for name in JSON - {"machine.json"}:
        figures = files[name]["figures"]
        assert figures, name
        assert all(figure["dry"] is True for figure in figures)
        # the clocks of a device have other names
        fields = {field for figure in figures for field in figure}
        assert not any(field.startswith(("graph", "eager")) for field in fields)
        errors = [figure["error"] for figure in figures if "error" in figure]
        # a peer that is not there is named, and costs itself alone
        expected = [] if find_spec("jax") else ["RuntimeError: JAX: not installed"]
        assert set(errors) <= set(expected), errors
    assert files["machine.json"]["versions"]["torch"]
    assert re.fullmatch("[0-9a-f]{12}", files["machine.json"]["sources"])
    summary = (out / "summary.md").read_text("utf-8")
    assert summary.startswith("# DRY RUN")
    assert "reached" not in summary
    assert "missed" not in summary
    assert "2 passed, 0 failed" in (out / "tests.txt").read_text("utf-8")
    assert summary in done.stdout

    section = of_bench("device.section").section
    with pytest.raises(ValueError, match="is of a dry run"):
        section(out, "out")
    as_if_measured(out)
    tables = section(out, "out", every=True)
    for row in ("AdditiveMLP [90k, 64], H = 14, inference", "SineSum(2) × 2, batch 30"):
        assert f"| {row}" in tables
    assert "failed |" not in tables


def without_workers():
    """The environment without what tells that these tests have company."""
    return {name: value for name, value in os.environ.items() if "XDIST" not in name}


DRIVER = """
import errno, sys
sys.path.insert(0, {bench!r})
import on_device
from device import files
from device.driver import Step

def steps():
    for name, share in (("dies", 1), ("fails", 1), ("fills", 1), ("hangs", 1), ("jobs", 10),
                        ("tests", 20)):
        yield Step(name, "on_device_faults:" + name, share, "planted")
    yield Step("alone", "device.alone", 8, "failing tests again")
    yield Step("hangs again", "on_device_faults:hangs", 1000, "planted")

def put(path, data):
    full = b"no room" in data and b"room again" not in data
    if full or b"never written" in data:
        raise OSError(errno.ENOSPC, "No space left on device")
    whole(path, data)

whole, files.put = files.put, put
sys.exit(on_device.main({argv!r}, tuple(steps())))
"""


def test_what_goes_wrong_in_a_step_is_reported_and_the_rest_goes_on(tmp_path):
    """A step that dies by a signal, one that hangs, a full disk, failing tests, and Ctrl-C."""
    out = tmp_path / "results"
    argv = ["--dry", "--seconds", "3000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(bench=str(BENCH), argv=argv)],
        env={**without_workers(), "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("hangs again: "):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
    # a figure could not be written, and the run says so
    assert process.wait() == 1
    log, files = "".join(lines), read(out)
    summary = (out / "summary.md").read_text("utf-8")
    # the planted figures lack what the page is made of
    assert "A section could not be written: KeyError('what')" in summary
    assert "died by SIGSEGV at File" in summary
    assert "failed: ValueError: planted" in summary
    assert files["fit.json"]["figures"] == [{"name": "before it dies", "dry": True}]

    assert "killed after 3 s at File" in summary
    assert 'on_device_faults.py", line' in summary
    children = [figure["child"] for figure in files["host.json"]["figures"]]
    assert len(children) == 2
    assert all(gone(child) for child in children)
    assert "interrupted" in summary

    assert "tuning.json cannot be written: No space left on device; the run goes on" in log
    assert [figure["name"] for figure in files["tuning.json"]["figures"]] == [
        "no room", "room again", "fine", "last"
    ]  # fmt: skip
    for end in (
        "jobs: dying: its process died by SIGSEGV",
        "jobs: raising: ZeroDivisionError: division by zero",
        "jobs: hanging: killed after 1 s",
    ):
        assert f"- {end}\n" in summary
    assert "ops.json cannot be written" in log
    assert files["ops.json"]["figures"] == []

    named = {}
    for line in (out / "tests.txt").read_text("utf-8").splitlines():
        what, test, *cells = [*line.split("\t"), ""]
        named.setdefault(test.rpartition("::")[2], {})[what] = cells
    assert named["test_wrong"]["FAILED"][:3] == [
        "AssertionError", "the planted message", "assert 3 == 4"
    ]  # fmt: skip
    assert named["test_wrong"]["FAILED"][3].startswith("tests/bench/on_device_sample.py:")
    assert named["test_raises"]["FAILED"][:3] == [
        "RuntimeError", "planted trouble", "and its second line"
    ]  # fmt: skip
    assert "crashed" in named["test_dies"]["FAILED"][1]
    assert named["test_wrong"]["ALONE"][0].startswith("fails alone too: AssertionError")
    assert named["test_dies"]["ALONE"][0] == "alone it dies by SIGABRT"
    company = "passes alone: it fails only in company"
    assert named["test_fails_in_company"]["ALONE"][0] == company
    assert f"test_fails_in_company` ({company})" in summary
    assert "test_right" not in named
    assert "1 passed, 4 failed" in summary


class TestFiles:
    @pytest.fixture
    def disk(self, tmp_path):
        """A folder with room for 64 KiB."""
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        yield tmp_path
        subprocess.run(["umount", str(tmp_path)], check=True)

    def test_a_full_disk_leaves_whole_files_and_is_told_once(self, of_bench, disk):
        told = []
        files = of_bench("device.files").Files(disk, {"dry": False}, told.append)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            ballast.write_bytes(bytes(1 << 20))
        for i in range(300):
            files.add("ops.json", {"i": i})
        ballast_free = told.copy()
        assert ballast_free == [
            "ops.json cannot be written: No space left on device; the run goes on"
        ]
        assert len(json.loads((disk / "ops.json").read_text())["figures"]) < 300
        assert {path.name for path in disk.iterdir()} == NAMES | {"ballast"}
        ballast.unlink()
        files.end("# Summary\n")
        assert {path.name for path in disk.iterdir()} == NAMES
        assert len(json.loads((disk / "ops.json").read_text())["figures"]) == 300
        assert (disk / "summary.md").read_text() == "# Summary\n"

    def test_a_file_stops_to_grow_below_the_limit(self, of_bench, tmp_path, monkeypatch):
        module, told = of_bench("device.files"), []
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
        files = module.Files(tmp_path, {"dry": False}, told.append)
        for i in range(100):
            files.add("ops.json", {"name": f"figure {i}"})
        assert (tmp_path / "ops.json").stat().st_size < 1100
        assert len(told) == 1


def test_steps_are_listed_and_unknown_ones_refused(of_bench, capsys, tmp_path):
    on_device = of_bench("on_device")
    assert on_device.main(["--list", "--only", "ops,host"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["machine", "ops", "host"]
    for argv, message in (
        (["--only", "nothing", "--out", str(tmp_path)], "must be some of machine, self-test"),
        (["--seconds", "1", "--out", str(tmp_path)], "--seconds must be at least 5"),
        ([], "--out names the folder"),
    ):
        with pytest.raises(SystemExit):
            on_device.main(argv)
        assert message in capsys.readouterr().err


def test_a_checkout_that_cannot_be_installed_is_imported_from_where_it_is(of_bench, monkeypatch):
    on_device = of_bench("on_device")
    monkeypatch.setattr(on_device, "install", lambda seconds: None)
    monkeypatch.setenv("PYTHONPATH", "other")
    assert on_device.prepare(1) is None
    assert os.environ["PYTHONPATH"] == "other"
    monkeypatch.setattr(on_device, "install", lambda seconds: "no setuptools")
    assert on_device.prepare(1) == "no setuptools; the steps import it from where it is"
    assert os.environ["PYTHONPATH"] == f"{BENCH.parent}{os.pathsep}other"
