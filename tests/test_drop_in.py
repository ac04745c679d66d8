"""`fuse` on classes with more than a forward: the object stays, the arithmetic is ours."""

import copy
import io
import pickle
import re

import pytest
import torch
from closeness import assert_as_good_as_torch, assert_modules_agree, scale_of
from drop_in_cases import (
    SINES,
    SUBNETS,
    Author,
    Functional,
    Loop,
    Sines,
    Subnet,
    Unsqueezed,
    View,
)
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp import convert, functional, reference
from fastmlp.models import spec_of


@pytest.fixture(params=SUBNETS)
def subnet(request):
    """A class, and p at its places."""
    return SUBNETS[request.param]


@pytest.fixture
def calls(monkeypatch):
    """How often a kernel was asked for."""
    seen = []
    for name in ("additive_mlp", "sine_sum"):
        op = getattr(functional, name)
        monkeypatch.setattr(functional, name, lambda *a, op=op: seen.append(1) or op(*a))
    return seen


def rows(n=20, features=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(n, features, generator=generator, dtype=torch.float64).to(dtype)


def test_the_object_stays_and_computes_the_same(subnet, calls):
    cls, places = subnet
    model = cls()
    plain, names, before = copy.deepcopy(model), list(model.state_dict()), vars(model).copy()
    parameters = list(model.parameters())
    assert fastmlp.fuse(model) is model, convert.find(model)
    assert isinstance(model, cls)
    assert type(model) is not cls
    assert type(model).__module__.startswith("fastmlp.")
    assert list(model.state_dict()) == names
    assert vars(model).keys() == before.keys()
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    assert convert.find(model) == []
    assert fastmlp.fuse(model) is model
    assert spec_of(model).record.dropout == places
    calls.clear()
    x = rows()
    judge = Unsqueezed()
    for one, other in zip(_layers(judge), _layers(plain), strict=True):
        one.weight, one.bias = other.weight, other.bias
    model.eval()
    ours, theirs, exact = model(x), plain.eval()(x), copy.deepcopy(judge).double()(x.double())
    assert len(calls) == 1
    terms = torch.maximum(exact.abs(), scale_of(exact))
    assert_as_good_as_torch(ours, theirs, exact.detach(), terms=terms, floor=64)
    assert fastmlp.unfuse(model) is model
    assert type(model) is cls
    assert torch.equal(model(x), theirs)


def _layers(module):
    layers = [m for m in module.modules() if type(m) is nn.Linear]
    return sorted(layers, key=lambda layer: (layer.in_features == 64, layer.in_features))


def test_training_steps_without_dropout_are_plain_ones(calls):
    torch.manual_seed(0)
    start, losses = Author(p=0.0), []
    x, y = rows(100, dtype=torch.float64), rows(100, 1, dtype=torch.float64)
    for fuse in (False, True):
        model = copy.deepcopy(start)
        model = fastmlp.fuse(model) if fuse else model
        optimizer = model.configure_optimizers()
        told = []
        for _ in range(5):
            loss = model.training_step((x, y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            told.append(loss.detach())
        losses.append(torch.stack(told))
    assert losses[0].dtype == losses[1].dtype == torch.float32  # as the author's cast has it
    # float32 both, no judge: PyTorch's own bound for another order of sums
    torch.testing.assert_close(losses[1], losses[0])
    assert len(calls) == 5


def test_masks_have_the_statistics_of_the_plain_module(subnet):
    cls, places = subnet
    if not any(places):
        return
    torch.manual_seed(0)
    plain = cls()
    fused, x = fastmlp.fuse(copy.deepcopy(plain)), rows(400)
    with torch.no_grad():
        theirs, ours = (torch.stack([m(x) for _ in range(60)]) for m in (plain, fused))
    n = theirs.shape[0]
    for a, b in zip(theirs.flatten(1).T[:200], ours.flatten(1).T[:200], strict=True):
        error = ((a.var() + b.var()) / n).sqrt()
        assert (a.mean() - b.mean()).abs() < 5.5 * error  # 200 comparisons: one in 10^5 runs
    ratio = (ours.var(0) / theirs.var(0)).log().mean()
    assert abs(ratio) < 0.1  # of 400 rows, each from 60 masks: standard error 0.013


def test_dropout_is_read_at_every_call():
    model = fastmlp.fuse(Author())
    x = rows()
    model.dropout.p = 0.0
    still = model(x)
    assert torch.equal(still, model(x))
    assert not spec_of(model).active
    model.dropout.p = 0.5
    assert not torch.equal(model(x), model(x))
    assert spec_of(model).record.dropout == (0.5, 0.5, 0.5)
    model.dropout.eval()
    assert torch.equal(model(x), still)
    model.eval().dropout.train()  # masks in evaluation, as for Monte Carlo
    assert not torch.equal(model(x), model(x))
    for p in (0.2, 0.0, 0):
        loop = fastmlp.fuse(Loop(p))
        loop.p = 0.4
        assert spec_of(loop).record.dropout == (0.4, 0.4, 0.4)


def test_whatever_else_comes_runs_the_authors_forward(calls):
    model, x = fastmlp.fuse(View(p=0.0)), rows(6)
    calls.clear()
    plain = copy.deepcopy(model)
    fastmlp.unfuse(plain)
    assert torch.equal(model(x.view(2, 3, 64)), plain(x.view(2, 3, 64)))  # [6, 1], as it is written
    assert torch.equal(model(x.view(3, 128)), plain(x.view(3, 128)))
    with pytest.raises(RuntimeError):
        model(x.double())
    model.fc2.register_forward_hook(lambda layer, args, y: 2 * y)
    plain.fc2.register_forward_hook(lambda layer, args, y: 2 * y)
    assert torch.equal(model(x), plain(x))
    assert not calls
    model, plain = fastmlp.fuse(View()), View()
    plain.load_state_dict(model.state_dict(), strict=True)
    model.fc1 = plain.fc1 = nn.Sequential(plain.fc1, nn.Tanh())
    assert torch.equal(model(x), plain(x))
    assert model(x=x).shape == (6, 1)
    assert "fc1 is no plain Linear" in spec_of(model).reason
    model = fastmlp.fuse(Author())
    del model.dropout
    assert spec_of(model).reason == "its part 'dropout' has gone"


def test_copies_pickles_and_checkpoints(subnet):
    cls, _ = subnet
    model, x = fastmlp.fuse(cls()).eval(), rows()
    wanted = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied) is type(model)
        assert torch.equal(copied(x), wanted)
        assert type(fastmlp.unfuse(copied)) is cls
    plain, file = cls().eval(), io.BytesIO()
    plain.load_state_dict(model.state_dict(), strict=True)
    torch.save(plain.state_dict(), file)
    file.seek(0)
    again = fastmlp.fuse(cls()).eval()
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(again(x), wanted)


def test_fit_levenberg_marquardt_and_reports_take_it():
    torch.manual_seed(1)
    model = fastmlp.fuse(Author())
    ours = fastmlp.AdditiveMLP(dropout=0.2)
    ours.load_state_dict(model.state_dict(), strict=True)
    x, y = rows(50), rows(50).square().sum(1, keepdim=True)
    for options in ({"batch_size": 10}, {"optimizer": fastmlp.LevenbergMarquardt(max_attempts=3)}):
        if "optimizer" in options:
            model.eval(), ours.eval()
        results = [fastmlp.fit(m, x, y, epochs=2, progress=False, **options) for m in (model, ours)]
        assert torch.equal(results[0].train_loss, results[1].train_loss)
        assert all(map(torch.equal, model.parameters(), ours.parameters()))
    reports = [fastmlp.dropout_report(m, x, y) for m in (model, ours)]
    assert reports[0] == reports[1]
    assert reports[0].samples == 0
    for m in (model, ours):
        with pytest.raises(TypeError, match="not known to be univariate"):
            fastmlp.piecewise.from_module(m)


def test_it_compiles_whole():
    model, x = fastmlp.fuse(Author(p=0.0)), rows()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))


