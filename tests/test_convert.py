"""fuse, unfuse and their kin: what the swap changes, and what it must not change."""

import copy
import pickle

import pytest
import torch
from closeness import (
    additive_mlp_terms,
    assert_as_good_as_torch,
    assert_modules_agree,
    assert_run_as_good_as_torch,
    elementwise_mlp_terms,
    sine_sum_terms,
)
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp import convert, reference


def scalar_net(n_hidden=14, **factory):
    return nn.Sequential(
        nn.Linear(1, n_hidden, **factory), nn.ReLU(), nn.Linear(n_hidden, 1, **factory)
    )


class Net(nn.Module):
    """The reference network as a user writes it."""

    def __init__(self, n_in=6, n_hidden=14, n_out=1, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(1, n_hidden)
        self.fc2 = nn.Linear(n_hidden, 1)
        self.fc3 = nn.Linear(n_in, n_out)

    def forward(self, x):
        hidden = F.relu(self.fc1(self.dropout(x.reshape(-1, 1))))
        return self.fc3(self.dropout(self.fc2(self.dropout(hidden)).reshape(x.shape)))


class Model(nn.Module):
    """Patterns at several depths, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.phi = scalar_net()
        self.again = self.phi
        self.blocks = nn.ModuleList([nn.ModuleDict({"f": scalar_net(5)}), nn.Linear(6, 6)])
        self.net = Net()
        self.waves = reference.SineSum(4)

    def forward(self, x):
        y = self.again(self.phi(x.unsqueeze(-1))).squeeze(-1)
        y = self.blocks[1](self.blocks[0]["f"](y.unsqueeze(-1)).squeeze(-1))
        return self.net(self.waves(y))


WHOLE = {
    "sequential": (scalar_net, fastmlp.ElementwiseMLP, (40, 1)),
    "sequential_without_bias": (lambda: scalar_net(bias=False), fastmlp.ElementwiseMLP, (40, 1)),
    "sequential_with_silent_layers": (
        lambda: nn.Sequential(
            nn.Identity(), *scalar_net()[:2], nn.Dropout(0.0), nn.Linear(14, 1), nn.Identity()
        ),
        fastmlp.ElementwiseMLP,
        (40, 1),
    ),
    "own_class": (Net, fastmlp.AdditiveMLP, (40, 6)),
    "own_class_three_outputs": (lambda: Net(n_out=3), fastmlp.AdditiveMLP, (40, 6)),
    "reference_additive": (lambda: reference.AdditiveMLP(6), fastmlp.AdditiveMLP, (40, 6)),
    "reference_elementwise": (reference.ElementwiseMLP, fastmlp.ElementwiseMLP, (40, 6)),
    "reference_sines": (
        lambda: reference.SineSum(5, scale=2.0, reduction="sum", learn_phase=True),
        fastmlp.SineSum,
        (40, 6),
    ),
}


@pytest.fixture(params=WHOLE)
def whole(request):
    """A model that is a pattern as a whole, the fused class, and a shape of its input."""
    build, fused_class, shape = WHOLE[request.param]
    return build(), fused_class, shape


def reasons(module):
    return [match.reason for match in convert.find(module)]


def test_the_root_is_replaced_and_comes_back(whole):
    plain, fused_class, _ = whole
    names = list(plain.state_dict())
    fused = fastmlp.fuse(plain)
    assert type(fused) is fused_class
    assert not reasons(fused)
    assert fastmlp.fuse(fused) is fused
    assert fastmlp.unfuse(fused) is plain
    assert list(plain.state_dict()) == names
    assert fastmlp.unfuse(plain) is plain


def test_parameters_are_the_same_objects(whole):
    plain, _, _ = whole
    before = {id(p) for p in plain.parameters()}
    fused = fastmlp.fuse(plain)
    assert {id(p) for p in fused.parameters()} == before
    assert {id(p) for p in fastmlp.unfuse(fused).parameters()} == before


def test_values_and_gradients_stay(whole, draw):
    plain, _, shape = whole
    x, exact, baseline = draw(*shape), copy.deepcopy(plain).double(), copy.deepcopy(plain)
    fused = fastmlp.fuse(plain)
    names = [name.replace(".", "_") for name, _ in fused.named_parameters()]

    def results(module, x):
        x = x.requires_grad_()
        y = module(x)
        dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients = torch.autograd.grad((y * dy).sum(), [x, *module.parameters()])
        return dict(zip(["y", "x", *names], [y, *gradients], strict=True)), dy

    x = x.float()
    wanted, dy = results(exact, x.double())
    ours, torchs = results(fused, x.clone())[0], results(baseline, x.clone())[0]
    tensors = dict(zip(names, (p.detach() for p in exact.parameters()), strict=True))
    terms = terms_of(fused, dy, x.detach().double(), tensors)
    for name, right in wanted.items():
        assert_as_good_as_torch(
            ours[name], torchs[name], right.detach(), terms=terms[name], name=name
        )


def terms_of(fused, dy, x, tensors):
    if isinstance(fused, fastmlp.SineSum):
        waves = map(tensors.get, ("w", "amplitude", "phase"))
        return sine_sum_terms(dy, x, *waves, fused.scale, fused.reduction)
    n_layers, terms = 2, elementwise_mlp_terms
    if isinstance(fused, fastmlp.AdditiveMLP):
        n_layers, terms = 3, additive_mlp_terms
    names = (f"fc{i + 1}_{kind}" for i in range(n_layers) for kind in ("weight", "bias"))
    return terms(dy, x, *map(tensors.get, names))


def test_a_nested_model(draw):
    model, x = Model(), draw(7, 6).float()
    expected, plain = model(x), copy.deepcopy(model)
    paths = {"phi": "ElementwiseMLP", "again": "ElementwiseMLP", "blocks.0.f": "ElementwiseMLP"}
    paths |= {"net": "AdditiveMLP", "waves": "SineSum"}
    names = list(model.state_dict())
    assert {m.path: m.kind for m in convert.find(model) if m.reason is None} == paths
    assert list(model.state_dict()) == names  # find changes nothing
    # the fused modules take the columns [*, 1] that the Sequentials take
    assert fastmlp.fuse(model) is model
    assert {name: type(model.get_submodule(name)).__name__ for name in paths} == paths
    assert_modules_agree(model, plain, x)
    assert fastmlp.unfuse(model) is model
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), expected)


def test_a_module_used_twice_has_one_replacement():
    model = fastmlp.fuse(Model())
    assert model.phi is model.again
    assert type(model.phi) is fastmlp.ElementwiseMLP
    fastmlp.unfuse(model)
    assert model.phi is model.again
    assert type(model.phi) is nn.Sequential


def test_layers_used_elsewhere_stay_shared():
    model = nn.ModuleDict({"f": scalar_net()})
    model["read_out"] = model["f"][2]
    other = nn.Sequential(model["f"][0], nn.ReLU(), nn.Linear(14, 1))
    model["other"] = other
    fastmlp.fuse(model)
    assert model["f"].fc2 is model["read_out"]
    assert model["f"].fc1 is model["other"].fc1


def test_an_optimizer_goes_on(draw):
    start, rows, runs = Model(), draw(50, 6).float(), []
    for dtype, is_fused in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        model, x = copy.deepcopy(start).to(dtype), rows.to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        losses = []
        for step in range(4):
            if is_fused and step == 1:
                fastmlp.fuse(model)
            if is_fused and step == 3:
                fastmlp.unfuse(model)
            loss = (model(x) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert losses[3] < losses[0]
        runs.append([torch.stack(losses), *model.parameters()])
    assert_run_as_good_as_torch(*runs, dtype=torch.float32)


def test_mode_dtype_and_frozen_parameters_stay():
    model = scalar_net(dtype=torch.float64).eval()
    model[0].requires_grad_(False)
    fused = fastmlp.fuse(model)
    assert not fused.training
    assert fused.fc1.weight.dtype == torch.float64
    assert [p.requires_grad for p in fused.parameters()] == [False, False, True, True]
    plain = fastmlp.unfuse(fused.train())
    assert all(module.training for module in plain.modules())


@pytest.mark.parametrize("build", [scalar_net, Net])
def test_modules_on_the_meta_device(build):
    fused = fastmlp.fuse(build().to("meta"))
    assert type(fused).__module__.startswith("fastmlp.modules")
    plain = fastmlp.unfuse(fused.to_empty(device="cpu").double())
    assert {(p.device.type, p.dtype) for p in plain.parameters()} == {("cpu", torch.float64)}


def test_no_random_number_is_drawn_and_nothing_else_is_touched():
    model = nn.ModuleList([Model(), Net(dropout=0.5), reference.AdditiveMLP(3)])
    state = torch.get_rng_state()
    values = copy.deepcopy(model.state_dict())
    convert.find(model)
    assert all(torch.equal(v, values[name]) for name, v in model.state_dict().items())
    fastmlp.unfuse(fastmlp.fuse(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, values[name]) for name, v in model.state_dict().items())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_fused_model_can_be_unfused(clone, draw):
    model, x = Model(), draw(7, 6).float()
    names, expected = list(model.state_dict()), model(x)
    copied = clone(fastmlp.fuse(model))
    with torch.no_grad():
        model.phi.fc1.weight.zero_()
    plain = fastmlp.unfuse(copied)
    assert list(plain.state_dict()) == names
    assert torch.equal(plain(x), expected)
    assert type(plain.net) is Net
    assert type(model.net) is fastmlp.AdditiveMLP
    Model().load_state_dict(plain.state_dict(), strict=True)


def test_a_layer_that_was_exchanged_after_the_swap_comes_along():
    fused = fastmlp.fuse(scalar_net())
    fused.fc1 = layer = nn.Linear(1, 14)
    assert fastmlp.unfuse(fused)[0] is layer


def test_the_fused_module_hides_no_second_set_of_parameters():
    fused = fastmlp.fuse(scalar_net())
    assert list(fused.state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    assert [name for name, _ in fused.named_modules()] == ["", "fc1", "fc2"]


def test_hooks_on_the_whole_stay_and_can_be_removed():
    plain, calls = scalar_net(), []
    handle = plain.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    fused = fastmlp.fuse(plain)
    fused(torch.zeros(2, 1))
    second = fused.register_forward_pre_hook(lambda module, args: calls.append("pre"))
    fastmlp.unfuse(fused)(torch.zeros(2, 1))
    assert calls == [fastmlp.ElementwiseMLP, "pre", nn.Sequential]
    handle.remove()
    second.remove()
    plain(torch.zeros(2, 1))
    assert len(calls) == 3


def test_hooks_stay_on_what_was_fused_from_the_start():
    calls = []
    fused = fastmlp.SineSum(3)
    fused.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    fastmlp.unfuse(fused)(torch.zeros(2))
    assert calls == [reference.SineSum]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="built without distributed")
def test_data_parallel_goes_on(draw):
    x, store = draw(7, 6).float(), torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Model())
        model(x).sum().backward()
        expected = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        fastmlp.fuse(model)(x).sum().backward()
        assert type(model.module.net) is fastmlp.AdditiveMLP
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            # float32 sums in another order: PyTorch's own bound for that
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("build", [scalar_net, Net])
def test_compiled_and_functional_calls(build, draw):
    plain, x = build(), draw(4, 1 if build is scalar_net else 6).float()
    before, fused = copy.deepcopy(plain), fastmlp.fuse(plain)
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    assert_modules_agree(compiled, before, x)
    parameters = {name: torch.zeros_like(p) for name, p in fused.named_parameters()}
    assert not torch.func.functional_call(fused, parameters, x).any()


def test_own_attributes_stay():
    plain = Net()
    plain.label = "first"
    assert fastmlp.fuse(plain).label == "first"


def test_fused_from_the_start_becomes_the_reference(draw):
    for args in ((5,), (5, 3, 2)):
        ours = fastmlp.AdditiveMLP(*args)
        ours.eval()
        plain = fastmlp.unfuse(ours)
        assert type(plain) is reference.AdditiveMLP
        assert not plain.training
        assert repr(plain) == repr(ours)
        assert plain.fc1.weight is ours.fc1.weight
    sines = fastmlp.SineSum(3, scale=2.0, learn_amplitude=True)
    plain = fastmlp.unfuse(sines)
    assert repr(plain) == repr(sines)
    assert plain.amplitude is sines.amplitude
    assert plain.phase is None


def test_to_and_from_sequential(draw):
    x, plain = draw(9, 1).float(), scalar_net()
    fused = convert.from_sequential(plain)
    assert_modules_agree(fused, plain, x)
    again = convert.to_sequential(fused.eval())
    assert list(again.state_dict()) == list(plain.state_dict())
    assert again[0].weight is plain[0].weight
    assert not again.training
    assert torch.equal(again(x), plain(x))
    assert torch.equal(convert.to_sequential(reference.ElementwiseMLP(3))(x).isnan(), x.isnan())


CHAINS = {
    "two_layers": [nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)],
    "deep": [nn.Linear(1, 5), nn.LeakyReLU(), nn.Linear(5, 4), nn.LeakyReLU(), nn.Linear(4, 1)],
    "output_activation": [nn.Linear(2, 5, bias=False), nn.Tanh(), nn.Linear(5, 1), nn.Sigmoid()],
    "scalar_with_output_activation": [nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 1), nn.ReLU()],
    "silent_layers": [nn.Linear(3, 4), nn.Identity(), nn.SiLU(), nn.Dropout(0.0), nn.Linear(4, 3)],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_chains_of_linear_layers_become_an_mlp(chain, draw):
    plain = nn.Sequential(*copy.deepcopy(chain))
    x = draw(9, plain[0].in_features).float()
    expected, names = plain(x), list(plain.state_dict())
    model = fastmlp.fuse(nn.ModuleDict({"net": plain}))
    fused = model["net"]
    assert type(fused) is fastmlp.MLP
    assert fused._modules["0"] is plain[0]
    assert_modules_agree(fused, plain, x)
    again = convert.to_sequential(fused)
    assert torch.equal(again(x), expected)
    assert fastmlp.unfuse(model)["net"] is plain
    assert list(plain.state_dict()) == names
    assert_modules_agree(convert.from_sequential(plain), plain, x)


def test_an_mlp_from_the_start_becomes_its_namesake(draw):
    ours = fastmlp.MLP(3, [4], 2, activation="sin", output_activation="tanh", bias=False)
    plain = fastmlp.unfuse(ours)
    assert type(plain) is reference.MLP
    assert repr(plain) == repr(ours)
    x = draw(5, 3).float()
    assert_modules_agree(ours, plain, x)
    with pytest.raises(ValueError, match=r"^module must have activations among .* got 'sin'"):
        convert.to_sequential(ours)
    with pytest.raises(ValueError, match=r"^module must have no dropout, got 0.5"):
        convert.to_sequential(fastmlp.MLP(3, [4], 2, dropout=0.5))


def test_verbose_prints_one_line_for_each_place(capsys):
    longer = nn.Sequential(*scalar_net(), nn.Flatten(), nn.ReLU())
    model = nn.ModuleList([scalar_net(), longer, nn.ReLU()])
    fastmlp.fuse(model, verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "0: fused to ElementwiseMLP",
        "1: not fused to ElementwiseMLP: part of a longer Sequential; "
        "give the three layers a Sequential of their own",
    ]
    fastmlp.fuse(scalar_net())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["fuse", "unfuse", "find", "from_sequential", "to_sequential"])
def test_other_arguments_are_refused_by_name(name):
    with pytest.raises(TypeError, match=r"^module must be an .*, got dict"):
        getattr(convert, name)({})


def test_sequentials_without_a_kernel_are_refused():
    with pytest.raises(ValueError, match=r"^module must be Seq.*, got Sequential\(ReLU\)"):
        convert.from_sequential(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"^module has no kernel: two Dropout in one place"):
        convert.from_sequential(nn.Sequential(*scalar_net(), nn.Dropout(0.1), nn.Dropout(0.1)))


def test_the_other_modules_of_a_model_are_left_alone():
    scripted = torch.jit.script(nn.Linear(3, 3))
    model = nn.Sequential(
        nn.Linear(1, 1), nn.Conv1d(1, 1, 1), nn.Sequential(), scripted, nn.Sequential(nn.ReLU())
    )
    assert convert.find(model) == []
    layers = {"fc1": nn.Linear(1, 3), "fc2": nn.Linear(3, 1), "fc3": nn.Linear(4, 1)}
    assert convert.find(nn.ModuleDict(layers)) == []
