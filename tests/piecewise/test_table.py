"""Tables of nets: they agree with the net, go to files and back, and say what is wrong."""

import itertools
import json
import math

import pytest
import torch
from closeness import assert_same_number
from torch import nn

import fastmlp
from fastmlp import piecewise, reference
from fastmlp.piecewise import PiecewiseLinear


def chain(*sizes, activation=nn.ReLU):
    layers = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, dtype=torch.float64), activation()]
    return nn.Sequential(*layers[:-1])


def spoil(net):
    """Dead units, zero weights and repeated breakpoints, in every layer."""
    with torch.no_grad():
        for layer in net[:-1]:
            if isinstance(layer, nn.Linear) and layer.out_features > 4:
                layer.bias[0] = -1e3  # dead where |h| is small
                layer.weight[1] = 0
                layer.weight[2], layer.bias[2] = layer.weight[3], layer.bias[3]
                layer.bias[4] = 0
        net[-1].weight[:, ::5] = 0
    return net


KINKS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.3)}


@pytest.mark.parametrize("kink", KINKS.values(), ids=KINKS)
@pytest.mark.parametrize("width", [1, 2, 10, 30, 128])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_agrees_with_the_net(depth, width, kink, draw):
    n = 100_000 if width < 128 else 20_000
    for change in (lambda net: net, spoil):
        net = change(chain(1, *[width] * depth, 2, activation=kink))
        x = 4 * draw(n)
        with torch.no_grad():
            y = net(x.unsqueeze(1))
        error = (piecewise.from_module(net)(x) - y).abs()
        # five layers of up to 128: an ulp or two for each of the terms that are summed one by one
        assert error.max() <= 1e-12 * y.abs().max()


def modules():
    torch.manual_seed(3)
    sequential = nn.Sequential(nn.Linear(1, 7), nn.ReLU(), nn.Linear(7, 3))
    nested = nn.Sequential(
        nn.Identity(), nn.Linear(1, 5), nn.Sequential(nn.LeakyReLU(0.2), nn.Dropout(0.5)),
        nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1, bias=False), nn.ReLU(),
    )  # fmt: skip
    return {
        "elementwise": fastmlp.ElementwiseMLP(9),
        "elementwise_reference": reference.ElementwiseMLP(9, bias=False),
        "elementwise_leaky": fastmlp.ElementwiseMLP(9, activation="leaky_relu"),
        "elementwise_identity": fastmlp.ElementwiseMLP(9, activation="identity"),
        "elementwise_deep": fastmlp.ElementwiseMLP([6, 5]),
        "mlp": fastmlp.MLP(1, [6, 5, 4], 3),
        "mlp_leaky": fastmlp.MLP(1, [8], 1, activation="leaky_relu", output_activation="relu"),
        "sequential": sequential,
        "nested": nested.eval(),
        "linear": nn.Linear(1, 2),
        "fused": fastmlp.ElementwiseMLP(9).to(torch.bfloat16),
    }


@pytest.mark.parametrize("name", modules())
def test_modules_are_known(name, draw):
    net = modules()[name].double()
    x = 3 * draw(200)
    table = piecewise.from_module(net)
    elementwise = isinstance(net, reference.ElementwiseMLP)
    with torch.no_grad():
        y = net(x) if elementwise else net(x.unsqueeze(1))
    if table.n_outputs == 1 and not elementwise:
        y = y.squeeze(1)
    # a few layers of sums in float64; a table of one wrong line is off in the first digits
    torch.testing.assert_close(table(x), y, rtol=1e-12, atol=1e-12)
    frozen = piecewise.freeze(net)
    assert not list(frozen.parameters())
    for shape in ((200,), (20, 10), ()):
        given = x[: math.prod(shape)].reshape(shape)
        given = given if elementwise else given.unsqueeze(-1)
        with torch.no_grad():
            wanted = net(given)
        # as above
        torch.testing.assert_close(frozen(given), wanted, rtol=1e-12, atol=1e-12)


