"""Numbers as arguments: NumPy's scalars do what Python's do, and all else is refused by name."""

import inspect

import numpy as np
import pytest
import torch
from fit_cases import quiet_fit, waves

import fastmlp
from fastmlp import functional, piecewise, plotting, spectral, training

X, Y = waves(12)
ROWS = torch.linspace(-1, 1, 12).reshape(6, 2)
SPECTRUM = torch.linspace(-4, 4, 60, dtype=torch.float64)
ELEMENTWISE = fastmlp.ElementwiseMLP(2)


def fit(**options):
    torch.manual_seed(0)
    with fastmlp.backend("torch"):
        result = quiet_fit(
            fastmlp.SineSum(2),
            X,
            Y,
            **{"epochs": 2, "validation": (X, Y), "shuffle": True} | options,
        )
    return result.train_loss, result._description


def own_fit(**options):
    models, x = fastmlp.Ensemble(fastmlp.SineSum(2), 4, seed=0), X.reshape(4, -1)
    x = X if "folds" in options else x
    return quiet_fit(models, x, x.sin(), epochs=2, **options).train_loss


def step(**options):
    torch.manual_seed(0)
    optimizer = fastmlp.optim.LevenbergMarquardt(torch.nn.Linear(2, 1), **options)
    return optimizer._settings


def report(**options):
    torch.manual_seed(0)
    model = fastmlp.MLP(2, [3, 3], 1, dropout=0.5)
    return repr(fastmlp.dropout_report(model, ROWS, ROWS[:, :1], **options))


def masked(op, *tensors):
    def call(**options):
        torch.manual_seed(0)
        return op(*tensors, **options)

    return call


def spectrum(**options):
    y = ((0.5 * torch.pi * SPECTRUM).sin() + (1.25 * torch.pi * SPECTRUM).sin()) / 2
    return spectral.frequencies(SPECTRUM, y, **{"width": 2} | options).w


def shapes(**options):
    pytest.importorskip("matplotlib").use("Agg")
    torch.manual_seed(0)
    axes = plotting.plot_shape_functions(fastmlp.AdditiveMLP(2, 3, 2), ROWS, **options)
    return [list(line.get_ydata()) for ax in np.ravel(axes) for line in ax.lines]


def segments(**options):
    pytest.importorskip("matplotlib").use("Agg")
    ax = plotting.plot_segments(piecewise.from_module(ELEMENTWISE), **options)
    return [list(line.get_xdata()) for line in ax.lines]


def by(make, **fixed):
    return lambda **options: make(**fixed | options)


E_TENSORS = (X[:, None], *(p.detach() for p in ELEMENTWISE.parameters()))
A_TENSORS = (ROWS, *(p.detach() for p in fastmlp.AdditiveMLP(2, 3).parameters()))
M_LAYERS = list(fastmlp.MLP(2, 3, 1).parameters())
MLP = by(fastmlp.MLP, in_features=2, hidden_features=3, out_features=1)
ADAM = {"lr": 0.5, "betas": (0.5, 0.75), "eps": 0.5, "weight_decay": 0.5}
LEVENBERG_MARQUARDT = {
    "max_attempts": 3, "damping": 0.5, "scale_floor": 0.5, "ftol": 0.5, "xtol": 0.5, "gtol": 0.5,
}  # fmt: skip

