"""Levenberg–Marquardt for a list of models, each with its own damping and its own end."""

import copy
import math
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from fastmlp import backends
from fastmlp.arguments import flag, in_memory, integer, real
from fastmlp.kernels.lm import ACCEPT, MAX_WIDTH, SOLVERS, Choices, Limits
from fastmlp.kernels.runs import Rows
from fastmlp.training import batched, compiled, generic, hinge_starts
from fastmlp.training.outcomes import Outcome  # noqa: F401  results pickled before name it here
from fastmlp.training.structures import (
    below_zero,
    describe,
    has_biases,
    hidden_units,
    is_hinge_net,
    n_readout,
    widest_layer,
)

MAX_PARAMETERS = 8192
"""JᵀJ or R of so many takes half a gibibyte."""


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Settings: damped Gauss–Newton steps on the full batch, for the sum of squares.

    A step solves :math:`\\min_p \\|Jp + r\\|^2 + \\lambda \\|Dp\\|^2` and is taken if the loss
    falls; λ follows the ratio of the actual to the predicted fall. D is the running maximum of the
    norms of J's columns. All in float64, whatever the models' dtype. Or, with ``accept="always"``,
    every step is taken, of a fixed length and with a fixed λ, which may be 0.

    The rows of J of ElementwiseMLP, AdditiveMLP with a shared subnet, SineSum, MLP and a Sequential
    like it come from kernels: Numba on the CPU, where those of a univariate net with one hidden
    layer of (leaky) ReLU are replaced by sums over its segments, and Triton on a CUDA device, where
    the factors and the runs' state are too. On the CPU models of up to 64 parameters and 4096
    numbers in a Jacobian (hinge nets: 160 rows) are eight to a thread, one in each lane of vectors,
    as long as their steps are by Cholesky. By QR, with ``accept="always"``, with variable
    projection or a leaky ReLU of another slope than 0.01, they are taken one by one. A net with a
    layer wider than 128 is trained by the kernels of the CPU wherever it is. Of any other module J
    is :mod:`torch.func`'s, on the module's device, one run after the other, and its factors are
    solved on the CPU.

    Args:
        solver: ``"qr"``: Householder QR of the augmented Jacobian, memory O(P²). ``"cholesky"``:
            of JᵀJ, two to four times faster, with the condition number squared. ``"auto"``:
            Cholesky until a pivot is small or it says that the run is over, from then on QR.
        max_attempts: Damping trials a step, at least 1.
        ftol: Stop when the actual and the predicted relative fall of the loss are below.
        xtol: Stop when a step is below this fraction of the parameters, both scaled by D.
        gtol: Stop when the cosine between the residual and every column of J is below.
        damping: λ of the first trial, positive; with ``accept="always"`` λ of all, and 0 takes the
            undamped step of least norm, as ``torch.linalg.lstsq`` gives it (by QR with column
            pivoting, and on a CUDA device by SVD).
        step: Fraction of the step that is made, in (0, 1].
        accept: ``"descent"``: take a step if the loss falls. ``"always"``: take every step and
            change nothing between them; the run goes through all its epochs, unless no error is
            left or numbers are no longer finite.
        scale_floor: Least entry of D, as a fraction of its largest. 0 is Marquardt's scaling, which
            does not ask in what units a parameter is measured; the default keeps saturated units
            from being thrown far away: of 200 random starts on XOR, sigmoid 2-5-1, 198 then reach
            SSE < 1e-10 instead of 173.
        restarts: Draw the weights anew so many times for every model, train all, keep the best.
            0 trains from the weights that are there. Drawn as the modules draw them, by
            ``reset_parameters``; but a net 1 → H → 1 with ReLU or leaky ReLU and biases takes them
            from the data: knots at random samples, denser where the targets bend, and the read-out
            that fits best (see ``training/hinge_starts.py``).
        max_time: Seconds; a run that is not over by then stops between steps. ``None``: no limit.
        variable_projection: Solve for the last, linear layer in every trial, damped as the step is:
            no trial is worse than that of the plain step, at up to twice its price. The most is
            gained where the last layer is ill-conditioned: 240 nets of 10 to 20 tanh or sigmoid
            units, fitted to a sine, exp, |x| and a bell on [-1, 1], reach in 300 steps 9e-7 of the
            SSE that they reach without it (median; the worst 0.7).
            For ElementwiseMLP, AdditiveMLP, MLP and a Sequential like it, with a linear output.

    Raises:
        TypeError: A number is of another type.
        ValueError: A number out of its range, an unknown solver.

    Source: Moré 1978, Lecture Notes in Mathematics 630, for scaling and the three tests; Nielsen
    1999, IMM-REP-1999-05, for the damping; Golub and Pereyra 1973, SIAM J. Numer. Anal. 10, with
    the Jacobian of Kaufman 1975, BIT 15, for variable projection, here with a damped projection.

    Example:
        >>> import fastmlp
        >>> fastmlp.LevenbergMarquardt(restarts=20).solver
        'auto'
    """

    solver: str = "auto"
    max_attempts: int = 20
    ftol: float = 1e-12
    xtol: float = 1e-12
    gtol: float = 0.0
    damping: float = 1.0
    step: float = 1.0
    accept: str = "descent"
    scale_floor: float = 0.1
    restarts: int = 0
    max_time: float | None = None
    variable_projection: bool = False

    def __post_init__(self):
        for name, known in (("solver", SOLVERS), ("accept", ACCEPT)):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a str, got {value!r}")
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        plain = {
            "max_attempts": integer("max_attempts", self.max_attempts, 1),
            "restarts": integer("restarts", self.restarts, 0),
            "variable_projection": flag("variable_projection", self.variable_projection),
        }
        positive = ("step", "max_time", *(("damping",) if self.accept == "descent" else ()))
        for name in ("ftol", "xtol", "gtol", "damping", "step", "scale_floor", "max_time"):
            value = getattr(self, name)
            if name == "max_time" and value is None:
                continue
            plain[name] = real(name, value)
            if not 0 <= plain[name] < math.inf or (value == 0 and name in positive):
                kind = "positive" if name in positive else "not negative"
                raise ValueError(f"{name} must be finite and {kind}, got {value}")
        if plain["step"] > 1:
            raise ValueError(f"step must be at most 1, got {self.step}")
        if plain["damping"] == 0 and (self.solver == "cholesky" or plain["variable_projection"]):
            raise ValueError(
                "damping must be positive with solver='cholesky' or variable_projection, got 0"
            )
        if plain["scale_floor"] > 1:
            raise ValueError(f"scale_floor must be at most 1, got {self.scale_floor}")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def limits(self):
        """The numbers that the kernels take."""
        limits = Limits(*(getattr(self, name) for name in Limits._fields))
        return torch.tensor(limits, dtype=torch.float64, device="cpu")

    def choices(self, max_steps, n_readout):
        """The integers that the kernels take."""
        solver, accept = SOLVERS.index(self.first_solver), ACCEPT.index(self.accept)
        choices = Choices(solver, max_steps, self.max_attempts, n_readout, accept)
        return torch.tensor(choices, device="cpu")

    @property
    def first_solver(self):
        """The solver; of undamped steps QR, which knows the rank."""
        return "qr" if self.damping == 0 else self.solver


def train(models, x, y, settings, *, max_steps, sample_weight=None, seed=0, progress=None):
    """Train modules of one structure on the same data: see :func:`train_on`.

    Args:
        models: List of modules.
        x: Inputs, shared by all.
        y: Targets, of the shape of a model's output.
        settings: A :class:`LevenbergMarquardt`.
        max_steps: Accepted steps at most.
        sample_weight: Weights of the rows' squared errors, ``[rows]``, or ``None``.
        seed: Of the restarts' random weights.
        progress: Function, or ``None``.

    Returns:
        An :class:`Outcome`.

    Raises:
        ValueError: As :func:`train_on`.
    """
    n, zero = np.array([len(x)]), np.zeros(1, np.int64)
    rows = Rows(x, y, sample_weight, zero, n, zero)
    return train_on(models, rows, settings, max_steps=max_steps, seed=seed, progress=progress)


def train_on(models, rows, settings, *, max_steps, seed=0, progress=None):
    """Train modules of one structure in place, all at once, each to its own end.

    Args:
        models: List of modules that compute the same function of (parameters, x).
        rows: Their :class:`fastmlp.training.rows.Rows`, in any dtype.
        settings: A :class:`LevenbergMarquardt`.
        max_steps: Accepted steps at most.
        seed: Of the restarts' random weights.
        progress: Function called now and then with (runs that are over, all runs), or ``None``.

    Returns:
        An :class:`Outcome`.

    Raises:
        ValueError: No models, a model without parameters, models of different structure, shapes
            that do not fit, NaN or infinity in the data, too many parameters.
    """
    started = time.perf_counter()
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one module, got an empty list")
    max_steps = integer("max_steps", max_steps, 1)
    for model in models:
        generic.check_rows_alone(model)
    descriptions = [describe(model) for model in models]
    shapes = [[(p.shape, p.requires_grad) for p in model.parameters()] for model in models]
    different = any(d != descriptions[0] for d in descriptions) or any(
        s != shapes[0] for s in shapes
    )
    if different or any(type(m) is not type(models[0]) for m in models):
        raise ValueError("models must have the same structure, got different ones")
    trained = [p for p in models[0].parameters() if p.requires_grad]
    check_solvable(models[0], descriptions[0], rows, settings)
    rows = finite_rows(rows)
    starts = _starts(models, descriptions[0], settings.restarts, seed, rows)
    outcome = work_of(descriptions[0], trained[0].device, rows).run(
        models,
        descriptions[0],
        starts,
        rows,
        settings,
        max_steps,
        None if settings.max_time is None else started + settings.max_time,
        progress,
    )
    per_model = max(settings.restarts, 1)
    final = outcome.final.nan_to_num(nan=math.inf).view(len(models), per_model)
    best = final.argmin(1).tolist()
    outcome.best = [m * per_model + b for m, b in enumerate(best)]
    for model, index in zip(models, outcome.best, strict=True):
        load(model, outcome.parameters[index])
    outcome.seconds = time.perf_counter() - started
    return outcome


def check_solvable(model, description, rows, settings):
    """Refuse what the solver cannot do; warn where there are more parameters than residuals."""
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if n_parameters == 0:
        raise ValueError("models[0] has no parameters to train")
    check_size(n_parameters)
    if settings.variable_projection and not (description and n_readout(description)):
        raise ValueError(
            "variable_projection must be False for a model whose outputs the solver does not know "
            "to be linear in its last layer: it knows ElementwiseMLP, AdditiveMLP with a shared "
            "subnet, and MLP or a Sequential of linear layers and activations without an output "
            f"activation, all parameters trained, got {type(model).__name__}"
        )
    n_residuals = math.prod(rows.y.shape[1:]) * int(rows.count.min())
    if n_residuals < n_parameters:
        warnings.warn(
            f"{n_parameters} parameters for {n_residuals} residuals: of all solutions of a step "
            "the one of least norm is taken",
            stacklevel=5,
        )


def work_of(description, device, rows):
    """The module that trains the models of a description on a device."""
    if description is None:
        return generic
    on_device = backends.choose(device.type) == "triton" and widest_layer(description) <= MAX_WIDTH
    return batched if on_device and rows.are_shared else compiled


def check_size(n_parameters):
    """Refuse what cannot be factored."""
    if n_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"a model with {n_parameters} parameters needs matrices of "
            f"{n_parameters**2 / 2**27:.1f} GiB; Levenberg–Marquardt takes at most "
            f"{MAX_PARAMETERS} parameters"
        )


def finite(name, tensor):
    """The data as plain memory; refuse what no least-squares problem has."""
    tensor = in_memory(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    # isfinite would take twice the memory of the data, and ten times as long
    bounds = tensor.aminmax() if tensor.numel() > 0 else ()
    if not all(bound.isfinite() for bound in bounds):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return tensor


def finite_rows(rows):
    """Rows as plain memory; refuse what no least-squares problem has."""
    weight = rows.weight
    if weight is not None:
        weight = finite("sample_weight", weight)
        if bool((weight < 0).any()):
            raise ValueError("sample_weight must not be negative")
    return rows._replace(x=finite("x", rows.x), y=finite("y", rows.y), weight=weight)


def flat(model):
    """The trained parameters in one float64 vector on the CPU."""
    parts = [
        in_memory(name, p).double().cpu().reshape(-1)
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    return torch.cat(parts)


def load(model, theta):
    """Put a flat vector into the trained parameters, in their dtype."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p, part in zip(trained, theta.split([p.numel() for p in trained]), strict=True):
        # outside of inference mode, what was made inside cannot be written to
        with torch.inference_mode(p.is_inference()), torch.no_grad():
            p.copy_(part.view_as(p))


