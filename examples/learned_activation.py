"""A learned activation in a small convolutional net, beside ReLU and GELU.

The data are scikit-learn's digits: 1797 images of 8 × 8 pixels, 1437 to train on, 360 to test. The
net has two 3 × 3 convolutions (8 and 16 channels) and a linear layer. As
activation it has ReLU, GELU, or after each convolution a `fastmlp.ElementwiseMLP` of its own: a
scalar function with eight ReLU units, 25 parameters, applied to every element in one pass.

The learned ones start at GELU, or close: the line through GELU's values at six points is exactly a
ReLU net, which `piecewise.PiecewiseLinear.to_module` writes down. Every net is trained from the
same starts by Adam with the same batches. The same learned activation in plain PyTorch
(`fastmlp.backend("torch")`) takes the first steps too, for its time and to compare: the script
fails unless the losses agree, to 1e-3 relative.

Plots go to --out.

Expected output (a 2.8 GHz Xeon, torch 2.13, under a minute): 96 to 97 % with every activation, the
learned one ahead by less than the starts differ; per step 1.25 times the CPU time of GELU, in plain
PyTorch 2.7 times.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from tqdm import tqdm

import fastmlp
from fastmlp.plotting import COLOURS

BATCH = 64
RATE = 3e-3
KNOTS = (-3.0, -1.5, -0.75, 0.0, 0.75, 1.5)
PLAIN_STEPS = 20
LARGEST_DIFFERENCE = 1e-3


def learned_gelu():
    """An ElementwiseMLP that starts as straight lines through GELU's values at the knots."""
    t = torch.tensor(KNOTS, dtype=torch.float64)
    y = nn.functional.gelu(t)
    inner = (y[1:] - y[:-1]) / (t[1:] - t[:-1])
    slopes = torch.cat([t.new_zeros(1), inner, t.new_ones(1)])
    # a segment's value is that of its end nearest to 0: the right one left of 0, else the left one
    middle = KNOTS.index(0.0)
    values = torch.cat([y[: middle + 1], y[middle:]])
    table = fastmlp.piecewise.PiecewiseLinear(t, slopes, values)
    return fastmlp.convert.from_sequential(table.to_module().float().train())


ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU, "learned": learned_gelu}


def make_net(activation, seed):
    """The net; convolutions and read-out are the same for every activation."""
    torch.manual_seed(seed)
    first = nn.Conv2d(1, 8, 3, padding=1)
    second = nn.Conv2d(8, 16, 3, padding=1, stride=2)
    last = nn.Linear(16 * 4 * 4, 10)
    return nn.Sequential(first, activation(), second, activation(), nn.Flatten(), last)


def load():
    """Training and test images [N, 1, 8, 8] in 0 … 1, and labels [N]."""
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    images = (torch.tensor(x, dtype=torch.float32)[:, None] / 16 for x in (x_train, x_test))
    return *images, torch.tensor(y_train), torch.tensor(y_test)


@torch.no_grad()
def accuracy(net, x, y):
    return (net(x).argmax(1) == y).double().mean().item()


def train(net, data, epochs, *, seed, limit=None, bar=None):
    """Train in place, at most ``limit`` steps: losses, test accuracy by epoch, seconds a step."""
    x, x_test, y, y_test = data
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    steps = -(-len(x) // BATCH) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, scores, seconds = [], [], []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            if limit is not None and len(losses) == limit:
                return losses, scores, seconds
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - began)
        scores.append(accuracy(net, x_test, y_test))
        if bar is not None:
            bar.update()
    return losses, scores, seconds


def plain_seconds(data, seed):
    """Seconds a step with the learned activation in plain PyTorch; checks its first losses."""
    with fastmlp.backend("torch"):
        theirs, _, seconds = train(
            make_net(learned_gelu, seed), data, 1, seed=seed, limit=PLAIN_STEPS
        )
    ours, _, _ = train(make_net(learned_gelu, seed), data, 1, seed=seed, limit=PLAIN_STEPS)
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    if worst > LARGEST_DIFFERENCE:
        sys.exit(f"losses of fastmlp and plain PyTorch disagree by {worst:.1e}")
    return median(seconds)


