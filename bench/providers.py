"""Who is timed: functions of (suite, case, plain module) that return the module to time.

Convention: each returns a module with its own copy of the plain one's weights.
"""

import copy

import torch

PROVIDERS = {}
BASELINE = "torch"
DEFAULT = "torch", "torch_compile", "fastmlp"
"""Timed unless somebody asks for others."""


def provider(name):
    """Register a provider under the name that the command line, the table and the JSON show."""

    def register(function):
        PROVIDERS[name] = function
        return function

    return register


def _like(plain):
    """A tensor of the device and dtype of a module, which may have no parameters."""
    return next(iter(plain.state_dict().values()))


@provider(BASELINE)
def _torch(suite, case, plain):
    return copy.deepcopy(plain)


@provider("torch_compile")
def _torch_compile(suite, case, plain):
    torch._dynamo.reset()
    return torch.compile(copy.deepcopy(plain))


@provider("max_autotune")
def _max_autotune(suite, case, plain):
    torch._dynamo.reset()
    return torch.compile(copy.deepcopy(plain), mode="max-autotune-no-cudagraphs")


@provider("jax")
def _jax(suite, case, plain):
    if _like(plain).device.type != "cpu":
        raise ValueError("the JAX programs are timed on the CPU only")
    from peers import jax_ops

    return jax_ops.Program(suite.op, plain)


@provider("fastmlp")
def _fastmlp(suite, case, plain):
    like = _like(plain)
    module = suite.fused(case).to(like.device, like.dtype)
    module.load_state_dict(plain.state_dict())
    return module
