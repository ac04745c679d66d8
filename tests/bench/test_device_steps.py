"""What the steps of `bench/on_device.py` report, a device's clocks replaced; goals; selections."""

import pytest


class Report:
    """A step's side of a run on a device, on the CPU: what it reports is kept."""

    dry, device = False, "cpu"

    def __init__(self):
        self.figures, self.cuts = [], []

    def figure(self, file, **figure):
        self.figures.append({"file": file, **figure})

    def cut(self, what):
        self.cuts.append(what)

    def over(self):
        return False

    def left(self):
        return 100.0


@pytest.fixture
def timing(of_bench, monkeypatch):
    """The clocks of a device without one: a graph of two calls, and whatever runs takes 10 µs."""
    module = of_bench("device.timing")

    def take(steps, **options):
        for step in steps.values():
            step()
        taken = {"median_us": 10.0, "low_us": 8.0, "high_us": 12.0, "n_samples": 5}
        return dict.fromkeys(steps, taken)

    monkeypatch.setattr(module, "capture", lambda step: (step, 2))
    monkeypatch.setattr(module.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(module.common, "time_interleaved", take)
    return module


class TestOnADevice:
    """What a run on a device reports, its clocks replaced."""

    def test_each_provider_has_both_clocks_or_its_message(self, of_bench, timing, monkeypatch):
        ops, cases = of_bench("device.ops"), of_bench("device.cases")

        def absent(suite, case, plain):
            raise RuntimeError("planted")

        monkeypatch.setitem(ops.PROVIDERS, "absent", absent)
        case = cases._case("elementwise_mlp", "tiny", (40,), (), x_grad=True)
        report = Report()
        with of_bench("fastmlp").backend("torch"):
            ops.measure(report, case, ["fastmlp", "torch", "gelu", "absent"])
        by = {(f["provider"], f.get("mode")): f for f in report.figures}
        assert by["absent", None]["error"] == "RuntimeError: planted"
        for provider in ("fastmlp", "torch", "gelu"):
            for mode in case.modes:
                figure = by[provider, mode]
                names = ("graph_us", "graph_low_us", "graph_high_us", "eager_us")
                assert [figure[name] for name in names] == [5.0, 4.0, 6.0, 10.0]

    def test_a_wrong_op_is_not_timed(self, of_bench, timing, monkeypatch):
        ops, cases = of_bench("device.ops"), of_bench("device.cases")

        def off_by_a_little(suite, case, plain):
            wrong = suite.fused(case)
            wrong.register_forward_hook(lambda module, inputs, y: y * 1.001)
            return wrong

        monkeypatch.setitem(ops.PROVIDERS, "fastmlp", off_by_a_little)
        report = Report()
        with of_bench("fastmlp").backend("torch"):
            case = cases._case("elementwise_mlp", "tiny", (40,), (), x_grad=True)
            ops.measure(report, case, ["fastmlp"])
        (figure,) = report.figures
        assert "not as good as PyTorch's" in figure["error"]

    def test_a_clock_that_fails_leaves_the_other(self, timing, monkeypatch):
        def capture(step):
            raise RuntimeError("not permitted when stream is capturing")

        monkeypatch.setattr(timing, "capture", capture)
        (figure,) = timing.measure(Report(), {"it": lambda: None}, seconds=0).values()
        assert "not permitted" in figure["graph_error"]
        assert figure["eager_us"] > 0
        assert "graph_us" not in figure

    def test_a_sweep_times_each_neighbour_beside_the_present_one(self, of_bench, timing):
        tuning, cases = of_bench("device.tuning"), of_bench("device.cases")
        config = of_bench("fastmlp.kernels.gpu.machine.launch").Config(rows=1, cols=2048, warps=4)
        table = tuning.Watched({"kernel": config})
        seen = []

        def step():
            if table["kernel"].warps == 8:
                raise RuntimeError("out of resources")
            seen.append(table["kernel"])

        report, case = Report(), cases._case("sine_sum", "tiny", (40,), ())
        tuning.sweep(report, table, case, "inference", "kernel", step, 3)
        first, *rest = report.figures
        assert first["error"] == "RuntimeError: out of resources"
        assert first["config"]["warps"] == 8
        assert [figure["gain"] for figure in rest] == [1.0, 1.0]
        assert {tile.warps for tile in seen} == {4, 2}
        assert dict.__getitem__(table, "kernel") == config

        report = Report()
        tuning.sweep(report, table, case, "inference", "kernel", step, 1)  # which fails
        assert dict.__getitem__(table, "kernel") == config
        report = Report()
        tuning.sweep(report, table, case, "inference", "kernel", lambda: None, 1)
        assert "did not ask" in report.figures[0]["error"]


def test_every_goal_is_measured_by_a_case(of_bench):
    goals, cases, training = (
        of_bench("device.goals"),
        of_bench("device.cases"),
        of_bench("device.training"),
    )
    host, bench_fit = of_bench("device.host"), of_bench("bench_fit")
    ops = {
        (case.op, case.name, mode, provider)
        for case in cases.CASES
        for mode in case.modes
        for provider in ("fastmlp", *case.peers)
    }
    runs = {**training.MORE, **bench_fit.CASES}
    launches = host.launches("cpu")
    for goal in goals.GOALS:
        for key in (goal.figure, goal.over):
            if key is None:
                continue
            where = key.where
            if key.file == "ops.json":
                assert (where["op"], where["case"], where["mode"], where["provider"]) in ops, goal
            elif key.file == "fit.json":
                assert where["case"] in runs, goal
            elif where["what"] == "launch":
                assert where["name"] in launches, goal
            else:
                assert where["module"] in host.MODULES, goal


def test_goals_are_judged_by_a_devices_figures_alone(of_bench):
    goals, summary = of_bench("device.goals"), of_bench("device.summary")
    where = {"op": "additive_mlp", "case": "[4M, 64], H = 14", "provider": "fastmlp"}
    figures = {name: [] for name in of_bench("device.files").FIGURES}
    figures["ops.json"] = [
        {**where, "mode": mode, "graph_us": us, "dry": False}
        for mode, us in (("inference", 200.0), ("forward_backward", 900.0))
    ]
    forward, both = goals.GOALS[:2]
    assert goals.value(figures, forward) == pytest.approx(0.2)  # 200 × 1e-3, rounded
    text = summary._goals(figures, False)
    assert "| AdditiveMLP [4M, 64] forward | ms | 0.457 | ≤ 0.3 | 0.2 | reached |" in text
    assert "| AdditiveMLP [4M, 64] f + b | ms | 1.11 | ≤ 0.8 | 0.9 | **missed** |" in text
    for record in figures["ops.json"]:
        record["dry"] = True
    assert goals.value(figures, both) is None


def test_a_rate_and_a_ratio_are_in_the_goals_unit(of_bench):
    goals = of_bench("device.goals")
    figures = {name: [] for name in of_bench("device.files").FIGURES}
    by_name = {goal.work: goal for goal in goals.GOALS}
    sines = by_name["SineSum(64) 1M forward"]
    ratio = by_name["MLP 64-64-64-16 [1M] bf16, forward, plain's time"]
    for key, us in ((sines.figure, 32.0), (ratio.figure, 300.0), (ratio.over, 100.0)):
        figures["ops.json"].append({**key.where, key.field: us, "dry": False})
    # 64 million sines in 32 µs
    assert goals.value(figures, sines) == pytest.approx(2.0)
    assert goals.value(figures, ratio) == pytest.approx(3.0)


def test_a_sweep_names_the_kernels_that_a_case_asks_for(of_bench):
    tuning = of_bench("device.tuning")
    table = tuning.Watched({"a": 1, "b": 2})
    assert table["b"] == 2
    assert table.asked == {"b"}
    config = of_bench("fastmlp.kernels.gpu.machine.launch").Config(rows=1, cols=2048, warps=4)
    found = tuning.candidates("sine_sum_fwd", config)
    assert config not in found
    assert len(set(found)) == len(found)
    assert {other.rows for other in found} == {1}


def test_one_case_of_each_test_is_run_alone_first(of_bench):
    in_order = of_bench("device.alone").in_order
    tests = ["a.py::x[1]", "a.py::x[2]", "a.py::x[1]", "a.py::y", "b.py::x[1]"]
    assert in_order(tests) == ["a.py::x[1]", "a.py::y", "b.py::x[1]", "a.py::x[2]"]
