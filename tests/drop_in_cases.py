"""The network of the first experiment, and of the third, as people write them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

FEATURES, HIDDEN = 64, 14


class Author(nn.Module):
    """As its author has it: one Dropout at three places, a cast, and more than a forward."""

    def __init__(self, p=0.2, lr=1e-4):
        super().__init__()
        self.fc1 = nn.Linear(1, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 1)
        self.fc3 = nn.Linear(FEATURES, 1)
        self.dropout = nn.Dropout(p)
        self.loss = nn.MSELoss()
        self.lr = lr

    def forward(self, x):
        x = x.float()
        n = x.shape[0]
        x = x.reshape(n * 64, 1)
        x = self.dropout(x)
        x = F.relu(self.fc1(x))
        x = self.dropout(x)
        x = self.fc2(x)
        x = x.reshape(n, 64)
        x = self.dropout(x)
        return self.fc3(x)

    def training_step(self, batch, index=0):
        x, y = batch
        return self.loss(self(x), y.float())

    def validation_step(self, batch, index=0):
        return self.training_step(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Bare(nn.Module):
    """The three layers, and a method."""

    def __init__(self, p=0.2):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(1, HIDDEN), nn.Linear(HIDDEN, 1)
        self.fc3, self.p = nn.Linear(FEATURES, 1), p

    def step(self, x):
        return self(x).sum()


class View(Bare):
    def forward(self, x):
        hidden = torch.relu(self.fc1(x.view(-1, 1)))
        return self.fc3(self.fc2(hidden).view(-1, 64))


class Unsqueezed(Bare):
    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x.unsqueeze(-1)).relu()).squeeze(-1))


class Rearranged(Bare):
    """What einops makes of (b f) 1."""

    def forward(self, x):
        rows = x.contiguous().flatten().unflatten(0, (-1, 1))
        f = self.fc2(F.relu(self.fc1(rows)))
        return self.fc3(f.unflatten(0, (x.size(0), x.size(1))).flatten(1))


class Loop(Bare):
    """Feature by feature, with dropout as a function."""

    def forward(self, x):
        parts = []
        for j in range(x.shape[1]):
            u = F.dropout(x[:, j : j + 1], self.p, self.training)
            h = F.dropout(F.relu(self.fc1(u)), self.p, self.training)
            parts.append(self.fc2(h))
        return self.fc3(F.dropout(torch.cat(parts, 1), self.p, self.training))


class Functional(Bare):
    """A constant p, at one place, in another order: ReLU keeps what dropout keeps."""

    def forward(self, x):
        h = F.dropout(self.fc1(x[..., None]), p=0.3, training=self.training)
        return self.fc3(self.fc2(torch.relu(h))[..., 0])


class Subnet(nn.Module):
    """A Sequential in it, under other names, and a Dropout of its own at each place."""

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(FEATURES, 2)
        self.before, self.after = nn.Dropout(0.1), nn.Dropout(0.4)
        self.subnet = nn.Sequential(
            nn.Linear(1, HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, 1)
        )

    def forward(self, inputs):
        f = self.subnet(self.before(inputs).reshape(-1, 1)).reshape(-1, 64)
        return self.readout(self.after(f))


class Sines(nn.Module):
    """SineNet: the mean of sines over all frequencies."""

    def __init__(self, width=8):
        super().__init__()
        self.w = nn.Parameter(2 * torch.rand(width))

    def forward(self, x):
        return torch.sin(math.pi * x.unsqueeze(-1) * self.w).mean(-1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class SinesOfColumns(Sines):
    def forward(self, x):
        return torch.mean(torch.sin(self.w * x * math.pi), dim=1, keepdim=True)


class SinesOfALayer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.frequencies = nn.Linear(1, width, bias=False)

    def forward(self, x):
        return torch.sin(torch.pi * self.frequencies(x.float())).sum(1)


# class, and the probabilities at its three places
SUBNETS = {
    "author": (Author, (0.2, 0.2, 0.2)),
    "view": (View, (0.0, 0.0, 0.0)),
    "unsqueeze": (Unsqueezed, (0.0, 0.0, 0.0)),
    "rearranged": (Rearranged, (0.0, 0.0, 0.0)),
    "loop": (Loop, (0.2, 0.2, 0.2)),
    "functional": (Functional, (0.0, 0.3, 0.0)),
    "sequential": (Subnet, (0.1, 0.2, 0.4)),
}
SINES = {
    "numbers": (Sines, (30,), "mean"),
    "columns": (SinesOfColumns, (30, 1), "mean"),
    "layer": (SinesOfALayer, (30, 1), "sum"),
}
