"""The sum of squares as a Lightning program, with fastmlp's module in place of the plain one.

Data and network are those of `x2_sum.py`: y = Σ_j x_j² of 64 numbers, one subnet 1 → 14 → 1 for all
of them, then a linear layer; dropout p = 0.2 on inputs, hidden units and outputs of the subnet. The
program is an ordinary one: a LightningModule with Adam and StepLR by epoch, a Trainer with the DDP
strategy if asked for, a checkpoint callback on `val_loss`, a logger that writes CSV.

1. The plain network, written with `nn.Linear` and `nn.Dropout`, trains for an epoch and is saved
   by the checkpoint callback.
2. The very same LightningModule around `fastmlp.AdditiveMLP` loads that checkpoint, strictly: the
   parameters have the same names and shapes. The script fails unless both predict the same.
3. It trains on, with everything else unchanged.

Lightning is an extra: `pip install fastmlp[lightning]`. On two processes of a CPU:
`python examples/x2_lightning.py --devices 2 --strategy ddp`. As in the experiment that this
follows: `--epochs 600 --batch-size 100 --lr 1e-4`, the last two being the defaults.

Expected output: `largest relative difference of the predictions` at 1e-5 or below, and a table of
both networks with their `val_loss` and the seconds of an epoch.
"""

import argparse
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from x2_sum import FEATURES, HIDDEN, TRAINING_ROWS, hinge_start, make_data

import fastmlp

LARGEST_DIFFERENCE = 1e-4


class PlainNet(nn.Module):
    """The reference network in plain PyTorch."""

    def __init__(self, p):
        super().__init__()
        self.dropout = nn.Dropout(p)
        self.fc1 = nn.Linear(1, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 1)
        self.fc3 = nn.Linear(FEATURES, 1)

    def forward(self, x):
        hidden = F.relu(self.fc1(self.dropout(x.reshape(-1, 1))))
        f = self.fc2(self.dropout(hidden)).reshape(x.shape)
        return self.fc3(self.dropout(f))


class SumOfSquares(L.LightningModule):
    """What is trained: the network, its loss and its optimizer.

    The line marked below is all that differs between plain PyTorch and fastmlp.
    """

    def __init__(self, p=0.2, lr=1e-4, fused=True):
        super().__init__()
        self.save_hyperparameters()
        if fused:
            self.net = fastmlp.AdditiveMLP(FEATURES, HIDDEN, dropout=p)  # instead of PlainNet(p)
        else:
            self.net = PlainNet(p)
        self.net.load_state_dict(hinge_start().state_dict())

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y), prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.9)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


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


def fit(module, name, epochs, batches, options):
    """Train under Lightning; return the checkpoint with the lowest ``val_loss`` and a stopwatch."""
    checkpoint = ModelCheckpoint(monitor="val_loss", filename="best")
    stopwatch = Stopwatch()
    trainer = L.Trainer(
        max_epochs=epochs,
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
    return path, checkpoint.best_model_score, stopwatch, trainer.is_global_zero


@torch.no_grad()
def largest_difference(plain, fused, x):
    """Largest difference of the predictions, as a part of the largest prediction."""
    ours, theirs = fused.eval()(x), plain.eval()(x)
    fused.train()  # Trainer.fit leaves modes as they are
    plain.train()
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.split("Expected output")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--epochs", type=int, default=3, help="of fastmlp's module, after one of the plain one")
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
    """Train plain, load the checkpoint into fastmlp's module, train on; return both modules."""
    options = parse(argv)
    L.seed_everything(options.seed)
    batches = loaders(options)

    plain = SumOfSquares(options.p, options.lr, fused=False)
    path, plain_loss, plain_watch, _ = fit(plain, "plain", 1, batches, options)

    # weights_only: nothing in the file is run
    plain = SumOfSquares.load_from_checkpoint(path, strict=True, weights_only=True)
    fused = SumOfSquares.load_from_checkpoint(path, strict=True, weights_only=True, fused=True)
    difference = largest_difference(plain, fused, batches[1].dataset.tensors[0][:1000])
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"both modules should predict the same, but differ by {difference:.1e}")

    _, fused_loss, fused_watch, is_first = fit(fused, "fastmlp", options.epochs, batches, options)
    if is_first:
        print(f"checkpoint of the plain module: {path}")
        print(f"largest relative difference of the predictions after loading: {difference:.1e}")
        print(f"{'network':<10}{'epochs':>8}{'best val_loss':>16}{'s/epoch':>10}")
        for name, loss, watch in (
            ("PyTorch", plain_loss, plain_watch),
            ("fastmlp", fused_loss, fused_watch),
        ):
            seconds = min(watch.seconds)
            print(f"{name:<10}{len(watch.seconds):>8}{loss.item():>16.6g}{seconds:>10.2f}")
    return plain, fused


if __name__ == "__main__":
    main()
