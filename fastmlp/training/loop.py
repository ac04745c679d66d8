"""The training loop in plain PyTorch: the definition of what is right."""

import math

import torch
from torch.nn import functional as F

from fastmlp import reference
from fastmlp.backends import backend
from fastmlp.kernels.runs import NO_PROGRESS, NOT_FINITE, RUNNING
from fastmlp.kernels.spec import ACTIVATIONS
from fastmlp.training.order import batch_order, step_key

_LOSSES = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "sse": F.mse_loss,
}


class Runs:
    """The runs of the models that are this process's own, one after the other.

    Args:
        problem: A :class:`fastmlp.training.problem.Problem`.
    """

    def __init__(self, problem):
        self._problem = problem

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[models, epochs of this launch]``.
        """
        with backend("torch"), torch.enable_grad():
            for i in self._problem.own:
                if self._problem.states["status"][i] == RUNNING:
                    _Run(self._problem, i).advance(stop_step, first_epoch, rates[i])


def _masked(structure, leaves, x, seed):
    """The outputs of a structure with dropout masks of a seed."""
    has_bias, rates = bool(structure.sizes[1]), structure.constants
    weights, biases = leaves[:: 1 + has_bias], leaves[1::2] if has_bias else None
    if structure.kind == "mlp":
        names = [ACTIVATIONS[code] for code in structure.sizes[2:4]]
        rates = rates[0] if len(rates) == 1 else rates
        if structure.features is not None:
            return reference.mlp(x, weights, biases, *names, rates, seed)
        return reference.mlp(x.unsqueeze(-1), weights, biases, *names, rates, seed).squeeze(-1)
    biases = [None] * len(weights) if biases is None else biases
    layers = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    op = reference.elementwise_mlp if len(weights) == 2 else reference.additive_mlp
    return op(x, *layers, ACTIVATIONS[structure.sizes[4]], rates, seed)


class _Run:
    """One model: its weights and moments are views of the problem's flat buffers."""

    def __init__(self, problem, i):
        self.problem, self.i, self.model = problem, i, problem.models[i]
        self.state = problem.states[i]
        self.names, trained = problem.structures[i].names, problem.structures[i].trained
        self.weights = problem.parameters(problem.theta, i)
        self.moments = [problem.parameters(m, i) for m in (problem.moment1, problem.moment2)]
        self.leaves = [
            w.detach().requires_grad_(t) for w, t in zip(self.weights, trained, strict=True)
        ]
        self.optimizer = self._make_optimizer()

    def _make_optimizer(self):
        hyper = {name: float(values[self.i]) for name, values in self.problem.hyper.items()}
        hyper.pop("clip_norm")
        if "beta1" in hyper:
            hyper["betas"] = hyper.pop("beta1"), hyper.pop("beta2")
        if "nesterov" in hyper:
            hyper["nesterov"] = bool(hyper["nesterov"])
        classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        trained = [leaf for leaf in self.leaves if leaf.requires_grad]
        if not trained:
            return None
        optimizer = classes[self.problem.optimizer](trained, **hyper, foreach=False)
        # PyTorch would make the count of Adam's steps on whatever device is the default
        if self.state["updates"] > 0 or self.problem.optimizer != "sgd":
            self._restore(optimizer)
        return optimizer

    def _restore(self, optimizer):
        """Give a new optimizer the moments of the run so far."""
        step = torch.tensor(self.state["updates"], dtype=torch.float32, device="cpu")
        for leaf, first, second in zip(self.leaves, *self.moments, strict=True):
            if not leaf.requires_grad:
                continue
            if self.problem.optimizer == "sgd":
                optimizer.state[leaf]["momentum_buffer"] = first.clone()
            else:
                optimizer.state[leaf] = {
                    "step": step.clone(), "exp_avg": first.clone(), "exp_avg_sq": second.clone(),
                }  # fmt: skip

    def _store(self):
        """Write the moments back into the flat buffers."""
        for leaf, first, second in zip(self.leaves, *self.moments, strict=True):
            state = {} if self.optimizer is None else self.optimizer.state.get(leaf, {})
            for key, buffer in (
                ("momentum_buffer", first),
                ("exp_avg", first),
                ("exp_avg_sq", second),
            ):
                if state.get(key) is not None:
                    buffer.copy_(state[key])

    def _predict(self, x, training):
        """The model's outputs; in training with the masks of this step, those of the kernels."""
        if not (training and self.problem.structures[self.i].draws):
            leaves = dict(zip(self.names, self.leaves, strict=True))
            was_training = self.model.training
            try:
                return torch.func.functional_call(self.model.eval(), leaves, (x,))
            finally:
                self.model.train(was_training)
        i, state = self.i, self.state
        key = step_key(int(self.problem.seeds[i]), int(self.problem.streams[i]), int(state["step"]))
        seed = torch.tensor([key], device=x.device)
        return _masked(self.problem.structures[i], self.leaves, x, seed)

    def _loss_sum(self, x, y, weight, training):
        """Σ_rows w·(mean or sum of ℓ over a row's outputs), and the total weight."""
        y_hat = self._predict(x, training)
        losses = _LOSSES[self.problem.loss](y_hat, y, reduction="none").reshape(len(x), -1)
        losses = losses.sum(1) if self.problem.loss == "sse" else losses.mean(1)
        if weight is None:
            return losses.sum(), float(len(x))
        return (losses * weight).sum(), float(weight.double().sum())

    def _of_weight(self, loss_sum, total):
        """The loss whose sum over rows that is: a mean, unless it is a sum itself."""
        return loss_sum if self.problem.loss == "sse" else loss_sum / total

    def _gradient_norm(self):
        """That of the loss over all rows, by the trained parameters."""
        p, leaves = self.problem, [leaf for leaf in self.leaves if leaf.requires_grad]
        weight = None if p.weight is None else p.weight[self.i if len(p.weight) > 1 else 0]
        loss = self._of_weight(*self._loss_sum(p.x, p.y, weight, False))
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
        squares = [g.double().square().sum() for g in gradients if g is not None]
        return math.sqrt(sum(squares))

    def _rows(self, epoch):
        p = self.problem
        if not p.shuffle:
            return torch.arange(len(p.x), device=p.x.device)
        order = batch_order(
            len(p.x), epoch=epoch, model=int(p.streams[self.i]), seed=int(p.seeds[self.i])
        )
        return order.to(p.x.device)

    def advance(self, stop_step, first_epoch, rates):
        p, state = self.problem, self.state
        weight = None if p.weight is None else p.weight[self.i if len(p.weight) > 1 else 0]
        epoch, batch = divmod(int(state["step"]), p.steps_per_epoch)
        rows = self._rows(epoch)
        while state["step"] < stop_step and state["status"] == RUNNING:
            chosen = rows[batch * p.batch_rows : (batch + 1) * p.batch_rows]
            batch_weight = None if weight is None else weight[chosen]
            self._step(p.x[chosen], p.y[chosen], batch_weight, float(rates[epoch - first_epoch]))
            if state["status"] == NOT_FINITE:
                p.train_loss[self.i, epoch] = self._of_weight(
                    state["loss_sum"], state["weight_sum"]
                )
                break
            state["step"] += 1
            batch += 1
            if batch == p.steps_per_epoch:
                self._close_epoch(epoch)
                epoch, batch = epoch + 1, 0
                if state["step"] < stop_step:
                    rows = self._rows(epoch)
        self._store()

    def _step(self, x, y, weight, lr):
        state = self.state
        if weight is not None and not bool(weight.any()):
            return
        loss_sum, total = self._loss_sum(x, y, weight, True)
        state["loss_sum"] += loss_sum.item()
        state["weight_sum"] += total
        if not math.isfinite(loss_sum.item()):
            state["status"] = NOT_FINITE
            return
        state["updates"] += 1
        if self.optimizer is None:
            return
        if "beta1" in self.problem.hyper:
            for name in ("beta1", "beta2"):
                state[name + "_power"] *= self.problem.hyper[name][self.i]
        self.optimizer.zero_grad()
        self._of_weight(loss_sum, total).backward()
        clip = float(self.problem.hyper["clip_norm"][self.i])
        if clip < math.inf:
            torch.nn.utils.clip_grad_norm_(self.leaves, clip)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()

    def _close_epoch(self, epoch):
        p, state = self.problem, self.state
        p.train_loss[self.i, epoch] = self._of_weight(state["loss_sum"], state["weight_sum"])
        state["loss_sum"] = state["weight_sum"] = 0.0
        if p.grad_norm is not None:
            p.grad_norm[self.i, epoch] = self._gradient_norm()
        if p.val_x is None:
            return
        with torch.no_grad():
            loss_sum, total = self._loss_sum(p.val_x, p.val_y, None, False)
        val_loss = self._of_weight(loss_sum.item(), total)
        p.val_loss[self.i, epoch] = val_loss
        if val_loss < state["best_loss"]:
            state["best_loss"], state["best_epoch"] = val_loss, epoch
            if p.best is not None:
                for best, weight in zip(p.parameters(p.best, self.i), self.weights, strict=True):
                    best.copy_(weight)
        elif p.patience is not None and epoch - state["best_epoch"] >= p.patience:
            state["status"] = NO_PROGRESS
