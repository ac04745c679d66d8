"""The training loop in plain PyTorch: the definition of what is right."""

import math

import torch
from torch.nn import functional as F

from fastmlp import reference
from fastmlp.backends import backend
from fastmlp.kernels.runs import NO_PROGRESS, NOT_FINITE, RUNNING, pick
from fastmlp.kernels.spec import ACTIVATIONS, SubnetSizes, layer_sizes
from fastmlp.reference.mlp import dropped_mlp
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
        models: Those to train.
    """

    at_once = None
    """Models that are trained side by side: all."""

    def __init__(self, problem, models):
        self._problem, self._models = problem, models.tolist()

    def advance(self, stop_step, first_epoch, rates):
        """Advance every model that still runs to ``stop_step``.

        Args:
            stop_step: Number of the step before which to stop.
            first_epoch: The epoch that the first column of ``rates`` is of.
            rates: Learning rates, float64 ``[1 or models, epochs of this launch]``.
        """
        with backend("torch"), torch.enable_grad():
            for k, i in enumerate(self._models):
                if self._problem.states["status"][i] == RUNNING:
                    of_model = rates[k if len(rates) > 1 else 0]
                    _Run(self._problem, i).advance(stop_step, first_epoch, of_model)


def _masked(structure, leaves, x, seed):
    """The outputs of a structure with dropout masks of a seed."""
    is_deep, rates = structure.kind == "mlp", structure.constants
    model = layer_sizes(structure.sizes)[0] if is_deep else SubnetSizes(*structure.sizes)
    has_bias = bool(model.bias)
    weights, biases = leaves[:: 1 + has_bias], leaves[1::2] if has_bias else None
    if is_deep:
        names = [ACTIVATIONS[code] for code in (model.hidden, model.output)]
        rates = rates[0] if len(rates) == 1 else rates
        if structure.features is not None:
            return dropped_mlp(x, weights, biases, *names, rates, seed)
        return dropped_mlp(x.unsqueeze(-1), weights, biases, *names, rates, seed).squeeze(-1)
    biases = [None] * len(weights) if biases is None else biases
    layers = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    op = reference.elementwise_mlp if len(weights) == 2 else reference.additive_mlp
    return op(x, *layers, ACTIVATIONS[model.activation], rates, seed)


class _Run:
    """One model: its weights and moments are views of the problem's flat buffers."""

    def __init__(self, problem, i):
        members = problem.members
        self.problem, self.i, self.model = problem, i, members.module(i)
        self.structure, self.state = members.structure(i), problem.states[i]
        self.x, self.y, self.weight = problem.data.of(i)
        self.batch_rows = int(pick(problem.batch_rows, i))
        self.steps_per_epoch = -(-len(self.x) // self.batch_rows)
        self.names, trained = self.structure.names, self.structure.trained
        self.weights = members.views(problem.theta, i)
        self.moments = [members.views(m, i) for m in (problem.moment1, problem.moment2)]
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
        if not (training and self.structure.draws):
            leaves = dict(zip(self.names, self.leaves, strict=True))
            was_training = self.model.training
            try:
                return torch.func.functional_call(self.model.eval(), leaves, (x,))
            finally:
                self.model.train(was_training)
        i, state = self.i, self.state
        key = step_key(int(self.problem.seeds[i]), int(self.problem.streams[i]), int(state["step"]))
        seed = torch.tensor([key], device=x.device)
        return _masked(self.structure, self.leaves, x, seed)

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
        leaves = [leaf for leaf in self.leaves if leaf.requires_grad]
        loss = self._of_weight(*self._loss_sum(self.x, self.y, self.weight, False))
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True) if leaves else ()
        squares = [g.double().square().sum() for g in gradients if g is not None]
        return math.sqrt(sum(squares))

    def _rows(self, epoch):
        p, n = self.problem, len(self.x)
        if not p.shuffled or self.batch_rows == n:
            return torch.arange(n, device=self.x.device)
        order = batch_order(n, epoch=epoch, model=int(p.streams[self.i]), seed=int(p.seeds[self.i]))
        return order.to(self.x.device)

    def advance(self, stop_step, first_epoch, rates):
        p, state = self.problem, self.state
        stop_step = min(stop_step, p.epochs * self.steps_per_epoch)
        epoch, batch = divmod(int(state["step"]), self.steps_per_epoch)
        rows = self._rows(epoch)
        while state["step"] < stop_step and state["status"] == RUNNING:
            chosen = rows[batch * self.batch_rows : (batch + 1) * self.batch_rows]
            weight = None if self.weight is None else self.weight[chosen]
            self._step(self.x[chosen], self.y[chosen], weight, float(rates[epoch - first_epoch]))
            if state["status"] == NOT_FINITE:
                p.train_loss[self.i, epoch // p.every] = self._of_weight(
                    state["loss_sum"], state["weight_sum"]
                )
                break
            state["step"] += 1
            batch += 1
            if batch == self.steps_per_epoch:
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
        p, state, column = self.problem, self.state, epoch // self.problem.every
        p.train_loss[self.i, column] = self._of_weight(state["loss_sum"], state["weight_sum"])
        state["loss_sum"] = state["weight_sum"] = 0.0
        if p.grad_norm is not None:
            p.grad_norm[self.i, column] = self._gradient_norm()
        if p.validation is None:
            return
        with torch.no_grad():
            loss_sum, total = self._loss_sum(*p.validation.of(self.i), False)
        val_loss = self._of_weight(loss_sum.item(), total)
        p.val_loss[self.i, column] = val_loss
        if val_loss < state["best_loss"]:
            state["best_loss"], state["best_epoch"] = val_loss, epoch
            if p.best is not None:
                best = p.members.views(p.best, self.i)
                for one, weight in zip(best, self.weights, strict=True):
                    one.copy_(weight)
        elif p.patience is not None and epoch - state["best_epoch"] >= p.patience:
            state["status"] = NO_PROGRESS
