"""What a trained model is doing: how much of its training loss is dropout's own variance."""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fastmlp import reference
from fastmlp.arguments import integer
from fastmlp.kernels.spec import Layers, Subnet
from fastmlp.models import spec_of

__all__ = ["DropoutReport", "dropout_report"]

# values of the hidden layer that the closed form holds at once: 8 MiB in float64
_CHUNK = 1 << 20
_SMALLEST_SAMPLES = 3  # below, the jackknife of a variance has nothing to compare


@dataclass(frozen=True)
class DropoutReport:
    """What dropout adds to the training loss; see :func:`dropout_report`.

    ``train_mse = eval_mse + shift + variance``. All are means over the values of y, in units of
    y². ``print`` shows a table.

    Args:
        train_mse: MSE in training mode, in expectation over the masks.
        eval_mse: MSE in evaluation mode, without masks.
        shift: What the MSE changes by because dropout moves the mean of the prediction.
        variance: Variance of the prediction over the masks.
        train_mse_error: Standard error of ``train_mse`` over the drawn masks; 0 in closed form.
        shift_error: The like of ``shift``.
        variance_error: The like of ``variance``.
        samples: Masks drawn for each row; 0 in closed form.
    """

    train_mse: float
    eval_mse: float
    shift: float
    variance: float
    train_mse_error: float = 0.0
    shift_error: float = 0.0
    variance_error: float = 0.0
    samples: int = 0

    @property
    def variance_share(self) -> float:
        """Part of the train-mode MSE that is dropout variance, 0 … 1."""
        return self.variance / self.train_mse if self.train_mse > 0 else 0.0

    def __str__(self) -> str:
        rows = (
            ("eval-mode MSE", self.eval_mse, 0.0),
            ("+ shift of the mean", self.shift, self.shift_error),
            ("+ dropout variance", self.variance, self.variance_error),
            ("= train-mode MSE", self.train_mse, self.train_mse_error),
        )
        how = f"{self.samples} masks a row" if self.samples else "closed form"
        lines = [f"dropout report ({how})"]
        for name, value, error in rows:
            uncertainty = f" ± {error:.2g}" if self.samples and name != rows[0][0] else ""
            lines.append(f"{name:<20}{value:>13.6g}{uncertainty}")
        if self.variance_share > 0.5:
            lines.append(
                f"Variance dominates ({100 * self.variance_share:.0f} %): the loss can fall while "
                "predictions in eval mode get worse."
            )
        return "\n".join(lines)


def dropout_report(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    samples: int = 64,
    batch_size: int = 1024,
    seed: int = 0,
) -> DropoutReport:
    """Split the training loss of a model with dropout into error and dropout variance.

    .. math:: E_{mask}[(y - f)^2] = (y - f_{eval})^2
        + \\left[ (y - E f)^2 - (y - f_{eval})^2 \\right] + Var[f]

    averaged over all values: train-mode MSE = eval-mode MSE + shift + variance. Masks of hidden
    units and outputs leave the mean of the prediction alone, so the shift is 0; dropout before a
    nonlinearity moves it.

    For :class:`fastmlp.AdditiveMLP`, :class:`fastmlp.ElementwiseMLP` with one hidden layer and
    their namesakes in :mod:`fastmlp.reference` all three are exact, in float64, without a mask
    drawn. With ``r = p/(1 − p)``, the variance of a subnet's output given its input u is
    ``r_hidden · Σ_k (w2_k σ(w1_k u + b1_k))²``; u is 0 with probability p_input and
    x/(1 − p_input) otherwise; the mask of the output adds ``r_output · E[f²]``; the features'
    masks are independent, so their variances add, weighted by V². Other models run ``samples``
    times in training mode.

    Args:
        model: Any ``nn.Module``, in any mode; mode, buffers and gradients stay as they are. Layers
            of batch normalisation run in evaluation mode throughout, so that only dropout counts.
        x: Input of the model, rows along the first dimension, at least one value.
        y: Target. Shape of ``model(x)``, floating point, any such dtype.
        samples: Masks to draw for each row, at least 3; not used by the closed form.
        batch_size: Rows that the model gets at a time; not used by the closed form.
        seed: Seed of the masks; the state of torch's generators stays as it is.

    Returns:
        A :class:`DropoutReport`, in float64. Standard errors are those of the drawn masks
        (jackknife over the ``samples`` passes), given the rows.

    Raises:
        TypeError: ``model`` is no ``nn.Module`` or returns no Tensor; ``x`` or ``y`` is no Tensor;
            ``samples``, ``batch_size`` or ``seed`` is no int.
        ValueError: ``y`` has another shape than ``model(x)`` or another device; ``x`` is empty or
            does not fit the model; ``samples`` or ``batch_size`` out of range.

    Precision: the closed form takes each p as it is; the kernels round it to a multiple of 2⁻¹⁶.
    Source: the variance term, Wager, Wang and Liang 2013, arXiv:1307.1493, section 2; the
    jackknife, Efron and Stein 1981, doi:10.1214/aos/1176345462.

    Example:
        >>> import torch, fastmlp
        >>> net = fastmlp.ElementwiseMLP(2, dropout=(0.0, 0.5, 0.0))
        >>> for p, value in zip(net.parameters(), (1.0, 0.0, 1.0, 0.0)):
        ...     _ = torch.nn.init.constant_(p, value)
        >>> print(dropout_report(net, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])))
        dropout report (closed form)
        eval-mode MSE                   0
        + shift of the mean             0
        + dropout variance              5
        = train-mode MSE                5
        Variance dominates (100 %): the loss can fall while predictions in eval mode get worse.
    """
    _check(model, x, y)
    samples = integer("samples", samples, _SMALLEST_SAMPLES)
    batch_size, seed = integer("batch_size", batch_size, 1), integer("seed", seed)
    with torch.no_grad():
        spec = spec_of(model)
        if _has_closed_form(spec):
            return _exact(model, spec, x, y)
        return _sampled(model, x, y, samples, batch_size, seed)


