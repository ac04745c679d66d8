"""Small nets and data for the tests of `fit`."""

import torch

import fastmlp


def nets(n=4, seed=0):
    torch.manual_seed(seed)
    return [fastmlp.SineSum(2 + i) for i in range(n)]


def waves(n=40):
    x = torch.linspace(-3, 3, n)
    return x, (2 * x).sin()


def weights(models):
    return torch.cat([p.detach().reshape(-1) for m in models for p in m.parameters()])


def quiet_fit(*arguments, **options):
    return fastmlp.fit(*arguments, **{"progress": False, **options})
