"""Breakpoints lie where the activation pattern changes, no more and no fewer: by brute force.

The judge knows nothing of layers being cut one after the other. It tries every activation pattern
of all hidden units; under one pattern all is affine, so the pattern holds on an interval whose ends
are rational numbers, computed exactly from the float weights.
"""

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
from torch import nn

from fastmlp import piecewise


def chain(*sizes, activation=nn.ReLU):
    """A net of Linear layers of these sizes in float64, with a kink between each two."""
    layers = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out, dtype=torch.float64), activation()]
    return nn.Sequential(*layers[:-1])


def rational_layers(net):
    """Weights and biases as nested lists of fractions, and the negative slope."""
    slopes = [Fraction(getattr(m, "negative_slope", 0.0)) for m in net if not hasattr(m, "weight")]
    layers = [
        (
            [[Fraction(v) for v in row] for row in m.weight.tolist()],
            list(map(Fraction, m.bias.tolist())),
        )
        for m in net
        if isinstance(m, nn.Linear)
    ]
    return layers, slopes[0]


def interval_of(pattern, layers, negative_slope):
    """Ends of the interval where a pattern holds, and the lines there; None where it is empty."""
    lo, hi = -math.inf, math.inf
    h = [(Fraction(1), Fraction(0))]  # slope and intercept of every unit
    active = iter(pattern)
    for i, (weight, bias) in enumerate(layers):
        z = [
            (
                sum((w * p for w, (p, _) in zip(row, h, strict=True)), Fraction(0)),
                sum((w * q for w, (_, q) in zip(row, h, strict=True)), b),
            )
            for row, b in zip(weight, bias, strict=True)
        ]
        if i == len(layers) - 1:
            return lo, hi, z
        h = []
        for p, q in z:
            on = next(active)
            if p == 0:
                if (q > 0) != on:
                    return None
            else:
                root = -q / p
                if (p > 0) == on:
                    lo = max(lo, root)
                else:
                    hi = min(hi, root)
                if lo >= hi:
                    return None
            factor = 1 if on else negative_slope
            h.append((factor * p, factor * q))
    raise AssertionError("a net has a last layer")


def brute_force(net):
    """Sorted segments (lo, hi, lines of the outputs), exactly."""
    layers, negative_slope = rational_layers(net)
    n_units = sum(len(bias) for _, bias in layers[:-1])
    found = []
    for pattern in itertools.product((False, True), repeat=n_units):
        segment = interval_of(pattern, layers, negative_slope)
        if segment is not None:
            found.append(segment)
    found.sort(key=lambda segment: segment[0])
    # they tile the line
    assert found[0][0] == -math.inf
    assert found[-1][1] == math.inf
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    return found


def too_close(segments):
    """Whether float64 could take two breakpoints for one."""
    ends = [segment[1] for segment in segments[:-1]]
    return any(b - a < 1e-12 * max(abs(a), abs(b), 1) for a, b in itertools.pairwise(ends))


def judge(net):
    """Compare the table with brute force; return the number of segments."""
    exact = brute_force(net)
    table = piecewise.from_module(net)
    if too_close(exact):
        return 0
    wanted = [float(segment[1]) for segment in exact[:-1]]
    assert len(table.breakpoints) == len(wanted), (table.breakpoints.tolist(), wanted)
    # rational numbers are the judge; a breakpoint is a quotient that may cancel
    assert table.breakpoints.tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-13)
    slopes = table.slopes.reshape(len(table), -1).tolist()
    intercepts = table.intercepts.reshape(len(table), -1).tolist()
    size = 1 + max(abs(float(q)) for *_, lines in exact for _, q in lines)
    for segment, p, q in zip(exact, slopes, intercepts, strict=True):
        # lines of up to three layers of sums, and intercepts at 0 from a place as far as `size`
        assert p == pytest.approx([float(p) for p, _ in segment[2]], rel=1e-10, abs=1e-11)
        assert q == pytest.approx([float(q) for _, q in segment[2]], rel=1e-10, abs=1e-11 * size)
    return len(table)


