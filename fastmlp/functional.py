"""The functional API: checks what the user passed, then calls the fused ops.

Shapes, dtypes, devices and option names are checked here, before any kernel runs; what lies below
trusts them.
"""

import math
from collections.abc import Sequence

import torch
from torch.overrides import handle_torch_function, has_torch_function

from fastmlp import reference
from fastmlp.arguments import (
    check_choice,
    number,
    probability,
)
from fastmlp.boundary import is_beyond_checks, is_plain
from fastmlp.op_arguments import (
    check_additive,
    check_elementwise,
    check_mlp,
    check_sines,
    check_table,
    dropout_arguments,
    seed_argument,
)
from fastmlp.ops.additive_mlp import additive_mlp as _additive_mlp
from fastmlp.ops.elementwise_mlp import elementwise_mlp as _elementwise_mlp
from fastmlp.ops.mlp import mlp as _mlp
from fastmlp.ops.piecewise_linear import piecewise_linear as _piecewise_linear
from fastmlp.ops.sine_sum import sine_sum as _sine_sum
from fastmlp.reference import ACTIVATIONS, REDUCTIONS

__all__ = ["additive_mlp", "elementwise_mlp", "mlp", "piecewise_linear", "sine_sum"]

_NO_DROPOUT = (0.0, 0.0, 0.0)
_UNSEEN = False


def _listed(x, weights, biases):
    """The tensors of a dense network one after the other, whatever came in their place."""
    try:
        return x, *weights, *biases
    except TypeError:
        return (x,)


def _in_turns(weights, biases):
    """Weights and biases in turn, as the op takes them; nothing unless they are lists of a size."""
    lists = isinstance(weights, (list, tuple)) and isinstance(biases, (list, tuple))
    if not lists or len(weights) != len(biases):
        return []
    turns = [*weights, *biases]
    turns[::2], turns[1::2] = weights, biases
    return turns


def _checked(op, tensors, check, *arguments):
    """What an op is to be told of tensors the like of which it has not seen, after their checks.

    :data:`_UNSEEN` where nobody can check them, and plain PyTorch takes them.
    """
    if is_beyond_checks(tensors[0]):
        return _UNSEEN
    check(*arguments)
    return op.learn(tensors)


def _subnets(op, check, plain, tensors, activation, dropout, seed):
    """A call of one of the two ops of subnets, whatever the dimensions ahead of its rows."""
    x = tensors[0]
    if op.plans and _is_off(dropout):
        y = op.plans.call((*tensors, None), (activation, *_NO_DROPOUT))
        if y is not None:
            return as_autocast(y)
    note = op.known(tensors)
    if note is None and (note := _checked(op, tensors, check, *tensors)) is _UNSEEN:
        return plain(*tensors, activation, dropout, seed)
    check_choice("activation", activation, ACTIVATIONS)
    if _is_off(dropout):
        seed, places = None, _NO_DROPOUT
    else:
        seed, places = dropout_arguments(dropout, seed, x)
        note = _with_seed(note, seed)
    return _by_rows(op, note, (*tensors, seed), (activation, *places))


def _by_rows(op, note, tensors, options):
    """An op of numbers, or of rows, whatever the dimensions ahead of them."""
    x = tensors[0]
    if op.pointwise or x.dim() == 2:
        return as_autocast(op(note, tensors, options))
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = as_autocast(op(note, (rows, *tensors[1:]), options))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _is_off(dropout):
    """Whether dropout is plainly 0, in which case a plan may serve the call unchecked."""
    return (type(dropout) is float and dropout == 0.0) or (type(dropout) is int and dropout == 0)


def _with_seed(note, seed):
    """What is known of the tensors, if it holds with a seed of dropout masks beside them."""
    if seed is None or torch.compiler.is_dynamo_compiling():
        return note
    return note if is_plain((seed,)) else None


def as_autocast(y):
    """The output in the dtype that autocast asks of a linear layer; float64 is left alone."""
    if not torch._C._is_any_autocast_enabled():
        return y
    device = y.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return y
    return y if y.dtype is torch.float64 else y.to(torch.get_autocast_dtype(device))


