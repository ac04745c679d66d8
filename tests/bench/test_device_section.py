"""`bench/device/section.py`: the tables of a run on a device, from made-up files of one."""

import json

import pytest


def op(case, provider, graph_us, eager_us, mode="inference", name="additive_mlp"):
    return {
        "what": "op", "op": name, "case": case, "mode": mode, "provider": provider,
        "graph_us": graph_us, "eager_us": eager_us,
    }  # fmt: skip


FLOORS = {"read": 4000.0, "copy": 3000.0, "bf16 products": 8e5, "tf32 products": 4e5}
SMALL, LARGE, NET = "[90k, 64], H = 14", "[4M, 64], H = 14", "[1M, 64] bf16, 64-64-64-16"


def files_of_a_run(folder, dry=False):
    """Files like those of `on_device.py`, their figures made up."""
    figures = {
        "ops": [
            {"what": "self-test", "op": "mlp", "ok": True},
            *({"what": "floor", "name": k, "rate": v, "unit": ""} for k, v in FLOORS.items()),
            op(SMALL, "fastmlp", 20.0, 100.0),
            op(SMALL, "torch", 60.0, 90.0),
            op(LARGE, "fastmlp", 500.0, 510.0),
            op(NET, "fastmlp", 100.0, 100.0, name="mlp"),
            op(NET, "torch", 50.0, 60.0, name="mlp"),
            # in turns of their own, twice as slow
            op(SMALL, "fastmlp", 40.0, 200.0),
            op(SMALL, "torch_compile", 160.0, 600.0),
            {"what": "op", "op": "mlp", "case": "c", "provider": "fastmlp", "error": "planted"},
            {"what": "op", "op": "mlp", "case": "c", "provider": "torch", "error": "of others"},
        ],
        "fit": [
            {"what": "fit", "case": "run", "provider": "fastmlp", "seconds": 0.5,
             "us_per_step": 2.0, "extrapolated": True},
            {"what": "fit", "case": "run", "provider": "jax", "seconds": 1.0, "us_per_step": 4.0},
            {"what": "fit", "case": "broken", "provider": "fastmlp", "error": "planted"},
        ],
        "host": [
            {"what": what, "module": "M", "name": name, "eager_us": us}
            for what, name, us in (("inference", "fastmlp", 5.0), ("inference", "torch", 9.0),
                                   ("forward_backward", "nothing", 50.0))
        ],
    }  # fmt: skip
    folder.mkdir()
    for name, records in figures.items():
        records = [{**record, "dry": dry} for record in records]
        text = json.dumps({"dry": dry, "figures": records})
        (folder / f"{name}.json").write_text(text, "utf-8")
    about = {"dry": dry, "device": "A card", "versions": {"torch": "2.11", "triton": "3.6"}}
    (folder / "machine.json").write_text(json.dumps(about), "utf-8")
    (folder / "tests.txt").write_text("# head\nENDED\t7 passed, 2 failed\n", "utf-8")


def test_every_peer_is_beside_what_took_turns_with_it(of_bench, tmp_path):
    section = of_bench("device.section")
    files_of_a_run(tmp_path / "card")
    text = section.section(tmp_path / "card", "card", every=True)
    assert "**A card**" in text
    assert "7 passed, 2 failed" in text
    # 90 000 rows of 65 numbers at the faster of the two bandwidths: 5.85 µs
    times = "20 µs / 100 µs | 3.4 | 3× / **0.9×** | 4× / 3× |"
    assert f"| AdditiveMLP [90k, 64], H = 14, inference | {times}" in text
    # a million rows of 80 numbers of two bytes: 40 µs; its products take 18.4e9 / 8e5
    assert (
        "bf16, 64-64-64-16, inference | 100 µs / 100 µs | 2.5 | **0.5×** / **0.6×** | – |" in text
    )
    assert "| AdditiveMLP [4M, 64], H = 14, inference | 500 µs / 510 µs | 1.9 | – | – |" in text
    assert "- MLP c , fastmlp: planted" in text
    assert "- MLP c , torch: of others" in text
    assert "| run | 500 ms (extrapolated) | 2 µs | 2× |" in text
    assert "| broken | failed | – | – |" in text
    assert "| M | 5 µs | 9 µs | 50 µs | – | – |" in text


def test_the_readme_has_the_main_cases_and_all_in_which_a_peer_is_faster(of_bench, tmp_path):
    section = of_bench("device.section")
    files_of_a_run(tmp_path / "card")
    text = section.section(tmp_path / "card", "card")
    assert "| AdditiveMLP [90k, 64]" in text
    assert "| MLP [1M, 64] bf16" in text
    assert "[4M, 64]" not in text
    assert "planted" in text
    assert "of others" not in text
    assert "| M |" not in text


def test_a_dry_run_is_refused(of_bench, tmp_path):
    files_of_a_run(tmp_path / "dry", dry=True)
    with pytest.raises(ValueError, match="dry is of a dry run"):
        of_bench("device.section").section(tmp_path / "dry", "dry")


def test_a_folder_of_results_is_in_both_documents(of_bench, tmp_path):
    report = of_bench("report")
    assert [part[report.DEVICE] for part in report.sections(tmp_path)] == [
        "No CUDA device has been measured yet."
    ] * 2
    files_of_a_run(tmp_path / "card")
    readme, guide = report.sections(tmp_path)
    assert "[4M, 64]" in guide[report.DEVICE]
    assert "[4M, 64]" not in readme[report.DEVICE]