def test_float32_and_gradients(draw):
    net = chain(1, 20, 20, 1)
    table = piecewise.from_module(net)
    x = draw(50).requires_grad_()
    (exact,) = torch.autograd.grad(net(x.unsqueeze(1)).sum(), x)
    (ours,) = torch.autograd.grad(table(x).sum(), x)
    assert_same_number(ours, exact)
    y = table(x.float())
    assert y.dtype == torch.float32
    # one rounding to float32
    torch.testing.assert_close(y.double(), table(x.float().double()), rtol=1e-7, atol=0)


def test_frozen_modules_are_plain_modules(draw):
    net = fastmlp.ElementwiseMLP(40)
    frozen = piecewise.freeze(net)
    other = piecewise.freeze(fastmlp.ElementwiseMLP(40))
    assert frozen.state_dict().keys() == other.state_dict().keys()
    x = draw(100).float()
    assert frozen(x).dtype == torch.float32
    # 40 units in float32 beside one line: no common terms, and no judge of both
    torch.testing.assert_close(frozen(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 1, 1), (1, 10, 1), (1, 10, 10, 3)], ids=str)
def test_to_module_and_back(sizes, draw):
    for shift in (-100.0, 0.0, 100.0):  # breakpoints left of 0, around, right
        net = chain(*sizes)
        with torch.no_grad():
            net[0].bias.add_(net[0].weight[:, 0] * shift)
        table = piecewise.from_module(net)
        module = table.to_module()
        assert module[0].out_features <= len(table) + 1
        x = (draw(500) - shift).unsqueeze(1)
        size = net(x).abs().max() + 1
        # up to a hundred hinges that all but cancel, at up to 100 from zero
        assert (module(x) - net(x)).abs().max() <= 1e-11 * size
        again = piecewise.from_module(module).merged()
        assert len(again) == len(table.merged())


def test_json_is_exact():
    for interval in (None, (-1.0, 2.0), (0.5, 9.0)):
        table = piecewise.from_module(chain(1, 9, 9, 2), interval=interval)
        again = PiecewiseLinear.from_json(table.to_json())
        assert again.interval == table.interval
        for name in ("breakpoints", "slopes", "values"):
            assert torch.equal(getattr(again, name), getattr(table, name))


def _changed(**changes):
    data = json.loads(PiecewiseLinear([0.0, 1.0], [0.0, 1, 2], [0.0, 0, 1]).to_json())
    return json.dumps({**data, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON"),
        ("[1, 2]", "must be an object"),
        ("{}", '"format"'),
        ("[" * 100_000, "must be JSON"),
        (_changed(version=2), '"version" must be 1'),
        (_changed(slopes=None), '"slopes" must be a list'),
        (_changed(slopes=[1, 2]), "slopes must have shape"),
        (_changed(slopes=[1, 2, "3"]), "slopes must be"),
        (_changed(values=[[1], [2, 3], [4]]), "values must be"),
        (_changed(values=[0, 0, 5]), "must meet"),
        (_changed(breakpoints=[1, 0]), "strictly increasing"),
        (_changed(breakpoints=[1, 1]), "strictly increasing"),
        (_changed(interval=[0.5, 2]), "inside the interval"),
        (_changed(interval=[2, 1]), "lo must be below hi"),
        (_changed(interval=3), '"interval" must be'),
        (_changed().replace("1.0", "NaN"), "NaN is no JSON number"),
        (_changed().replace("1.0", "1e999"), "finite"),
    ],
)
def test_damaged_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PiecewiseLinear.from_json(text)


def with_nan():
    net = chain(1, 3, 1)
    with torch.no_grad():
        net[2].weight[0, 1] = math.nan
    return net


