"""The runs of many models: one launch for each structure, one program for each model."""

import contextlib

import numpy as np
import torch
import triton

from ...runs import RUNNING, STATE, NoVerb, pick
from ..machine.launch import compute_dtype, device_of
from ..models import VERBS
from .loop import HYPER, OPTIMIZERS, ROWS, train_kernel

BLOCK = 512
"""Parameters that are updated at a time."""


class Runs:
    """The runs of some models, side by side.

    Args:
        job: A :class:`.runs.Job`.
        models: Those to train, int64.
    """

    at_once = None
    """Models that are trained side by side: all."""

    def __init__(self, job, models):
        self._job, device, n_models = job, job.theta.device, len(job.kinds)
        self._grad = torch.zeros_like(job.theta)
        trained = np.zeros(int(job.offsets[-1]), np.int8)
        for kind, structure in enumerate(job.structures):
            firsts = job.offsets[:-1][job.kinds == kind]
            for first, stop in structure.trained_parts:
                trained[(firsts[:, None] + np.arange(first, stop)).ravel()] = 1
        self._trained = torch.from_numpy(trained).to(device)
        self._starts = torch.from_numpy(job.offsets).to(device)
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
        self._hyper = torch.from_numpy(np.stack(columns, 1).copy()).to(device)
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
        self._rows = torch.from_numpy(np.ascontiguousarray(rows)).to(device)
        self._seeds = torch.from_numpy(job.seeds.astype(np.int64)).to(device)
        self._streams = torch.from_numpy(job.streams.astype(np.int64)).to(device)
        self._train_loss = torch.from_numpy(job.train_loss).to(device)
        self._val_loss = self._train_loss
        if job.val_loss is not None:
            self._val_loss = torch.from_numpy(job.val_loss).to(device)
        self._grad_norm = None
        if job.grad_norm is not None:
            self._grad_norm = torch.from_numpy(job.grad_norm).to(device)
        shuffle = np.broadcast_to(job.shuffle, n_models)[models]
        batch = np.broadcast_to(job.batch_rows, n_models)
        groups = {}
        for kind, structure in enumerate(job.structures):
            for mixed in (False, True):
                chosen = models[(job.kinds[models] == kind) & (shuffle == mixed)]
                if len(chosen):
                    # those that differ in names alone are one group
                    alike = structure._replace(trained=(), names=())
                    groups.setdefault((alike, mixed), []).append(chosen)
        self._groups = []
        for (structure, mixed), parts in groups.items():
            chosen = np.sort(np.concatenate(parts))
            verb = self._verb(structure, int(chosen[0]), int(batch[chosen].max()))
            self._groups.append((verb, structure.draws, mixed, chosen))

    def _verb(self, structure, first, batch_rows):
        """The verb of a structure, of which model ``first`` is one."""
        kind, x = structure.kind, self._job.data.x
        _, compute = compute_dtype(x.dtype)
        try:
            if kind not in VERBS:
                raise ValueError(f"there is none of the kind {kind!r}")
            options = x[0].numel(), batch_rows, compute
            return VERBS[kind](structure.sizes, structure.constants, *options)
        except ValueError as error:
            raise NoVerb(first, error) from None

    def _goes_on(self, models, stop_step):
        """Which models have a step to make: a program without one would only write its state."""
        states, ends = self._job.states[models], pick(self._job.n_steps, models)
        return (states["status"] == RUNNING) & (states["step"] < np.minimum(stop_step, ends))

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[1 or models, epochs of this launch]``.
        """
        job = self._job
        device = job.theta.device
        states = np.stack([job.states[name].astype(np.float64) for name in STATE.names], 1)
        states = torch.from_numpy(states).to(device)
        rates = torch.from_numpy(np.ascontiguousarray(rates)).to(device)
        rates_stride = rates.shape[1] if len(rates) > 1 else 0
        x, y, weight, *_ = job.data
        val_x, val_y, val_weight, *_ = (None,) * 3 if job.validation is None else job.validation
        _, compute = compute_dtype(x.dtype)
        with device_of(x), side_by_side(x, len(self._groups)) as streams:
            for group, stream in zip(self._groups, streams, strict=True):
                verb, draws, mixed, models = group
                models = models[self._goes_on(models, stop_step)]
                if len(models) == 0:
                    continue
                one, places = models[0], torch.from_numpy(models).to(device)
                n_parameters = int(job.offsets[one + 1] - job.offsets[one])
                with stream:
                    train_kernel[(len(places),)](
                        job.theta, job.moment1, job.moment2,
                        job.theta if job.best is None else job.best,
                        self._grad, self._trained, self._starts, places, self._rows, x, y, weight,
                        val_x, val_y, val_weight, states, self._hyper, rates, self._seeds,
                        self._streams, self._train_loss, self._val_loss, self._grad_norm,
                        n_parameters, x[0].numel(), y[0].numel(), job.epochs, job.every,
                        self._train_loss.shape[1], first_epoch, rates_stride, stop_step,
                        job.patience or 0,
                        MODEL=verb.function, UPDATE=OPTIMIZERS[job.optimizer], LOSS=job.loss,
                        SHUFFLE=mixed, DRAWS=draws, SIZES=verb.sizes,
                        CONSTANTS=verb.constants, COMPUTE=compute,
                        BLOCK=min(BLOCK, triton.next_power_of_2(n_parameters)),
                        num_warps=verb.warps,
                    )  # fmt: skip
        states = states.cpu().numpy()
        for column, name in enumerate(STATE.names):
            job.states[name] = states[:, column]
        job.train_loss[:] = self._train_loss.cpu().numpy()
        if job.val_loss is not None:
            job.val_loss[:] = self._val_loss.cpu().numpy()
        if job.grad_norm is not None:
            job.grad_norm[:] = self._grad_norm.cpu().numpy()


def _totals(rows, n_models):
    """The weight of all rows of each model, float64."""
    if rows.weight is None:
        return np.broadcast_to(rows.count.astype(np.float64), n_models)
    first, count = np.broadcast_arrays(rows.first_weight, rows.count)
    # up to each end, and from it to the next beginning, which is dropped
    weight = np.append(rows.weight.double().cpu().numpy(), 0.0)
    totals = np.add.reduceat(weight, np.stack([first, first + count], 1).ravel())[::2]
    return np.broadcast_to(totals, n_models)


@contextlib.contextmanager
def side_by_side(x, n):
    """Contexts for ``n`` launches that do not wait for each other; what follows waits for all.

    A structure of a few models leaves most of a device idle.
    """
    if not x.is_cuda:
        yield [contextlib.nullcontext()] * n
        return
    current = torch.cuda.current_stream()
    streams = [torch.cuda.Stream() for _ in range(n)]
    for stream in streams:
        stream.wait_stream(current)
    yield [torch.cuda.stream(stream) for stream in streams]
    for stream in streams:
        current.wait_stream(stream)
