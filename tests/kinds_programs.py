"""Rows of the table of kinds: whole programs, each with plain data and parameters in its place."""

import contextlib
import warnings

import torch
from kinds import KINDS, Kind, positive
from kinds_modes import Logged
from kinds_tensors import Named, full, one_rank
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

import fastmlp
from fastmlp import piecewise


def steps_of_adam(net, x, y, around):
    """Three steps with given gradients, ours or those of PyTorch's own optimizer."""
    parameters, ours = list(net.parameters()), type(net).__module__.startswith("fastmlp.modules")
    optimizer = (fastmlp.optim.Adam if ours else torch.optim.Adam)(parameters, 0.01)
    for step in range(3):
        for p in parameters:
            shape, dtype = p.shape, p.dtype
            p.grad = around.convert(positive(*shape, seed=40 + step, dtype=dtype))
        with around.mode():
            optimizer.step()
    return [[p.detach() for p in parameters]]


def fitted(net, x, y, around):
    """A run of `fit`; the module is ours in any case, plain is PyTorch's backend."""
    plain = not type(net).__module__.startswith("fastmlp.modules")
    backend = fastmlp.backend("torch") if plain else contextlib.nullcontext()
    model = fastmlp.AdditiveMLP(3, 4, 2, dtype=net.fc1.weight.dtype) if plain else net
    if plain:
        model.load_state_dict(net.state_dict())
    with backend, around.mode():
        options = {"batch_size": 2, "shuffle": False, "progress": False}
        result = fastmlp.fit([model], x, y, epochs=2, optimizer=fastmlp.SGD(0.001), **options)
    return list(model.parameters()), [result.train_loss.to(x.dtype)]


def least_squares(net, x, y, around):
    """Steps of Levenberg–Marquardt within `fit`."""
    with around.mode():
        result = fastmlp.fit(
            net, x, y, epochs=1, optimizer=fastmlp.LevenbergMarquardt(damping=100.0), progress=False
        )
    return list(net.parameters()), [result.train_loss[:, 0].to(net.fc1.weight.dtype)]


def least_squares_step(net, x, y, around):
    """The same as an optimizer of any module."""
    optimizer = fastmlp.optim.LevenbergMarquardt(net, damping=100.0)
    with around.mode():
        loss = optimizer.step(x, y)
    return list(net.parameters()), [torch.tensor(loss, dtype=net.fc1.weight.dtype)]


def segments(net, x, y, around):
    """A table of segments, and the net frozen to it."""
    with around.mode():
        table, frozen = piecewise.from_module(net), piecewise.freeze(net)
        y = frozen(x)
    return [[table.slopes.to(net.fc1.weight.dtype), y]]


class Around:
    """What a situation puts around a program.

    Args:
        mode: Context manager in which the program runs.
        convert: What becomes of data, or of gradients given to an optimizer.
        parameters: What becomes of parameters; by default nothing.
        plain: What plain data are the same numbers as converted ones; by default those they were.
        refused: Whether a program may refuse it.
    """

    def __init__(self, *, mode=None, convert=None, parameters=None, plain=None, refused=False):
        self.mode = mode or contextlib.nullcontext
        self.convert = convert or unchanged
        self.parameters = parameters or unchanged
        self.plain = plain or unchanged
        self.refused = refused


def unchanged(tensor):
    """The tensor."""
    return tensor


def negated(tensor):
    """The same numbers, with the negative bit set."""
    return torch._neg_view(-tensor)


def expanded(tensor):
    """The first row, as often."""
    return tensor[:1].expand(tensor.shape)


def zero(tensor):
    """Zeros without memory."""
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)


def wrapped(tensor):
    """A subclass that holds two tensors."""
    return TwoTensor(tensor, tensor.clone())


def without_memory(tensor):
    """The tensor, its storage freed."""
    tensor.untyped_storage().resize_(0)
    return tensor


def nested(tensor):
    """Two parts of rows."""
    with warnings.catch_warnings(action="ignore"):
        return torch.nested.nested_tensor([tensor[:2], tensor[2:]])


