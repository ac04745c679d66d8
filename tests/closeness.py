"""The one rule by which the tests compare numbers, and the sizes of the terms it needs.

A result is right when its error against the float64 reference is at most twice plain PyTorch's own
error in the same dtype, plus a few ulps of the size of the terms that were summed. There are no
other tolerances; a test that has one says beside it whose it is.

Where the terms are unknown a tensor's largest number stands for them, and the few ulps are
:data:`ULPS_OF_SCALE`; :func:`assert_modules_agree` is the rule for modules,
:func:`assert_run_as_good_as_torch` the one for training runs, and :func:`assert_same_number` the
one for two computations in float64, of which no third can be the judge.
"""

import copy

import torch

from fastmlp import reference


def assert_as_good_as_torch(ours, torchs, exact, *, terms=None, slack=2.0, floor=4, name="result"):
    """Assert that our error against float64 is within the rule, element by element.

    .. math:: |ours_i - exact_i| \\le (slack \\cdot \\max_j \\frac{|torchs_j - exact_j|}{terms_j}
        + floor \\cdot \\epsilon) \\, terms_i

    Errors are measured in units of each element's own terms, so a large element does not lend its
    error to a small one. The maximum is over the tensor, for PyTorch's error in one element may be
    zero by luck. On top come ``floor`` of the smallest subnormals, where rounding is absolute.

    Where ``exact`` is NaN or infinite, ours must be the same. Where ``exact`` is finite and
    PyTorch's result is not (overflow of the dtype), ours may overflow too or be right.

    Args:
        ours: The result under test.
        torchs: Plain PyTorch's result on the same inputs. Shape and dtype of ``ours``.
        exact: The reference on the same inputs, cast to float64. Shape of ``ours``.
        terms: Sum of the absolute terms that make up each element, at least ``|exact|``.
            Broadcastable to ``exact``; by default ``|exact|``.
        slack: Multiple of PyTorch's own error.
        floor: Ulps of the terms, ε of the dtype of ``ours``.
        name: What is compared, for the message.
    """
    assert exact.dtype == torch.float64, f"{name}: the judge must be float64, not {exact.dtype}"
    assert ours.dtype == torchs.dtype, f"{name}: {ours.dtype}, PyTorch has {torchs.dtype}"
    assert ours.shape == torchs.shape == exact.shape, (
        f"{name}: shape {list(ours.shape)}, PyTorch {list(torchs.shape)}, exact {list(exact.shape)}"
    )
    info = torch.finfo(ours.dtype)
    subnormal = info.smallest_normal * info.eps
    ours, torchs, exact = (t.detach().cpu().double() for t in (ours, torchs, exact))
    terms = exact.abs() if terms is None else terms.detach().cpu().double().expand(exact.shape)

    known = exact.isfinite()
    assert bool((terms[known] >= exact[known].abs() * (1 - 1e-9)).all()), (
        f"{name}: the terms are smaller than their sum"
    )
    torch_error = (torchs - exact).abs()
    fair = known & torchs.isfinite() & (terms > 0)
    ratios = (torch_error[fair] - floor * subnormal).clamp(min=0) / terms[fair]
    ratio = ratios.max() if ratios.numel() else 0.0
    bound = (slack * ratio + floor * info.eps) * terms + floor * subnormal
    bound = torch.where(terms > 0, bound, bound + slack * torch_error.nan_to_num())

    error = (ours - exact).abs()
    same = (ours == exact) | (ours.isnan() & exact.isnan())
    overflow = known & ~torchs.isfinite() & ~ours.isfinite()
    wrong = ~(same | overflow | (known & (error <= bound)))
    if not bool(wrong.any()):
        return
    excess = torch.where(wrong, (error / bound).nan_to_num(nan=torch.inf), -torch.inf)
    worst = tuple(i.item() for i in torch.unravel_index(excess.argmax(), exact.shape))
    ulps = error[worst] / (info.eps * terms[worst])
    raise AssertionError(
        f"{name}: {int(wrong.sum())} of {wrong.numel()} elements are not as good as PyTorch's, "
        f"the worst at {list(worst)}: ours {ours[worst]:.9g}, PyTorch {torchs[worst]:.9g}, "
        f"exact {exact[worst]:.9g}; error {error[worst]:.3g} = {ulps:.3g} ulps of the terms, "
        f"allowed {bound[worst]:.3g}"
    )


