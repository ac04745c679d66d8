"""Compile what a module's calls will need, before the first of them."""

import copy
import multiprocessing
import os
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from fastmlp.arguments import flag, integer, sequence

MAX_WORKERS = 8
"""Processes that compile; on a CUDA device each takes some hundred MB of its memory."""


def warm_up(
    module: torch.nn.Module, shapes: Iterable[Sequence[int]], *, progress: bool = True
) -> None:
    """Compile the kernels of forward and backward for inputs of some shapes, side by side.

    The first call of a kernel compiles it for seconds, on a GPU again for shapes that differ in
    what divides them. Several processes compile one shape each and keep what they made on disk,
    then this process runs every shape once, so that it has loaded all when this returns. Nothing of
    the module changes, nor the state of random numbers.

    Args:
        module: Any module that takes one tensor; with parameters it is called on their device, in
            their dtype, and in the mode, training or evaluation, in which it is.
        shapes: Shapes of inputs.
        progress: Whether to show a progress bar.

    Raises:
        TypeError: ``module`` is no module, or a shape no sequence of ints.
        ValueError: A negative size; or what the module says about an input of that shape.

    A script must keep its calls below ``if __name__ == "__main__":`` for the processes to start;
    otherwise one shape is compiled after the other.

    Example:
        >>> import fastmlp
        >>> fastmlp.warm_up(fastmlp.SineSum(8), [(100,), (1000,)], progress=False)
    """
    from tqdm import tqdm

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    progress, checked = flag("progress", progress), _checked(shapes)
    own = copy.deepcopy(module)
    with tqdm(total=2 * len(checked), unit=" shapes", disable=not progress) as bar:
        for _ in _side_by_side(own, checked):
            bar.update()
        for shape in checked:
            _run(own, shape)
            bar.update()


def _checked(shapes):
    if not isinstance(shapes, Iterable) or isinstance(shapes, str):
        raise TypeError(f"shapes must hold sequences of ints, got {shapes!r}")
    checked = []
    for shape in shapes:
        try:
            sizes = tuple(integer("a size", size) for size in sequence(shape))
        except TypeError:
            raise TypeError(f"shapes must hold sequences of ints, got {shape!r}") from None
        if min(sizes, default=0) < 0:
            raise ValueError(f"shapes must hold no negative size, got {sizes}")
        checked.append(sizes)
    return checked


def _side_by_side(module, shapes):
    """Run every shape in one of several processes; yield once for each.

    Where the processes cannot start, or cannot be sent the module, nothing is compiled ahead: this
    process then compiles when it runs. What a shape does wrong it does again there, and is raised.
    """
    n, done = min(n_cores(), len(shapes), MAX_WORKERS), 0
    if n > 1 and _can_be_sent(module):
        with workers_of(n) as workers:
            for future in as_completed([workers.submit(_run, module, s) for s in shapes]):
                if isinstance(future.exception(), BrokenProcessPool):
                    break
                done += 1
                yield
    for _ in range(len(shapes) - done):
        yield


def n_cores():
    """Cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def workers_of(n):
    """A pool of fresh processes: compilers do not survive a fork."""
    return ProcessPoolExecutor(n, multiprocessing.get_context("spawn"))


def _can_be_sent(module):
    try:
        pickle.dumps(module)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _run(module, shape):
    """Inference, then gradients of the parameters, then of the input too."""
    tensor = next(module.parameters(), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    dtype = torch.get_default_dtype() if tensor is None else tensor.dtype
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False):
        x = torch.zeros(shape, device=device, dtype=dtype)
        with torch.no_grad():
            module(x)
        for needs_dx in (False, True):
            with torch.enable_grad():
                x = x.detach().requires_grad_(needs_dx)
                y = module(x)
                wanted = [t for t in (x, *module.parameters()) if t.requires_grad]
                if wanted:
                    torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
    if devices:
        torch.cuda.synchronize(device)
