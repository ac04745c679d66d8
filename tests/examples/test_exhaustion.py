"""The examples `exhaustion.py` and `exhaustion_questions.py`, run for a few steps."""

import math

import pytest
import torch

import fastmlp


@pytest.fixture(scope="module")
def curves(as_script):
    return as_script("_curves")


@pytest.fixture(scope="module")
def walk(as_script):
    return as_script("exhaustion")


def test_the_walk_runs(walk, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("numba")
    arguments = ["--epochs", "2", "--restarts", "2", "--out", str(tmp_path), "--gif", "2x"]
    courses, _, forgotten = walk.main(arguments)
    assert [course.walk for course in courses] == walk.WALKS
    back_and_forth = next(course for course in courses if len(course.ends) == 8)
    # four times each, in turn
    assert [end.stage.target.name[:5] for end in back_and_forth.ends] == ["x > 0", "x > 2"] * 4
    assert len(forgotten) == 2
    text = capsys.readouterr().out
    assert all(course.walk.name in text for course in courses)
    pictures = ("births_and_deaths", "beyond", "losses", "recovery", "strips-relu", "strips-leaky")
    names = {f"{name}.png" for name in pictures}
    films = {p.name for p in tmp_path.iterdir()} - names
    assert names < {p.name for p in tmp_path.iterdir()}
    assert films == {f"segments-{len(courses) - 1}.gif"}


def test_every_target_of_the_original_is_walked(walk, curves):
    walked = {(s.target.name, w.activation) for w in walk.WALKS for s in w.stages}
    assert {name for name, _ in walked} == set(curves.BY_NAME)
    for name in ("1/x, [-5, 5]", "exp(x), [-5, 5]", "x > 0, [-5, 5]", "sin, [-10, 10]"):
        assert {(name, "relu"), (name, "leaky_relu")} < walked


def test_order_is_most_of_the_exhaustion(walk):
    """The original's own figures: sin on [-10, 10], H = 10, medians of 8 nets."""
    pytest.importorskip("numba")
    options = walk.parse([])
    medians = []
    for shuffle in (False, True):
        nets = walk.draw_nets(walk.NETS_COMPARED, [10] * 3, seed=options.seed)
        walk.learn(nets, walk.SIN_10, options.epochs, shuffle=shuffle, seed=options.seed)
        medians.append(float(walk.errors(nets, walk.SIN_10).median()))
    # other draws of the same nets: within a quarter
    assert medians == pytest.approx([0.49, 0.07], rel=0.25)


def test_the_questions_run(as_script, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("numba")
    questions = as_script("exhaustion_questions")
    arguments = ["--epochs", "2", "--restarts", "2", "--steps", "60", "--out", str(tmp_path)]
    pole, regularised = questions.main(arguments)
    # the original's figure, by ten starts, where Adam stays at 0.96
    assert round(min(pole[10]), 3) <= 0.006
    assert max(pole[10]) < 0.02
    assert min(pole[300]) < min(pole[10])
    assert len(regularised) == 6
    text = capsys.readouterr().out
    for title in ("Exhausted?", "Freezing", "L2 against dropout", "Jitter", "Spreading", "joules"):
        assert title in text
    assert [p.name for p in tmp_path.iterdir()] == ["exhaustion.png"]


def test_joules_are_told_where_there_is_a_meter(as_script, tmp_path, monkeypatch):
    questions = as_script("exhaustion_questions")
    meter = tmp_path / "energy_uj"
    monkeypatch.setattr(questions, "METER", meter)
    assert questions._joules() is None
    meter.write_text("2500000\n")
    assert questions._joules() == 2.5


def test_poles_are_missed_and_floors_are_finite(curves):
    for target in curves.TARGETS:
        _, y = target.data()
        assert y.isfinite().all(), target.name
        floor = target.rms_floor()
        assert math.isfinite(floor)
        straight = target.name.startswith(("x >", "2x"))
        assert (floor == 0) == straight


def test_the_floor_of_a_parabola_is_exact(curves):
    # pieces of width h: h² / √180
    target = curves.Target("x²", torch.square, -5, 8)
    # an integral over parts, each refined numerically
    assert target.rms_floor() == pytest.approx(13**2 / math.sqrt(180), rel=1e-6)


def test_knots_start_in_the_domain(curves):
    for net in curves.draw_nets(4, [20] * 3, knots_in=(5.0, 15.0)):
        assert isinstance(net, fastmlp.MLP)
        first = net.get_submodule("0")
        t = -first.bias / first.weight[:, 0]
        # quotients of float32 numbers
        assert ((t > 5 - 1e-3) & (t < 15 + 1e-3)).all()
