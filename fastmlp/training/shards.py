"""Share a list of models out over the ranks of `torch.distributed`, and gather what they learned.

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


def gather(problem):
    """Give every rank all weights, moments, losses and states."""
    _, n_ranks = _world()
    if n_ranks == 1:
        return
    device = problem.theta.device if dist.get_backend() == "nccl" else torch.device("cpu")
    owners = _owners(problem, n_ranks)
    per_parameter = np.repeat(owners, np.diff(problem.members.offsets))
    for rank in range(n_ranks):
        # of a shape that all ranks know beforehand
        models = torch.from_numpy(np.flatnonzero(owners == rank))
        parameters = torch.from_numpy(np.flatnonzero(per_parameter == rank))
        for buffer in (problem.theta, problem.moment1, problem.moment2, problem.best):
            _exchange(buffer, parameters, rank, device)
        for array in (problem.train_loss, problem.val_loss, problem.grad_norm):
            if array is not None:
                _exchange(torch.from_numpy(array), models, rank, device)
        for name in problem.states.dtype.names:
            column = torch.from_numpy(problem.states[name].copy())
            _exchange(column, models, rank, device)
            problem.states[name] = column.numpy()


def _exchange(tensor, rows, rank, device):
    """Rows of a tensor from one rank to all."""
    if tensor is None or len(rows) == 0:
        return
    rows = rows.to(tensor.device)
    part = tensor[rows].to(device)
    dist.broadcast(part, src=rank)
    tensor[rows] = part.to(tensor.device)