def on_mesh(tensor):
    """A tensor distributed over one process."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    return distribute_tensor(tensor, mesh, [Replicate()])


SITUATIONS = {
    "negated": Around(convert=negated),
    "negated_parameters": Around(parameters=negated),
    "zero": Around(convert=zero, plain=torch.zeros_like),
    "expanded": Around(convert=expanded, plain=expanded),
    "strided": Around(convert=lambda t: t.repeat_interleave(2, 0)[::2]),
    "sparse": Around(convert=lambda t: t.to_sparse(), refused=True),
    "mkldnn": Around(convert=lambda t: t.to_mkldnn(), refused=True),
    "nested": Around(convert=nested, refused=True),
    "meta": Around(convert=lambda t: t.to("meta"), refused=True),
    "meta_parameters": Around(parameters=lambda t: t.to("meta"), refused=True),
    "freed": Around(convert=without_memory, refused=True),
    "freed_parameters": Around(parameters=without_memory, refused=True),
    "subclass": Around(convert=lambda t: t.as_subclass(Named), refused=True),
    "wrapped": Around(convert=wrapped, refused=True),
    "wrapped_parameters": Around(parameters=wrapped, refused=True),
    "distributed": Around(convert=on_mesh, parameters=on_mesh, refused=True),
    "fake_mode": Around(mode=FakeTensorMode, refused=True),
    "lenient_fake_mode": Around(
        mode=lambda: FakeTensorMode(allow_non_fake_inputs=True), refused=True
    ),
    "dispatch_mode": Around(mode=Logged),
    "default_device": Around(mode=lambda: torch.device("meta")),
    "inference_mode": Around(mode=torch.inference_mode),
    "no_grad": Around(mode=torch.no_grad),
}

PROGRAMS = {
    "adam": (steps_of_adam, "additive"),
    "fit": (fitted, "additive"),
    "least_squares": (least_squares, "additive"),
    "least_squares_step": (least_squares_step, "additive"),
    "segments": (segments, "elementwise"),
}
BEFORE = {
    "adam": {
        "negated": "RuntimeError",
        "negated_parameters": "RuntimeError",
        "zero": "RuntimeError",
        "expanded": "garbage",
        "strided": "garbage",
        "wrapped": "segfault",
        "wrapped_parameters": "segfault",
        "distributed": "segfault",
        "lenient_fake_mode": "segfault",
    },
    "fit": {
        "negated": "garbage",
        "zero": "segfault",
        "sparse": "RuntimeError",
        "mkldnn": "RuntimeError",
        "nested": "RuntimeError",
        "freed": "RuntimeError",
        "freed_parameters": "segfault",
        "wrapped": "segfault",
        "wrapped_parameters": "garbage",
        "distributed": "RuntimeError",
        "fake_mode": "AssertionError",
        "lenient_fake_mode": "segfault",
    },
    "least_squares": {
        "negated": "garbage",
        "zero": "segfault",
        "sparse": "NotImplementedError",
        "mkldnn": "NotImplementedError",
        "nested": "NotImplementedError",
        "meta": "RuntimeError",
        "meta_parameters": "NotImplementedError",
        "freed": "segfault",
        "freed_parameters": "segfault",
        "wrapped": "segfault",
        "wrapped_parameters": "garbage",
        "distributed": "RuntimeError",
        "fake_mode": "AssertionError",
        "lenient_fake_mode": "DataDependentOutputException",
        "default_device": "segfault",
    },
    "segments": {
        "meta_parameters": "NotImplementedError",
        "freed_parameters": "segfault",
        "wrapped_parameters": "RuntimeError",
        "distributed": "RuntimeError",
        "fake_mode": "AssertionError",
        "lenient_fake_mode": "RuntimeError",
        "default_device": "segfault",
    },
}
BEFORE["least_squares_step"] = {**BEFORE["least_squares"], "negated": "passed", "zero": "passed"}
"""What came of the programs in the situations that they did not survive, before."""


def with_parameters(net, convert):
    """The net, its parameters converted in place."""
    for module in net.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(convert(p.detach().clone()))
    return net


def rows(program, function, around, is_distributed):
    """The row's function, and the one of plain PyTorch."""

    def run(net, x):
        y = positive(5, 2, seed=50, dtype=x.dtype)
        with one_rank() if is_distributed else contextlib.nullcontext():
            net = with_parameters(net, around.parameters)
            if program != "segments":
                x, y = around.convert(x), around.convert(y)
            return [full(part) for part in function(net, x, y, around)]

    def plain(net, x):
        y = around.plain(positive(5, 2, seed=50, dtype=x.dtype))
        return function(net, x if program == "segments" else around.plain(x), y, Around())

    # an optimizer of PyTorch's meets the same
    return run, run if program == "adam" else plain


for _program, (_function, _net) in PROGRAMS.items():
    for _name, _around in SITUATIONS.items():
        if _program == "segments" and _around.convert is not unchanged and _name != "distributed":
            continue  # takes no data
        if _program == "adam" and _name.startswith("freed"):
            continue  # the step of PyTorch's own optimizer ends the process too
        _run, _plain = rows(_program, _function, _around, _name == "distributed")
        _before = BEFORE[_program].get(_name, "passed")
        KINDS[f"{_program}_{_name}"] = Kind(_run, _plain, _before, _around.refused, (_net,))