def test_a_wrapper_stays_and_its_part_is_fused():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Author()

        def forward(self, x):
            return self.net(x)

    model = Wrapper()
    assert [m.path for m in convert.find(model) if m.reason is None] == ["net"]
    assert type(fastmlp.fuse(model)) is Wrapper
    assert isinstance(model.net, Author)
    assert type(model.net) is not Author


@pytest.mark.parametrize("name", SINES)
def test_sines(name, calls):
    cls, shape, reduction = SINES[name]
    torch.manual_seed(2)
    model = cls()
    plain = copy.deepcopy(model)
    assert fastmlp.fuse(model) is model
    assert type(model) is not cls
    x = rows(shape[0], 1).reshape(shape)
    if name == "layer":  # its cast keeps float64 away from the judge
        torch.testing.assert_close(model(x), plain(x))
    else:
        assert_modules_agree(model, plain, x, gradients=True)
    assert len(calls) == 1
    record = spec_of(model).record
    assert (record.width, record.reduction) == (8, reduction)
    assert record.scale == torch.pi
    one = x[:1]
    assert model(one).shape == plain(one).shape
    assert type(fastmlp.unfuse(model)) is cls


def test_fit_takes_sines():
    model = fastmlp.fuse(Sines())
    ours = fastmlp.SineSum(8)
    ours.load_state_dict(model.state_dict(), strict=True)
    x = torch.linspace(-3, 3, 40)
    losses = [
        fastmlp.fit(m, x, x.sin(), epochs=3, batch_size=1, progress=False).train_loss
        for m in (model, ours)
    ]
    assert torch.equal(*losses)


