"""Forward and backward of a module as CUDA graphs: one launch each, whatever the module holds.

A graph replays kernels at the addresses at which they were captured. So the input is copied to
where the graph reads it and results are copied from where it writes them; parameters must stay
where they are. A call that a graph does not fit runs as it would without.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from fastmlp import boundary
from fastmlp.parts import CALL_HOOKS, draws_masks, hooks_of

# where streams and graphs come from, and the devices that have them: tests put others in place
_cuda: Any = torch.cuda
_DEVICE = "cuda"

MAX_SHAPES = 16
"""Graphs that one module keeps; the one that was used longest ago makes room."""


def graphed(module: torch.nn.Module, sample: torch.Tensor | Sequence[torch.Tensor]) -> "Graphed":
    """Capture forward and backward of a module as CUDA graphs, one of each for every sample.

    A small batch costs a GPU a few microseconds and its host a hundred: a replay is one launch.
    The result is called like the module. Inputs like a sample, in shape, dtype and whether they
    need a gradient, are served by its graphs; all others run as without. So do calls after a
    parameter has moved to another address (``module.to(…)``, a new ``Parameter``; optimizers and
    ``load_state_dict`` write in place and move nothing), in the other of training and evaluation,
    under autocast, under ``torch.func`` or inside another capture.

    Args:
        module: On one CUDA device, without dropout in training and without hooks: a graph would
            replay neither. It takes a tensor and gives a tensor.
        sample: An input on that device, or several; their values do not matter. Shapes of later
            inputs are captured by :meth:`Graphed.capture`.

    Returns:
        A callable with the method ``capture``. Values and gradients are those of the module, bit
        for bit, in memory of their own. Second derivatives run without a graph.

    Raises:
        TypeError: ``module`` is no module, ``sample`` no tensor and no sequence of tensors, or the
            module's output is not one tensor.
        ValueError: The module or a sample cannot be captured; the message says why.

    Example::

        step = fastmlp.graphed(module.cuda(), torch.empty(100, 64, device="cuda"))
        step(x).square().mean().backward()
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    samples = [sample] if isinstance(sample, torch.Tensor) else sample
    if not isinstance(samples, (list, tuple)) or not all(map(torch.is_tensor, samples)):
        raise TypeError(
            f"sample must be a Tensor or a list or tuple of them, got {type(sample).__name__}"
        )
    result = Graphed(module)
    for one in samples:
        result.capture(one)
    return result


