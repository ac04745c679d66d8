"""Three examples, run short, and the script that runs all."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from closeness import assert_same_number

import fastmlp

FOLDER = Path(__file__).parents[2] / "examples"

pytest.importorskip("matplotlib")


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def deep_sets():
    return load("deep_sets")


@pytest.fixture(scope="module")
def learned_activation():
    pytest.importorskip("sklearn")
    return load("learned_activation")


@pytest.fixture(scope="module")
def neural_additive():
    pytest.importorskip("sklearn")
    pytest.importorskip("numba")
    return load("neural_additive")


class TestDeepSets:
    @pytest.fixture
    def example(self, deep_sets):
        return deep_sets

    def test_it_learns_and_saves_its_plot(self, example, tmp_path, capsys):
        rows, nets = example.main(["--steps", "150", "--quiet", "--out", str(tmp_path)])
        assert rows["Deep Sets"][example.SIZE] < 0.3
        assert set(nets) == {"Deep Sets", "dense net"}
        assert rows["posterior mean"][1024] < rows["posterior mean"][16]
        assert "posterior mean" in capsys.readouterr().out
        assert [p.name for p in tmp_path.iterdir()] == ["deep_sets.png"]

    def test_neither_order_nor_copies_matter(self, example, draw):
        net = example.DeepSets(8).double()
        x = draw(5, 8)
        twice = torch.cat([x, x.flip(1)], 1)
        assert_same_number(net.for_size(16).double()(twice), net(x))

    def test_the_posterior_mean_is_right(self, example):
        x, log_scale = example.draw_sets(400, 1024, 3)
        error = example.rms(example.posterior_mean, x, log_scale)
        # Fisher information: n/2 for log γ; 400 sets tell the error to 3.5 %: three of them
        assert error == pytest.approx(math.sqrt(2 / 1024), rel=0.1)


class TestLearnedActivation:
    @pytest.fixture
    def example(self, learned_activation):
        return learned_activation

    def test_it_learns_and_saves_its_plot(self, example, tmp_path, capsys):
        arguments = ["--epochs", "3", "--starts", "1", "--quiet", "--out", str(tmp_path)]
        runs, plain = example.main(arguments)
        assert plain > 0
        for trained in runs.values():
            ((_, scores, _),) = trained
            assert scores[-1] > 0.8
        assert "learned, PyTorch" in capsys.readouterr().out
        assert [p.name for p in tmp_path.iterdir()] == ["learned_activation.png"]

    def test_the_start_meets_gelu_at_the_knots(self, example):
        module = example.learned_gelu()
        assert isinstance(module, fastmlp.ElementwiseMLP)
        assert module.hidden_features == 8
        knots = torch.tensor(example.KNOTS)
        # PyTorch's bound for float32
        torch.testing.assert_close(module(knots), torch.nn.functional.gelu(knots))
        far = torch.tensor([-10.0, 10.0])
        assert (module(far) - torch.nn.functional.gelu(far)).abs().max() < 0.2


class TestNeuralAdditive:
    @pytest.fixture
    def example(self, neural_additive):
        return neural_additive

    def test_it_learns_and_saves_its_plot(self, example, tmp_path, capsys):
        arguments = ["--epochs", "60", "--ensemble", "1", "--quiet", "--out", str(tmp_path)]
        scores, model, result = example.main(arguments)
        assert len(result.models) == example.FOLDS + 1
        assert scores["additive ensemble"].mean(0)[1] > 0.3
        assert model.hidden_features == example.HIDDEN
        assert "boosted trees" in capsys.readouterr().out
        assert [p.name for p in tmp_path.iterdir()] == ["shape_functions.png"]

    def test_each_row_is_held_out_once(self, example):
        weights = example.folds(442, 0)
        assert (weights[:-1] == 0).sum(0).tolist() == [1] * 442
        assert weights[-1].all()

    def test_the_mean_model_is_the_mean_of_the_ensemble(self, example):
        nets = [fastmlp.AdditiveMLP(10, example.HIDDEN, shared=False).double() for _ in range(3)]
        x = torch.randn(6, 10).double()
        mean = sum(net(x) for net in nets) / 3
        # the mean model keeps its weights in float32
        torch.testing.assert_close(example.mean_model(nets).double()(x), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("deep_sets", ["--steps", "0"]),
        ("learned_activation", ["--starts", "0"]),
        ("neural_additive", ["--ensemble", "0"]),
    ],
)
def test_bad_options_are_refused(name, argv, capsys):
    if name != "deep_sets":
        pytest.importorskip("sklearn")
    with pytest.raises(SystemExit):
        load(name).parse(argv)
    assert f"{argv[0]} must be at least 1" in capsys.readouterr().err


class TestRunningAll:
    @pytest.fixture
    def gallery(self):
        return load("gallery")

    def test_every_example_is_run_with_options_that_it_has(self, gallery):
        files = {path.stem for path in FOLDER.glob("[!_]*.py")} - {"gallery"}
        assert set(gallery.SETTINGS) == files
        for name, arguments in gallery.SETTINGS.items():
            source = (FOLDER / f"{name}.py").read_text("utf-8")
            for option in arguments:
                assert not option.startswith("--") or f'"{option}"' in source, (name, option)

    def test_output_is_shown_and_pictures_are_kept_small(self, gallery, tmp_path, capsys):
        (tmp_path / "drawn.py").write_text(
            "import sys, torch\n"
            "from matplotlib import pyplot as plt\n"
            "figure = plt.figure(figsize=(16, 3))\n"
            "figure.add_subplot().plot(torch.randn(5000))\n"
            "figure.savefig(sys.argv[2] + '/noise.png')\n"
            "print('done')\n"
        )
        gallery.EXAMPLES, gallery.SETTINGS = tmp_path, {**gallery.SETTINGS, "drawn": []}
        assert set(gallery.main(["drawn", "--out", str(tmp_path / "out")])) == {"drawn"}
        assert "done" in capsys.readouterr().out
        (picture,) = (tmp_path / "out").iterdir()
        assert picture.name == "drawn-noise.png"
        assert picture.stat().st_size < gallery.LARGEST_FILE

    def test_an_example_that_fails_ends_it(self, gallery, tmp_path):
        (tmp_path / "broken.py").write_text("raise SystemExit('no data')")
        gallery.EXAMPLES, gallery.SETTINGS = tmp_path, {"broken": []}
        with pytest.raises(SystemExit, match=r"(?s)broken failed.*no data"):
            gallery.main(["--out", str(tmp_path / "out")])

    def test_unknown_names_are_refused(self, gallery, capsys):
        with pytest.raises(SystemExit):
            gallery.main(["nothing"])
        assert "no such example: nothing" in capsys.readouterr().err
