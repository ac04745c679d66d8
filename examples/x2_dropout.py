"""Why dropout makes predictions worse while the training loss falls, in numbers.

Data, network and hinge start are those of `x2_sum.py`: y = Σ_j x_j² of 64 numbers, ŷ = Σ_j V_j
f(x_j) + c with one subnet 1 → 14 → 1. The reference network drops inputs, hidden units and outputs
of the subnet with p = 0.2. From the hinge start its training loss falls, and yet the predictions,
made without dropout, get worse; with p = 0 both improve.

The MSE that is trained is, in expectation over the masks m and averaged over the rows,

    E_m (y − f)²  =  (y − f_eval)²  +  [(y − E_m f)² − (y − f_eval)²]  +  Var_m f
    train-mode    =  eval-mode      +  shift of the mean               +  dropout variance

`fastmlp.dropout_report` gives the three parts in closed form. Three runs with `torch.optim.Adam`:
dropout at all three places, on hidden units only (where the shift is 0), and none. Each line of the
table compares the sum of the parts, its eval-mode MSE measured by running the network, with the
train-mode MSE measured over many draws of the masks; the script fails unless they agree within 5
standard errors. A plot goes to --out.

Expected output (torch 2.13 on two cores, 2700 steps, about a minute when they are idle): with
dropout everywhere the train-mode MSE falls from 97 000 to 14 000 while the eval-mode MSE rises from
205 to 47 000 at step 300 and is 21 000 at the end; on hidden units only, 2 400 to 1 200, eval-mode
14 at step 100 and 46 at the end; without dropout, 205 to 3.1.
"""

import argparse
import math
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from x2_sum import FEATURES, HIDDEN, TRAINING_ROWS, hinge_start, make_data

import fastmlp

MEASURED_ROWS = 2000  # validation rows of a line of the table
MOST_SIGMAS = 5
ROUNDING = 1e-4  # of the MSE: the network computes in float32, the closed form in float64


@dataclass
class Line:
    """What was found at one step; all but the step and sigmas in units of y²."""

    step: int
    measured: float  # train-mode MSE, mean over draws of the masks
    measured_error: float  # standard error of that mean
    eval_mse: float
    shift: float
    variance: float

    @property
    def mean_mse(self):
        """MSE of the prediction's mean over the masks."""
        return self.eval_mse + self.shift

    @property
    def total(self):
        """Sum of the parts."""
        return self.eval_mse + self.shift + self.variance

    @property
    def sigmas(self):
        """Distance of the measured train-mode MSE from the sum, in standard errors."""
        distance = self.measured - self.total
        return distance / self.measured_error if self.measured_error > 0 else 0.0

    @property
    def agrees(self):
        """Whether the measured train-mode MSE is the sum of the parts, up to sampling."""
        allowed = MOST_SIGMAS * self.measured_error + ROUNDING * self.total
        return abs(self.measured - self.total) <= allowed


@dataclass
class Run:
    """One training run: what its dropout was, and the lines on the way."""

    title: str
    lines: list = field(default_factory=list)
    interrupted: bool = False


def places(p):
    """The three runs: title and dropout at the subnet's input, hidden units and output."""
    return {
        f"p = {p:g} at all three places": (p, p, p),
        f"p = {p:g} on hidden units only": (0.0, p, 0.0),
        "control, p = 0": (0.0, 0.0, 0.0),
    }


@torch.no_grad()
def examine(net, step, x, y, passes):
    """Measure both MSEs by running the network, and take the other parts in closed form."""
    report = fastmlp.dropout_report(net, x, y)
    net.eval()
    eval_mse = nn.functional.mse_loss(net(x), y).item()
    net.train()
    drawn = torch.stack([nn.functional.mse_loss(net(x), y) for _ in range(passes)]).double()
    error = drawn.std().item() / math.sqrt(passes) if any(net.dropout) else 0.0
    return Line(step, drawn.mean().item(), error, eval_mse, report.shift, report.variance)


def steps_to_examine(n_steps):
    """0, 1, 3, 10, 30, … and the last step."""
    grid = {0, n_steps} | {a * 10**e for e in range(7) for a in (1, 3)}
    return sorted(step for step in grid if step <= n_steps)


def train(title, dropout, x, y, options):
    """Train from the hinge start until the last step or Ctrl-C; lines are kept either way."""
    torch.manual_seed(options.seed)
    net = fastmlp.AdditiveMLP(FEATURES, HIDDEN, dropout=dropout)
    net.load_state_dict(hinge_start().state_dict())
    net.to(x.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr, fused=True)
    rows = slice(TRAINING_ROWS, TRAINING_ROWS + MEASURED_ROWS)
    run, wanted, step = Run(title), steps_to_examine(options.n_steps), 0
    generator = torch.Generator().manual_seed(options.seed)
    threads = torch.get_num_threads()
    bar = tqdm(total=options.n_steps, desc=title, unit=" steps", mininterval=0.5)
    try:
        while True:
            if step == wanted[len(run.lines)]:
                run.lines.append(examine(net, step, x[rows], y[rows], options.passes))
                bar.set_postfix_str(f"eval-mode MSE = {run.lines[-1].eval_mse:.4g}")
            if step == options.n_steps:
                break
            chosen = torch.randint(TRAINING_ROWS, (options.batch_size,), generator=generator)
            inputs, targets = x[chosen.to(x.device)], y[chosen.to(x.device)]
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            # threads that wait for each other cost more than the six small tensors here
            torch.set_num_threads(1)
            optimizer.step()
            torch.set_num_threads(threads)
            step += 1
            bar.update()
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        torch.set_num_threads(threads)
        bar.close()
    return run


