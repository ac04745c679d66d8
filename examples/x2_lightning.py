"""The sum of squares as its author runs it: a Lightning program, and one line for fastmlp.

Data and network are those of `x2_sum.py`: y = Σ_j x_j² of 64 numbers, one subnet 1 → 14 → 1 for all
of them, then a linear layer; dropout p = 0.2 on inputs, hidden units and outputs of the subnet. The
class is an author's own, with `nn.Linear`, `nn.Dropout`, a reshape, Adam and StepLR by epoch; the
Trainer has a checkpoint callback on `val_loss`, a logger that writes CSV, and the DDP strategy if
asked for.

1. The class as it is trains for some epochs.
2. `fastmlp.fuse(model)`, and the same program trains the same class again.
3. The checkpoint of the second loads into the class as it is, strictly; the script fails unless
   both predict the same.

The seconds of 600 epochs are extrapolated from those that were run, and marked so; `x2_sum_fit.py`
trains all 600 in one call of `fastmlp.fit`.

Lightning is an extra: `pip install fastmlp[lightning]`. Without it a plain loop does the same. On
two processes of a CPU: `python examples/x2_lightning.py --devices 2 --strategy ddp`.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from x2_sum import FEATURES, HIDDEN, TRAINING_ROWS, hinge_start, make_data

import fastmlp

try:
    import lightning as L
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
except ModuleNotFoundError:
    L, Callback = None, object

LARGEST_DIFFERENCE = 1e-4
WHOLE = 600
"""Epochs of the original."""


class SumOfSquares(nn.Module if L is None else L.LightningModule):
    """The network and how it is trained, as its author has it: nothing here is fastmlp's."""

    def __init__(self, p=0.2, lr=1e-4):
        super().__init__()
        if L is not None:
            self.save_hyperparameters()
        self.lr = lr
        self.dropout = nn.Dropout(p)
        self.fc1 = nn.Linear(1, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 1)
        self.fc3 = nn.Linear(FEATURES, 1)

    def forward(self, x):
        n = x.shape[0]
        x = x.reshape(-1, 1)
        x = self.dropout(x)
        x = F.relu(self.fc1(x))
        x = self.dropout(x)
        x = self.fc2(x)
        x = x.reshape(n, FEATURES)
        x = self.dropout(x)
        return self.fc3(x)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y), prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.9)
        return [optimizer], [scheduler]


class Stopwatch(Callback):
    """Seconds of every training epoch, validation left out."""

    def __init__(self):
        self.seconds = []

    def on_train_epoch_start(self, trainer, module):
        self.started, self.validating = time.perf_counter(), 0.0

    def on_validation_start(self, trainer, module):
        self.validation_started = time.perf_counter()

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            self.validating += time.perf_counter() - self.validation_started

    def on_train_epoch_end(self, trainer, module):
        self.seconds.append(time.perf_counter() - self.started - self.validating)


def loaders(options):
    """Batches to train on, in random order, and to validate on."""
    x, y = make_data(options.seed, torch.device("cpu"))
    training = TensorDataset(x[:TRAINING_ROWS], y[:TRAINING_ROWS])
    validation = TensorDataset(x[TRAINING_ROWS:], y[TRAINING_ROWS:])
    return (
        DataLoader(training, options.batch_size, shuffle=True),
        DataLoader(validation, 1000),
    )


def fit(module, name, options):
    """Train; return the checkpoint with the lowest ``val_loss``, that, seconds of every epoch."""
    train = fit_by_loop if L is None else fit_by_lightning
    return train(module, name, loaders(options), options)


def fit_by_lightning(module, name, batches, options):
    checkpoint = ModelCheckpoint(monitor="val_loss", filename="best")
    stopwatch = Stopwatch()
    trainer = L.Trainer(
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        logger=CSVLogger(options.out, name=name),
        callbacks=[checkpoint, stopwatch],
        limit_train_batches=options.limit_batches,
        limit_val_batches=options.limit_batches,
        enable_progress_bar=not options.quiet,
        enable_model_summary=False,
    )
    trainer.fit(module, *batches)
    # ranks other than the first learn the path from it
    path = trainer.strategy.broadcast(checkpoint.best_model_path)
    return Path(path), checkpoint.best_model_score.item(), stopwatch.seconds