def changed(forward, base=Author):
    return type("Changed", (base,), {"forward": forward})


def twice(self, x):
    return Author.forward(self, self.dropout(x.float()))


def on_the_output(self, x):
    return self.dropout(self.fc3(self.fc2(F.relu(self.fc1(x[..., None])))[..., 0]))


def shared_mask(self, x):
    kept = F.dropout(torch.ones_like(x[:1]), 0.2, self.training)
    return self.fc3(self.fc2(F.relu(self.fc1((x * kept)[..., None])))[..., 0])


def always(self, x):
    return self.fc3(self.fc2(F.relu(self.fc1(F.dropout(x, 0.2)[..., None])))[..., 0])


def by_hand(self, x):
    if self.training:
        x = x * (torch.rand_like(x) > 0.2) / 0.8
    return self.fc3(self.fc2(F.relu(self.fc1(x[..., None])))[..., 0])


def normalised(self, x):
    return Author.forward(self, x - x.mean(0))


def nearly(self, x):
    return Author.forward(self, x) * (1 + 1e-4)


NEAR_MISSES = {
    "dropout_twice": (twice, "its dropout is elsewhere"),
    "dropout_on_the_output": (on_the_output, "its dropout is elsewhere"),
    "one_mask_for_all_rows": (shared_mask, "its dropout is elsewhere"),
    "dropout_in_evaluation": (always, "differs .* in evaluation|drops numbers in evaluation"),
    "dropout_by_hand": (by_hand, "differs .* in training mode"),
    "rows_depend_on_rows": (normalised, "differs"),
    "scaled": (nearly, "differs"),
    "alpha_dropout": (
        lambda self, x: Author.forward(self, F.alpha_dropout(x, 0.2, self.training)),
        "its dropout is elsewhere|differs .* in training",
    ),
    "slope": (
        lambda self, x: self.fc3(self.fc2(F.leaky_relu(self.fc1(x[..., None]), 0.01))[..., 0]),
        "differs",
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_near_misses_stay_what_they_are(case):
    forward, reason = NEAR_MISSES[case]
    model = changed(forward)()
    cls, state = type(model), torch.get_rng_state()
    (match,) = [m for m in convert.find(model) if m.path == ""]
    assert match.reason is not None
    assert re.search(reason, match.reason), match
    assert type(fastmlp.fuse(model)) is cls
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sine_of_another_scale_is_none_of_ours():
    for change in (
        lambda self, x: torch.sin(3 * x[..., None] * self.w).mean(-1),
        lambda self, x: torch.cos(torch.pi * x[..., None] * self.w).mean(-1),
        lambda self, x: torch.sin(torch.pi * x[..., None] * self.w).mean(-1).round(decimals=3),
    ):
        model = changed(change, Sines)()
        assert fastmlp.fuse(model) is model
        assert type(model).__name__ == "Changed"


def test_reference_agrees_with_the_marks_of_a_probe():
    # what a probe compares with is the formula of the reference
    from fastmlp.probes import _formula

    net, x = reference.AdditiveMLP(5, 7, 2).double(), rows(9, 5, torch.float64)
    parameters = [p for layer in (net.fc1, net.fc2, net.fc3) for p in (layer.weight, layer.bias)]
    torch.testing.assert_close(_formula(parameters, (None,) * 3, x), net(x))


def test_functional_p_that_is_a_constant():
    assert spec_of(fastmlp.fuse(Functional())).record.dropout == (0.0, 0.3, 0.0)
    assert spec_of(fastmlp.fuse(Subnet())).names[0] == "subnet.0.weight"