SHAPES = [
    (1, 1, 1),
    (1, 5, 1),
    (1, 10, 2),
    (1, 1, 1, 1),
    (1, 3, 3, 1),
    (1, 4, 5, 2),
    (1, 3, 3, 3, 1),
]
KINKS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.25)}


@pytest.mark.parametrize("kink", KINKS.values(), ids=KINKS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "_".join(map(str, shape)))
def test_random_nets(shape, kink):
    torch.manual_seed(sum(shape))
    total = 0
    for _ in range(4):
        net = chain(*shape, activation=kink)
        for p in net.parameters():
            nn.init.normal_(p)
        total += judge(net)
    assert total > 4


@pytest.mark.parametrize("kink", KINKS.values(), ids=KINKS)
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: "_".join(map(str, shape)))
def test_degenerate_nets(shape, kink):
    # few different numbers: zero weights, dead units, repeated breakpoints, kinks that cancel
    draw = random.Random(sum(shape))
    judged = 0
    for choices in ((-1, 0, 1), (-1, 0, 0, 1), (-2, -1, -0.5, 0, 0.5, 1, 3), (-3, -1, 1, 3)):
        for _ in range(6):
            net = chain(*shape, activation=kink)
            with torch.no_grad():
                for p in net.parameters():
                    p.copy_(
                        torch.tensor([draw.choice(choices) for _ in range(p.numel())]).view(p.shape)
                    )
            judged += judge(net) > 0
    assert judged >= 20


def test_a_first_layer_is_rounded_once():
    torch.manual_seed(0)
    net = chain(1, 50, 1)
    fc1 = net[0]
    exact = {
        float(-Fraction(b) / Fraction(w))
        for w, b in zip(fc1.weight.view(-1).tolist(), fc1.bias.tolist(), strict=True)
    }
    assert piecewise.from_module(net).breakpoints.tolist() == sorted(exact)


def test_a_unit_without_outgoing_weight_changes_the_pattern_but_does_not_bend():
    net = chain(1, 2, 1)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        net[0].bias.copy_(torch.tensor([-1.0, -2.0]))
        net[2].weight.copy_(torch.tensor([[3.0, 0.0]]))
    table = piecewise.from_module(net)
    assert table.breakpoints.tolist() == [1.0, 2.0]
    assert table.merged().breakpoints.tolist() == [1.0]
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert torch.equal(table(x), table.merged()(x))


def test_kinks_that_cancel_do_not_bend():
    net = chain(1, 2, 1)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.copy_(torch.tensor([-1.0, 1.0]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    table = piecewise.from_module(net)
    assert table.breakpoints.tolist() == [1.0]
    assert len(table.merged()) == 1


def test_an_interval_gives_the_same_breakpoints_inside():
    torch.manual_seed(1)
    net = chain(1, 20, 20, 20, 1)
    whole = piecewise.from_module(net)
    for lo, hi in ((-1.0, 2.0), (0.25, 3.0), (-4.0, -0.1), (-1e9, 1e9)):
        part = piecewise.from_module(net, interval=(lo, hi))
        t = whole.breakpoints
        # the same quotients, from other ends
        torch.testing.assert_close(part.breakpoints, t[(t > lo) & (t < hi)], rtol=1e-12, atol=1e-13)
        x = torch.linspace(lo, hi, 1001, dtype=torch.float64)
        torch.testing.assert_close(part(x), whole(x), rtol=1e-12, atol=1e-12)
        assert len(part) == len(whole.segments_in(lo, hi))


def test_the_judge_finds_a_breakpoint_too_many_or_too_few(monkeypatch):
    torch.manual_seed(0)
    net = chain(1, 3, 3, 1)
    table = piecewise.from_module(net)
    t = table.breakpoints
    fewer = t[1:]
    more = torch.cat([t, t[-1:] + 1])
    for wrong in (fewer, more):
        n = len(wrong) + 1
        fake = piecewise.PiecewiseLinear(wrong, torch.zeros(n), torch.zeros(n))
        monkeypatch.setattr(piecewise, "from_module", lambda net, fake=fake: fake)
        with pytest.raises(AssertionError):
            judge(net)