def hinge_starts_of(description, n_models, restarts, seed, rows):
    """First parameters of hinge nets, drawn from the data, ``[models * restarts, P]``."""
    generator, starts = torch.Generator().manual_seed(seed), []
    n_sets = 1 if rows.are_shared else n_models
    n_units, slope = hidden_units(description), below_zero(description)
    for i in range(n_sets):
        data = compiled.prefix_sums(*compiled.prepare(description, *rows.of(i)))
        n_starts = n_models // n_sets * restarts
        starts.append(hinge_starts.draw(n_units, slope, *data, n_starts, generator))
    return torch.cat(starts)


def _starts(models, description, restarts, seed, rows):
    """The first parameters of every run, ``[runs, P]``."""
    if restarts == 0:
        return torch.stack([flat(model) for model in models])
    if description is not None and is_hinge_net(description) and has_biases(description):
        return hinge_starts_of(description, len(models), restarts, seed, rows)
    starts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for model in models:
            scratch = copy.deepcopy(model).cpu()
            parts = [m for m in scratch.modules() if hasattr(m, "reset_parameters")]
            drawn = {p for part in parts for p in part.parameters()}
            if any(p not in drawn for p in scratch.parameters() if p.requires_grad):
                raise ValueError(
                    "restarts needs modules that can draw their weights: one with parameters of "
                    "its own has no method reset_parameters"
                )
            for _ in range(restarts):
                for part in parts:
                    part.reset_parameters()
                starts.append(flat(scratch))
    return torch.stack(starts)