def table(runs):
    """All runs, line by line."""
    titles = ("step", "train-mode", "=?", "eval-mode", "+ shift", "+ variance", "= sum", "off by")
    widths = (8, 14, 4, 12, 12, 12, 12, 9)
    head = "".join(f"{t:>{w}}" for t, w in zip(titles, widths, strict=True))
    text = []
    for run in runs:
        text += ["", run.title + (" (interrupted)" if run.interrupted else ""), head]
        for line in run.lines:
            parts = (line.eval_mse, line.shift, line.variance, line.total)
            text.append(
                f"{line.step:>8}{line.measured:>14.6g}{'':4}"
                + "".join(f"{part:>12.5g}" for part in parts)
                + f"{line.sigmas:>+7.1f} σ"
                + ("" if line.agrees else "  does not add up")
            )
    return "\n".join(text)


def explanation(runs):
    """The puzzle's answer in two sentences, with the figures of the three runs."""
    everywhere, hidden, control = (run.lines for run in runs)
    first, last = everywhere[0], everywhere[-1]
    lowest = min(hidden, key=lambda line: line.eval_mse)
    sentences = (
        "The MSE of a masked network is the error of its mean over the masks plus the variance "
        "that the masks add, neither of which is the error without masks: from step 0 to "
        f"{last.step} the optimiser took the first from {first.mean_mse:.4g} to "
        f"{last.mean_mse:.4g} and the second from {first.variance:.4g} to {last.variance:.4g}, so "
        f"the train-mode MSE went from {first.measured:.4g} to {last.measured:.4g}, and the "
        f"eval-mode MSE of the predictions from {first.eval_mse:.4g} to {last.eval_mse:.4g}.",
        "Masks on hidden units alone leave the mean as it is, and still accuracy is sold for "
        f"variance ({hidden[0].variance:.4g} to {hidden[-1].variance:.4g}, with an eval-mode MSE "
        f"of {lowest.eval_mse:.4g} at step {lowest.step}, {hidden[-1].eval_mse:.4g} at the end), "
        "while without dropout there is nothing to sell and the MSE went from "
        f"{control[0].eval_mse:.4g} to {control[-1].eval_mse:.4g}.",
    )
    return "\n".join(textwrap.fill(sentence, 100) for sentence in sentences)


def draw(runs, folder):
    """Save the plot: one panel a run, all on the same axes."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(runs), figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, run in zip(axes, runs, strict=True):
        steps = [line.step for line in run.lines]

        def curve(style, label, values, axis=axis, steps=steps, **options):
            if any(value > 0 for value in values):
                axis.plot(steps, values, style, label=label, **options)

        curve("o", "train-mode MSE, measured", [n.measured for n in run.lines], color="k", ms=7)
        curve("-", "sum of the parts", [n.total for n in run.lines], color="0.6", lw=4, zorder=0)
        curve(".-", "eval-mode MSE", [n.eval_mse for n in run.lines], color="C3", lw=2)
        curve(".--", "dropout variance", [n.variance for n in run.lines], color="C0", lw=2)
        if max(abs(n.shift) / n.total for n in run.lines) > ROUNDING:
            mean_mse = [n.mean_mse for n in run.lines]
            curve(".:", "eval-mode MSE + shift: MSE of the mean", mean_mse, color="C2", lw=2)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(left=-0.1)
        # those between 0 and 1 would lie on each other
        axis.set_xticks([0, *(10**k for k in range(len(str(steps[-1]))))])
        axis.set_yscale("log")
        axis.set_title(run.title + (" (interrupted)" if run.interrupted else ""))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"MSE on {MEASURED_ROWS} validation rows, in units of y²")
    # the first panel has all the curves
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("Dropout: the loss that falls is not the error of the predictions")
    path = folder / "dropout.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"plot: {path}")


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.split("Expected output")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=30, help="passes over the training rows (default 30)")
    add("--steps", type=int, help="stop after so many steps, whatever --epochs says")
    add("--batch-size", type=int, default=1000, help="rows of a step (default 1000)")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam (default 0.001)")
    add("--p", type=float, default=0.2, help="dropout probability (default 0.2)")
    add("--passes", type=int, default=50, help="draws of the masks for a line (default 50)")
    add("--device", default="cpu", help="cpu or cuda (default cpu)")
    add("--seed", type=int, default=0, help="of the data, batches and masks (default 0)")
    add("--out", type=Path, default=Path("out/x2_dropout"), help="folder for the plot")
    options = parser.parse_args(argv)
    for name in ("epochs", "steps", "batch_size", "lr"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {value}")
    if not 0 < options.p < 1:
        parser.error(f"--p must be between 0 and 1, got {options.p}")
    if options.passes < 2:
        parser.error(f"--passes must be at least 2, got {options.passes}")
    steps_per_epoch = math.ceil(TRAINING_ROWS / options.batch_size)
    options.n_steps = options.steps or options.epochs * steps_per_epoch
    return options


def main(argv=None):
    """Train the three networks, print table and explanation, draw; return the runs."""
    options = parse(argv)
    x, y = make_data(options.seed, torch.device(options.device))
    runs = []
    for title, dropout in places(options.p).items():
        runs.append(train(title, dropout, x, y, options))
        if runs[-1].interrupted:
            break
    runs = [run for run in runs if run.lines]
    print(table(runs))
    if not any(run.interrupted for run in runs):
        print("\n" + explanation(runs))
    if len(runs) > 1:
        draw(runs, options.out)
    wrong = [(run.title, line.step) for run in runs for line in run.lines if not line.agrees]
    if wrong:
        sys.exit(f"train-mode MSE is not eval-mode MSE + shift + variance at {wrong}")
    return runs


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
