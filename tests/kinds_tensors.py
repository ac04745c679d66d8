"""Rows of the table of kinds: tensors that are not plain memory of their own."""

import contextlib
import tempfile
import warnings

import numpy as np
import torch
from kinds import both, kind, loss_of, trained, weights_of
from torch import nn
from torch.func import functional_call
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils import _pytree as pytree


def with_parameters(net, convert):
    """The net as a function that converts the parameters at each call, and the leaves."""
    leaves = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}

    def call(x):
        return functional_call(net, {name: convert(p) for name, p in leaves.items()}, (x,))

    call.parameters = leaves.values
    return call


# lazily negated and conjugated views: the memory holds other numbers


@kind("garbage")
def negated_input(net, x):
    leaf = x.requires_grad_()
    return both(net, torch._neg_view(-leaf), leaf)


@kind("passed")
def imaginary_part_of_a_conjugate(net, x):
    leaf = x.requires_grad_()
    return both(net, torch.complex(leaf, -leaf).conj().imag, leaf)


@kind("garbage")
def negated_parameters(net, x):
    return both(with_parameters(net, lambda p: torch._neg_view(-p)), x)


@kind("garbage")
def negated_gradient(net, x):
    y = net(x.requires_grad_())
    return torch.autograd.grad(y, [x, *trained(net)], torch._neg_view(-weights_of(y)))


@kind("passed", refused=True)
def complex_input(net, x):
    return net(torch.complex(x, x).conj())


# no memory at all, or memory of another layout


@kind("segfault")
def zero_tensor(net, x):
    y = net(torch._efficientzerotensor(x.shape, dtype=x.dtype))
    return y, *torch.autograd.grad(loss_of(y), trained(net))


@kind("segfault")
def zero_tensor_as_gradient(net, x):
    y = net(x.requires_grad_())
    zeros = torch._efficientzerotensor(y.shape, dtype=y.dtype)
    return torch.autograd.grad(y, [x, *trained(net)], zeros)


@kind("passed")
def meta_tensors(net, x):
    return both(net.to("meta"), x.to("meta"))


@kind("segfault")
def freed_storage(net, x):
    x.untyped_storage().resize_(0)
    return net(x)


@kind("passed")
def no_elements(net, x):
    return both(net, x[:0])


@kind("RuntimeError")
def sparse_coo(net, x):
    return net(x.to_sparse())


@kind("RuntimeError")
def sparse_csr(net, x):
    with warnings.catch_warnings(action="ignore"):
        return net(x.to_sparse_csr())


@kind("RuntimeError")
def sparse_gradient(net, x):
    y = net(x.requires_grad_())
    return torch.autograd.grad(y, [x, *trained(net)], weights_of(y).to_sparse())


# a float64 judge of the dense network has no such layout
@kind("RuntimeError", without=("mlp",))
def mkldnn_layout(net, x):
    return net(x.to_mkldnn())


@kind("passed")
def quantized(net, x):
    with warnings.catch_warnings(action="ignore"):
        return net(torch.quantize_per_tensor(x.float(), 0.01, 0, torch.qint8))


@kind("RuntimeError", refused=True)
def nested_strided(net, x):
    with warnings.catch_warnings(action="ignore"):
        y = net(torch.nested.nested_tensor([x[:2], x[2:]]))
    return y.unbind()


@kind("segfault", refused=True)
def nested_jagged(net, x):
    leaf = x.requires_grad_()
    nested = torch.nested.nested_tensor_from_jagged(leaf, torch.tensor([0, 2, 5]))
    y = net(nested).values()
    return y, *torch.autograd.grad(loss_of(y), [leaf, *trained(net)])


@kind("segfault", refused=True)
def masked(net, x):
    with warnings.catch_warnings(action="ignore"):
        y = net(torch.masked.masked_tensor(x, x > 0.3))
        return y.get_data(), y.get_mask()


# subclasses


@contextlib.contextmanager
def one_rank():
    """A mesh of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield distributed.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def full(tensors):
    """DTensors as plain ones."""
    dtensor = torch.distributed.tensor.DTensor
    return [t.full_tensor() if isinstance(t, dtensor) else t for t in tensors]


@kind("segfault")
def distributed_module(net, x):
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    with one_rank() as mesh:
        distribute_module(net, mesh)
        return full(both(net, distribute_tensor(x, mesh, [Replicate()])))


@kind("segfault")
def distributed_rows(net, x):
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    with one_rank() as mesh:
        distribute_module(net, mesh)
        return full(both(net, distribute_tensor(x, mesh, [Shard(0)])))


@kind("passed")
def fully_sharded(net, x):
    from torch.distributed.fsdp import fully_shard

    with one_rank() as mesh:
        fully_shard(net, mesh=mesh)
        y = net(x.requires_grad_())
        loss_of(y).backward()
        return full([y.detach(), x.grad, *(p.grad for p in net.parameters())])


class Named(torch.Tensor):
    """A subclass as PyTorch makes them by default: results are of the same class."""


class Doubled(torch.Tensor):
    """A tensor that stands for twice its numbers."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Call with plain tensors."""

        def plain(t):
            return t.as_subclass(torch.Tensor) * 2 if isinstance(t, cls) else t

        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = pytree.tree_map(plain, (args, kwargs or {}))
            return function(*args, **kwargs)


