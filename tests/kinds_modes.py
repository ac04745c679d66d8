"""Rows of the table of kinds: modes, transforms and levels of derivatives."""

import contextlib
import warnings

import torch
from kinds import both, kind, loss_of, positive, trained, weights_of
from torch import func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.tensor.debug import CommDebugMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode


def tangents_of(x, seed=20):
    """A positive direction of the shape of a tensor."""
    return positive(*x.shape, seed=seed, dtype=x.dtype)


def parameters_of(net):
    """The parameters by name, as a transform takes them."""
    return {name: p.detach() for name, p in net.named_parameters()}


def loss_in_parameters(net, x):
    """The loss as a function of the parameters."""
    return lambda parameters: loss_of(functional_call(net, parameters, (x,)))


# modes


@kind("segfault")
def fake_tensors(net, x):
    mode = FakeTensorMode()
    fakes = {name: mode.from_tensor(p) for name, p in net.named_parameters()}
    fakes.update({name: mode.from_tensor(b) for name, b in net.named_buffers()})
    with mode:
        leaf = mode.from_tensor(x).requires_grad_()
        y = functional_call(net, fakes, (leaf,))
        parameters = [fakes[name] for name, _ in net.named_parameters()]
        return y, *torch.autograd.grad(loss_of(y), [leaf, *parameters])


@kind("segfault")
def fake_mode_around_real_tensors(net, x):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return both(net, x)


class Logged(TorchDispatchMode):
    """A mode that looks on."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count."""
        self.seen += 1
        return function(*args, **(kwargs or {}))


class FunctionsLogged(TorchFunctionMode):
    """The same, one floor up."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Count."""
        self.seen += 1
        return function(*args, **(kwargs or {}))


@kind("passed")
def dispatch_mode(net, x):
    with Logged() as mode:
        y = net(x)
    leaf = x.clone().requires_grad_()
    results = net(leaf)
    dy = weights_of(results)
    with Logged() as backward_mode:
        gradients = torch.autograd.grad(results, [leaf, *trained(net)], dy)
    return mode.seen > 0, backward_mode.seen > 0, y, *gradients


@kind("passed")
def function_mode(net, x):
    with FunctionsLogged() as mode, torch.no_grad():
        y = net(x)
    return y, mode.seen > 0


@kind("passed")
def flop_counter(net, x):
    with FlopCounterMode(display=False):
        return both(net, x)


@kind("passed")
def communication_counter(net, x):
    with CommDebugMode():
        return both(net, x)


@kind("passed")
def profiler(net, x):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        return both(net, x)


@kind("segfault")
def default_device(net, x):
    with torch.device("meta"):
        y = net(x.requires_grad_())
    dy = weights_of(y)
    with torch.device("meta"):
        return y, *torch.autograd.grad(y, [x, *trained(net)], dy)


@kind("passed")
def inference_mode(net, x):
    with torch.inference_mode():
        return net(x), net(x.clone())


# plain PyTorch keeps no x of a table for the backward pass, ours does
@kind("passed", without=("table",))
def inference_tensor_with_gradients(net, x):
    with torch.inference_mode():
        x = x.clone()
    return net(x)


@kind("passed")
def no_grad(net, x):
    with torch.no_grad():
        return net(x)


@kind("passed")
def autocast(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    return y.float() if y.dtype is torch.bfloat16 else y


@kind("passed")
def deterministic(net, x):
    torch.use_deterministic_algorithms(True)
    try:
        return both(net, x)
    finally:
        torch.use_deterministic_algorithms(False)


@kind("passed")
def anomaly_detection(net, x):
    with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly():
        return both(net, x)


@kind("passed")
def saved_on_cpu(net, x):
    with torch.autograd.graph.save_on_cpu():
        return both(net, x)


@kind("passed")
def saved_as_arrays(net, x):
    def unpack(array):
        return torch.from_numpy(array.copy())

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), unpack):
        return both(net, x)


@kind("passed")
def checkpointed(net, x):
    results = []
    for reentrant in (True, False):
        leaf = x.clone().requires_grad_()
        y = checkpoint(net, leaf, use_reentrant=reentrant)
        net.zero_grad()
        loss_of(y).backward()
        results.append([y.detach(), leaf.grad, *(p.grad.clone() for p in net.parameters())])
    return results


# transforms


@kind("passed")
def vmap(net, x):
    return func.vmap(net)(torch.stack([x, x / 2]))


@kind("passed")
def vmap_over_parameters(net, x):
    stacked = {name: torch.stack([p, p / 2]) for name, p in parameters_of(net).items()}
    return func.vmap(lambda p: functional_call(net, p, (x,)))(stacked)


@kind("passed")
def backward_through_vmap(net, x):
    return both_through(net, x, lambda leaf: func.vmap(net)(torch.stack([leaf, leaf / 2])))


