"""Signatures of modules: what tells common ones apart, in a few microseconds.

Modules of one signature, whose parameters are alike too, are of one structure, so that of a list of
thousands only one a kind is looked at closely, by
:func:`fastmlp.training.structures.structure_of`. What is unusual in any way has no signature.
"""

from itertools import chain
from operator import attrgetter, itemgetter

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad

from fastmlp import boundary, reference
from fastmlp.models import READ

_PARTS = itemgetter(
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_modules",
    "_parameters",
)  # fmt: skip
_LAYERS = {nn.Linear, reference.FeaturewiseLinear}
_HOOKS, _LATE_HOOKS = map(attrgetter, ("_backward_hooks", "_post_accumulate_grad_hooks"))


def signature_of(module):
    """A list that tells a module's structure, and its parameters in order, which tell the rest.

    ``None`` of what is called otherwise than as its class says, and of nested tensors.
    """
    own, settings = module.__dict__, READ.get(module.__class__)
    if settings is None or "forward" in own or "_call_impl" in own:
        return None
    try:
        after, before, back, pre_back, children, named = _PARTS(own)
        if after or before or back or pre_back:
            return None
        key, parameters, is_nested = [module.__class__, settings(own), *children], [], False
        for name, p in named.items():
            if p is not None:
                key.append(name)
                parameters.append(p)
                is_nested |= p.is_nested
        for layer in children.values():
            own = layer.__dict__
            after, before, back, pre_back, inner, named = _PARTS(own)
            if after or before or back or pre_back or inner or layer.__class__ not in _LAYERS:
                return None
            if "forward" in own or "_call_impl" in own or len(named) != 2:
                return None
            key.append(own["in_features"])
            key.append(own["out_features"])
            for name, p in named.items():
                if p is not None:
                    key.append(name)
                    parameters.append(p)
                    is_nested |= p.is_nested
    except KeyError:
        return None
    # the check of a pattern would end the process
    return None if is_nested else (key, parameters)


class Patterns:
    """Modules that were looked at closely, by which others are known at a glance.

    A glance is one call of what guards PyTorch's compiled programs: it compares types, dispatch
    keys, dtypes, devices, ``requires_grad``, sizes and strides of the parameters.
    """

    def __init__(self):
        self._known = {}  # lists of (check, kind) by signature
        self._last = None, None, None
        # PyTorch's check does not see dual tensors
        self._is_blind = forward_ad._current_level >= 0

    def find(self, key, parameters):
        """The kind of the modules with this signature and such parameters, or ``None``."""
        last, check, kind = self._last
        if key == last and check(*parameters):
            return kind
        try:
            known = self._known.get(tuple(key), ())
        except TypeError:  # a setting that has no hash
            return None
        for check, kind in known:
            if check(*parameters):
                self._last = key, check, kind
                return kind
        return None

    def keep(self, key, parameters, kind):
        """Remember a module whose parameters are plain."""
        try:
            known = self._known.setdefault(tuple(key), [])
        except TypeError:
            return
        # the check takes no tensor twice
        distinct = len({*map(id, parameters)}) == len(parameters)
        if self._is_blind or not distinct or len(known) == boundary.MAX_PATTERNS:
            return
        layout = [list(p.shape) for p in parameters], [list(p.stride()) for p in parameters]
        guards = boundary.guards_of(parameters, *layout)
        if guards is not None:
            known.append((guards.check, kind))


def is_plain(parameter):
    """Whether a kernel may read and write the numbers of a parameter at its address."""
    return (
        parameter.__class__ is nn.Parameter
        and parameter.dtype in (torch.float32, torch.float64)
        and boundary.oddity(parameter) is None
        and parameter.is_contiguous()
    )


def call_hooks(parameters):
    """Whether something is called with the gradient of one of the parameters."""
    hooks = chain(map(_HOOKS, parameters), map(_LATE_HOOKS, parameters))
    return any(hooks)


def are_apart(places, sizes):
    """Whether pieces of memory lie each by itself: addresses and numbers of bytes, int64."""
    order = np.argsort(places, kind="stable")
    ends = places[order] + sizes[order]
    return bool((places > 0).all() and (ends[:-1] <= places[order][1:]).all())
