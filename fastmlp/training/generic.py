"""Levenberg–Marquardt on any small module: Jacobians by torch.func, the same solver."""

import math
import time

import torch
from torch.func import functional_call, jacfwd, jacrev, vmap

from fastmlp.arguments import in_memory
from fastmlp.parts import draws_masks
from fastmlp.training.compiled import RunStates

JACOBIAN_BYTES = 1 << 23
"""Of one chunk of rows of the Jacobian."""


def check_rows_alone(module):
    """Refuse a module whose residuals are random, or depend on other rows."""
    for part in module.modules():
        if not part.training:
            continue
        if draws_masks(part):
            raise ValueError(
                "module has an active dropout, and Levenberg–Marquardt needs the same "
                "residuals twice: call module.eval() or set the probability to 0"
            )
        if isinstance(part, torch.nn.RReLU) and part.lower != part.upper:
            raise ValueError(
                "module has an RReLU in train mode, which draws its slopes: call module.eval()"
            )
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                "module has a batch norm in train mode, which couples the rows: call module.eval()"
            )


class Linearisation:
    """Residuals of a module and their Jacobian, a chunk of rows at a time, float64.

    The module must treat the rows of its input, the first dimension, one by one.
    """

    def __init__(self, module):
        check_rows_alone(module)
        self.module = module
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        parameters = dict(module.named_parameters())
        self.shapes = [parameters[name].shape for name in self.names]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.p = sum(self.sizes)
        self.device = parameters[self.names[0]].device
        self.differentiate = None  # jacrev or jacfwd, when it is known
        self.fixed = {
            name: value.detach().double() if value.is_floating_point() else value
            for name, value in (*parameters.items(), *module.named_buffers())
            if name not in self.names
        }

    def _values(self, theta):
        parts = theta.split(self.sizes)
        named = zip(self.names, parts, self.shapes, strict=True)
        return {**self.fixed, **{n: part.view(shape) for n, part, shape in named}}

    def _row(self, theta, x):
        return functional_call(self.module, self._values(theta), (x.unsqueeze(0),)).reshape(-1)

    def _jacobian(self, differentiate, theta, x):
        return vmap(differentiate(self._row), in_dims=(None, 0))(theta, x)

    def _way_that_is_right(self, theta, x, n_out):
        """The cheaper of jacrev and jacfwd whose rows are those of plain autograd.

        Under vmap PyTorch's rules are not all right: that of PReLU's weight mixes the rows up.
        """
        theta, wanted = theta.detach(), []
        for row in x:
            leaf = theta.clone().requires_grad_()
            with torch.enable_grad():
                outputs = self._row(leaf, row)
                direction = torch.linspace(1, 2, len(outputs), device="cpu").to(theta)
                product = outputs @ direction
            gradient = None  # where the outputs do not depend on θ
            if product.requires_grad:
                (gradient,) = torch.autograd.grad(product, leaf, allow_unused=True)
            wanted.append(torch.zeros_like(theta) if gradient is None else gradient)
        wanted, errors = torch.stack(wanted), []
        for differentiate in (jacrev, jacfwd) if n_out <= self.p else (jacfwd, jacrev):
            try:
                rows = self._jacobian(differentiate, theta, x)
            except RuntimeError as error:
                errors.append(error)
                continue
            ours = torch.einsum("nmp,m->np", rows, direction)
            if torch.allclose(ours, wanted, rtol=1e-6, atol=1e-9, equal_nan=True):
                return differentiate
        raise ValueError(
            "module must be one that torch.func differentiates row by row, got rows of the "
            "Jacobian that are not those of autograd"
        ) from (errors[0] if errors else None)

    def part(self, ask, kernels, theta, x, y, weight):
        """What the solver wants, in the layout of one part: [ld, ld], [ld], sum of squares.

        Shapes: theta [P]; x, y [rows, …]; weight [rows], square roots, or None.
        """
        theta = theta.to(self.device)
        n_rows, p = x.shape[0], self.p
        n_out = max(1, y.numel() // max(n_rows, 1))
        chunk = max(1, JACOBIAN_BYTES // (8 * p * n_out))
        ld = (p + 3) // 4 * 4
        part = torch.zeros(ld * ld + ld + 1, dtype=torch.float64, device="cpu")
        matrix, vector = part[: ld * ld].view(ld, ld), part[ld * ld : ld * ld + ld]
        if self.differentiate is None and ask != kernels.LOSS and n_rows > 0:
            self.differentiate = self._way_that_is_right(theta, x[:3].double(), n_out)
        factor = theta.new_zeros(0, p + 1)
        gram = theta.new_zeros(p + 1, p + 1)
        total = 0.0
        for first in range(0, n_rows, chunk):
            xs, ys = x[first : first + chunk].double(), y[first : first + chunk].double()
            with torch.no_grad():
                out = functional_call(self.module, self._values(theta), (xs,))
                if out.shape != ys.shape:
                    raise ValueError(
                        f"targets must have the shape of the module's output, {list(out.shape)}, "
                        f"got {list(ys.shape)}"
                    )
                residual = (out - ys).reshape(len(xs), -1)
                scale = None if weight is None else weight[first : first + chunk, None]
                residual = residual if scale is None else residual * scale
                total += float(residual.square().sum())
                if ask == kernels.LOSS:
                    continue
                rows = self._jacobian(self.differentiate, theta, xs)
                rows = rows if scale is None else rows * scale.unsqueeze(-1)
                rows = torch.cat([rows.reshape(-1, p), residual.reshape(-1, 1)], 1)
                if ask == kernels.NORMAL:
                    gram += rows.T @ rows
                else:
                    factor = torch.linalg.qr(torch.cat([factor, rows]), mode="r").R
        if ask == kernels.NORMAL:
            matrix[:p, :p] = gram[:p, :p]
            vector[:p] = gram[:p, p]
        elif ask == kernels.QR:
            k = min(p, len(factor))
            matrix[:k, :p] = factor[:k, :p]
            vector[:k] = factor[:k, p]
        part[-1] = total
        return part


def check_weight(sample_weight, n_rows, device):
    """Square roots of the rows' weights, or ``None``."""
    if sample_weight is None:
        return None
    sample_weight = in_memory("sample_weight", sample_weight)
    if sample_weight.numel() != n_rows:
        raise ValueError(
            f"sample_weight must have {n_rows} numbers, one a row, got {sample_weight.numel()}"
        )
    if not bool((sample_weight >= 0).all()):
        raise ValueError("sample_weight must not be negative, nor NaN")
    return sample_weight.double().to(device).reshape(-1).sqrt()


def run(models, description, starts, rows, settings, max_steps, deadline, progress):
    """Train all runs, one after the other; returns their `Outcome`."""
    runs = RunStates(starts, settings, max_steps)
    k, per_model = runs.kernels, len(starts) // len(models)
    try:
        for index in range(len(starts)):
            problem = Linearisation(models[index // per_model])
            x, y, weight = rows.of(index // per_model)
            xs, ys = x.to(problem.device), y.to(problem.device)
            weight = check_weight(weight, len(x), problem.device)
            kept = torch.zeros(runs.ld**2 + runs.ld, dtype=torch.float64, device="cpu")
            part, n_parts = kept, 0
            while True:
                ask = k.lm_advance(
                    runs.p,
                    *runs.settings_at,
                    *runs.at(index),
                    kept.data_ptr(),
                    part.data_ptr(),
                    n_parts,
                )
                late = deadline is not None and time.perf_counter() > deadline
                if ask == k.DONE or (ask != k.LOSS and late):
                    break
                state = runs.state[index]
                theta = state[runs.p : 2 * runs.p] if ask == k.LOSS else state[: runs.p]
                part, n_parts = problem.part(ask, k, theta, xs, ys, weight), 1
            runs.factors[index] = kept
            if progress is not None:
                progress(index + 1, len(starts))
    except KeyboardInterrupt:  # every state is that after the last accepted step
        runs.unfinished = "interrupted"
    return runs.outcome()