def fit_by_loop(module, name, batches, options):
    """What Lightning does here, by hand."""
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    (optimizer,), (scheduler,) = module.configure_optimizers()
    training, validation = batches
    best, seconds, rows = float("inf"), [], []
    for epoch in range(options.epochs):
        module.train()
        began = time.perf_counter()
        for i, (x, y) in enumerate(training):
            if i == options.limit_batches:
                break
            optimizer.zero_grad()
            loss = F.mse_loss(module(x), y)
            loss.backward()
            optimizer.step()
        scheduler.step()
        seconds.append(time.perf_counter() - began)
        module.eval()
        with torch.no_grad():
            losses = [F.mse_loss(module(x), y).item() for x, y in validation]
        val_loss = sum(losses) / len(losses)
        rows.append({"epoch": epoch, "train_loss": loss.item(), "val_loss": val_loss})
        if val_loss < best:
            best = val_loss
            torch.save({"state_dict": module.state_dict()}, folder / "best.ckpt")
    with (folder / "metrics.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "best.ckpt", best, seconds


@torch.no_grad()
def largest_difference(plain, fused, x):
    """Largest difference of the predictions, as a part of the largest prediction."""
    ours, theirs = fused.eval()(x), plain.eval()(x)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--epochs", type=int, default=2, help="of each of the two (default 2; the original's: 600)")
    add("--batch-size", type=int, default=100, help="rows of a step, of each process (default 100)")
    add("--lr", type=float, default=1e-4, help="learning rate of Adam (default 0.0001)")
    add("--p", type=float, default=0.2, help="dropout probability (default 0.2)")
    add("--accelerator", default="cpu", help="as of lightning.Trainer (default cpu)")
    add("--devices", type=int, default=1, help="number of devices or processes (default 1)")
    add("--strategy", default="auto", help="as of lightning.Trainer, for example ddp")
    add("--limit-batches", type=int, metavar="N", help="no more than N batches an epoch")
    add("--seed", type=int, default=0, help="of the data, their order and the masks (default 0)")
    add("--quiet", action="store_true", help="no progress bar")
    add("--out", type=Path, default=Path("out/x2_lightning"), help="folder of checkpoints and logs")
    return parser.parse_args(argv)


def main(argv=None):
    """Train the class as it is, then fused; return both modules."""
    options = parse(argv)
    if L is None:
        print("Lightning is not installed, `pip install fastmlp[lightning]` adds it: a plain loop")
    runs = {}
    for name in ("plain", "fused"):
        torch.manual_seed(options.seed)
        model = SumOfSquares(options.p, options.lr)
        model.load_state_dict(hinge_start().state_dict())
        if name == "fused":
            model = fastmlp.fuse(model)  # the line that is added
        runs[name] = model, *fit(model, name, options)
    plain, fused = runs["plain"][0], runs["fused"][0]

    # weights_only: nothing in the file is run
    saved = torch.load(runs["fused"][1], weights_only=True)["state_dict"]
    loaded = SumOfSquares(options.p, options.lr)
    loaded.load_state_dict(saved, strict=True)
    fused.load_state_dict(saved, strict=True)
    x, _ = make_data(options.seed, torch.device("cpu"))
    difference = largest_difference(loaded, fused, x[:1000])
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"both classes should predict the same, but differ by {difference:.1e}")

    print(f"the fused checkpoint in the class as it is: predictions differ by {difference:.1e}")
    print(f"{'class':<10}{'epochs':>8}{'best val_loss':>16}{'s/epoch':>10}{f'{WHOLE} epochs':>20}")
    for name, (_, _, loss, seconds) in runs.items():
        one = min(seconds)
        print(
            f"{name:<10}{len(seconds):>8}{loss:>16.6g}{one:>10.2f}"
            f"{one * WHOLE / 60:>8.1f} min, extrapolated"
        )
    speed = min(runs["plain"][3]) / min(runs["fused"][3])
    print(f"{speed:.1f} × as fast, by the fastest epoch of each")
    return plain, fused


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
