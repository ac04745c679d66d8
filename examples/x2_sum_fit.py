"""The sum of squares of `x2_sum.py` as it was first trained, whole, by `fastmlp.fit`.

The same data and network from the hand-set start: 600 epochs of the 90 000 rows in batches of 100,
Adam with rate 1e-4, StepLR (a factor of 0.9 every 20 epochs), MSE; once without dropout, once with
p = 0.2 at the input, the hidden units and the output of the subnet: 540 000 steps each, both in one
call. Plain PyTorch takes some of the same steps beside it; its time for all is extrapolated,
and said so. Without dropout the script fails unless both give the same loss over those steps, to
1e-3 relative; the masks of dropout are drawn anew by each.

With dropout the training loss, that of the masked network, falls, while the network that is
evaluated gets worse: the loss charges for the variance of the masks, and the optimizer pays.

Every MSE is also given as a multiple of MSE*, the least that 15 linear pieces can do.
"""

import argparse
import copy
import sys
import time

import torch
from x2_sum import FEATURES, HIDDEN, MSE_STAR, TRAINING_ROWS, hinge_start, make_data

import fastmlp

BATCH = 100
RATE = 1e-4
SCHEDULE = fastmlp.StepLR(step_size=20, gamma=0.9)
LARGEST_DIFFERENCE = 1e-3
DROPOUT = 0.0, 0.2
"""What is trained: without, and as the original."""


def start(dropout):
    """The hand-set network, with dropout."""
    net = fastmlp.AdditiveMLP(FEATURES, HIDDEN, dropout=dropout)
    net.load_state_dict(hinge_start().state_dict())
    return net


def train_fused(nets, x, y, options):
    """All epochs of all nets by one call of `fit`."""
    return fastmlp.fit(
        nets, x[: options.rows], y[: options.rows], epochs=options.epochs, batch_size=BATCH,
        optimizer=fastmlp.Adam(lr=RATE), scheduler=SCHEDULE, progress=not options.quiet,
        validation=(x[TRAINING_ROWS:], y[TRAINING_ROWS:]),
    )  # fmt: skip


def train_plain(net, x, y, options):
    """The first steps of the plain loop: their losses, and seconds a step."""
    plain = fastmlp.reference.AdditiveMLP(FEATURES, HIDDEN, dropout=net.dropout)
    plain.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(plain.parameters(), lr=RATE)
    order = fastmlp.training.batch_order(options.rows, epoch=0)
    losses, began = [], time.perf_counter()
    for rows in order[: options.plain_steps * BATCH].split(BATCH):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(plain(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, (time.perf_counter() - began) / len(losses)


def first_steps_agree(net, x, y, losses):
    """Whether `fit` has these losses over one epoch of the rows that the plain loop saw."""
    rows = fastmlp.training.batch_order(len(x), epoch=0)[: len(losses) * BATCH]
    result = fastmlp.fit(
        copy.deepcopy(net), x[rows], y[rows], epochs=1, batch_size=BATCH, shuffle=False,
        optimizer=fastmlp.Adam(lr=RATE), progress=False,
    )  # fmt: skip
    theirs = sum(losses) / len(losses)
    return abs(result.train_loss.item() - theirs) <= LARGEST_DIFFERENCE * theirs


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=int, default=600, help="passes over the training rows (default 600)")
    add("--rows", type=int, default=TRAINING_ROWS, help="training rows to use (default all)")
    add("--plain-steps", type=int, default=300, help="steps of plain PyTorch (default 300)")
    add("--seed", type=int, default=0, help="of the data (default 0)")
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    for name in ("epochs", "rows", "plain_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    options.rows = min(options.rows, TRAINING_ROWS)
    options.plain_steps = min(options.plain_steps, options.rows // BATCH)
    if options.plain_steps < 1:
        parser.error(f"--rows must be at least {BATCH}, the rows of a batch")
    return options


@torch.no_grad()
def validate(net, x, y):
    """The MSE of the evaluated net on the validation rows."""
    return torch.nn.functional.mse_loss(net.eval()(x[TRAINING_ROWS:]), y[TRAINING_ROWS:]).item()


def main(argv=None):
    """Train both, print the table; return the result."""
    options = parse(argv)
    x, y = make_data(options.seed, "cpu")
    steps = -(-options.rows // BATCH) * options.epochs
    print(f"MSE* = {MSE_STAR:.5f}; {options.epochs} epochs of {options.rows} rows, {steps} steps")
    nets = [start(p) for p in DROPOUT]
    before, plain = [validate(net, x, y) for net in nets], []
    for net in nets:
        losses, seconds = train_plain(net, x, y, options)
        plain.append(seconds * steps)
        if net.dropout == 0 and not first_steps_agree(net, x[: options.rows], y, losses):
            sys.exit("fastmlp and plain PyTorch disagree over the first steps")
    result = train_fused(nets, x, y, options)
    print(
        f"{'p':>4}{'train, first':>13}{'last':>12}{'eval start':>12}{'end':>12}{'× MSE*':>11}"
        f"{'PyTorch, s':>12}"
    )
    for i, p in enumerate(DROPOUT):
        training, validation = result.train_loss[i], result.val_loss[i, -1].item()
        print(
            f"{p:>4}{training[0].item():>13.4g}{training[-1].item():>12.4g}{before[i]:>12.4g}"
            f"{validation:>12.4g}{validation / MSE_STAR:>11.4g}{plain[i]:>12.0f}"
        )
    print(
        f"both in one call of fit: {result.seconds:.0f} s; plain PyTorch {sum(plain):.0f} s, "
        f"extrapolated from {options.plain_steps} timed steps each: "
        f"{sum(plain) / result.seconds:.1f} ×"
    )
    return result


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
