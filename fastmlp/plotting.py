"""The pictures: segments, losses, predictions, shape functions and spectra.

Every function draws into the axes it is given, or into those of a new figure, and returns them;
nothing is shown or saved. Curves differ in lightness and in line style or marker, not in hue alone,
and the hues are those of Okabe and Ito, so that the pictures hold in greyscale and for readers who
are colour-blind. Matplotlib is imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastmlp import functional
from fastmlp.arguments import integer, sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from fastmlp.piecewise import PiecewiseLinear
    from fastmlp.reference import AdditiveMLP, SineSum
    from fastmlp.training import FitResult

    OnAxes = Axes | None
    Function = Callable[[Tensor], Tensor]
    Pair = tuple[Tensor, Tensor] | None
    Numbers = Tensor | Sequence[float] | None

__all__ = [
    "plot_fit",
    "plot_prediction",
    "plot_segments",
    "plot_shape_functions",
    "plot_spectrum",
]

COLOURS = {
    "black": "#000000",
    "blue": "#0072B2",
    "orange": "#E69F00",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
}
"""Colours that stay apart for colour-blind readers.

Source: Okabe and Ito 2008, Color Universal Design."""

_TRUTH: dict[str, Any] = {"color": "0.75", "lw": 4, "solid_capstyle": "butt", "zorder": 1}
_LEARNED: dict[str, Any] = {"color": "black", "lw": 1.2, "zorder": 2.5}
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "x", "^", "s", "+", "v", "D", "*")
_MARGIN = 0.1
# the ten thousandth grey line or dot shows no more than the five hundredth
_MOST_MODELS = 500
_MOST_ROWS = 2000
_SHAPE_POINTS = 201


def _axes(ax):
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _every(n, most):
    """A slice that leaves at most ``most`` of ``n`` things, spread evenly."""
    return slice(None, None, max(1, math.ceil(n / most)))


def plot_segments(
    table: PiecewiseLinear, lo: float | None = None, hi: float | None = None, *, ax: OnAxes = None
) -> Axes:
    """Draw a piecewise-linear function, neighbouring segments in two colours, and its breakpoints.

    Args:
        table: A :class:`fastmlp.piecewise.PiecewiseLinear`; of several outputs each has a line
            style of its own.
        lo: Left end of the picture, in units of x; default: the table's own, or a little left of
            the first breakpoint.
        hi: Right end, likewise.
        ax: Axes of matplotlib; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: ``table`` is no table.
        ValueError: ``lo`` ≥ ``hi``, or beyond the table's interval.

    Example:
        >>> import torch, fastmlp
        >>> table = fastmlp.piecewise.from_module(fastmlp.ElementwiseMLP(14))
        >>> ax = plot_segments(table, -2, 2)  # doctest: +SKIP
    """
    if not hasattr(table, "segments_in"):
        raise TypeError(
            f"table must be a PiecewiseLinear, got {type(table).__name__}; "
            "fastmlp.piecewise.from_module makes one of a net"
        )
    segments = table.segments_in(*_window(table, lo, hi))
    ax = _axes(ax)
    edges = [segments[0].lo, *(segment.hi for segment in segments)]
    x = torch.tensor(edges, dtype=torch.float64, device="cpu")
    y = table(x).reshape(len(edges), -1)
    for output in range(y.shape[1]):
        style = _STYLES[output % len(_STYLES)]
        for first, colour in enumerate(("blue", "orange")):
            # one line for every other segment: a gap, NaN, between any two
            ends = [end for i in range(first, len(segments), 2) for end in (i, i + 1, i)]
            gap = x.new_tensor([0.0, 0.0, math.nan]).repeat(len(ends) // 3)
            ax.plot(x[ends] + gap, y[ends, output] + gap, style, color=COLOURS[colour], lw=2)
        ax.plot(x[1:-1], y[1:-1, output], "o", color="white", mec="black", mew=0.7, ms=3)
    ax.set_xlim(edges[0], edges[-1])
    return ax


def _window(table, lo, hi):
    t = table.breakpoints.tolist() or [-1.0, 1.0]
    margin = _MARGIN * (t[-1] - t[0]) or 1.0
    if lo is None:
        lo = table.interval[0] if math.isfinite(table.interval[0]) else t[0] - margin
    if hi is None:
        hi = table.interval[1] if math.isfinite(table.interval[1]) else t[-1] + margin
    return lo, hi


def plot_fit(result: FitResult, *, ax: OnAxes = None) -> Axes:
    """Draw the training loss of all models over the epochs, the best one on top.

    Of more than 500 models an even choice is drawn. The validation loss of the best model is
    dashed.

    Args:
        result: A :class:`fastmlp.FitResult`.
        ax: Axes of matplotlib; default: those of a new figure.

    Returns:
        The axes, with a logarithmic scale of the loss.

    Raises:
        TypeError: ``result`` is no FitResult.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-1, 1, 32)
        >>> nets = [fastmlp.SineSum(2) for _ in range(3)]
        >>> result = fastmlp.fit(nets, x, x.sin(), epochs=9, progress=False)
        >>> ax = plot_fit(result)  # doctest: +SKIP
    """
    if not hasattr(result, "train_loss"):
        raise TypeError(f"result must be a FitResult, got {type(result).__name__}")
    ax = _axes(ax)
    n_models, n_epochs = result.train_loss.shape
    epochs = range(1, n_epochs + 1)
    # a single epoch is a point, and lines do not show points
    marker = "o" if n_epochs == 1 else None
    if n_models > 1:
        losses = result.train_loss[_every(n_models, _MOST_MODELS)]
        lines = ax.plot(epochs, losses.T, color="0.75", lw=0.7, marker=marker, zorder=1)
        lines[0].set_label(f"training, {n_models} models")
    best = result.best
    ax.plot(
        epochs, result.train_loss[best], marker=marker, label=f"training, model {best}", **_LEARNED
    )
    if result.val_loss is not None:
        ax.plot(
            epochs, result.val_loss[best], "--", marker=marker, color=COLOURS["vermilion"],
            label=f"validation, model {best}", zorder=3,
        )  # fmt: skip
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"loss ({result.loss})")
    ax.set_yscale("log")
    ax.legend()
    return ax


def plot_prediction(
    model: Function, x: Tensor, y: Tensor, *, training: Pair = None, ax: OnAxes = None
) -> Axes:
    """Draw what a model predicts, beside the truth.

    Where x is one number a row, both are drawn over x: the truth as a broad grey line, the
    prediction as a narrow black one. Otherwise the prediction is drawn over the truth, a dot a row
    (at most 2000 of them), with the line on which both are equal.

    Args:
        model: An ``nn.Module``, which is run in eval mode, or any function of x.
        x: Inputs, ``[N]`` or ``[N, F]``.
        y: True outputs, in the shape of ``model(x)``.
        training: ``(x, y)`` of points to mark as those that were trained on; for one number a row.
        ax: Axes of matplotlib; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: ``y`` has not the shape of ``model(x)``.

    Example:
        >>> import torch, fastmlp
        >>> x = torch.linspace(-1, 1, 32)
        >>> ax = plot_prediction(fastmlp.SineSum(4), x, x.sin())  # doctest: +SKIP
    """
    predicted = _predict(model, x)
    if predicted.shape != y.shape:
        raise ValueError(
            f"y must have the shape of model(x), {list(predicted.shape)}, got {list(y.shape)}"
        )
    ax = _axes(ax)
    x, y = x.detach().cpu(), y.detach().cpu()
    if x.numel() == y.numel():
        order = x.flatten().argsort()
        at = x.flatten()[order]
        ax.plot(at, y.flatten()[order], label="truth", **_TRUTH)
        ax.plot(at, predicted.flatten()[order], label="learned", **_LEARNED)
        if training is not None:
            points = (t.detach().cpu().flatten() for t in training)
            ax.plot(
                *points, "o", color=COLOURS["orange"], mec="black", mew=0.4, ms=4,
                label="training points", zorder=2,
            )  # fmt: skip
        ax.set_xlabel("x")
        ax.set_ylabel("y")
    else:
        outputs = predicted.reshape(len(y), -1).T, y.reshape(len(y), -1).T
        ends = [y.min().item(), y.max().item()]
        ax.plot(ends, ends, color="0.6", lw=1, zorder=1)
        for i, (mine, true) in enumerate(zip(*outputs, strict=True)):
            rms = (mine - true).double().square().mean().sqrt().item()
            name = f"output {i}, " if len(outputs[0]) > 1 else ""
            chosen = _every(len(true), _MOST_ROWS)
            ax.plot(
                true[chosen], mine[chosen], _MARKERS[i % len(_MARKERS)], ms=3, alpha=0.6,
                color=list(COLOURS.values())[(i + 1) % len(COLOURS)],
                label=f"{name}RMS error {rms:.3g}",
            )  # fmt: skip
        ax.set_xlabel("truth")
        ax.set_ylabel("predicted")
    ax.legend()
    return ax


@torch.no_grad()
def _predict(model, x):
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        return model(x).detach().cpu()
    finally:
        if training:
            model.train()


def plot_shape_functions(
    model: AdditiveMLP,
    x: Tensor,
    *,
    output: int = 0,
    features: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    ax: Any = None,
) -> Any:
    """Draw what each feature adds to the output of an additive model.

    .. math:: g_j(u) = V_{mj} f_j(u) - \\operatorname{mean}_n V_{mj} f_j(x_{nj})

    over the range of the feature in ``x``, with a tick for each of its values (at most 2000). All
    panels share their y-axis, so that the height of a curve is the weight of its feature.

    Args:
        model: A :class:`fastmlp.AdditiveMLP` or :class:`fastmlp.reference.AdditiveMLP` with F
            features, in any mode.
        x: Data, ``[N, F]``, floating point.
        output: The output m.
        features: Indices of the features to draw, in this order; default: all.
        names: Names of all F features; default: x[0], x[1], …
        ax: Axes of matplotlib, as many as features; default: a grid of new ones.

    Returns:
        The axes, as they came; else an array with one for each feature.

    Raises:
        TypeError: ``model`` is no additive model.
        ValueError: ``x``, ``names`` or ``ax`` of another size; ``output`` or a feature out of
            range.

    Source: Agarwal et al. 2021, arXiv:2004.13912, section 3.

    Example:
        >>> import torch, fastmlp
        >>> net = fastmlp.AdditiveMLP(3, 14, shared=False)
        >>> axes = plot_shape_functions(net, torch.randn(100, 3))  # doctest: +SKIP
    """
    if not all(hasattr(model, name) for name in ("fc3", "shared", "in_features")):
        raise TypeError(f"model must be an AdditiveMLP, got {type(model).__name__}")
    n_features = model.in_features
    if x.dim() != 2 or x.shape[1] != n_features or len(x) == 0:
        raise ValueError(f"x must have shape [N, {n_features}], got {list(x.shape)}")
    output = integer("output", output)
    if not 0 <= output < model.out_features:
        raise ValueError(f"output must be 0 … {model.out_features - 1}, got {output}")
    names = [f"x[{j}]" for j in range(n_features)] if names is None else list(names)
    if len(names) != n_features:
        raise ValueError(f"names must be {n_features}, one a feature, got {len(names)}")
    chosen = range(n_features) if features is None else sequence(features)
    if chosen is None or not all(0 <= integer("features", j) < n_features for j in chosen):
        raise ValueError(f"features must be 0 … {n_features - 1}, got {features}")
    features = list(chosen)
    axes = _grid(len(features)) if ax is None else ax
    panels = axes.ravel().tolist() if hasattr(axes, "ravel") else axes
    panels = panels if isinstance(panels, (list, tuple)) else [panels]
    if len(panels) != len(features):
        raise ValueError(f"ax must be {len(features)} axes, one a feature, got {len(panels)}")

    x = x.detach().double()
    lo, hi = x.min(0).values, x.max(0).values
    along = torch.linspace(0, 1, _SHAPE_POINTS, dtype=torch.float64, device=x.device)[:, None]
    points = torch.lerp(lo, hi, along)
    curves = _contributions(model, points, output) - _contributions(model, x, output).mean(0)
    points, curves, rows = points.cpu(), curves.cpu(), x[_every(len(x), _MOST_ROWS)].cpu()
    for panel, j in zip(panels, features, strict=True):
        panel.axhline(0, color="0.75", lw=1, zorder=1)
        panel.plot(points[:, j], curves[:, j], color=COLOURS["blue"], lw=2)
        panel.plot(
            rows[:, j], [0.02] * len(rows), "|", color="black", alpha=0.25, ms=6,
            transform=panel.get_xaxis_transform(),
        )  # fmt: skip
        panel.set_xlabel(names[j])
    panels[0].set_ylabel("adds to the output")
    return axes


@torch.no_grad()
def _contributions(model, x, output):
    """V[m, j]·f_j(x_j) of every row and feature, ``[N, F]`` in float64."""
    double = [
        None if p is None else p.detach().double()
        for layer in (model.fc1, model.fc2)
        for p in (layer.weight, layer.bias)
    ]
    each = torch.eye(model.in_features, dtype=torch.float64, device=x.device)
    subnets = functional.additive_mlp(x, *double, each, None, model.activation)
    return subnets * model.fc3.weight[output].detach().double()


def _grid(n):
    from matplotlib import pyplot as plt

    columns, rows = min(n, 5), math.ceil(n / 5)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.1 * rows), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for spare in axes.ravel()[n:]:
        figure.delaxes(spare)
    return axes.ravel()[:n]


def plot_spectrum(
    model: SineSum, frequencies: Numbers = None, amplitudes: Numbers = None, *, ax: OnAxes = None
) -> Axes:
    """Draw the sines of a SineSum: the amplitude of each over its frequency.

    A negative frequency is drawn at its magnitude with the sign of its amplitude turned, for
    sin(−wx) = −sin(wx): two sines that cancel point up and down.

    Args:
        model: A :class:`fastmlp.SineSum` or :class:`fastmlp.reference.SineSum`.
        frequencies: True frequencies, in units of the model's ``w``, drawn as broad grey lines.
        amplitudes: True amplitudes; default: those of a mean or sum of plain sines, as the model's
            reduction says.
        ax: Axes of matplotlib; default: those of a new figure.

    Returns:
        The axes.

    Raises:
        TypeError: ``model`` is no SineSum.
        ValueError: ``amplitudes`` and ``frequencies`` differ in number.

    Example:
        >>> import torch, fastmlp
        >>> ax = plot_spectrum(fastmlp.SineSum(8), [0.5, 1.0])  # doctest: +SKIP
    """
    if not all(hasattr(model, name) for name in ("w", "reduction")):
        raise TypeError(f"model must be a SineSum, got {type(model).__name__}")

    def share(n):
        return 1 / n if model.reduction == "mean" else 1.0

    at = torch.as_tensor([] if frequencies is None else frequencies, device="cpu").reshape(-1)
    sizes = torch.full((len(at),), share(max(1, len(at))), device="cpu")
    if amplitudes is not None and frequencies is not None:
        sizes = torch.as_tensor(amplitudes, device="cpu").reshape(-1)
        if len(sizes) != (n := len(at)):
            raise ValueError(f"amplitudes must be as many as frequencies, {n}, got {len(sizes)}")
    ax = _axes(ax)
    ax.axhline(0, color="0.75", lw=1, zorder=1)
    if frequencies is not None:
        ax.vlines(at.abs(), 0, sizes * at.sign(), color="0.75", lw=5, zorder=1, label="truth")
    w = model.w.detach().cpu()
    heights = share(len(w)) * w.sign()
    if model.amplitude is not None:
        heights *= model.amplitude.detach().cpu()
    ax.vlines(w.abs(), 0, heights, color="black", lw=1)
    ax.plot(w.abs(), heights, "o", color="white", mec="black", ms=5, label="learned")
    ax.set_xlabel("frequency |w|")
    ax.set_ylabel("amplitude")
    ax.legend()
    return ax