class Graphed:
    """A module with graphs of some shapes; made by :func:`graphed`.

    Attributes:
        module: The module itself, for all that is no call.
    """

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self._graphs: OrderedDict[tuple, _Graphs] = OrderedDict()
        self._lock = threading.Lock()

    def capture(self, sample: torch.Tensor) -> None:
        """Capture graphs for inputs like ``sample``; raise as :func:`graphed` does."""
        if (reason := _obstacle(self.module, sample)) is not None:
            raise ValueError(f"no CUDA graph of {type(self.module).__name__}: {reason}")
        graphs = _Graphs(self.module, sample)
        with self._lock:
            self._graphs[_key(sample)] = graphs
            while len(self._graphs) > MAX_SHAPES:
                self._graphs.popitem(last=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The module's output."""
        graphs = self._graphs.get(_key(x)) if isinstance(x, torch.Tensor) else None
        if graphs is None or not graphs.fits(x):
            return self.module(x)
        with self._lock:
            if _key(x) in self._graphs:
                self._graphs.move_to_end(_key(x))
        return _Replay.apply(graphs, x, *graphs.parameters)


def _key(x):
    return x.shape, x.dtype, x.device, x.requires_grad and torch.is_grad_enabled()


def _obstacle(module, sample):
    """Why a module cannot be captured with a sample, or ``None``."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.device != sample.device for t in tensors):
        return f"its tensors are not all on the device of the sample, {sample.device}"
    if sample.device.type != _DEVICE:
        return f"there are graphs on CUDA devices alone, and the sample is on {sample.device}"
    for name, part in module.named_modules():
        if draws_masks(part):
            return f"{name or 'it'} draws new dropout masks at every call; eval() switches them off"
        if hooks_of(part, CALL_HOOKS):
            return f"{name or 'it'} has hooks, which a replay would not call"
    return (why := boundary.reason([sample])) and f"the sample is not plain memory: {why}"


def _captured(function, pool=None):
    """A graph of what a function launches, and what it returns."""
    graph = _cuda.CUDAGraph()
    with _cuda.graph(graph, pool=pool):
        result = function()
    return graph, result


class _Graphs:
    """Forward and backward for one sample.

    Attributes:
        parameters: Those with gradients, in the order of the gradients.
    """

    def __init__(self, module, sample):
        self._module, self._training = module, module.training
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        owners = [
            (part._parameters, name) for part in module.modules() for name in part._parameters
        ]
        self._owners = [(owner, name) for owner, name in owners if owner[name] is not None]
        self._places = [_place(owner[name]) for owner, name in self._owners]
        self._lock, self._turn = threading.Lock(), 0
        with torch.enable_grad(), _cuda.device(sample.device):
            self._x = sample.detach().clone().requires_grad_(_key(sample)[3])
            self._inputs = [t for t in (self._x, *self.parameters) if t.requires_grad]
            self._warm_up()
            self._forward, self._taped = _captured(lambda: module(self._x))
            self._y = self._taped.detach()
            if self._taped.requires_grad:
                self._backward, self._gradients = _captured(
                    self._differentiated, self._forward.pool()
                )
        self._taped = None

    def _differentiated(self):
        return torch.autograd.grad(
            self._taped, self._inputs, self._dy, retain_graph=True, allow_unused=True
        )

    def _warm_up(self):
        """Run all once on a stream of its own: kernels compile, and libraries set up, here."""
        stream = _cuda.Stream()
        stream.wait_stream(_cuda.current_stream())
        with _cuda.stream(stream):
            self._taped = self._module(self._x)
            if not isinstance(self._taped, torch.Tensor):
                got = type(self._taped).__name__
                raise TypeError(f"the module must return a Tensor, got {got}")
            self._dy = torch.zeros_like(self._taped.detach())
            if self._taped.requires_grad:
                self._differentiated()
        _cuda.current_stream().wait_stream(stream)
        self._stream = _cuda.current_stream()

    def fits(self, x):
        """Whether a replay does what a call would do, now."""
        return (
            self._module.training == self._training
            and [_place(owner.get(name)) for owner, name in self._owners] == self._places
            and boundary.is_plain([x])
            and not torch._C._is_any_autocast_enabled()
            and not torch.compiler.is_compiling()
            and not _cuda.is_current_stream_capturing()
        )

    def _replay_forward(self, x):
        """Behind everything that still uses the graph's memory; another turn begins."""
        stream = _cuda.current_stream()
        if stream != self._stream:
            stream.wait_stream(self._stream)
            self._stream = stream
        self._x.data.copy_(x)
        self._forward.replay()
        self._turn += 1

    def forward(self, x):
        """The output, in memory of its own, and the turn whose values the graph now holds."""
        with self._lock:
            self._replay_forward(x)
            return self._y.clone(), self._turn

    def backward(self, turn, x, dy):
        """Gradients of the inputs that need one, in memory of their own."""
        with self._lock:
            if turn != self._turn or _cuda.current_stream() != self._stream:
                # another forward has been there in between
                self._replay_forward(x)
            self._dy.copy_(dy)
            self._backward.replay()
            return _copies(self._gradients)


def _place(p):
    return None if p is None else (p.data_ptr(), p.requires_grad)


def _copies(tensors):
    """Copies of tensors and of ``None``; of small ones side by side, at one launch."""
    given = [t for t in tensors if t is not None]
    size = sum(t.numel() for t in given)
    if len({t.dtype for t in given}) > 1 or size > 1 << 20:
        return [None if t is None else t.clone() for t in tensors]
    copies = torch._C._nn.unflatten_dense_tensors(given[0].new_empty(size), given)
    torch._foreach_copy_(copies, given)
    found = iter(copies)
    return [None if t is None else next(found) for t in tensors]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graphs, x, *parameters):
        y, ctx.turn = graphs.forward(x)
        ctx.graphs = graphs
        # parameters too, so that changing one before backward is found out as without a graph
        ctx.save_for_backward(x, *parameters)
        return y

    @staticmethod
    def backward(ctx, dy):
        graphs, (x, *parameters) = ctx.graphs, ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            wanted = [t for t in (x, *parameters) if t.requires_grad]
            y = graphs._module(x)
            gradients = torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True)
        else:
            gradients = graphs.backward(ctx.turn, x, dy)
        found = iter(gradients)
        needs = (x.requires_grad, *[True] * len(parameters))
        return None, *(next(found) if need else None for need in needs)
