"""Checks of the tensors of one op together: shapes that fit one another, dropout and its seed."""

import torch

from fastmlp.arguments import (
    check_parameter,
    check_tensor,
    check_x,
    probabilities,
)

MAX_HIDDEN = 1024
"""Most hidden units of a scalar subnet."""
MAX_WIDTH = 128
"""Widest layer of a dense network, input and output included."""


def dropout_arguments(dropout, seed, x):
    """The seed, a new one where none is given, and the three probabilities."""
    places = probabilities(dropout)
    places = places if isinstance(places, tuple) else (places,) * 3
    return (seed_argument(seed, x) if any(places) else None), places


def seed_argument(seed, x):
    """The seed of the dropout masks, a new one where none is given."""
    if seed is None:
        # from the generator of the device: torch.manual_seed, torch.get_rng_state, CUDA graphs,
        # activation checkpointing and torch.func.vmap's randomness hold for it
        seed = torch.randint(2**63 - 1, (1,), device=x.device)
    elif not isinstance(seed, torch.Tensor) or seed.dtype != torch.int64:
        got = seed.dtype if isinstance(seed, torch.Tensor) else type(seed).__name__
        raise TypeError(f"seed must be an int64 Tensor, got {got}")
    elif seed.shape != (1,) or seed.device != x.device:
        raise ValueError(
            f"seed must have shape [1] and be on the device of x, {x.device}, "
            f"got shape {list(seed.shape)} on {seed.device}"
        )
    return seed


def check_subnet(device, fc1_weight, fc1_bias, fc2_weight, fc2_bias, nets=()):
    """``nets`` is the first dimension that all parameters have besides those of a subnet."""
    check_tensor("fc1_weight", fc1_weight, device)
    shape = tuple(fc1_weight.shape)
    if len(shape) != 2 + len(nets) or shape[-1] != 1 or shape[:-2] != nets:
        raise ValueError(
            f"fc1_weight must have shape {_named(*nets, 'hidden_features', 1)}, "
            f"the weight of Linear(1, hidden_features){' a feature' * bool(nets)}, "
            f"got {list(shape)}"
        )
    n_hidden = shape[-2]
    if not 1 <= n_hidden <= MAX_HIDDEN:
        raise ValueError(
            f"fc1_weight must have between 1 and {MAX_HIDDEN} hidden features, got {n_hidden}"
        )
    check_parameter("fc2_weight", fc2_weight, (*nets, 1, n_hidden), device)
    if fc1_bias is not None:
        check_parameter("fc1_bias", fc1_bias, (*nets, n_hidden), device)
    if fc2_bias is not None:
        check_parameter("fc2_bias", fc2_bias, (*nets, 1), device)


def check_elementwise(x, *parameters):
    check_x(x)
    check_subnet(x.device, *parameters)


def _named(*sizes):
    return f"[{', '.join(map(str, sizes))}]"


def check_additive(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, fc3_weight, fc3_bias):
    check_x(x)
    check_tensor("fc3_weight", fc3_weight, x.device)
    if len(fc3_weight.shape) != 2 or 0 in fc3_weight.shape:
        raise ValueError(
            "fc3_weight must have shape [out_features, in_features], neither of them 0, "
            f"got {list(fc3_weight.shape)}"
        )
    n_out, n_in = fc3_weight.shape
    nets = (n_in,) if isinstance(fc1_weight, torch.Tensor) and fc1_weight.dim() == 3 else ()
    check_subnet(x.device, fc1_weight, fc1_bias, fc2_weight, fc2_bias, nets)
    if x.dim() == 0 or x.shape[-1] != n_in:
        raise ValueError(f"x must have shape [*, {n_in}] to match fc3_weight, got {list(x.shape)}")
    if fc3_bias is not None:
        check_parameter("fc3_bias", fc3_bias, (n_out,), x.device)


def check_mlp(x, weights, biases):
    check_x(x)
    for name, values in (("weights", weights), ("biases", biases)):
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple, got {type(values).__name__}")
    if len(weights) == 0 or len(biases) != len(weights):
        raise ValueError(
            "weights and biases must have one entry a layer, at least one, "
            f"got {len(weights)} and {len(biases)}"
        )
    if x.dim() == 0:
        raise ValueError("x must have shape [*, in_features], got []")
    width = x.shape[-1]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        name = f"weights[{i}]"
        check_tensor(name, weight, x.device)
        if weight.dim() != 2 or weight.shape[1] != width:
            raise ValueError(
                f"{name} must have shape [out_features, {width}] to match "
                f"{f'weights[{i - 1}]' if i else 'x'}, got {list(weight.shape)}"
            )
        for size in weight.shape:
            if not 1 <= size <= MAX_WIDTH:
                raise ValueError(
                    f"{name} must have sizes between 1 and {MAX_WIDTH}, got {list(weight.shape)}"
                )
        width = weight.shape[0]
        if bias is not None:
            check_parameter(f"biases[{i}]", bias, (width,), x.device)


def check_table(x, breakpoints, anchors, values, slopes):
    check_x(x)
    check_tensor("breakpoints", breakpoints, x.device)
    if breakpoints.dim() != 1:
        raise ValueError(f"breakpoints must have shape [K], got {list(breakpoints.shape)}")
    n_segments = breakpoints.shape[0] + 1
    check_parameter("anchors", anchors, (n_segments,), x.device)
    check_tensor("values", values, x.device)
    if values.dim() not in (1, 2) or values.shape[0] != n_segments or 0 in values.shape:
        raise ValueError(
            f"values must have shape [{n_segments}] or [{n_segments}, M] for "
            f"{n_segments - 1} breakpoints, got {list(values.shape)}"
        )
    check_parameter("slopes", slopes, values.shape, x.device)
    for name, table in (("breakpoints", breakpoints), ("anchors", anchors), ("slopes", slopes)):
        if table.dtype != values.dtype:
            raise TypeError(f"{name} must have the dtype of values, {values.dtype}: {table.dtype}")


def check_sines(x, w, amplitude, phase):
    check_x(x)
    check_tensor("w", w, x.device)
    if w.dim() != 1 or w.shape[0] == 0:
        raise ValueError(f"w must have shape [width], width at least 1, got {list(w.shape)}")
    if amplitude is not None:
        check_parameter("amplitude", amplitude, (w.shape[0],), x.device)
    if phase is not None:
        check_parameter("phase", phase, (w.shape[0],), x.device)
