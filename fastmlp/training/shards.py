"""Share models out over the ranks of `torch.distributed`, and gather what they learned.

A model's run depends on nothing but itself, so the numbers are those of a single process, bit for
bit.
"""

import numpy as np
import torch
from torch import distributed as dist


def _world():
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first():
    """Whether this is the rank that reports."""
    return _world()[0] == 0


def _owners(problem, n_ranks):
    """The rank of every model: dealt out by size, so that all ranks have about as much to do."""
    order = np.argsort(-np.diff(problem.members.offsets), kind="stable")
    owners = np.empty(len(order), np.int64)
    owners[order] = np.arange(len(order)) % n_ranks
    return owners


def share_out(problem):
    """Leave to this rank the models that are its own."""
    rank, n_ranks = _world()
    if n_ranks > 1:
        problem.here = np.flatnonzero(_owners(problem, n_ranks) == rank)


def owners_in_ranges(parts):
    """The rank of every model, where each part of them is trained by all ranks, a range by each.

    Args:
        parts: Arrays of indices that have every model once.
    """
    n_ranks = _world()[1]
    owners = np.empty(sum(map(len, parts)), np.int64)
    for part in parts:
        for rank, models in enumerate(np.array_split(part, n_ranks)):
            owners[models] = rank
    return owners


def are_mine(owners):
    """A mask of the models that this rank trains."""
    return owners == _world()[0]


def gather(problem):
    """Give every rank all weights, moments, losses and states."""
    n_ranks = _world()[1]
    if n_ranks == 1:
        return
    device, owners = problem.theta.device, _owners(problem, n_ranks)
    buffers = problem.theta, problem.moment1, problem.moment2, problem.best
    exchange(buffers, np.repeat(owners, np.diff(problem.members.offsets)), device)
    curves = problem.train_loss, problem.val_loss, problem.grad_norm
    exchange([torch.from_numpy(c) for c in curves if c is not None], owners, device)
    for name in problem.states.dtype.names:
        column = torch.from_numpy(problem.states[name].copy())
        exchange([column], owners, device)
        problem.states[name] = column.numpy()


def exchange(tensors, owners, device):
    """Give every rank all rows of some tensors, in place, each from the rank that owns it.

    Args:
        tensors: Shape ``[n, …]``; ``None`` among them is left out.
        owners: The rank of every row.
        device: What NCCL sends from, if that is the group's backend.
    """
    n_ranks = _world()[1]
    if n_ranks == 1:
        return
    device = device if dist.get_backend() == "nccl" else torch.device("cpu")
    for rank in range(n_ranks):
        # of a shape that all ranks know beforehand
        rows = torch.from_numpy(np.flatnonzero(owners == rank))
        for tensor in tensors:
            _exchange(tensor, rows, rank, device)


def _exchange(tensor, rows, rank, device):
    """Rows of a tensor from one rank to all."""
    if tensor is None or len(rows) == 0:
        return
    rows = rows.to(tensor.device)
    part = tensor[rows].to(device)
    dist.broadcast(part, src=rank)
    tensor[rows] = part.to(tensor.device)
