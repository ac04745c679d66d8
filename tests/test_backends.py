"""Which backend runs, and how to choose one."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import fastmlp
from fastmlp import backends


@pytest.fixture
def ran(monkeypatch):
    """Names of the backends that launchers were asked of, in order."""
    names = []
    launchers = backends.launchers

    def spy(name, op):
        names.append(name)
        return launchers(name, op)

    monkeypatch.setattr(backends, "launchers", spy)
    return names


def run():
    return fastmlp.ElementwiseMLP(3)(torch.zeros(2))


def in_subprocess(code, **environment):
    environment = {**os.environ, "FASTMLP_BACKEND": "", **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )


def test_numba_serves_the_cpu_by_default(ran):
    pytest.importorskip("numba")
    run()
    assert ran == ["numba"]
    assert backends.choose("cpu") == "numba"


def test_other_devices_get_plain_torch():
    assert backends.choose("meta") == "torch"
    assert backends.choose("mps") == "torch"


def test_context_manager_chooses(kernel_backend, ran):
    module = fastmlp.ElementwiseMLP(3, device=kernel_backend.device)
    module(torch.zeros(2, device=kernel_backend.device))
    assert set(ran) == {kernel_backend.name}  # of the op, and on a GPU of its plan


def test_torch_runs_no_kernel(ran):
    with fastmlp.backend("torch"):
        run().sum().backward()
    assert ran == []


def test_contexts_nest_and_end(ran):
    pytest.importorskip("numba")
    with fastmlp.backend("torch"):
        with fastmlp.backend("numba"):
            run()
        assert backends.choose("cpu") == "torch"
        with pytest.raises(RuntimeError, match="by the user"), fastmlp.backend("numba"):
            raise RuntimeError("raised by the user")
        assert backends.choose("cpu") == "torch"
    assert ran == ["numba"]
    assert backends.choose("cpu") == "numba"


def test_context_is_of_its_thread():
    pytest.importorskip("numba")
    chosen = []
    with fastmlp.backend("torch"):
        thread = threading.Thread(target=lambda: chosen.append(backends.choose("cpu")))
        thread.start()
        thread.join()
    assert chosen == ["numba"]


def test_backward_runs_where_forward_ran():
    pytest.importorskip("numba")
    with fastmlp.backend("numba"):
        y = run()
    with fastmlp.backend("torch"):
        y.sum().backward()
    assert "elementwise_mlp" in type(y.grad_fn).__name__


@pytest.mark.parametrize("name", ["cuda", "", None, 3, "Numba"], ids=repr)
def test_unknown_backend_is_refused(name):
    with (
        pytest.raises(
            ValueError, match=f"^backend must be one of triton, numba, torch, got {name!r}"
        ),
        fastmlp.backend(name),
    ):
        pass


def test_backend_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "torch")
    with (
        pytest.raises(ValueError, match=r"^backend 'numba' needs the package numba"),
        fastmlp.backend("numba"),
    ):
        pass


def test_backend_that_does_not_serve_the_device_is_refused(monkeypatch):
    pytest.importorskip("numba")
    with (
        fastmlp.backend("numba"),
        pytest.raises(ValueError, match=r"needs CPU tensors, got .*'cuda'"),
    ):
        backends.choose("cuda")
    monkeypatch.setattr(backends, "_interpreted", lambda: False)
    pytest.importorskip("triton")
    with (
        fastmlp.backend("triton"),
        pytest.raises(ValueError, match=r"needs CUDA tensors, got .*'cpu'"),
    ):
        run()


def test_environment_variable_chooses():
    pytest.importorskip("numba")
    code = "import fastmlp; print(fastmlp.backends.choose('cpu'))"
    result = in_subprocess(code, FASTMLP_BACKEND="torch")
    assert result.stdout == "torch\n", result.stderr
    code = "import fastmlp\nwith fastmlp.backend('numba'): print(fastmlp.backends.choose('cpu'))"
    result = in_subprocess(code, FASTMLP_BACKEND="torch")
    assert result.stdout == "numba\n", result.stderr


def test_unknown_environment_variable_is_refused():
    result = in_subprocess("import fastmlp", FASTMLP_BACKEND="fast")
    assert result.returncode != 0
    message = "the environment variable FASTMLP_BACKEND must be one of triton, numba, torch"
    assert message in result.stderr
