"""DDP: two processes that share a batch end with the weights of one that has it all."""

import os
import subprocess
import sys
from pathlib import Path

import ddp_worker
import pytest
import torch
from closeness import additive_mlp_terms, assert_as_good_as_torch

import fastmlp
from fastmlp import reference

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this build of PyTorch has no gloo",
)
N_RANKS = 2


def launch(path):
    """Run the worker under torchrun on the CPU; return the weights of each rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={N_RANKS}", ddp_worker.__file__, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-4000:]
    files = [Path(path) / f"{rank}.pt" for rank in range(N_RANKS)]
    return [torch.load(file, weights_only=True) for file in files]


def one_process(module_class, dtype):
    """Weights after training on the joint batch in this process."""
    x, y, state = ddp_worker.data()
    sizes = ddp_worker.N_IN, ddp_worker.N_HIDDEN, ddp_worker.N_OUT
    net = module_class(*sizes, dtype=dtype)
    net.load_state_dict(state)
    ddp_worker.train(net, x.to(dtype), y.to(dtype))
    return net.state_dict()


def size_of_terms():
    """What is summed into each weight: its first value and the terms of every step's gradient."""
    x, y, state = ddp_worker.data()
    sizes = ddp_worker.N_IN, ddp_worker.N_HIDDEN, ddp_worker.N_OUT
    net = reference.AdditiveMLP(*sizes, dtype=torch.float64)
    net.load_state_dict(state)
    sizes = {name: p.detach().abs() for name, p in net.named_parameters()}

    def add_gradient():
        layers = [p.detach() for p in net.parameters()]
        with torch.no_grad():
            dy = 2 * (net(x) - y) / y.numel()
        terms = additive_mlp_terms(dy, x, *layers)
        for name in sizes:
            sizes[name] = sizes[name] + ddp_worker.LEARNING_RATE * terms[name.replace(".", "_")]

    ddp_worker.train(net, x, y, add_gradient)
    return sizes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The weights that each rank wrote."""
    return launch(tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", ddp_worker.CASES)
def test_two_processes_train_as_one(ranks, case):
    plain = one_process(reference.AdditiveMLP, torch.float32)
    exact = one_process(reference.AdditiveMLP, torch.float64)
    one = one_process(fastmlp.AdditiveMLP, torch.float32)
    terms, (_, _, before) = size_of_terms(), ddp_worker.data()
    for name, right in exact.items():
        two = ranks[0][case][name]
        assert torch.equal(two, ranks[1][case][name]), name
        assert not torch.equal(two, before[name].float()), name
        for weights in (two, one[name]):
            assert_as_good_as_torch(weights, plain[name], right, terms=terms[name], name=name)
    # a rank that kept to its own rows would end elsewhere
    assert (exact["fc3.weight"] - before["fc3.weight"]).abs().max() > 0.01
