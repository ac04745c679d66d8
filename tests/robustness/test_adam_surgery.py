"""fastmlp.optim.Adam against torch.optim.Adam while users replace what it works on between steps.

Three optimizers get the same random surgery and the same gradients: ours, PyTorch's, and PyTorch's
in float64, which judges both by the rule of `closeness`. An error of PyTorch's must be ours too.
"""

import copy
import pickle
import warnings

import pytest
import torch
from closeness import ULPS_OF_SCALE, assert_as_good_as_torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

import fastmlp
from fastmlp import backends

pytestmark = pytest.mark.skipif(not backends.is_installed("numba"), reason="the kernel needs numba")

SHAPES = [(4, 4), (5,), (3, 2), (), (0, 3)]
PAIRS = {
    "adam": (fastmlp.optim.Adam, torch.optim.Adam),
    "adamw": (fastmlp.optim.AdamW, torch.optim.AdamW),
}


class World:
    """An optimizer, its numbers, and the sizes of all that was added up in them."""

    def __init__(self, cls, dtype, options, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        params = [self.parameter(shape) for shape in SHAPES]
        groups = [{"params": params[:3]}, {"params": params[3:], "lr": 3e-3}]
        self.optimizer = cls(groups if seed % 2 else params, **options)

    def normal(self, shape):
        # float32 numbers in every world
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def parameter(self, shape):
        return torch.nn.Parameter(self.normal(shape))

    def pick(self, n):
        return int(torch.randint(n, (), generator=self.generator))

    def any_group(self):
        return self.optimizer.param_groups[self.pick(len(self.optimizer.param_groups))]

    def any_place(self):
        group = self.any_group()
        return group["params"], self.pick(len(group["params"]))

    def any_parameter(self):
        params, i = self.any_place()
        return params[i]

    def any_entry(self):
        entry = self.optimizer.state.get(self.any_parameter())
        return entry if entry else {}

    def parameters(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def draw_gradients(self):
        for p in self.parameters():
            gradient = self.normal(p.shape).to(p.dtype)
            # seldom: where a gradient is missing or not dense the kernel's table is made anew
            if self.pick(40) == 0:
                p.grad = None
            elif p.ndim == 2 and self.pick(40) == 0:
                p.grad = gradient.mT.contiguous().mT
            else:
                p.grad = gradient


def replace_parameter(world):
    params, i = world.any_place()
    params[i] = world.parameter(params[i].shape)


def drop_parameter(world):
    params, i = world.any_place()
    if len(params) > 1:
        del params[i]


def replace_group(world):
    groups = world.optimizer.param_groups
    i = world.pick(len(groups))
    groups[i] = {**groups[i], "params": list(groups[i]["params"]), "lr": 2e-3}


def turn_groups(world):
    world.optimizer.param_groups.reverse()


def add_group(world):
    group = {"params": [world.parameter((2, 3))], "weight_decay": 0.1}
    world.optimizer.add_param_group(group)


def clear_state(world):
    world.optimizer.state.clear()


def clear_entry(world):
    world.any_entry().clear()


def replace_state(world):
    state = world.optimizer.state
    world.optimizer.state = type(state)(dict, {p: dict(entry) for p, entry in state.items()})


def replace_entry(world):
    p = world.any_parameter()
    entry = world.optimizer.state.get(p)
    if entry:
        world.optimizer.state[p] = {name: 0.5 * value for name, value in entry.items()}


def replace_moment(world):
    entry = world.any_entry()
    for name in ("exp_avg", "exp_avg_sq")[world.pick(2) :]:
        if name in entry:
            entry[name] = 2 * entry[name]


def replace_count(world):
    entry = world.any_entry()
    if entry:
        entry["step"] = torch.tensor(7.0)


def write_count(world):
    entry = world.any_entry()
    if entry:
        entry["step"].fill_(3)


def swap_moments(world):
    first, second = world.any_entry(), world.any_entry()
    shapes = [entry["exp_avg"].shape for entry in (first, second) if entry]
    if len(shapes) == 2 and shapes[0] == shapes[1]:
        first["exp_avg"], second["exp_avg"] = second["exp_avg"], first["exp_avg"]


def move(world):
    for p, entry in world.optimizer.state.items():
        for tensor in (p, *entry.values()):
            tensor.data = tensor.data.clone()


def move_moments(world):
    for entry in world.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in entry:
                entry[name].data = entry[name].data.clone()


def share(world):
    for p, entry in world.optimizer.state.items():
        for tensor in (p.data, *entry.values()):
            tensor.share_memory_()


def transpose(world):
    for p, entry in world.optimizer.state.items():
        if p.shape == (4, 4) and entry:
            entry["exp_avg"].t_()


def transpose_parameter(world):
    for p in world.parameters():
        if p.shape == (4, 4):
            p.data = p.data.t()


def load(world):
    # PyTorch cannot save the state of parameters that it no longer has
    known = {id(p) for p in world.parameters()}
    for p in [p for p in world.optimizer.state if id(p) not in known]:
        del world.optimizer.state[p]
    world.optimizer.load_state_dict(copy.deepcopy(world.optimizer.state_dict()))


def copy_all(world):
    world.optimizer = copy.deepcopy(world.optimizer)


def pickle_all(world):
    world.optimizer = pickle.loads(pickle.dumps(world.optimizer))


def freeze(world):
    p = world.any_parameter()
    p.requires_grad_(not p.requires_grad)


def zero_gradients(world):
    world.optimizer.zero_grad(set_to_none=bool(world.pick(2)))


def cast_all(world):
    for p in world.parameters():
        p.data = p.data.double()
        for name in ("exp_avg", "exp_avg_sq"):
            if world.optimizer.state.get(p):
                world.optimizer.state[p][name] = world.optimizer.state[p][name].double()


def cast_count(world):
    entry = world.any_entry()
    if entry:
        entry["step"] = entry["step"].double()


def set_numbers(world):
    group = world.any_group()
    group["lr"], group["betas"], group["weight_decay"] = 5e-3, (0.8, 0.99), 0.05


def tensor_rate(world):
    world.any_group()["lr"] = torch.tensor(2e-3, dtype=torch.float64)


def maximize(world):
    group = world.any_group()
    group["maximize"] = not group["maximize"]


def with_foreach(world):
    group = world.any_group()
    group["foreach"] = not isinstance(group["lr"], torch.Tensor) and not group["foreach"]


def overlap(world):
    params, i = world.any_place()
    params.append(torch.nn.Parameter(params[i].data.reshape(-1)[: params[i].numel() // 2 + 1]))


def twice(world):
    params, i = world.any_place()
    params.append(params[i])


SURGERY = [
    replace_parameter, drop_parameter, replace_group, turn_groups, add_group, clear_state,
    clear_entry, replace_state, replace_entry, replace_moment, replace_count, write_count,
    swap_moments, move, move_moments, share, transpose, transpose_parameter, load, copy_all,
    pickle_all, freeze, zero_gradients, cast_all, cast_count, set_numbers, tensor_rate, maximize,
    with_foreach, overlap, twice,
]  # fmt: skip


def sparse_gradient(world):
    p = world.parameter((4, 4))
    world.optimizer.param_groups[0]["params"].insert(0, p)
    world.gradient = torch.eye(4, dtype=p.dtype).to_sparse()


def cast_parameters(world):
    for p in world.parameters():
        p.data = p.data.to(torch.bfloat16)


def shrink(world):
    p = next((p for p in world.parameters() if p.ndim), None)
    if p is not None:
        p.data = p.data[1:]


def shrink_moment(world):
    for entry in world.optimizer.state.values():
        if entry and entry["exp_avg"].ndim:
            entry["exp_avg"].data = entry["exp_avg"].data[1:]


def nested_moment(world):
    for p, entry in world.optimizer.state.items():
        if entry and p.shape == (4, 4):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a prototype, PyTorch says
                entry["exp_avg"] = torch.nested.nested_tensor([*entry["exp_avg"]])


def lose_moment(world):
    world.any_entry().pop("exp_avg", None)


def capturable(world):
    world.any_group()["capturable"] = True


def amsgrad(world):
    world.any_group()["amsgrad"] = True


def beta_of_one(world):
    world.any_group()["betas"] = (1.0, 0.9)


def gradient_is_parameter(world):
    world.gradient = world.optimizer.param_groups[0]["params"][0].detach()


def negative_view(world):
    p = world.optimizer.param_groups[0]["params"][0]
    world.gradient = torch.complex(torch.ones_like(p), torch.ones_like(p)).detach().conj().imag


def complex_parameter(world):
    p = torch.nn.Parameter(torch.complex(world.normal((3,)), world.normal((3,))))
    world.optimizer.add_param_group({"params": [p]})


# most of them end in an error, so each is the last
LAST = [
    None, sparse_gradient, cast_parameters, shrink, shrink_moment, nested_moment, lose_moment,
    capturable, amsgrad, beta_of_one, gradient_is_parameter, negative_view, complex_parameter,
]  # fmt: skip


def step(world):
    """Take a step; the error as a string, or ``None``."""
    world.draw_gradients()
    gradient = world.__dict__.pop("gradient", None)
    if gradient is not None:
        world.optimizer.param_groups[0]["params"][0].grad = gradient
    try:
        world.optimizer.step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def compare(worlds, sizes):
    rows = zip(*(world.parameters() for world in worlds), strict=True)
    for mine, other, judge in rows:
        # many steps, each of which rounds: the floor of whole runs
        def check(name, *tensors, terms):
            *rounded, truth = (t.detach() for t in tensors)
            truth = truth.to(torch.complex128 if truth.is_complex() else torch.float64)
            if truth.is_complex():
                rounded, truth = [torch.view_as_real(t) for t in rounded], torch.view_as_real(truth)
            # in the dtype it began with: a cast does not undo earlier roundings
            rounded = [t.to(worlds[0].dtype) for t in rounded]
            terms = truth.abs() + terms
            assert_as_good_as_torch(*rounded, truth, terms=terms, floor=ULPS_OF_SCALE, name=name)

        check("parameter", mine, other, judge, terms=sizes["parameter"])
        entries = [
            world.optimizer.state.get(p)
            for world, p in zip(worlds, (mine, other, judge), strict=True)
        ]
        assert entries[0] is None or {*entries[0]} == {*entries[1]}
        assert (entries[0] is None) == (entries[1] is None)
        for name in entries[0] or ():
            values = [entry[name] for entry in entries]
            if name == "step":
                assert values[0] == values[1]
                assert values[0].dtype == values[1].dtype
            elif any(value.is_nested for value in values):
                # of a parameter that had no gradient, so nobody looked at it; it has no numbers
                assert all(value.is_nested for value in values)
            else:
                check(name, *values, terms=sizes[name])


# what was summed besides the result itself: steps of some learning rates; gradients below 8
SIZES = {"parameter": 0.1, "exp_avg": 8.0, "exp_avg_sq": 64.0, "max_exp_avg_sq": 64.0}


def operate(kind, dtype, options, seed, surgeries, last):
    ours, theirs = PAIRS[kind]
    worlds = [
        World(cls, dt, options, seed)
        for cls, dt in ((ours, dtype), (theirs, dtype), (theirs, torch.float64))
    ]
    for surgery in [[], [], *surgeries, [] if last is None else [last]]:
        for change in surgery:
            for world in worlds:
                change(world)
        mine, other, judge = (step(world) for world in worlds)
        assert mine == other
        if other is not None or judge is not None:
            return
        compare(worlds, SIZES)


OPTIONS = [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}, {"foreach": True}]


@given(
    kind=st.sampled_from(sorted(PAIRS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    options=st.sampled_from([*[{}] * 4, *OPTIONS]),
    seed=st.integers(0, 2**31 - 1),
    surgeries=st.lists(st.lists(st.sampled_from(SURGERY), max_size=3), min_size=1, max_size=6),
    last=st.sampled_from(LAST),
)
@settings(max_examples=max(40, min(1000, settings().max_examples // 10)))
def test_random_surgery_between_steps(kind, dtype, options, seed, surgeries, last):
    operate(kind, dtype, options, seed, surgeries, last)


@pytest.mark.parametrize("surgery", [*SURGERY, *LAST[1:]], ids=lambda surgery: surgery.__name__)
def test_each_surgery_between_steps(surgery):
    for kind, dtype in (("adam", torch.float64), ("adamw", torch.float32)):
        for seed in range(3):
            operate(kind, dtype, {"weight_decay": 0.1}, seed, [[], [surgery], [], []], None)