@kind("garbage")
def subclass(net, x):
    return net(x.as_subclass(Named))


@kind("garbage")
def subclass_that_changes_values(net, x):
    return net((x / 2).as_subclass(Doubled))


@kind("garbage")
def parameters_that_change_values(net, x):
    return both(with_parameters(net, lambda p: (p / 2).as_subclass(Doubled)), x)


@kind("segfault")
def wrapper(net, x):
    results = both(net, TwoTensor(x, x.clone()))
    return [(t.a, t.b) if isinstance(t, TwoTensor) else t for t in results]


@kind("segfault")
def wrapped_parameters(net, x):
    leaves = {n: TwoTensor(p.data, p.data.clone()) for n, p in net.named_parameters()}
    leaves = {n: p.requires_grad_() for n, p in leaves.items()}
    y = functional_call(net, leaves, (x,))
    return [(t.a, t.b) for t in (y, *torch.autograd.grad(loss_of(y), list(leaves.values())))]


def owner_of_a_parameter(net):
    """A module with parameters of its own, and the name of the first."""
    module = next(m for m in net.modules() if any(p is not None for p in m._parameters.values()))
    return module, next(iter(module._parameters))


@kind("RuntimeError")
def uninitialized_parameter(net, x):
    module, name = owner_of_a_parameter(net)
    setattr(module, name, nn.parameter.UninitializedParameter(dtype=x.dtype))
    return net(x)


@kind("passed")
def lazy_neighbour(net, x):
    lazy = nn.LazyLinear(3, dtype=x.dtype)
    y = nn.Sequential(lazy, net)(x)
    with torch.no_grad():
        lazy.weight.fill_(0.25), lazy.bias.fill_(0.25)
    return y.shape, both(nn.Sequential(lazy, net), x)


@kind("passed")
def swapped_parameters(net, x):
    first = both(net, x)
    for p in list(net.parameters()):
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() / 2))
    return first, both(net, x)


@kind("passed")
def swapped_on_conversion(net, x):
    dtype = x.dtype
    net(x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.bfloat16().to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    return both(net, x)


@kind("passed")
def dynamically_quantized(net, x):
    with warnings.catch_warnings(action="ignore"):
        # PyTorch's quantized layers take float32 alone
        quantized = torch.ao.quantization.quantize_dynamic(net.float(), {nn.Linear})
        return quantized(x.float()).to(x.dtype)


# plain memory in unusual places


@kind("passed")
def expanded(net, x):
    leaf = x[:1].clone().requires_grad_()
    return both(net, leaf.expand(5, 3), leaf)


@kind("passed")
def overlapping(net, x):
    leaf = x.flatten()[:9].clone().requires_grad_()
    return both(net, leaf.as_strided((5, 3), (1, 2)), leaf)


@kind("passed")
def expanded_gradient(net, x):
    y = net(x.requires_grad_())
    return torch.autograd.grad(y.sum(), [x, *trained(net)])


@kind("passed")
def read_only_array(net, x):
    array = x.numpy()
    array.flags.writeable = False
    with warnings.catch_warnings(action="ignore"):
        return both(net, torch.from_numpy(array))


@kind("passed")
def mapped_file(net, x):
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, x.numpy().dtype, "w+", shape=(5, 3))
        mapped[:] = x.numpy()
        return both(net, torch.from_numpy(mapped))


@kind("passed")
def dlpack(net, x):
    return both(net, torch.from_dlpack(x.numpy()))


@kind("passed")
def shared_memory(net, x):
    return both(net.share_memory(), x.share_memory_())


@kind("passed")
def pinned_memory(net, x):
    return both(net, x.pin_memory() if torch.cuda.is_available() else x)


@kind("passed")
def some_frozen(net, x):
    for p in list(net.parameters())[1:]:
        p.requires_grad_(False)
    y = net(x)
    return y, *torch.autograd.grad(loss_of(y), trained(net))