# what is called, how, and a good value of each argument that is a number, exact in float32
CALLS = {
    "ElementwiseMLP": (
        fastmlp.ElementwiseMLP,
        fastmlp.ElementwiseMLP,
        {"hidden_features": 3, "bias": True, "dropout": 0.5},
    ),
    "AdditiveMLP": (
        fastmlp.AdditiveMLP,
        fastmlp.AdditiveMLP,
        {
            "in_features": 3, "hidden_features": 3, "out_features": 3, "shared": False,
            "bias": False, "dropout": 0.5,
        },
    ),
    "MLP": (
        fastmlp.MLP,
        MLP,
        {"in_features": 3, "hidden_features": 3, "out_features": 3, "bias": True, "dropout": 0.5},
    ),
    "SineSum": (
        fastmlp.SineSum,
        by(fastmlp.SineSum, width=2),
        {"width": 3, "scale": 0.5, "learn_amplitude": True, "learn_phase": True},
    ),
    "SGD": (
        fastmlp.SGD,
        fastmlp.SGD,
        {"lr": 0.5, "momentum": 0.5, "dampening": 0.5, "weight_decay": 0.5, "nesterov": True},
    ),
    "Adam": (fastmlp.Adam, fastmlp.Adam, ADAM),
    "AdamW": (fastmlp.AdamW, fastmlp.AdamW, ADAM),
    "StepLR": (fastmlp.StepLR, by(fastmlp.StepLR, step_size=1), {"step_size": 3, "gamma": 0.5}),
    "CosineAnnealingLR": (
        fastmlp.CosineAnnealingLR,
        by(fastmlp.CosineAnnealingLR, T_max=1),
        {"T_max": 3, "eta_min": 0.5},
    ),
    "LevenbergMarquardt": (
        fastmlp.LevenbergMarquardt,
        fastmlp.LevenbergMarquardt,
        {
            **LEVENBERG_MARQUARDT, "step": 0.5, "restarts": 3, "max_time": 0.5,
            "variable_projection": True,
        },
    ),
    "optim.LevenbergMarquardt": (fastmlp.optim.LevenbergMarquardt, step, LEVENBERG_MARQUARDT),
    "fit": (
        fastmlp.fit,
        fit,
        {
            "epochs": 3, "batch_size": 5, "shuffle": False, "patience": 1, "clip_norm": 0.5,
            "seed": 3, "progress": False, "history": 2,
        },
    ),
    "own": (fastmlp.fit, own_fit, {"own": True, "folds": 2}),
    "Ensemble": (
        fastmlp.Ensemble,
        by(fastmlp.Ensemble, module=fastmlp.SineSum(2), n=2, seed=0),
        {"n": 3, "seed": 3},
    ),
    "dropout_report": (
        fastmlp.dropout_report, report, {"samples": 5, "batch_size": 4, "seed": 3},
    ),
    "elementwise_mlp": (
        functional.elementwise_mlp,
        masked(functional.elementwise_mlp, *E_TENSORS),
        {"dropout": 0.5},
    ),
    "additive_mlp": (
        functional.additive_mlp, masked(functional.additive_mlp, *A_TENSORS), {"dropout": 0.5},
    ),
    "mlp": (
        functional.mlp,
        masked(functional.mlp, ROWS, M_LAYERS[::2], M_LAYERS[1::2]),
        {"dropout": 0.5},
    ),
    "sine_sum": (functional.sine_sum, masked(functional.sine_sum, X, X[:3]), {"scale": 0.5}),
    "frequencies": (
        spectral.frequencies, spectrum, {"width": 2, "scale": 3.0, "max_frequency": 2.5},
    ),
    "batch_order": (
        training.batch_order,
        by(training.batch_order, n_rows=20, epoch=0),
        {"n_rows": 10, "epoch": 3, "model": 3, "seed": 3},
    ),
    "error_floor": (
        piecewise.error_floor,
        by(piecewise.error_floor, f=torch.square, lo=-1.0, hi=1.0, pieces=2),
        {"lo": -0.5, "hi": 0.5, "pieces": 3},
    ),
    "dead_units": (
        piecewise.dead_units,
        by(piecewise.dead_units, module=ELEMENTWISE, lo=-1.0, hi=1.0),
        {"lo": -0.5, "hi": 0.5},
    ),
    "from_module": (
        piecewise.from_module,
        by(piecewise.from_module, module=ELEMENTWISE),
        {"interval": (-0.5, 0.5)},
    ),
    "warm_up": (
        fastmlp.warm_up,
        by(fastmlp.warm_up, module=torch.nn.Tanh(), shapes=[(2,)], progress=False),
        {"shapes": ((1, 2),), "progress": False},
    ),
    "fuse": (fastmlp.fuse, by(fastmlp.fuse, module=torch.nn.Identity()), {"verbose": False}),
    "FrozenPiecewiseLinear": (
        piecewise.FrozenPiecewiseLinear,
        by(
            piecewise.FrozenPiecewiseLinear,
            table=piecewise.from_module(ELEMENTWISE),
            elementwise=True,
        ),
        {"elementwise": False},
    ),
    "plot_segments": (plotting.plot_segments, segments, {"lo": -0.5, "hi": 0.5}),
    "plot_shape_functions": (
        plotting.plot_shape_functions, shapes, {"output": 1, "features": (1, 0)},
    ),
}  # fmt: skip
CASES = [(name, argument) for name, (*_, values) in CALLS.items() for argument in values]
# PyTorch's own constructors check these, and records that we make ourselves need no check
OTHERS = {
    fastmlp.optim.Adam, fastmlp.optim.AdamW, spectral.SpectralStart, piecewise.Segment,
    piecewise.PiecewiseLinear,
}  # fmt: skip


