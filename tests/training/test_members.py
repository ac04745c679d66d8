"""Modules of a list are known at a glance only where a close look says the same."""

import re

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp.training.members import Modules


def net():
    return fastmlp.MLP(2, [3], 1, activation="tanh")


def first_layer(model):
    return next(iter(model._modules.values()))


def put(model, convert):
    layer = first_layer(model)
    layer.weight = nn.Parameter(convert(layer.weight.detach()))


def freeze(model):
    first_layer(model).requires_grad_(False)


def hook(model):
    first_layer(model).weight.register_hook(lambda g: 2 * g)


def late_hook(model):
    first_layer(model).weight.register_post_accumulate_grad_hook(lambda p: None)


def removed_hook(model):
    first_layer(model).weight.register_hook(lambda g: 2 * g).remove()


def call_hook(model):
    model.register_forward_hook(lambda *arguments: None)


def layer_hook(model):
    first_layer(model).register_forward_pre_hook(lambda *arguments: None)


def own_forward(model):
    model.forward = lambda x: x


def layer_forward(model):
    first_layer(model).forward = lambda x: x


def other_activation(model):
    model.activation = "sigmoid"


def dropout(model):
    model.dropout = 0.5


def narrower(model):
    first_layer(model).weight = nn.Parameter(torch.zeros(2, 2))


def no_bias(model):
    first_layer(model).bias = None


def extra(model):
    model.more = nn.Parameter(torch.zeros(1))


def parametrized(model):
    nn.utils.parametrizations.weight_norm(first_layer(model))


def other_class(model):
    class Weight(nn.Parameter):
        pass

    first_layer(model).weight = Weight(torch.zeros(3, 2))


def inference(model):
    with torch.inference_mode():
        first_layer(model).weight = nn.Parameter(torch.zeros(3, 2))


def negated(model):
    put(model, lambda w: torch._neg_view(w))


def zero_tensor(model):
    put(model, lambda w: torch._efficientzerotensor(w.shape))


def nested(model):
    put(model, lambda w: torch.nested.nested_tensor([*w]))


SPOILERS = [
    freeze, hook, late_hook, removed_hook, call_hook, layer_hook, own_forward, layer_forward,
    other_activation, dropout, narrower, no_bias, extra, parametrized, other_class, inference,
    negated, zero_tensor, nested,
    lambda model: put(model, torch.Tensor.double),
    lambda model: put(model, lambda w: w.to("meta")),
    lambda model: put(model, torch.Tensor.to_sparse),
    lambda model: put(model, lambda w: w.T.contiguous().T),
]  # fmt: skip


def looked_at(models):
    """What is made of the last of some models: structure and numbers, or an error."""
    try:
        members = Modules(models)
        last = len(models) - 1
        return members.structure(last), members.views(members.gather(), last)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return type(error), re.sub(r"models\[\d\]", "models", str(error))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("spoil", SPOILERS)
def test_what_is_unusual_is_seen_among_usual_ones(spoil):
    torch.manual_seed(0)
    usual, odd = [net() for _ in range(3)], net()
    assert looked_at(usual)[0] == looked_at(usual[:1])[0]
    spoil(odd)
    alone, among = looked_at([odd]), looked_at([*usual, odd])
    if isinstance(alone[1], str):
        # of two dtypes or devices the error is another
        assert among[0] is alone[0] or "must share" in among[1]
        return
    if "must share" in str(among[1]):
        return
    assert among[0] == alone[0]
    for one, other in zip(among[1], alone[1], strict=True):
        assert torch.equal(one, other)


def test_sums_of_sines_differ_by_what_they_learn():
    options = [{}, {"learn_amplitude": True}, {"learn_phase": True}]
    models = [fastmlp.SineSum(4, **o) for o in options for _ in range(2)]
    members = Modules(models)
    assert members.kinds.tolist() == [0, 0, 1, 1, 2, 2]
    assert [s.names for s in members.structures] == [("w",), ("w", "amplitude"), ("w", "phase")]


def test_alternating_kinds_are_told_apart():
    models = [fastmlp.SineSum(1 + i % 3) for i in range(9)]
    for model in models[::2]:
        model.requires_grad_(False)
    members = Modules(models)
    for i, model in enumerate(models):
        structure = members.structure(i)
        assert structure.shapes == ((1 + i % 3,),)
        assert structure.trained == (model.w.requires_grad,)


def test_what_a_callback_puts_elsewhere_is_written_there():
    pytest.importorskip("numba")
    x = torch.linspace(-1, 1, 20)
    torch.manual_seed(0)
    models = [fastmlp.SineSum(3) for _ in range(4)]
    copies = [fastmlp.SineSum(3) for _ in range(4)]
    for model, copy in zip(models, copies, strict=True):
        copy.load_state_dict(model.state_dict())

    def move(result):
        models[1].w.data = torch.zeros(3)

    options = {"epochs": 3, "progress": False}
    old = models[1].w.data
    before = old.clone()
    with fastmlp.backend("torch"):
        fastmlp.fit(models, x, x.sin(), on_progress=move, **options)
        fastmlp.fit(copies, x, x.sin(), **options)
    for model, copy in zip(models, copies, strict=True):
        assert torch.equal(model.w, copy.w)
    assert torch.equal(old, before)
