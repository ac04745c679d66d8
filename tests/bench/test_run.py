"""`bench/run.py` on a tiny case: providers, the gate, the schema of its JSON, the table."""

import copy
import importlib
import itertools
import json
import re

import pytest
import torch

METADATA = {"date", "commit", "device", "cpu", "threads", "python", "torch", "triton", "numba"}
FIXED = {"op", "case", "mode", "provider", "graph", "error", "floor_us", "bytes_moved", "flops"}
MEASURED = {"median_us", "low_us", "high_us", "n_samples", "peak_extra_bytes", "gb_per_s"} | {
    "energy_uj"
}


@pytest.fixture
def bench(monkeypatch, of_bench):
    """The module bench/run.py, with one tiny case a suite."""
    module = of_bench("run")
    tiny = {"additive_mlp": (6, 64), "elementwise_mlp": (50,), "sine_sum": (50,), "mlp": (20, 1),
            "piecewise_linear": (50,)}  # fmt: skip
    common = module.common
    suites = {}
    for name, suite in module.SUITES.items():
        if name != suite.op:
            continue
        op = suite.op
        case = common.Case(
            "tiny",
            tiny[op],
            # without parameters there is nothing to train
            suite.cases[0].modes if op == "piecewise_linear" else common.MODES,
            settings=suite.cases[0].settings,
            x_grad=suite.cases[0].x_grad,
            quick=True,
        )
        fields = {name: getattr(suite, name) for name in suite.__dataclass_fields__}
        suites[op] = common.Suite(**{**fields, "cases": (case,)})
    monkeypatch.setattr(module, "SUITES", suites)
    monkeypatch.setattr(common, "measure_bandwidth", lambda device: {"read": 5.0, "copy": 6.0})
    monkeypatch.setattr(common, "measure_arithmetic", lambda device: 100.0)
    return module


@pytest.fixture
def _few_rounds(bench, monkeypatch):
    def two_rounds(steps, *, seconds):
        return original(steps, seconds=0, min_rounds=2, block=0)

    original = bench.common.time_interleaved
    monkeypatch.setattr(bench.common, "time_interleaved", two_rounds)


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_few_rounds", "_threads")
class TestRun:
    def test_writes_json_of_the_schema(self, bench, tmp_path):
        file = tmp_path / "new" / "results.json"
        bench.main(["--providers", "torch,fastmlp", "--json", str(file)])
        report = json.loads(file.read_text())
        assert report["metadata"].keys() >= METADATA
        assert report["metadata"]["bandwidth_gb_per_s"] == {"read": 5.0, "copy": 6.0}
        results = report["results"]
        assert {r["op"] for r in results} == bench.SUITES.keys()
        assert {r["provider"] for r in results} == {"torch", "fastmlp"}
        assert {r["mode"] for r in results} == set(bench.common.MODES)
        for record in results:
            assert record.keys() >= FIXED
            assert record["error"] is None
            assert record.keys() >= MEASURED
            assert 0 < record["low_us"] <= record["median_us"] <= record["high_us"]

    def test_quick_prints_each_mode_but_the_bare_forward(self, bench, capsys):
        bench.main(["--quick", "--providers", "torch,fastmlp", "sine_sum"])
        text = capsys.readouterr().out
        assert "sine_sum tiny, inference" in text
        assert "sine_sum tiny, forward_backward" in text
        assert "forward;" not in text
        assert "additive_mlp" not in text
        assert "sine_sum tiny, training_step" in text
        assert len(re.findall(r"^ *torch .* 1\.00×", text, re.MULTILINE)) == 3

    def test_a_wrong_provider_is_listed_with_its_message_and_not_timed(
        self, bench, monkeypatch, capsys
    ):
        def off_by_a_little(suite, case, plain):
            wrong = copy.deepcopy(plain)
            wrong.register_forward_hook(lambda module, inputs, y: y * 1.001)
            return wrong

        monkeypatch.setitem(bench.PROVIDERS, "wrong", off_by_a_little)
        options = ["--providers", "torch,wrong", "additive_mlp"]
        report = bench.main(options)
        wrong = [r for r in report["results"] if r["provider"] == "wrong"]
        assert len(wrong) == 4
        assert all("not as good as PyTorch's" in r["error"] for r in wrong)
        assert not any("median_us" in r for r in wrong)
        assert "note 4: additive_mlp tiny" in capsys.readouterr().out

    def test_a_provider_that_raises_does_not_stop_the_others(self, bench, monkeypatch):
        def absent(suite, case, plain):
            raise ImportError("no such library")

        monkeypatch.setitem(bench.PROVIDERS, "absent", absent)
        report = bench.main(["--quick", "--providers", "absent,torch", "sine_sum"])
        errors = {r["provider"]: r["error"] for r in report["results"]}
        assert errors == {"absent": "ImportError: no such library", "torch": None}

    def test_compares_with_an_earlier_run(self, bench, tmp_path, capsys):
        file = tmp_path / "earlier.json"
        options = ["--quick", "--providers", "torch,fastmlp", "sine_sum"]
        earlier = bench.main([*options, "--json", str(file)])
        for factor, worse in ((1e-3, False), (1e6, True)):
            for record in earlier["results"]:
                if record["provider"] == "torch":
                    record["median_us"] *= factor
            file.write_text(json.dumps(earlier))
            if worse:
                with pytest.raises(SystemExit, match="1"):
                    bench.main([*options, "--compare", str(file)])
            else:
                bench.main([*options, "--compare", str(file)])
            assert ("WORSE" in capsys.readouterr().out) == worse

    @pytest.mark.parametrize("op", ["additive_mlp", "elementwise_mlp", "mlp", "sine_sum"])
    def test_the_jax_programs_compute_the_same(self, bench, op):
        pytest.importorskip("jax")
        suite = bench.SUITES[op]
        for mode in ("inference", "forward_backward", "training_step"):
            prepared = bench.set_up(suite, suite.cases[0], torch.device("cpu"))
            steps, errors = bench.admit(suite, suite.cases[0], mode, ["torch", "jax"], *prepared)
            assert errors == {}
            losses = [step().get("loss") for step in steps.values()]
        # one step in float32 of two libraries, whose gradients the gate has held against the rule
        assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4)

    def test_training_steps_train(self, bench):
        suite = bench.SUITES["additive_mlp"]
        x, dy, plain, gate = bench.set_up(suite, suite.cases[0], torch.device("cpu"))
        names = ["torch", "fastmlp"]
        steps, errors = bench.admit(
            suite, suite.cases[0], "training_step", names, x, dy, plain, gate
        )
        assert errors == {}
        # three steps in float32 of two programs, as above
        for _ in range(3):
            losses = [steps[name]()["loss"].item() for name in names]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert losses[0] < torch.nn.functional.mse_loss(plain(x), dy).item()


