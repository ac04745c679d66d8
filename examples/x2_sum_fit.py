"""The sum of squares of `x2_sum.py` as it was first trained, whole, by `fastmlp.fit`.

The same data and network from the hand-set start: 600 epochs of the 90 000 rows in batches of 100,
Adam with rate 1e-4, StepLR (a factor of 0.9 every 20 epochs), MSE; once without dropout, once with
p = 0.2 at the input, the hidden units and the output of the subnet. 540 000 steps each, in a few
launches. Plain PyTorch takes some of the same steps beside it; its time for all is extrapolated,
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


def start(dropout):
    """The hand-set network, with dropout."""
    net = fastmlp.AdditiveMLP(FEATURES, HIDDEN, dropout=dropout)
    net.load_state_dict(hinge_start().state_dict())
    return net


def train_fused(net, x, y, options):
    """All epochs by `fit`."""
    return fastmlp.fit(
        net,
        x[: options.rows],
        y[: options.rows],
        epochs=options.epochs,
        batch_size=BATCH,
        optimizer=fastmlp.Adam(lr=RATE),
        scheduler=SCHEDULE,
        validation=(x[TRAINING_ROWS:], y[TRAINING_ROWS:]),
        progress=not options.quiet,
    )


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


def main(argv=None):
    """Train both, print the table; return ``{p: result}``."""
    options = parse(argv)
    x, y = make_data(options.seed, "cpu")
    steps = -(-options.rows // BATCH) * options.epochs
    print(f"MSE* = {MSE_STAR:.5f}; {options.epochs} epochs of {options.rows} rows, {steps} steps")
    results, lines = {}, []
    for dropout in (0.0, 0.2):
        net = start(dropout)
        losses, plain_step = train_plain(net, x, y, options)
        if dropout == 0 and not first_steps_agree(net, x[: options.rows], y, losses):
            sys.exit("fastmlp and plain PyTorch disagree over the first steps")
        with torch.no_grad():
            before = torch.nn.functional.mse_loss(
                net.eval()(x[TRAINING_ROWS:]), y[TRAINING_ROWS:]
            ).item()
        result = results[dropout] = train_fused(net, x, y, options)
        training, validation = result.train_loss[0], result.val_loss[0]
        lines.append(
            f"{dropout:>4}{training[0].item():>13.4g}{training[-1].item():>12.4g}{before:>12.4g}"
            f"{validation[-1].item():>12.4g}{validation[-1].item() / MSE_STAR:>11.4g}"
            f"{result.seconds:>9.1f}{plain_step * steps:>11.0f}"
            f"{plain_step * steps / result.seconds:>8.1f}×"
        )
    print(
        f"{'p':>4}{'train, first':>13}{'last':>12}{'eval start':>12}{'end':>12}{'× MSE*':>11}"
        f"{'seconds':>9}{'PyTorch':>11}{'speed':>9}"
    )
    print("\n".join(lines))
    print(f"PyTorch's seconds are extrapolated from {options.plain_steps} timed steps")
    return results


if __name__ == "__main__":
    main()
