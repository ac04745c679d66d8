"""Kinds of tensors, modes and tracers: how one row of the table of `test_kinds.py` is judged.

A row is a function of a net and its input. It runs with our module, and with the plain one in the
same dtype and in float64; the two kinds of results are compared by `closeness.py`. Everything is
positive in these nets, so every value and every derivative is the size of its own terms.
"""

from typing import NamedTuple

import torch
from closeness import assert_as_good_as_torch
from torch import nn
from torch.utils import _pytree as pytree

import fastmlp
from fastmlp import functional, reference


class Table(nn.Module):
    """The op `piecewise_linear` as a module; ``library`` is ours or the reference."""

    def __init__(self, library, dtype=None):
        super().__init__()
        self.library = library
        self.register_buffer("breakpoints", torch.tensor([0.3, 0.6], dtype=dtype))
        self.register_buffer("anchors", torch.tensor([0.0, 0.1, 0.2], dtype=dtype))
        self.values = nn.Parameter(torch.ones(3, dtype=dtype))
        self.slopes = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, x):
        """Evaluate the table."""
        tables = self.breakpoints, self.anchors, self.values, self.slopes
        return self.library.piecewise_linear(x, *tables)


MODULES = {
    "elementwise": lambda m, **kw: m.ElementwiseMLP(4, **kw),
    "additive": lambda m, **kw: m.AdditiveMLP(3, 4, 2, **kw),
    "stacked": lambda m, **kw: m.AdditiveMLP(3, 4, 2, shared=False, **kw),
    "sines": lambda m, **kw: m.SineSum(4, scale=1.0, **kw),
    "mlp": lambda m, **kw: m.MLP(3, [4], 2, **kw),
    "table": lambda m, **kw: Table(functional if m is fastmlp else reference, **kw),
}
"""Builders of the nets, from ``fastmlp`` or ``fastmlp.reference``."""


def positive(*shape, seed=0, dtype=torch.float32):
    """Numbers from 0.1 to 0.8, the same in every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(shape, generator=generator, dtype=torch.float32)
    return (0.1 + 0.7 * draw).to(dtype)


def make(name, library=fastmlp, dtype=torch.float32):
    """A net with positive parameters."""
    net = MODULES[name](library, dtype=dtype)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            # angles stay below 0.3: sines and cosines are positive, in derivatives too
            p.copy_(positive(*p.shape, seed=i + 1) * (0.4 if name == "sines" else 1.0))
    return net


def weights_of(y):
    """What a scalar loss weights the outputs with: not one number, and no zero."""
    return torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)


def loss_of(y):
    """A weighted sum of the outputs."""
    return (y * weights_of(y)).sum()


def trained(net):
    """The parameters that need a gradient."""
    return [p for p in net.parameters() if p.requires_grad]


def both(net, x, leaf=None):
    """Output and gradients, with respect to all parameters and ``leaf``, of which ``x`` is made."""
    if leaf is None:
        x = leaf = x.detach().requires_grad_()
    y = net(x)
    return y, *torch.autograd.grad(loss_of(y), [leaf, *trained(net)])


class Kind(NamedTuple):
    """A row: what it does, what plain PyTorch does in its place, and how it was.

    Args:
        run: Function of a net and its input ``[5, 3]``; returns a tree of tensors and plain values.
        plain: The same for the plain net.
        before: What the worst of the modules did before there was a guard: ``"segfault"``,
            ``"garbage"``, the name of an exception, or ``"passed"``.
        refused: Whether ours may refuse what PyTorch takes, with a TypeError or ValueError.
        nets: Names of the nets it runs with.
    """

    run: object
    plain: object
    before: str
    refused: bool = False
    nets: tuple = (*MODULES,)


KINDS = {}


def kind(before, *, plain=None, refused=False, without=()):
    """Enter a function into the table, under its name; ``without`` names nets to leave out."""

    def enter(run):
        nets = tuple(name for name in MODULES if name not in without)
        KINDS[run.__name__] = Kind(run, plain or run, before, refused, nets)
        return run

    return enter


def attempt(run, *arguments):
    """The leaves of what a function returns, or its exception."""
    try:
        return pytree.tree_leaves(run(*arguments))
    except Exception as error:
        return error


def describe(leaf):
    """A tensor without numbers by its shape and dtype; anything else as it is."""
    if isinstance(leaf, torch.Tensor) and (leaf.is_meta or type(leaf).__name__ == "FakeTensor"):
        return type(leaf).__name__, leaf.device.type, tuple(leaf.shape), leaf.dtype
    return leaf


def compare(ours, plain, exact):
    """Assert that the results of three calls agree."""
    ours, plain = ([describe(leaf) for leaf in leaves] for leaves in (ours, plain))
    assert len(ours) == len(plain), f"{len(ours)} results, plain PyTorch has {len(plain)}"
    for i, (found, wanted) in enumerate(zip(ours, plain, strict=True)):
        if isinstance(wanted, torch.Tensor) and wanted.is_floating_point():
            assert type(found) is type(wanted), f"result {i}: {type(found)}, not {type(wanted)}"
            judge = exact[i].detach().double()
            assert_as_good_as_torch(found, wanted, judge, name=f"result {i}")
        elif isinstance(wanted, torch.Tensor):
            assert torch.equal(found, wanted), f"result {i}"
        else:
            assert found == wanted, f"result {i}: {found}, plain PyTorch has {wanted}"


def judge(kind, name):
    """Assert that a row holds for one net."""
    x = positive(5, 3, seed=9)
    plain = attempt(kind.plain, make(name, reference), x.clone())
    ours = attempt(kind.run, make(name), x.clone())
    if isinstance(ours, Exception):
        clear = isinstance(ours, (TypeError, ValueError))
        refused = clear and (kind.refused or isinstance(plain, Exception))
        if not refused and type(ours) is not type(plain):
            raise ours
        return
    assert not isinstance(plain, Exception), f"plain PyTorch raises {plain!r}"
    exact = attempt(kind.plain, make(name, reference, torch.float64), x.double())
    if isinstance(exact, Exception):
        raise exact
    compare(ours, plain, exact)
