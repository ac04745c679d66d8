"""Rows of the table of kinds: tracers and compilers; plain PyTorch just runs in their place."""

import io
import warnings

import torch
from kinds import both, kind, weights_of
from kinds_modes import gradients_per_sample
from torch import func, nn
from torch.fx.experimental.proxy_tensor import make_fx


def call(net, x):
    """What a traced net must give."""
    return net(x)


def compiled(function):
    """The function, compiled anew."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@kind("passed", plain=both)
def compiled_module(net, x):
    function = compiled(net)
    function.parameters = net.parameters
    return both(function, x)


def backward_compiled(net, function, x):
    """Output and gradients; a first backward pass, of other numbers, is what is compiled."""
    for leaf in (x / 2, x):
        leaf = leaf.requires_grad_()
        y = function(leaf)
        net.zero_grad()
        dy = weights_of(y)
        enable = torch._dynamo.compiled_autograd._enable
        with enable(lambda graph: torch.compile(graph, backend="eager")):
            y.backward(dy)
    return y, leaf.grad, *(p.grad for p in net.parameters())


@kind("passed", plain=both)
def compiled_autograd(net, x):
    torch._dynamo.reset()
    return backward_compiled(net, net, x)


@kind("passed", plain=both)
def compiled_forward_and_autograd(net, x):
    return backward_compiled(net, compiled(net), x)


@kind("TorchRuntimeError", plain=gradients_per_sample)
def compiled_gradients_per_sample(net, x):
    return compiled(gradients_per_sample)(net, x)


def push_forward(net, x):
    """A derivative in a direction."""
    return func.jvp(net, (x,), (tangents_of_ones(x),))


def tangents_of_ones(x):
    """A direction that a compiler can trace."""
    return torch.ones_like(x)


@kind("garbage", plain=push_forward)
def compiled_jvp(net, x):
    return compiled(push_forward)(net, x)


def other(x):
    """An example to trace with, whose numbers must not stay."""
    return torch.cat([x, x]) / 3


@kind("garbage", plain=call)
def traced_by_make_fx(net, x):
    return make_fx(net)(other(x)[:5])(x)


@kind("RuntimeError", plain=call)
def traced_by_make_fx_with_fakes(net, x):
    return make_fx(net, tracing_mode="fake", _allow_non_fake_inputs=True)(other(x)[:5])(x)


@kind("RuntimeError", plain=call)
def traced_by_make_fx_with_symbols(net, x):
    return make_fx(net, tracing_mode="symbolic", _allow_non_fake_inputs=True)(other(x))(x)


@kind("garbage", plain=both)
def gradients_traced_by_make_fx(net, x):
    return make_fx(lambda x: both(net, x))(other(x)[:5])(x)


@kind("TypingError", plain=lambda net, x: (both(net, x), both(net, x)))
def traced_by_jit(net, x):
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(net, other(x))
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    return both(traced, x), both(loaded, x)


@kind("TypeError", plain=both)
def traced_by_fx(net, x):
    return both(torch.fx.symbolic_trace(net), x)


@kind("TypeError", plain=both)
def traced_by_fx_as_a_part(net, x):
    return both(torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), net)), x)


def exported(net, x, **options):
    """The net as `torch.export` keeps it, for any number of rows."""
    rows = torch.export.Dim("rows", min=2)
    return torch.export.export(net, (other(x),), dynamic_shapes=({0: rows},), **options)


@kind("passed", plain=call)
def exported_and_loaded(net, x):
    file = io.BytesIO()
    torch.export.save(exported(net, x), file)
    file.seek(0)
    return torch.export.load(file).module()(x)


@kind("passed", plain=call)
def exported_strictly(net, x):
    return exported(net, x, strict=True).module()(x)


@kind("passed", plain=lambda net, x: (net(x), both(net, x)))
def exported_for_training(net, x):
    module = exported(net, x).module()
    return module(x), both(module, x)


@kind("passed", plain=call)
def exported_with_decompositions(net, x):
    return exported(net, x).run_decompositions().module()(x)


# ONNX has no search: the plain table is not converted either
@kind("ConversionError", plain=call, without=("table",))
def exported_to_onnx(net, x):
    import onnxruntime

    program = torch.onnx.export(
        net, (other(x),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("rows", min=2)},),
        verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)