def both_through(net, x, call):
    """Output and gradients of a function of the leaf."""
    leaf = x.requires_grad_()
    y = call(leaf)
    return y, *torch.autograd.grad(loss_of(y), [leaf, *trained(net)])


@kind("passed")
def grad(net, x):
    in_x = func.grad(lambda x: loss_of(net(x)))(x)
    return in_x, list(func.grad(loss_in_parameters(net, x))(parameters_of(net)).values())


@kind("passed")
def gradients_per_sample(net, x):
    def loss(parameters, row):
        return loss_of(functional_call(net, parameters, (row[None],)))

    return list(func.vmap(func.grad(loss), (None, 0))(parameters_of(net), x).values())


@kind("passed")
def jacobians(net, x):
    return func.jacrev(net)(x), func.jacfwd(net)(x)


@kind("passed")
def jacobians_in_parameters(net, x):
    def call(parameters):
        return functional_call(net, parameters, (x,))

    both = func.jacrev(call)(parameters_of(net)), func.jacfwd(call)(parameters_of(net))
    return [list(jacobian.values()) for jacobian in both]


@kind("passed")
def hessian(net, x):
    of = func.hessian(loss_in_parameters(net, x))(parameters_of(net))
    return [list(row.values()) for row in of.values()]


@kind("passed")
def jvp_and_vjp(net, x):
    y, tangent = func.jvp(net, (x,), (tangents_of(x),))
    _, pull_back = func.vjp(net, x)
    _, of_vjp = func.jvp(lambda x: func.vjp(net, x)[1](weights_of(y)), (x,), (tangents_of(x),))
    return y, tangent, pull_back(weights_of(y)), of_vjp


@kind("NotImplementedError")
def linearized(net, x):
    y, push_forward = func.linearize(net, x)
    return y, push_forward(tangents_of(x))


@kind("passed")
def functionalized(net, x):
    return func.functionalize(net)(x), func.functionalize(lambda x: both(net, x))(x)


# derivatives


@kind("garbage")
def forward_mode_with_frozen_parameters(net, x):
    net.requires_grad_(False)
    with forward_ad.dual_level():
        y = net(forward_ad.make_dual(x, tangents_of(x)))
        return [*forward_ad.unpack_dual(y)]


@kind("NotImplementedError")
def forward_mode(net, x):
    with forward_ad.dual_level():
        y = net(forward_ad.make_dual(x, tangents_of(x)))
        return [*forward_ad.unpack_dual(y)]


@kind("garbage")
def forward_mode_in_parameters(net, x):
    duals = parameters_of(net)
    with forward_ad.dual_level():
        duals = {n: forward_ad.make_dual(p, tangents_of(p, 30 + len(n))) for n, p in duals.items()}
        return [*forward_ad.unpack_dual(functional_call(net, duals, (x,)))]


@kind("NotImplementedError")
def forward_over_reverse(net, x):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.requires_grad_(), tangents_of(x))
        y = net(dual)
        gradients = torch.autograd.grad(loss_of(y), [dual, *trained(net)], create_graph=True)
        return [forward_ad.unpack_dual(g).tangent for g in gradients]


@kind("garbage")
def dual_gradient(net, x):
    y = net(x.requires_grad_())
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(weights_of(y), tangents_of(y))
        gradients = torch.autograd.grad(y, [x, *trained(net)], dy)
        return [[*forward_ad.unpack_dual(g)] for g in gradients]


@kind("RuntimeError")
def batched_gradients(net, x):
    y = net(x.requires_grad_())
    dy = torch.stack([weights_of(y), tangents_of(y)])
    return torch.autograd.grad(y, [x, *trained(net)], dy, is_grads_batched=True)


@kind("RuntimeError")
def vectorized_jacobians(net, x):
    jacobian = torch.autograd.functional.jacobian
    reverse = jacobian(net, x, vectorize=True)
    forward = jacobian(net, x, vectorize=True, strategy="forward-mode")
    return reverse, forward, jacobian(net, x)


@kind("RuntimeError")
def vectorized_hessian(net, x):
    hessian = torch.autograd.functional.hessian
    # of a square, or there would be nothing to see of a line
    return [hessian(lambda x: loss_of(net(x).square()), x, vectorize=v) for v in (True, False)]


@kind("passed")
def double_backward(net, x):
    leaves = [x.requires_grad_(), *trained(net)]
    gradients = torch.autograd.grad(loss_of(net(x)), leaves, create_graph=True)
    twice = sum(loss_of(g) for g in gradients if g.requires_grad)
    return gradients, torch.autograd.grad(twice, leaves, allow_unused=True, materialize_grads=True)


@kind("passed")
def third_derivative(net, x):
    y = net(x.requires_grad_())
    with contextlib.nullcontext():
        for _ in range(3):
            (y,) = torch.autograd.grad(loss_of(y.square()), x, create_graph=True)
    return y
