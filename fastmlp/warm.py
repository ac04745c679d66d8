"""Compile kernels ahead: for images of containers, and before many processes start at once.

Numba compiles a kernel for the arguments of its first call. So each job here is a small program of
the kind that users write; several processes share them.
"""

import warnings
from concurrent.futures import as_completed

import torch

import fastmlp
from fastmlp.ahead import n_cores, workers_of
from fastmlp.training.progress import can_be_seen

FEW, MANY = 3, 40_000
"""Rows of a batch: a single piece of work, and several, which threads are dealt."""

OPS = {
    "ElementwiseMLP": lambda **kw: fastmlp.ElementwiseMLP(14, **kw),
    "AdditiveMLP": lambda **kw: fastmlp.AdditiveMLP(8, 14, **kw),
    "SineSum": lambda **kw: fastmlp.SineSum(16, **kw),
    "MLP": lambda **kw: fastmlp.MLP(8, 14, 2, **kw),
}
MORE_OPS = {
    "ElementwiseMLP, tanh": lambda **kw: fastmlp.ElementwiseMLP(14, activation="tanh", **kw),
    "ElementwiseMLP, wide": lambda **kw: fastmlp.ElementwiseMLP(256, **kw),
    "AdditiveMLP, dropout": lambda **kw: fastmlp.AdditiveMLP(8, 14, dropout=0.1, **kw),
    "AdditiveMLP, wide": lambda **kw: fastmlp.AdditiveMLP(8, 256, **kw),
    "AdditiveMLP, not shared": lambda **kw: fastmlp.AdditiveMLP(8, 14, shared=False, **kw),
    "piecewise linear": lambda **kw: fastmlp.piecewise.from_module(
        fastmlp.ElementwiseMLP(14, **kw)
    ),
}
TRAINED = {*OPS, "AdditiveMLP, dropout", "AdditiveMLP, not shared"}
"""Models of which each has a loop of `fit` of its own."""


def _train_by_hand(make, dtype):
    """Forward and backward for batches of both sizes, and steps of the optimizer."""
    module = make(dtype=dtype)
    for rows in (FEW, MANY):
        x = torch.randn(rows, 8, dtype=dtype, device="cpu", requires_grad=True)
        with torch.no_grad():
            module(x)
        module(x).square().mean().backward()
        if isinstance(module, torch.nn.Module):
            fastmlp.optim.Adam(module.parameters()).step()


def _data(module, rows, dtype):
    x = torch.randn(rows, 8, dtype=dtype, device="cpu")
    with torch.no_grad():
        return x, module(x).sin()


def _fit(make, dtype):
    """The loops for small models and for others: with many rows in a step none is small."""
    module = make(dtype=dtype)
    for rows in (8, MANY):
        fastmlp.fit([module], *_data(module, rows, dtype), epochs=2, progress=False)


def _least_squares(make, dtype):
    module = make(dtype=dtype)
    for rows in (64, MANY):
        fastmlp.fit(
            module,
            *_data(module, rows, dtype),
            epochs=2,
            optimizer=fastmlp.LevenbergMarquardt(restarts=2),
            progress=False,
        )


def jobs(everything):
    """Names of jobs and what each calls.

    Args:
        everything: Whether to take float64, all kinds of subnets and Levenberg–Marquardt too.
    """
    dtypes = [torch.float32, torch.float64] if everything else [torch.float32]
    named = {}
    for dtype in dtypes:
        for name, make in {**OPS, **(MORE_OPS if everything else {})}.items():
            named[f"{name}, {dtype}"] = _train_by_hand, make, dtype
            if name in TRAINED:
                named[f"fit of {name}, {dtype}"] = _fit, make, dtype
    if everything:
        for name, make in OPS.items():
            named[f"Levenberg–Marquardt, {name}"] = _least_squares, make, torch.float32
    return named


def run(name, everything):
    """Do one job in this process."""
    function, make, dtype = jobs(everything)[name]
    with fastmlp.backend("numba"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data that teach nothing
        function(make, dtype)
    return name


def warm(everything=False, progress=True):
    """Compile and keep the CPU's kernels, in as many processes as there are cores.

    Returns:
        The directory that they are in, ``None`` where there is none that may be written.

    Raises:
        ValueError: Numba is not installed, or told not to compile.
    """
    from tqdm import tqdm

    with fastmlp.backend("numba"):
        names = [*jobs(everything)]
    with workers_of(min(n_cores(), len(names))) as workers:
        done = as_completed([workers.submit(run, name, everything) for name in names])
        with tqdm(total=len(names), unit=" jobs", disable=not (progress and can_be_seen())) as bar:
            for future in done:
                bar.set_postfix_str(future.result(), refresh=False)
                bar.update()
    from fastmlp.kernels.cpu.machine.cache import user_cache_directory

    directory = user_cache_directory()
    return directory if directory is not None and any(directory.glob("*.kernel")) else None