def with_hook():
    net = chain(1, 3, 1)
    net[1].register_forward_hook(lambda module, inputs, output: output + 1)
    return net


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: chain(2, 3, 1), ValueError, "one variable, 0 has 2 inputs"),
        (lambda: fastmlp.AdditiveMLP(3), TypeError, "AdditiveMLP, which is not known"),
        (lambda: nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)), TypeError, "1 is a T"),
        (lambda: fastmlp.ElementwiseMLP(3, activation="silu"), TypeError, "'silu' of .* is not"),
        (with_nan, ValueError, r"2\.weight must be finite"),
        (with_hook, ValueError, "1 has forward hooks"),
        (lambda: nn.Sequential(nn.ReLU()), ValueError, "at least one Linear"),
        (lambda: nn.Sequential(nn.Linear(1, 2), nn.Dropout(0.1)), ValueError, "eval"),
        (lambda: nn.Sequential(nn.Linear(1, 2), nn.Linear(3, 1)), ValueError, "1 takes 3 inputs"),
        (lambda: "net", TypeError, "must be an nn.Module"),
    ],
)
def test_bad_modules_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        piecewise.from_module(build())


@pytest.mark.parametrize("ends", [(1, 1), (2, 1), (math.nan, 1)])
def test_bad_intervals_are_refused(ends):
    net = chain(1, 3, 1)
    for call in (
        lambda: piecewise.from_module(net, interval=ends),
        lambda: piecewise.dead_units(net, *ends),
        lambda: piecewise.from_module(net).segments_in(*ends),
        lambda: piecewise.error_floor(torch.sin, *ends, 3),
    ):
        with pytest.raises(ValueError, match=r"\blo\b"):
            call()


def test_outside_the_interval_nothing_is_known():
    table = piecewise.from_module(chain(1, 3, 1), interval=(-1, 1))
    x = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0, math.nan])
    assert table(x).isnan().tolist() == [True, False, False, False, True, True]
    with pytest.raises(ValueError, match="reaches beyond"):
        table.segments_in(-2, 0)


def test_segments_tile_the_interval(draw):
    table = piecewise.from_module(chain(1, 10, 10, 1))
    segments = table.segments_in(-2.0, 3.0)
    assert segments[0].lo == -2
    assert segments[-1].hi == 3
    assert all(a.hi == b.lo for a, b in itertools.pairwise(segments))
    for s in segments:
        middle = torch.tensor(0.5 * (s.lo + s.hi), dtype=torch.float64)
        line = s.intercept + s.slope * float(middle)
        assert_same_number(table(middle), line, terms=abs(s.intercept) + abs(s.slope * middle))


def test_dead_units(draw):
    net = chain(1, 4, 4, 1)
    with torch.no_grad():
        net[0].weight[:, 0] = torch.tensor([1.0, -1.0, 1.0, 0.0])
        net[0].bias[:] = torch.tensor([-2.0, -1.0, 0.0, -3.0])
    x = torch.linspace(-1, 2, 3001, dtype=torch.float64).unsqueeze(1)
    first, second = piecewise.dead_units(net, -1, 2)
    # the first is active beyond 2, the second below -1 alone
    assert first.tolist() == [True, True, False, True]
    h = net[:4](x)
    assert second.tolist() == (h <= 0).all(0).tolist()
    leaky = nn.Sequential(*(nn.LeakyReLU(0.1) if isinstance(m, nn.ReLU) else m for m in net))
    assert not any(dead.any() for dead in piecewise.dead_units(leaky, -1, 2))


def test_error_floor():
    # exact for a parabola: 15 pieces on [-5, 8] leave h⁴/180
    floor = piecewise.error_floor(torch.square, -5, 8, 15)
    # as many digits as the number is given with
    assert 64 * floor**2 / 13 == pytest.approx(0.20059, abs=1e-5)
    # ∫ |exp|^(2/5) in closed form
    integral = 2.5 * (math.exp(0.4 * 5) - math.exp(-0.4 * 5))
    wanted = integral**2.5 / math.sqrt(720) / 100
    # the accuracy to which the integral is refined
    assert piecewise.error_floor(torch.exp, -5, 5, 10) == pytest.approx(wanted, rel=1e-9)
    assert piecewise.error_floor(lambda x: 2 * x + 8, -1, 1, 3) == 0
    with pytest.raises(ValueError, match="does not converge"):
        piecewise.error_floor(lambda x: 1 / x, -5, 5, 10)
    with pytest.raises(ValueError, match="pieces must be at least 1"):
        piecewise.error_floor(torch.exp, -5, 5, 0)
