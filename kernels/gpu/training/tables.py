"""What the kernels of whole runs read and write, on the device: tables of all models."""

import numpy as np
import torch

from ...runs import RUNNING, STATE, pick
from .loop import HYPER, ROWS


class Tables:
    """A job's tables on its device: settings, rows, keys and losses of each model.

    Args:
        job: A :class:`.runs.Job`.
    """

    def __init__(self, job):
        self._job, self._device, n_models = job, job.theta.device, len(job.kinds)
        self.starts = self._there(job.offsets)
        n_out = job.data.y[0].numel()
        shares = {
            "train_share": 1 / _totals(job.data, n_models),
            "val_share": np.zeros(n_models),
            "out_share": np.full(n_models, 1 / n_out),
        }
        if job.validation is not None:
            shares["val_share"] += 1 / (_totals(job.validation, n_models) * n_out)
        if job.loss == "sse":
            shares = dict.fromkeys(shares, np.ones(n_models))
        columns = [{**job.hyper, **shares}.get(name, np.zeros(n_models)) for name in HYPER]
        self.hyper = self._there(np.stack(columns, 1).copy())
        held_out = job.validation or job.data
        rows = {
            "first": job.data.first,
            "count": job.data.count,
            "first_weight": job.data.first_weight,
            "batch": job.batch_rows,
            "val_first": held_out.first,
            "val_count": held_out.count,
            "val_first_weight": held_out.first_weight,
        }
        rows = np.stack([np.broadcast_to(rows[name], n_models) for name in ROWS], 1)
        self.rows = self._there(np.ascontiguousarray(rows))
        self.seeds = self._there(job.seeds.astype(np.int64))
        self.streams = self._there(job.streams.astype(np.int64))
        self.train_loss = self._there(job.train_loss)
        # a kernel wants an address where there is nothing to write
        self.val_loss = self.train_loss
        if job.val_loss is not None:
            self.val_loss = self._there(job.val_loss)
        self.grad_norm = None if job.grad_norm is None else self._there(job.grad_norm)

    def _there(self, array):
        return torch.from_numpy(array).to(self._device)

    def bring(self, rates):
        """Bring to the device where each model stands, and the rates of a launch."""
        states = [self._job.states[name].astype(np.float64) for name in STATE.names]
        self.states = self._there(np.stack(states, 1))
        self.rates = self._there(np.ascontiguousarray(rates))
        self.rates_stride = rates.shape[1] if len(rates) > 1 else 0

    def go_on(self, models, stop_step):
        """Which models have a step to make: without one a kernel would only write their states."""
        states, ends = self._job.states[models], pick(self._job.n_steps, models)
        return (states["status"] == RUNNING) & (states["step"] < np.minimum(stop_step, ends))

    def fetch(self):
        """Bring back where each model stands, and its losses."""
        job, states = self._job, self.states.cpu().numpy()
        for column, name in enumerate(STATE.names):
            job.states[name] = states[:, column]
        for name in ("train_loss", "val_loss", "grad_norm"):
            if getattr(job, name) is not None:
                getattr(job, name)[:] = getattr(self, name).cpu().numpy()


def _totals(rows, n_models):
    """The weight of all rows of each model, float64."""
    if rows.weight is None:
        return np.broadcast_to(rows.count.astype(np.float64), n_models)
    first, count = np.broadcast_arrays(rows.first_weight, rows.count)
    # up to each end, and from it to the next beginning, which is dropped
    weight = np.append(rows.weight.double().cpu().numpy(), 0.0)
    totals = np.add.reduceat(weight, np.stack([first, first + count], 1).ravel())[::2]
    return np.broadcast_to(totals, n_models)