def run(options):
    """Train every net from every start: ``{activation: [(net, scores, seconds), …]}``."""
    data = load()
    runs = {name: [] for name in ACTIVATIONS}
    total = len(ACTIVATIONS) * options.starts * options.epochs
    with tqdm(total=total, unit=" epochs", disable=options.quiet) as bar:
        # the activations in turn, so that a busy machine slows all of them
        for seed in range(options.seed, options.seed + options.starts):
            for name, activation in ACTIVATIONS.items():
                bar.set_description(f"{name}, start {seed}")
                net = make_net(activation, seed)
                _, scores, seconds = train(net, data, options.epochs, seed=seed, bar=bar)
                runs[name].append((net, scores, median(seconds)))
    return runs, plain_seconds(data, options.seed)


def table(runs, plain):
    """Test accuracy and time of every activation."""
    lines = [f"{'activation':<20}{'parameters':>11}{'test accuracy':>22}{'ms a step':>11}"]
    for name, trained in runs.items():
        scores = torch.tensor([scores[-1] for _, scores, _ in trained])
        spread = f"{100 * scores.min():.1f} … {100 * scores.max():.1f}"
        n = sum(p.numel() for p in trained[0][0].parameters())
        seconds = median(s for _, _, s in trained)
        lines.append(
            f"{name:<20}{n:>11}{100 * scores.mean():>8.2f} % {spread:>12}{1e3 * seconds:>11.2f}"
        )
    lines.append(f"{'learned, PyTorch':<20}{'':>11}{'':>22}{1e3 * plain:>11.2f}")
    lines.append(f"test accuracy: mean and range of {len(trained)} starts, 360 images")
    return "\n".join(lines)


@torch.no_grad()
def draw(runs, folder):
    """Save the plot: the learned functions by their segments, and accuracy over epochs."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator, NullFormatter

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    points = torch.linspace(-4, 4, 201)
    net = runs["learned"][0][0]
    for axis, layer, where in zip(axes, (net[1], net[3]), ("first", "second"), strict=False):
        axis.plot(points, nn.functional.gelu(points), color="0.75", lw=4, label="GELU, the start")
        fastmlp.piecewise.from_module(layer).plot(-4, 4, ax=axis)
        axis.set_title(f"learned after the {where} convolution")
        axis.set_xlabel("x")
        axis.legend()
    styles = zip(("-", "--", "-."), ("black", "vermilion", "blue"), strict=True)
    for (name, trained), (style, colour) in zip(runs.items(), styles, strict=True):
        scores = torch.tensor([scores for _, scores, _ in trained])
        axes[2].plot(
            range(1, scores.shape[1] + 1), 100 * (1 - scores.mean(0)), style,
            color=COLOURS[colour], label=name,
        )  # fmt: skip
    axes[2].set_yscale("log")
    axes[2].set_yticks((3, 4, 6, 10, 20), map(str, (3, 4, 6, 10, 20)))
    axes[2].yaxis.set_minor_formatter(NullFormatter())
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[2].set_xlabel("epoch")
    axes[2].set_title(f"test error in %, mean of {len(trained)} starts")
    axes[2].legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "learned_activation.png", dpi=130)
    plt.close(figure)
    print(f"plot: {folder / 'learned_activation.png'}")


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.split("Expected output")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=20, help="passes over the images (default 20)")
    add("--starts", type=int, default=3, help="random starts of each net (default 3)")
    add("--seed", type=int, default=0, help="of the first start (default 0)")
    add("--quiet", action="store_true", help="no progress bar")
    add("--out", type=Path, default=Path("out/learned_activation"), help="folder for the plot")
    options = parser.parse_args(argv)
    for name in ("epochs", "starts"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(argv=None):
    """Train, compare, print the table, draw; return (runs by activation, seconds in PyTorch)."""
    options = parse(argv)
    threads = torch.get_num_threads()
    # steps this small: threads that wait for each other cost more than they save
    torch.set_num_threads(1)
    try:
        runs, plain = run(options)
    finally:
        torch.set_num_threads(threads)
    print(table(runs, plain))
    draw(runs, options.out)
    return runs, plain


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