def _check(model, x, y):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if x.numel() == 0:
        raise ValueError(f"x must hold at least one value, got shape {list(x.shape)}")
    if not y.is_floating_point():
        raise TypeError(f"y must be floating point, got {str(y.dtype).removeprefix('torch.')}")


def _check_target(y, shape, device):
    if y.shape != shape:
        raise ValueError(f"y must have the shape of model(x), {list(shape)}, got {list(y.shape)}")
    if y.device != device:
        raise ValueError(f"y must be on the device of model(x), {device}, got {y.device}")


def _has_closed_form(spec):
    if spec.obstacle is not None:
        return False
    if type(spec.record) is Subnet:
        return True
    # a second hidden layer is not linear in the masks of the first
    return type(spec.record) is Layers and spec.record.elementwise and len(spec.layers) == 2


def _exact(model, spec, x, y):
    layers = [model.get_submodule(path) for path in spec.layers]
    additive = type(spec.record) is Subnet
    device = layers[0].weight.device
    if x.device != device:
        raise ValueError(f"x must be on the device of model, {device}, got {x.device}")
    if additive:
        n_in, n_hidden, n_out = spec.record[:3]
        activation = spec.record.activation
        if x.dim() == 0 or x.shape[-1] != n_in:
            raise ValueError(
                f"x must have shape [*, {n_in}], that of the model's features, got {list(x.shape)}"
            )
        rows = x.reshape(-1, n_in)
        _check_target(y, (*x.shape[:-1], n_out), x.device)
        values = y.reshape(-1, n_out)
    else:
        n_hidden, activation = spec.record.widths[1], spec.record.activations[0]
        rows, values = x.reshape(-1, 1), y.reshape(-1, 1)
        _check_target(y, x.shape, x.device)

    n_rows = max(1, _CHUNK // (rows.shape[1] * n_hidden))
    sums = torch.zeros(3, dtype=torch.float64, device=x.device)
    for inputs, targets in zip(rows.split(n_rows), values.split(n_rows), strict=True):
        inputs, targets = inputs.double(), targets.double()
        moments = _subnet_moments(*layers[:2], activation, spec.record.dropout, inputs)
        if additive:
            v, c = layers[2].weight.double(), layers[2].bias
            c = 0.0 if c is None else c.double()
            plain, mean, variance = moments
            moments = plain @ v.T + c, mean @ v.T + c, variance @ v.square().T
        plain, mean, variance = moments
        errors = (targets - plain).square(), (targets - mean).square(), variance
        sums += torch.stack([error.sum() for error in errors])
    eval_mse, mean_mse, variance = (sums / y.numel()).tolist()
    return DropoutReport(mean_mse + variance, eval_mse, mean_mse - eval_mse, variance)


def _subnet_moments(fc1, fc2, activation, dropout, x):
    """Output without masks, and its mean and variance under dropout: ``[n, F]`` each."""
    p_input, p_hidden, p_output = dropout
    w1, b1 = fc1.weight.double().squeeze(-1), fc1.bias
    w2, b2 = fc2.weight.double().squeeze(-2), fc2.bias
    b1 = 0.0 if b1 is None else b1.double()
    b2 = 0.0 if b2 is None else b2.double().squeeze(-1)

    def given(u, p):
        """Mean and variance over the masks of the hidden units, for a known input."""
        terms = reference.ACTIVATIONS[activation](u.unsqueeze(-1) * w1 + b1) * w2
        mean_factor, variance_factor = _factor_moments(p)
        return mean_factor * terms.sum(-1) + b2, variance_factor * terms.square().sum(-1)

    plain, _ = given(x, 0.0)
    mean, variance = given(x / (1 - p_input) if p_input < 1 else torch.zeros_like(x), p_hidden)
    if 0 < p_input < 1:
        mean_dropped, variance_dropped = given(torch.zeros_like(x[:1]), p_hidden)
        variance = torch.lerp(variance, variance_dropped, p_input)
        variance = variance + p_input * (1 - p_input) * (mean - mean_dropped).square()
        mean = torch.lerp(mean, mean_dropped, p_input)
    mean_factor, variance_factor = _factor_moments(p_output)
    variance = mean_factor**2 * variance + variance_factor * (variance + mean.square())
    return plain, mean_factor * mean, variance


def _factor_moments(p):
    """Mean and variance of a mask's factor, 0 or 1/(1 − p); always 0 for p = 1."""
    return (1.0, p / (1 - p)) if p < 1 else (0.0, 0.0)


def _sampled(model, x, y, samples, batch_size, seed):
    if x.dim() == 0:
        raise ValueError("x must have rows along its first dimension, got a Tensor without any")
    shape, eval_error = None, 0.0
    squared_error = torch.zeros(samples, dtype=torch.float64, device=y.device)
    spread = torch.zeros_like(squared_error)  # squared distance from the mean of the samples
    with _undisturbed(model, x, seed):
        for start in range(0, len(x), batch_size):
            inputs = x[start : start + batch_size]
            model.eval()
            plain = _output(model, inputs)
            if shape is None:
                shape = (len(x), *plain.shape[1:])
                _check_target(y, shape, plain.device)
            targets = y[start : start + batch_size].double()
            eval_error += (targets - plain).square().sum().item()
            _train(model)
            drawn = torch.stack([_output(model, inputs) for _ in range(samples)])
            squared_error += (drawn - targets).square().flatten(1).sum(1)
            spread += (drawn - drawn.mean(0)).square().flatten(1).sum(1)

    n, s = y.numel(), samples
    eval_mse, squared_error, spread = eval_error / n, squared_error / n, spread / n
    train_mse, variance = squared_error.mean(), spread.sum() / (s - 1)
    # the same two without one of the passes; removing it also moves the mean of the samples
    train_without = (squared_error.sum() - squared_error) / (s - 1)
    variance_without = (spread.sum() - spread * s / (s - 1)) / (s - 2)
    return DropoutReport(
        train_mse.item(),
        eval_mse,
        (train_mse - variance).item() - eval_mse,
        variance.item(),
        _jackknife(train_without),
        _jackknife(train_without - variance_without),
        _jackknife(variance_without),
        samples,
    )


def _output(model, inputs):
    output = model(inputs)
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"model must return a Tensor, got {type(output).__name__}")
    if output.dim() == 0 or len(output) != len(inputs):
        raise ValueError(
            f"model must return one row for each of x, {len(inputs)}, got {list(output.shape)}"
        )
    return output.double()


def _jackknife(without):
    """Standard error of an estimate, from the estimates without one sample each."""
    s = len(without)
    return math.sqrt((without - without.mean()).square().sum().item() * (s - 1) / s)


def _train(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()


@contextmanager
def _undisturbed(model, x, seed):
    """Seed torch's generators; give them, the modes and the buffers back as they were."""
    tensors = (x, *model.parameters(), *model.buffers())
    devices = {t.device for t in tensors if t.device.type == "cuda"}
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=list(devices)):
            # torch.manual_seed would reach devices that are not restored
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            if not torch.equal(buffer, before):
                buffer.resize_(before.shape).copy_(before)
