"""Run by torchrun in `test_distributed.py`: trains under DDP on the rank's half of the rows."""

import sys
from datetime import timedelta

import torch
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp import reference

N_ROWS, N_IN, N_HIDDEN, N_OUT = 64, 6, 14, 2
STEPS, LEARNING_RATE = 5, 0.05


class Plain(nn.Module):
    """The network as a user writes it."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(1, N_HIDDEN)
        self.fc2 = nn.Linear(N_HIDDEN, 1)
        self.fc3 = nn.Linear(N_IN, N_OUT)

    def forward(self, x):
        return self.fc3(self.fc2(F.relu(self.fc1(x.reshape(-1, 1)))).reshape(x.shape))


def ours():
    """Fused from the start."""
    return nn.parallel.DistributedDataParallel(fastmlp.AdditiveMLP(N_IN, N_HIDDEN, N_OUT))


def fused_before():
    """Plain, fused, then handed to DDP."""
    return nn.parallel.DistributedDataParallel(fastmlp.fuse(Plain()))


def fused_after():
    """Plain, handed to DDP, then fused."""
    return fastmlp.fuse(nn.parallel.DistributedDataParallel(Plain()))


CASES = {case.__name__: case for case in (ours, fused_before, fused_after)}


def data():
    """Inputs, targets and first weights: the same in every process, float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_ROWS, N_IN, generator=generator, dtype=torch.float64)
    y = torch.randn(N_ROWS, N_OUT, generator=generator, dtype=torch.float64)
    net = reference.AdditiveMLP(N_IN, N_HIDDEN, N_OUT, dtype=torch.float64)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    return x, y, net.state_dict()


def train(model, x, y, before_step=None):
    """A few steps of gradient descent on the mean squared error, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if before_step is not None:
            before_step()
        optimizer.step()


def main(path):
    """Train every case; each rank writes its weights to ``<path>/<rank>.pt``."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, n_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    x, y, state = data()
    mine = slice(rank * N_ROWS // n_ranks, (rank + 1) * N_ROWS // n_ranks)
    weights = {}
    for name, build in CASES.items():
        torch.manual_seed(rank)  # DDP must give all ranks the weights of the first
        model = build()
        assert type(model.module) is fastmlp.AdditiveMLP
        model.module.load_state_dict(state)
        train(model, x[mine].float(), y[mine].float())
        weights[name] = model.module.state_dict()
    torch.save(weights, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
