"""The runs of many models: one launch for each structure, one program for each model."""

import contextlib

import numpy as np
import torch
import triton

from ...runs import STATE
from ..machine.launch import compute_dtype, device_of
from .loop import HYPER, OPTIMIZERS, train_kernel
from .models import VERBS

BLOCK = 512
"""Parameters that are updated at a time."""


class Runs:
    """The runs of the models that are this process's own.

    Args:
        problem: A ``fastmlp.training.problem.Problem``: data, settings and state.
    """

    def __init__(self, problem):
        self._problem = p = problem
        device = p.x.device
        self._grad = torch.zeros_like(p.theta)
        trained = np.zeros(int(p.offsets[-1]), np.int8)
        for offset, segments in zip(p.offsets[:-1], p.segments, strict=True):
            for first, stop in segments:
                trained[offset + first : offset + stop] = 1
        self._trained = torch.from_numpy(trained).to(device)
        self._starts = torch.from_numpy(p.offsets).to(device)
        n_models = len(p.models)
        totals = np.full(n_models, float(len(p.x)))
        if p.weight is not None:
            totals[:] = p.weight.double().sum(1).cpu().numpy()
        n_out = p.y[0].numel()
        shares = {
            "train_share": 1 / totals,
            "val_share": np.zeros(n_models),
            "out_share": np.full(n_models, 1 / n_out),
        }
        if p.val_x is not None:
            shares["val_share"] += 1 / (len(p.val_x) * n_out)
        if p.loss == "sse":
            shares = dict.fromkeys(shares, np.ones(n_models))
        columns = [{**p.hyper, **shares}.get(name, np.zeros(n_models)) for name in HYPER]
        self._hyper = torch.from_numpy(np.stack(columns, 1).copy()).to(device)
        self._seeds = torch.from_numpy(p.seeds.astype(np.int64)).to(device)
        self._streams = torch.from_numpy(p.streams.astype(np.int64)).to(device)
        self._train_loss = torch.from_numpy(p.train_loss).to(device)
        self._val_loss = self._train_loss
        if p.val_loss is not None:
            self._val_loss = torch.from_numpy(p.val_loss).to(device)
        self._grad_norm = None
        if p.grad_norm is not None:
            self._grad_norm = torch.from_numpy(p.grad_norm).to(device)
        groups = {}
        for i in p.own:
            groups.setdefault(p.structures[i][:5], []).append(i)
        self._groups = []
        for key, models in groups.items():
            verb = self._verb(key, models[0])
            places = torch.tensor(models, dtype=torch.int64, device=device)
            self._groups.append((verb, key[4], places, models[0]))

    def _verb(self, key, first):
        """The verb of a structure, of which model ``first`` is one."""
        kind, sizes, constants = key[:3]
        p = self._problem
        _, compute = compute_dtype(p.x.dtype)
        n_in = p.x[0].numel()
        try:
            if kind not in VERBS:
                raise ValueError(f"there is none of the kind {kind!r}")
            return VERBS[kind](sizes, constants, n_in, p.batch_rows, compute)
        except ValueError as error:
            raise ValueError(
                f"models[{first}], {p.models[first]}, has no training kernel on the backend "
                f'"triton": {error}; fastmlp.backend("numba") trains it on the CPU'
            ) from None

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[models, epochs of this launch]``.
        """
        p = self._problem
        device = p.x.device
        states = np.stack([p.states[name].astype(np.float64) for name in STATE.names], 1)
        states = torch.from_numpy(states).to(device)
        rates = torch.from_numpy(np.ascontiguousarray(rates)).to(device)
        _, compute = compute_dtype(p.x.dtype)
        weight_stride = 0
        if p.weight is not None and len(p.weight) > 1:
            weight_stride = p.weight.shape[1]
        with device_of(p.x), side_by_side(p.x, len(self._groups)) as streams:
            for (verb, draws, places, one), stream in zip(self._groups, streams, strict=True):
                n_parameters = int(p.offsets[one + 1] - p.offsets[one])
                with stream:
                    train_kernel[(len(places),)](
                        p.theta, p.moment1, p.moment2, p.theta if p.best is None else p.best,
                        self._grad, self._trained, self._starts, places, p.x, p.y, p.weight,
                        p.val_x, p.val_y, states, self._hyper, rates, self._seeds, self._streams,
                        self._train_loss, self._val_loss, self._grad_norm, n_parameters, len(p.x),
                        p.y[0].numel(),
                        0 if p.val_x is None else len(p.val_x), p.batch_rows, weight_stride,
                        p.epochs, first_epoch, rates.shape[1], stop_step, p.patience or 0,
                        MODEL=verb.function, UPDATE=OPTIMIZERS[p.optimizer], LOSS=p.loss,
                        SHUFFLE=p.shuffle, DRAWS=draws, SIZES=verb.sizes,
                        CONSTANTS=verb.constants, COMPUTE=compute,
                        BLOCK=min(BLOCK, triton.next_power_of_2(n_parameters)),
                        num_warps=verb.warps,
                    )  # fmt: skip
        states = states.cpu().numpy()
        for column, name in enumerate(STATE.names):
            p.states[name] = states[:, column]
        p.train_loss[:] = self._train_loss.cpu().numpy()
        if p.val_loss is not None:
            p.val_loss[:] = self._val_loss.cpu().numpy()
        if p.grad_norm is not None:
            p.grad_norm[:] = self._grad_norm.cpu().numpy()


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