def public():
    for module in (fastmlp, functional, fastmlp.optim, piecewise, spectral, training, plotting):
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("fastmlp")
            if ours and callable(value) and name[0] != "_" and value not in OTHERS:
                yield value


def test_no_argument_is_left_out():
    known = {}
    for what, _, values in CALLS.values():
        known.setdefault(what, set()).update(values)
    for what in public():
        for name, parameter in inspect.signature(what).parameters.items():
            kinds = str(parameter.annotation)
            if any(kind in kinds for kind in ("int", "float", "bool")):
                assert name in known.get(what, {}), f"{what.__name__}({name}=) is not tested"


def numpys(value):
    """The same number as NumPy has it."""
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        return [[part] for part in numpys(value[0])]
    if isinstance(value, tuple):
        kinds = (np.int64,) if isinstance(value[0], int) else (np.float32, np.float64)
        return [tuple(kind(v) for v in value) for kind in kinds] + [np.array(value)]
    if isinstance(value, bool):
        return [np.bool_(value), np.array(value)]
    if isinstance(value, int):
        return [np.int64(value), np.uint8(value), np.array(value)]
    return [np.float64(value), np.float32(value), np.float16(value), np.array(value)]


def shown(result):
    """What can be compared: tensors as numbers, modules by their parameters and settings."""
    if isinstance(result, torch.nn.Module):
        return repr(result), [p.shape for p in result.parameters()]
    if isinstance(result, torch.Tensor):
        return repr(result.tolist())  # in which NaN equals NaN
    if isinstance(result, tuple | list):
        return [shown(part) for part in result]
    return repr(result)


@pytest.mark.parametrize(("name", "argument"), CASES, ids=map("-".join, CASES))
def test_numpys_scalars_are_numbers(name, argument):
    _, call, values = CALLS[name]
    others = {"momentum": 0.5} if argument == "nesterov" else {}
    wanted = shown(call(**others, **{argument: values[argument]}))
    for value in numpys(values[argument]):
        assert shown(call(**others, **{argument: value})) == wanted, type(value)


@pytest.mark.parametrize(("name", "argument"), CASES, ids=map("-".join, CASES))
def test_what_is_no_number_is_refused_by_name(name, argument):
    _, call, values = CALLS[name]
    value = values[argument]
    wrong = ["3", np.str_("3"), {3}, 1j, [value, "3"], np.array([object()])]
    if isinstance(value, bool):
        wrong += [1, 0.0, np.int64(1), [True, 3]]
    else:
        wrong += [True, np.bool_(True)]
    if isinstance(value, int):
        wrong += [2.5, np.float64(2.0), [2.5]]
    named = "lo|hi|interval" if argument in ("lo", "hi", "interval") else argument
    for bad in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"\b({named})\b"):
            call(**{argument: bad})


@pytest.mark.parametrize("name", ["ElementwiseMLP", "MLP"])
def test_widths_may_be_an_array(name):
    _, call, _ = CALLS[name]
    model = call(hidden_features=np.array([4, 5]))
    assert shown(model) == shown(call(hidden_features=[4, 5]))
    assert [type(width) for width in model.hidden_features] == [int, int]


def test_three_probabilities_may_be_an_array():
    model = fastmlp.ElementwiseMLP(3, dropout=np.array([0.5, 0.25, 0.0]))
    assert model.dropout == (0.5, 0.25, 0.0)


def test_a_setting_for_each_model_may_be_an_array():
    assert fastmlp.Adam(lr=np.array([0.5, 0.25])) == fastmlp.Adam(lr=[0.5, 0.25])
    assert fastmlp.SGD(momentum=0.5, nesterov=np.array([True])).nesterov == [True]
    pairs = np.array([[0.5, 0.75], [0.25, 0.5]])
    assert fastmlp.Adam(betas=pairs).betas == [(0.5, 0.75), (0.25, 0.5)]