ULPS_OF_SCALE = 64
"""Ulps of a tensor's largest number that are allowed where the terms of a sum are unknown."""


def scale_of(exact):
    """The largest finite number of a tensor, in place of the terms of each."""
    known = exact.detach().abs()[exact.isfinite()].double()
    return known.max() if known.numel() else known.new_zeros(())


def assert_modules_agree(ours, plain, *inputs, gradients=False):
    """Assert that a module is as good as a plain one on the same inputs, by the tensors' scales.

    Args:
        ours: The module under test, or any function that computes what it does.
        plain: Module in plain PyTorch, whose copy in float64 is the judge.
        inputs: Tensors that both take.
        gradients: Whether to compare the gradients of Σ y² in the parameters too, in their order.
    """
    exact = copy.deepcopy(plain).double()
    results = []
    for module, tensors in ((ours, inputs), (plain, inputs), (exact, [t.double() for t in inputs])):
        y = module(*tensors)
        found = [y]
        if gradients:
            found += torch.autograd.grad(y.square().sum(), list(module.parameters()))
        results.append(found)
    for i, (our, torchs, right) in enumerate(zip(*results, strict=True)):
        terms = torch.maximum(right.detach().abs(), scale_of(right))
        assert_as_good_as_torch(
            our, torchs, right.detach(), terms=terms, floor=ULPS_OF_SCALE, name=f"result {i}"
        )


def assert_run_as_good_as_torch(ours, torchs, exact, *, dtype, slack=2.0):
    """Assert that a training run is as near to PyTorch's in float64 as it can be.

    .. math:: |ours - exact| \\le (slack \\cdot g + 64) \\, \\epsilon \\, \\max |exact|, \\quad
        g = \\max_{tensors} \\frac{\\max |torchs - exact|}{\\epsilon_{32} \\max |exact|}

    Every step takes up the roundings of those before. How they grow is the problem's own, in any
    dtype: g, the ulps that PyTorch's float32 run is off its float64 run. In float64 the judge
    rounds as ours does, and the slack is for both.

    Args:
        ours: What came of the run under test, losses and parameters: a list of tensors.
        torchs: The same of PyTorch's run in float32.
        exact: The same of PyTorch's run in float64.
        dtype: In which our run computed.
        slack: Multiple of PyTorch's own error.
    """
    runs = ours, torchs, exact = [
        [t.detach().cpu().double() for t in run] for run in (ours, torchs, exact)
    ]
    assert [t.shape for t in ours] == [t.shape for t in torchs] == [t.shape for t in exact]
    assert all(t.isfinite().all() for run in runs for t in run)
    growth = 0.0
    for short, right in zip(torchs, exact, strict=True):
        ulp = torch.finfo(torch.float32).eps * scale_of(right)
        if ulp > 0:
            growth = max(growth, float((short - right).abs().max() / ulp))
    for i, (our, right) in enumerate(zip(ours, exact, strict=True)):
        bound = (slack * growth + ULPS_OF_SCALE) * torch.finfo(dtype).eps * scale_of(right)
        error = (our - right).abs().max()
        assert error <= bound, (
            f"tensor {i} of the run: error {error:.3g}, allowed {bound:.3g} = 2 × {growth:.3g} + "
            f"{ULPS_OF_SCALE} ulps of {scale_of(right):.3g}"
        )


def assert_same_number(ours, theirs, *, terms=None, condition=1.0, ulps=ULPS_OF_SCALE, name="two"):
    """Assert that two ways to compute in float64 agree, to some ulps of what they sum.

    .. math:: |ours - theirs| \\le 64 \\, \\kappa \\, \\epsilon \\, terms

    Args:
        ours: A tensor, or a number.
        theirs: The same in another way.
        terms: Sizes of the summed terms; by default the largest number of ``theirs``.
        condition: Condition number κ of the problem, where both solve one.
        ulps: Instead of 64, where more roundings than that are known to add up.
        name: What is compared, for the message.
    """
    ours, theirs = (torch.as_tensor(t, dtype=torch.float64).detach().cpu() for t in (ours, theirs))
    assert ours.shape == theirs.shape, f"{name}: {list(ours.shape)} and {list(theirs.shape)}"
    terms = scale_of(theirs) if terms is None else torch.as_tensor(terms).detach().cpu().double()
    bound = ulps * condition * torch.finfo(torch.float64).eps * terms
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    wrong = ~(same | ((ours - theirs).abs() <= bound))
    assert not wrong.any(), (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} differ, by up to "
        f"{(ours - theirs).abs()[wrong].max():.3g}, allowed {bound.max():.3g}"
    )