def elementwise_mlp(
    x: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor | None,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor | None,
    activation: str = "relu",
    dropout: float | Sequence[float] = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply one scalar subnet 1 → H → 1 to every element, in one kernel.

    .. math:: y = \\sum_k w^{(2)}_k \\, \\sigma(w^{(1)}_k x + b^{(1)}_k) + b^{(2)}

    Args:
        x: Input. Any shape, float32, float64, bfloat16 or float16.
        fc1_weight: Shape ``[H, 1]``, 1 ≤ H ≤ 1024; dtypes as for ``x``; the device of ``x``.
        fc1_bias: Shape ``[H]``, or ``None``.
        fc2_weight: Shape ``[1, H]``.
        fc2_bias: Shape ``[1]``, or ``None``.
        activation: The σ of the formula, a key of :data:`fastmlp.reference.ACTIVATIONS`.
        dropout: Probability of dropping an input, a hidden unit and an output of the subnet, all
            independently; or a tuple ``(p_input, p_hidden, p_output)``. What is kept is multiplied
            by 1/(1 − p), as by ``torch.nn.Dropout``.
        seed: Key of the masks of :func:`fastmlp.reference.dropout_masks`, int64, shape ``[1]``, on
            the device of ``x``. ``None`` draws one from the default generator of that device.

    Returns:
        Output. Shape of ``x``, the promoted dtype of all arguments; under autocast its dtype, as
        of ``torch.nn.Linear``, while the kernel reads the arguments as they are.

    Raises:
        TypeError: An argument is no tensor, or not of a dtype above; a probability is no number.
        ValueError: A wrong shape, a second device, an unknown activation, a probability outside
            [0, 1].

    Derivatives: any order; the first is a kernel, higher ones differentiate the reference.
    Precision: sums in float32 (float64 for float64); the error is at most a small multiple of
    ε·Σ|w2|(|w1·x| + |b1|). At a kink the derivative is that of the inactive side, as in PyTorch.
    Probabilities are rounded to multiples of 2⁻¹⁶. The masks are never in memory: backward makes
    them again.

    Example:
        >>> import torch
        >>> w, b = torch.ones(2, 1), torch.tensor([0.0, -1.0])
        >>> elementwise_mlp(torch.tensor([-1.0, 2.0]), w, b, torch.ones(1, 2), None)
        tensor([0., 3.])
    """
    tensors = x, fc1_weight, fc1_bias, fc2_weight, fc2_bias
    if has_torch_function(tensors):
        return handle_torch_function(elementwise_mlp, tensors, *tensors, activation, dropout, seed)
    plain = reference.elementwise_mlp
    options = activation, dropout, seed
    return _subnets(_elementwise_mlp, check_elementwise, plain, tensors, *options)


def additive_mlp(
    x: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor | None,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor | None,
    fc3_weight: torch.Tensor,
    fc3_bias: torch.Tensor | None,
    activation: str = "relu",
    dropout: float | Sequence[float] = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a scalar subnet to every feature, then one linear layer, in one kernel.

    .. math:: y_m = \\sum_j V_{mj} f_j(x_j) + c_m

    One subnet for all features, or one for each: then the subnets' parameters are stacked along a
    first dimension of size F.

    Args:
        x: Input. Shape ``[*, F]``, float32, float64, bfloat16 or float16.
        fc1_weight: Shape ``[H, 1]`` or ``[F, H, 1]``, 1 ≤ H ≤ 1024; dtypes as for ``x``; the
            device of ``x``.
        fc1_bias: Shape ``[H]`` or ``[F, H]``, or ``None``.
        fc2_weight: Shape ``[1, H]`` or ``[F, 1, H]``.
        fc2_bias: Shape ``[1]`` or ``[F, 1]``, or ``None``.
        fc3_weight: The read-out ``V``. Shape ``[M, F]``.
        fc3_bias: The read-out's bias ``c``. Shape ``[M]``, or ``None``.
        activation: The subnet's activation, a key of :data:`fastmlp.reference.ACTIVATIONS`.
        dropout: Probability of dropping, as in :func:`elementwise_mlp`.
        seed: Key of the dropout masks, as in :func:`elementwise_mlp`.

    Returns:
        Output. Shape ``[*, M]``, dtype as of :func:`elementwise_mlp`.

    Raises:
        TypeError: An argument is no tensor, or not of a dtype above; a probability is no number.
        ValueError: A wrong shape, a second device, an unknown activation, a probability outside
            [0, 1].

    Derivatives: any order; the first is a kernel, higher ones differentiate the reference.
    Precision: as :func:`elementwise_mlp`, with the terms of all features summed.
    Source: the shape of Deep Sets, Zaheer et al. 2017, arXiv:1703.06114, section 2.2; a subnet a
    feature is the neural additive model of Agarwal et al. 2021, arXiv:2004.13912.

    Example:
        >>> import torch
        >>> w = torch.tensor([[1.0], [-1.0]])
        >>> x = torch.tensor([[1.0, -2.0, 3.0]])
        >>> additive_mlp(x, w, None, torch.ones(1, 2), None, torch.ones(1, 3), None)
        tensor([[6.]])
    """
    tensors = x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias
    if has_torch_function(tensors):
        return handle_torch_function(additive_mlp, tensors, *tensors, activation, dropout, seed)
    options = activation, dropout, seed
    return _subnets(_additive_mlp, check_additive, reference.additive_mlp, tensors, *options)


def mlp(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None] | None = None,
    activation: str = "relu",
    output_activation: str = "identity",
    dropout: float = 0.0,
    seed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a dense network, any depth, in one kernel.

    .. math:: h_l = \\sigma_l(W_l h_{l-1} + b_l), \\quad h_0 = x, \\quad y = h_L

    Args:
        x: Input. Shape ``[*, n_0]``, float32, float64, bfloat16 or float16.
        weights: The ``W_l``, shape ``[n_l, n_{l-1}]``, a sequence; widths 1 … 128; dtypes as for
            ``x``; the device of ``x``.
        biases: The ``b_l``, shape ``[n_l]`` or ``None``, a sequence as long; ``None`` for no bias
            at all.
        activation: σ of all layers but the last, a key of :data:`fastmlp.reference.ACTIVATIONS`.
        output_activation: σ of the last layer, likewise.
        dropout: Probability of dropping an output of a hidden layer; what is kept is multiplied by
            1/(1 − p).
        seed: Key of the masks of :func:`fastmlp.reference.layer_dropout_masks`, int64, shape
            ``[1]``, on the device of ``x``; ``None`` draws one from torch's generator of that
            device.

    Returns:
        Output. Shape ``[*, n_L]``, the promoted dtype of all arguments.

    Raises:
        TypeError: An argument is no tensor, or not of a dtype above; no sequence; no number.
        ValueError: A wrong shape or number, a second device, an unknown activation, a ``dropout``
            outside [0, 1].

    Derivatives: any order; the first is a kernel, higher ones differentiate the reference.
    Precision: products and sums in float32 that is float32 (float64 for float64), on every device.
    Source: one kernel for a whole small network, Müller et al. 2021, arXiv:2106.12372, section 4.

    Example:
        >>> import torch
        >>> first, second = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.ones(1, 2)
        >>> mlp(torch.tensor([[1.0, 3.0], [5.0, 1.0]]), [first, second])
        tensor([[2.],
                [4.]])
    """
    if biases is None and isinstance(weights, (list, tuple)):
        biases = [None] * len(weights)
    options = activation, output_activation, dropout, seed
    parameters = _in_turns(weights, biases)
    tensors = (x, *parameters) if parameters else _listed(x, weights, biases)
    if has_torch_function(tensors):
        return handle_torch_function(mlp, tensors, x, weights, biases, *options)
    if _mlp.plans and _is_off(dropout):
        y = _mlp.plans.call((x, *parameters, None), (activation, output_activation, 0.0))
        if y is not None:
            return as_autocast(y)
    note = _mlp.known(tensors)
    if note is None and (note := _checked(_mlp, tensors, check_mlp, x, weights, biases)) is _UNSEEN:
        return reference.mlp(x, weights, biases, *options)
    check_choice("activation", activation, ACTIVATIONS)
    check_choice("output_activation", output_activation, ACTIVATIONS)
    dropout = probability("dropout", dropout)
    if dropout > 0:
        seed = seed_argument(seed, x)
        note = _with_seed(note, seed)
    else:
        seed = None
    tensors = x, *parameters, seed
    return _by_rows(_mlp, note, tensors, (activation, output_activation, dropout))


def piecewise_linear(
    x: torch.Tensor,
    breakpoints: torch.Tensor,
    anchors: torch.Tensor,
    values: torch.Tensor,
    slopes: torch.Tensor,
) -> torch.Tensor:
    """Evaluate a table of lines: find the segment of every element, then one FMA.

    .. math:: y = v_s + p_s (x - a_s), \\quad t_{s-1} < x \\le t_s

    The cost hardly grows with the number of segments. Tables of nets come from
    :mod:`fastmlp.piecewise`.

    Args:
        x: Input. Any shape, float32, float64, bfloat16 or float16.
        breakpoints: The ``t``, in increasing order, which is not checked. Shape ``[K]``, K ≥ 0;
            dtypes as for ``x``, one for the whole table; the device of ``x``. A constant: no
            gradient flows to it.
        anchors: The ``a``, any place from which a segment's line is measured. Shape ``[K + 1]``. A
            constant too.
        values: The ``v``, of the lines at their anchors. Shape ``[K + 1]``, or ``[K + 1, M]`` for
            M functions of the same ``x``.
        slopes: The ``p``. Shape of ``values``.

    Returns:
        Output. Shape of ``x``, or ``[*, M]``; the promoted dtype of all arguments.

    Raises:
        TypeError: An argument is no tensor, or not of a dtype above.
        ValueError: A wrong shape, a second device.

    Derivatives: any order; dx = Σ_m dy_m·p_sm, and the gradients of values and slopes are the sums
    Σ dy and Σ dy·(x − a) of each segment. At a breakpoint the derivative is the left segment's.

    Example:
        >>> import torch
        >>> t, a, v, p = torch.zeros(1), torch.zeros(2), torch.zeros(2), torch.tensor([0.0, 1.0])
        >>> piecewise_linear(torch.tensor([-3.0, 2.0]), t, a, v, p)
        tensor([0., 2.])
    """
    tensors = x, breakpoints, anchors, values, slopes
    if has_torch_function(tensors):
        return handle_torch_function(piecewise_linear, tensors, *tensors)
    op = _piecewise_linear
    note = op.known(tensors)
    if note is None and (note := _checked(op, tensors, check_table, *tensors)) is _UNSEEN:
        return reference.piecewise_linear(*tensors)
    return op(note, (x, values, slopes, breakpoints.detach(), anchors.detach()), ())


def sine_sum(
    x: torch.Tensor,
    w: torch.Tensor,
    amplitude: torch.Tensor | None = None,
    phase: torch.Tensor | None = None,
    scale: float = math.pi,
    reduction: str = "mean",
) -> torch.Tensor:
    """Sum or average sines of every element, in one kernel.

    .. math:: y = \\operatorname{mean}_i \\, a_i \\sin(s\\, w_i x + \\varphi_i)

    Args:
        x: Input. Any shape, float32, float64, bfloat16 or float16.
        w: Frequencies, in units of ``scale`` radians per unit of ``x``. Shape ``[W]``, W ≥ 1;
            dtypes as for ``x``; the device of ``x``.
        amplitude: Shape ``[W]``, or ``None`` for ones.
        phase: Radians. Shape ``[W]``, or ``None`` for zeros.
        scale: The factor ``s``, a finite Python number.
        reduction: ``"mean"`` or ``"sum"``.

    Returns:
        Output. Shape of ``x``, the promoted dtype of all arguments.

    Raises:
        TypeError: An argument is no tensor, or not of a dtype above; ``scale`` is no number.
        ValueError: A wrong shape, a second device, an unknown reduction, ``scale`` not finite.

    Derivatives: any order; the first is a kernel, higher ones differentiate the reference.
    Precision: the angle is reduced exactly, in turns, so large arguments keep their accuracy.
    Source: range reduction in turns, Muller et al., Handbook of Floating-Point Arithmetic, 2nd
    edition, section 10.2.

    Example:
        >>> import torch
        >>> sine_sum(torch.tensor([0.0, 0.5]), torch.tensor([1.0]))
        tensor([0., 1.])
    """
    tensors = x, w, amplitude, phase
    if has_torch_function(tensors):
        return handle_torch_function(sine_sum, tensors, *tensors, scale, reduction)
    if _sine_sum.plans and type(scale) is float and reduction in REDUCTIONS:
        y = _sine_sum.plans.call(tensors, (scale, reduction == "mean"))
        if y is not None:
            return y
    note = _sine_sum.known(tensors)
    if note is None and (note := _checked(_sine_sum, tensors, check_sines, *tensors)) is _UNSEEN:
        return reference.sine_sum(*tensors, scale, reduction)
    scale = number("scale", scale)
    check_choice("reduction", reduction, REDUCTIONS)
    return _sine_sum(note, tensors, (scale, reduction == "mean"))