def test_gate_sums_chunks_to_the_whole(bench, monkeypatch):
    common, suite = bench.common, bench.SUITES["elementwise_mlp"]
    case = suite.cases[0]
    plain = suite.reference(case)
    x, dy = suite.draw(case).requires_grad_(), torch.randn(case.shape)
    whole = common.Gate(suite, plain, x, dy)
    monkeypatch.setattr(common.Gate, "CHUNK", 7)
    parts = common.Gate(suite, plain, x, dy)
    assert whole.exact.keys() == parts.exact.keys() == parts.terms.keys()
    for name in whole.exact:
        # the same terms in float64, added chunk by chunk
        torch.testing.assert_close(parts.exact[name], whole.exact[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts.terms[name], whole.terms[name], rtol=1e-12, atol=1e-12)


def test_the_floor_is_the_larger_of_bytes_and_arithmetic(bench):
    suite = bench.SUITES["mlp"]
    (case,) = suite.cases
    widths = case.settings["widths"]
    products = sum(a * b for a, b in itertools.pairwise(widths))
    assert suite.flops(case, "inference") == 2 * 20 * products
    about = {"bandwidth_gb_per_s": {"read": 1.0}, "arithmetic_gflop_per_s": 1.0}
    arguments = suite, case, "inference", {"torch": lambda: None}, {}, torch.device("cpu")
    (record,) = bench.measure(*arguments, about, 0)
    # one formula, written twice
    assert record["floor_us"] == pytest.approx(max(2 * 20 * products, 20 * 2 * 4) / 1e3)
    about["arithmetic_gflop_per_s"] = 1e9
    (record,) = bench.measure(*arguments, about, 0)
    assert record["floor_us"] == pytest.approx(20 * 2 * 4 / 1e3)


def test_energy_is_what_the_counter_gained(bench, monkeypatch, tmp_path):
    counter = tmp_path / "energy_uj"
    monkeypatch.setattr(bench.common, "ENERGY", counter)
    device = torch.device("cpu")
    assert bench.common.energy_per_call(lambda: None, device, seconds=0) is None
    counter.write_text("1000")

    def step():
        counter.write_text(str(int(counter.read_text()) + 7))

    assert bench.common.energy_per_call(step, device, seconds=0.01) == pytest.approx(7)


def test_arithmetic_is_counted_in_giga(bench, monkeypatch):
    monkeypatch.undo()
    common = importlib.import_module("common")
    rate = common.measure_arithmetic(torch.device("cpu"), n=128)
    assert 0.01 < rate < 1e5


def test_providers_have_one_baseline(bench):
    assert bench.BASELINE in bench.PROVIDERS
    assert {"torch", "torch_compile", "fastmlp"} <= set(bench.PROVIDERS)


def test_peak_memory_sees_what_a_call_allocates(bench):
    n_bytes = 64 << 20

    def step():
        return torch.ones(n_bytes // 4)

    step()
    peak = bench.common.peak_extra_bytes(step, torch.device("cpu"))
    if peak is None:
        pytest.skip("no /proc/self/clear_refs here")
    assert n_bytes * 0.98 < peak < n_bytes * 1.2


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["nothing"], "suite must be one of"), (["--providers", "jax9"], "provider must be one of")],
)
def test_unknown_names_are_refused(bench, capsys, argv, message):
    with pytest.raises(SystemExit):
        bench.main(argv)
    assert message in capsys.readouterr().err
