"""Signatures of modules: what tells common ones apart, in a few microseconds.

Modules of one signature are of one structure, so that of a list of thousands only one a kind is
looked at closely, by :func:`fastmlp.training.structures.structure_of`. What is unusual in any way
has no signature.
"""

from operator import itemgetter

import numpy as np
import torch
from torch import nn

from fastmlp import boundary, reference
from fastmlp.models import NAMESAKES

_SETTINGS = {
    reference.SineSum: itemgetter("width", "scale", "reduction"),
    reference.ElementwiseMLP: itemgetter("hidden_features", "activation", "dropout"),
    reference.AdditiveMLP: itemgetter("shared", "activation", "dropout"),
    reference.MLP: itemgetter("activation", "output_activation", "dropout"),
}
_SETTINGS |= {ours: _SETTINGS[plain] for ours, plain in NAMESAKES.items()}
"""What forward reads of a module besides its parameters."""

_LAYERS = nn.Linear, reference.FeaturewiseLinear


def _is_as_made(own):
    """Whether nothing is called, of a module with these attributes, but its class's forward."""
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_call_impl" in own
    )


def signature_of(module):
    """What tells a module's structure, hashable, and its parameters in order; or ``None``."""
    own = module.__dict__
    settings = _SETTINGS.get(module.__class__)
    if settings is None or not _is_as_made(own):
        return None
    names, children = own["_parameters"], own["_modules"]
    parameters, widths = [p for p in names.values() if p is not None], ()
    for layer in children.values():
        of_layer = layer.__dict__
        if layer.__class__ not in _LAYERS or of_layer["_modules"] or not _is_as_made(of_layer):
            return None
        named = of_layer["_parameters"]
        if len(named) != 2:
            return None
        parameters += [p for p in named.values() if p is not None]
        widths += *named, of_layer["in_features"], of_layer["out_features"]
    # hooks, where there are any, have no hash
    kinds = [
        (p.shape, p.requires_grad, p._backward_hooks, p._post_accumulate_grad_hooks)
        for p in parameters
    ]
    try:
        key = (module.__class__, *settings(own), *names, *children, *widths, *kinds)
        hash(key)
    except (KeyError, TypeError):
        return None
    return key, parameters


def are_plainly_apart(parameters, places, sizes):
    """Whether parameters are of one dtype and device, each dense in memory of its own.

    Args:
        parameters: A list.
        places: Their addresses, int64.
        sizes: Their bytes, int64.
    """
    first = parameters[0]
    keys, dtype, device = torch._C._dispatch_keys(first), first.dtype, first.device
    if dtype not in (torch.float32, torch.float64) or boundary.oddity(first) is not None:
        return False
    keys_of = torch._C._dispatch_keys
    if not all(
        p.__class__ is nn.Parameter
        and p.dtype is dtype
        and keys_of(p) == keys
        and p.is_contiguous()
        for p in parameters
    ):
        return False
    if device.type != "cpu" and any(p.device != device for p in parameters):
        return False
    order = np.argsort(places, kind="stable")
    ends = places[order] + sizes[order]
    return bool((places > 0).all() and (ends[:-1] <= places[order][1:]).all())
