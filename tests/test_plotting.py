"""The pictures: what they draw is what the tables, results and models say."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import piecewise, plotting, reference

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import colors  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture
def axes():
    return plt.figure().add_subplot()


def net(*sizes):
    layers = [nn.Linear(*pair).double() for pair in pairwise(sizes)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])


def drawn(line):
    """Points of a line, without the gaps."""
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in line.get_data())
    return x[~x.isnan()], y[~x.isnan()]


class TestSegments:
    @pytest.mark.parametrize("sizes", [(1, 5, 1), (1, 6, 6, 2), (1, 1, 1)])
    def test_every_segment_is_drawn_once_on_the_function(self, axes, sizes):
        table = piecewise.from_module(net(*sizes))
        assert table.plot(-1, 1, ax=axes) is axes
        segments = table.segments_in(-1, 1)
        lines = axes.lines
        assert len(lines) == 3 * table.n_outputs
        for m in range(table.n_outputs):
            starts = torch.cat([drawn(line)[0] for line in lines[3 * m : 3 * m + 2]])
            assert sorted(starts.tolist()) == sorted(e for s in segments for e in (s.lo, s.hi))
            for line in lines[3 * m : 3 * m + 3]:
                x, y = drawn(line)
                assert torch.equal(table(x).reshape(len(x), table.n_outputs)[:, m], y)
        assert axes.get_xlim() == (-1, 1)

    def test_the_window_shows_all_breakpoints(self):
        table = piecewise.from_module(net(1, 5, 1))
        lo, hi = table.plot().get_xlim()
        assert lo < table.breakpoints[0]
        assert hi > table.breakpoints[-1]
        straight = piecewise.PiecewiseLinear([], [2.0], [0.0])
        assert len(straight.plot().lines) == 3
        bounded = piecewise.PiecewiseLinear([0.0], [0.0, 2.0], [0.0, 0.0], interval=(-3, 4))
        assert bounded.plot().get_xlim() == (-3, 4)

    def test_a_net_is_no_table(self):
        with pytest.raises(TypeError, match=r"table must be a PiecewiseLinear, got Sequential"):
            plotting.plot_segments(net(1, 2, 1))


class TestFit:
    def run(self, n, epochs, **options):
        x = torch.linspace(-1, 1, 16)
        nets = [fastmlp.SineSum(2) for _ in range(n)]
        with fastmlp.backend("torch"):
            return fastmlp.fit(nets, x, x.sin(), epochs=epochs, progress=False, **options)

    def test_all_losses_the_best_and_its_validation(self, axes):
        x = torch.linspace(-1, 1, 8)
        result = self.run(3, 4, validation=(x, x.sin()))
        assert result.plot(ax=axes) is axes
        *grey, best, validation = axes.lines
        assert [list(line.get_ydata()) for line in grey] == result.train_loss.tolist()
        assert best.get_ydata().tolist() == result.train_loss[result.best].tolist()
        assert validation.get_ydata().tolist() == result.val_loss[result.best].tolist()
        assert axes.get_yscale() == "log"
        assert axes.get_ylabel() == "loss (mse)"
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        best = result.best
        assert labels == ["training, 3 models", f"training, model {best}",
                          f"validation, model {best}"]  # fmt: skip

    def test_one_model_and_one_epoch_show(self):
        ax = self.run(1, 1).plot()
        (line,) = ax.lines
        assert line.get_marker() == "o"

    def test_of_very_many_models_some_are_drawn(self, axes, monkeypatch):
        monkeypatch.setattr(plotting, "_MOST_MODELS", 3)
        self.run(7, 2).plot(ax=axes)
        assert len(axes.lines) == 3 + 1

    def test_other_things_are_refused(self):
        with pytest.raises(TypeError, match="result must be a FitResult, got list"):
            plotting.plot_fit([1.0])


class TestPrediction:
    @pytest.mark.parametrize("shape", [(20,), (20, 1)])
    def test_one_number_a_row_is_drawn_over_x(self, axes, shape):
        x = torch.randn(shape)
        model = fastmlp.ElementwiseMLP(4, dropout=0.5)
        training = x[:5], x[:5].sin()
        assert plotting.plot_prediction(model, x, x.sin(), training=training, ax=axes) is axes
        assert model.training
        truth, learned, points = axes.lines
        ordered = x.flatten().sort().values
        assert truth.get_xdata().tolist() == learned.get_xdata().tolist() == ordered.tolist()
        wanted = model.eval()(ordered).detach()
        # the same module on rows of another shape, in float32
        torch.testing.assert_close(torch.as_tensor(learned.get_ydata()), wanted)
        assert len(points.get_xdata()) == 5

    def test_several_numbers_a_row_are_drawn_over_the_truth(self, axes):
        model, x, y = fastmlp.AdditiveMLP(3, 4, 2), torch.randn(30, 3), torch.randn(30, 2)
        plotting.plot_prediction(model, x, y, ax=axes)
        diagonal, *outputs = axes.lines
        assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [y.min(), y.max()]
        for i, line in enumerate(outputs):
            assert line.get_xdata().tolist() == y[:, i].tolist()
            assert line.get_ydata().tolist() == model(x)[:, i].tolist()
        assert len({line.get_marker() for line in outputs}) == 2
        rms = (model(x)[:, 0] - y[:, 0]).square().mean().sqrt().item()
        assert axes.get_legend().get_texts()[0].get_text() == f"output 0, RMS error {rms:.3g}"

    def test_functions_will_do_and_shapes_must_match(self, axes):
        x = torch.linspace(-1, 1, 5)
        plotting.plot_prediction(torch.sin, x, x, ax=axes)
        with pytest.raises(ValueError, match=r"y must have the shape of model\(x\), \[5\]"):
            plotting.plot_prediction(torch.sin, x, x[:, None], ax=axes)


class TestShapeFunctions:
    @pytest.mark.parametrize("shared", [True, False])
    @pytest.mark.parametrize("package", [fastmlp, reference])
    def test_curves_and_bias_add_up_to_the_model(self, package, shared, draw):
        model = package.AdditiveMLP(7, 4, 2, shared=shared, activation="tanh", dropout=0.5).double()
        x = draw(40, 7)
        axes = plotting.plot_shape_functions(model, x, output=1)
        assert len(axes) == 7
        mean = model.eval()(x)[:, 1].mean()
        # the left ends of all curves are the model at the corner of the data
        corner = sum(ax.lines[1].get_ydata()[0] for ax in axes)
        wanted = model(x.min(0, keepdim=True).values)[0, 1] - mean
        # seven curves and a mean of 40 rows, in float64
        assert corner == pytest.approx(wanted.item(), abs=1e-12)
        assert axes[0].lines[1].get_xdata()[-1] == x[:, 0].max()
        assert axes[0].get_ylim() == axes[6].get_ylim()

    def test_chosen_features_in_given_axes(self, axes, draw):
        model = fastmlp.AdditiveMLP(3, 4)
        names = ["age", "income", "height"]
        x = draw(10, 3)
        same = plotting.plot_shape_functions(model, x, features=[2], names=names, ax=axes)
        assert same is axes
        assert axes.get_xlabel() == "height"
        pair = plt.figure().subplots(1, 2)
        assert plotting.plot_shape_functions(model, x, features=[1, 0], ax=pair) is pair
        assert pair[1].get_xlabel() == "x[0]"

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"model": nn.Linear(3, 1)}, TypeError, "model must be an AdditiveMLP, got Linear"),
            ({"x": torch.zeros(4, 2)}, ValueError, r"x must have shape \[N, 3\], got \[4, 2\]"),
            ({"x": torch.zeros(0, 3)}, ValueError, r"got \[0, 3\]"),
            ({"output": 1}, ValueError, "output must be 0 … 0, got 1"),
            ({"names": ["a"]}, ValueError, "names must be 3, one a feature, got 1"),
            ({"features": [3]}, ValueError, r"features must be 0 … 2, got \[3\]"),
            ({"ax": [None]}, ValueError, "ax must be 3 axes, one a feature, got 1"),
        ],
    )
    def test_errors_say_what_is_wanted(self, change, error, message):
        arguments = {"model": fastmlp.AdditiveMLP(3, 4), "x": torch.zeros(4, 3), **change}
        with pytest.raises(error, match=message):
            plotting.plot_shape_functions(**arguments)


class TestSpectrum:
    def test_sines_and_the_truth(self, axes):
        model = fastmlp.SineSum(3, learn_amplitude=True)
        with torch.no_grad():
            model.w.copy_(torch.tensor([0.5, -1.0, 2.0]))
            model.amplitude.copy_(torch.tensor([3.0, -6.0, 9.0]))
        assert plotting.plot_spectrum(model, [0.5, -1.0], ax=axes) is axes
        _, heads = axes.lines
        assert heads.get_xdata().tolist() == [0.5, 1.0, 2.0]
        assert heads.get_ydata().tolist() == [1.0, 2.0, 3.0]
        truth, _ = axes.collections
        ends = [segment.tolist() for segment in truth.get_segments()]
        assert ends == [[[0.5, 0.0], [0.5, 0.5]], [[1.0, 0.0], [1.0, -0.5]]]

    def test_a_sum_has_amplitude_one(self):
        ax = plotting.plot_spectrum(reference.SineSum(2, reduction="sum"))
        assert ax.lines[1].get_ydata().tolist() == [1.0, 1.0]

    def test_errors_say_what_is_wanted(self):
        with pytest.raises(TypeError, match="model must be a SineSum, got Linear"):
            plotting.plot_spectrum(nn.Linear(1, 1))
        with pytest.raises(ValueError, match="amplitudes must be as many as frequencies, 2, got 1"):
            plotting.plot_spectrum(fastmlp.SineSum(2), [0.5, 1.0], [1.0])


def test_neighbouring_colours_differ_in_lightness():
    def lightness(name):
        rgb = torch.tensor(colors.to_rgb(plotting.COLOURS[name]))
        return float(rgb @ torch.tensor([0.2126, 0.7152, 0.0722]))

    for first, second in [("blue", "orange"), ("black", "vermilion")]:
        assert abs(lightness(first) - lightness(second)) > 0.2, (first, second)