def damped_condition(n_parameters, n_steps):
    """Bound of the condition number of what the first steps of Levenberg–Marquardt solve.

    The columns of J·D⁻¹ have norms of at most 1, so the eigenvalues of D⁻¹JᵀJD⁻¹ + λ are between λ
    and P + λ; λ begins at 1 and falls to a third in a step at most.
    """
    return 1 + n_parameters * 3.0**n_steps


def assert_same_losses(ours, theirs, n_parameters, n_steps):
    """Assert that two ways to take the same damped steps give the same sums of squared errors."""
    condition = damped_condition(n_parameters, n_steps)
    assert_same_number(ours, theirs, condition=condition, ulps=4, name="losses")


def residual_terms(outputs, targets):
    """What rounding of outputs of the size of both changes in their sum of squared errors."""
    size = outputs.abs() + targets.abs()
    return 2 * (outputs - targets).norm() * size.norm()


def assert_sse_of(sse, outputs, targets):
    """Assert that a number is the sum of squared errors of these outputs."""
    exact, terms = (outputs - targets).square().sum(), residual_terms(outputs, targets)
    assert_same_number(sse, exact, terms=terms, name="sum of squared errors")


def elementwise_mlp_terms(dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
    """Sizes of the summed terms of the op `elementwise_mlp`, by name; all float64.

    Value: Σ_k |w2_k| (|w1_k x| + |b1_k|) + |b2|. Gradients: the like over what is active, so where
    all units are dead the gradient must be 0.

    Returns:
        Dictionary with ``"y"``, ``"x"`` and every parameter that is not ``None``.
    """
    x_flat, dy_abs = x.reshape(-1, 1), dy.reshape(-1, 1).abs()
    w1, w2 = fc1_weight.reshape(1, -1), fc2_weight.reshape(1, -1).abs()
    b1 = torch.zeros_like(w1) if fc1_bias is None else fc1_bias.reshape(1, -1)
    size = (w1 * x_flat).abs() + b1.abs()  # [n, H]
    active = ~(w1 * x_flat + b1 <= 0)  # a NaN counts as active, as in PyTorch
    zero = size.new_zeros(())

    def over_active(values):
        return torch.where(active, values, zero).sum(0)

    terms = {
        "y": (size * w2).sum(1).reshape(x.shape),
        "x": (dy_abs * torch.where(active, w1.abs() * w2, zero).sum(1, True)).reshape(x.shape),
        "fc1_weight": (over_active(dy_abs * x_flat.abs()) * w2).reshape(-1, 1),
        "fc2_weight": over_active(dy_abs * size).reshape(1, -1),
    }
    if fc1_bias is not None:
        terms["fc1_bias"] = (over_active(dy_abs.expand_as(size)) * w2).reshape(-1)
    if fc2_bias is not None:
        terms["y"] = terms["y"] + fc2_bias.abs().sum()  # a number, for x of any dimensions
        terms["fc2_bias"] = dy_abs.sum().reshape(1)
    return terms


def additive_mlp_terms(dy, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias):
    """Sizes of the summed terms of the op `additive_mlp`: the subnet's, through ``|V|``.

    Returns:
        Dictionary with ``"y"``, ``"x"`` and every parameter that is not ``None``.
    """
    n_out, n_in = fc3_weight.shape
    dy_abs, v_abs = dy.abs().reshape(-1, n_out), fc3_weight.abs()
    subnet = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    terms = elementwise_mlp_terms((dy_abs @ v_abs).reshape(x.shape), x, *subnet)
    f = terms.pop("y")  # [*, F]
    terms["y"] = f @ v_abs.T
    terms["fc3_weight"] = dy_abs.T @ f.reshape(-1, n_in)
    if fc3_bias is not None:
        terms["y"] = terms["y"] + fc3_bias.abs()
        terms["fc3_bias"] = dy_abs.sum(0)
    return terms


def sine_sum_terms(dy, x, w, amplitude, phase, scale, reduction):
    """Sizes of the summed terms of the op `sine_sum`, with the rounding of the angle θ in them.

    A relative error of the angle changes a sine by |cos θ|·|θ|, a cosine by |sin θ|·|θ|.

    Returns:
        Dictionary with ``"y"``, ``"x"`` and every parameter that is not ``None``.
    """
    x_flat, dy_abs = x.reshape(-1, 1), dy.reshape(-1, 1).abs()
    a = torch.ones_like(w) if amplitude is None else amplitude.abs()
    if reduction == "mean":
        dy_abs = dy_abs / len(w)
    angle = scale * w * x_flat  # [n, W]
    size = angle.abs()
    if phase is not None:
        angle, size = angle + phase, size + phase.abs()
    sine = angle.sin().abs() + angle.cos().abs() * size
    cosine = angle.cos().abs() + angle.sin().abs() * size
    slope = abs(scale) * cosine
    terms = {
        "y": ((sine * a).mean(1) if reduction == "mean" else (sine * a).sum(1)).reshape(x.shape),
        "x": (dy_abs * (slope * a * w.abs()).sum(1, keepdim=True)).reshape(x.shape),
        "w": (dy_abs * x_flat.abs() * slope).sum(0) * a,
    }
    if amplitude is not None:
        terms["amplitude"] = (dy_abs * sine).sum(0)
    if phase is not None:
        terms["phase"] = (dy_abs * cosine).sum(0) * a
    return terms


def piecewise_linear_terms(dy, x, breakpoints, anchors, values, slopes):
    """Sizes of the summed terms of the op `piecewise_linear`, by name; all float64.

    Returns:
        Dictionary with ``"y"``, ``"x"``, ``"values"`` and ``"slopes"``.
    """
    segment = torch.searchsorted(breakpoints, x.contiguous())
    distance = (x.abs() + anchors[segment].abs()).unsqueeze(-1)
    v, p = (t.abs().reshape(len(anchors), -1) for t in (values, slopes))
    g = dy.abs().reshape(*x.shape, v.shape[1])
    rows, flat = segment.reshape(-1), g.reshape(-1, g.shape[-1])
    sums = torch.zeros_like(v).index_add(0, rows, flat)
    sums_x = torch.zeros_like(v).index_add(0, rows, (g * distance).reshape(flat.shape))
    return {
        "y": (v[segment] + p[segment] * distance).reshape(dy.shape),
        "x": (g * p[segment]).sum(-1),
        "values": sums.reshape(values.shape),
        "slopes": sums_x.reshape(slopes.shape),
    }


PIECEWISE_LINEAR = ("relu", "leaky_relu", "identity")


def mlp_terms(dy, x, weights, biases, activation, output_activation, masks=None):
    """Sizes of the summed terms of the op `mlp`, through all layers; ``masks`` of the hidden ones.

    A rounding of z changes σ(z) by at most about as much, and a smooth σ'(z) too: so |z|'s terms
    are added to both.

    Returns:
        Dictionary with ``"y"``, ``"x"``, and a list ``"weights"`` and ``"biases"``.
    """
    h, size = x.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]).abs()
    layers = []
    masks = [x.new_ones(())] * len(weights) if masks is None else [*masks, x.new_ones(())]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        name = activation if i < len(weights) - 1 else output_activation
        z, z_size = h @ weight.T, size @ weight.abs().T
        if bias is not None:
            z, z_size = z + bias, z_size + bias.abs()
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            h = reference.ACTIVATIONS[name](z)
            (slope,) = torch.autograd.grad(h.sum(), z)
        slope = slope.abs() + (0 if name in PIECEWISE_LINEAR else z_size)
        slope = slope * masks[i]
        layers.append((size, slope, weight.abs()))
        h = h.detach() * masks[i]
        size = torch.where(slope > 0, h.abs() + z_size * masks[i], 0.0)
    terms = {"y": size.reshape(*x.shape[:-1], size.shape[-1]), "weights": [], "biases": []}
    g = dy.reshape(-1, dy.shape[-1]).abs()
    for below, slope, weight in reversed(layers):
        g = torch.where(slope > 0, g * slope, 0.0)
        terms["weights"].insert(0, g.T @ below)
        terms["biases"].insert(0, g.sum(0))
        g = g @ weight
    terms["x"] = g.reshape(x.shape)
    return terms
