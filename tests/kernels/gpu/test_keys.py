"""Triton's cache on disk tells constants apart by the sources of the functions in them."""

import importlib.util

import pytest

triton = pytest.importorskip("triton")

from fastmlp.kernels.gpu.lanes.layers import LayerConstants  # noqa: E402
from fastmlp.kernels.gpu.layers import verbs as layers  # noqa: E402
from fastmlp.kernels.gpu.layers.cores import Net  # noqa: E402
from fastmlp.kernels.gpu.machine.keys import Values, key_of  # noqa: E402
from fastmlp.kernels.gpu.subnet import jacobian  # noqa: E402
from fastmlp.kernels.gpu.subnet import verbs as subnet  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

SOURCE = "import triton\n\ndef activation(z):\n    return z + {}\n"


def version(tmp_path, number):
    """One version of a function: same module, same name."""
    path = tmp_path / "activations.py"
    path.write_text(SOURCE.format(number))
    found = importlib.util.spec_from_file_location("activations", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    function = JITFunction(module.activation)
    assert function.cache_key  # reads the file now
    return function


@pytest.mark.parametrize(
    "build",
    [
        lambda f: Net((1, 2), 0, 1, f, f, (), triton.language.float32, 1),
        lambda f: layers.Constants(f, f, (), ()),
        lambda f: LayerConstants(f, f),
        lambda f: subnet.Constants(*[f] * len(subnet.Constants._fields)),
        lambda f: jacobian.Acts(f),
        lambda f: Values((f, 3)),
        lambda f: Values((triton.language.constexpr(Net((1,), 0, 1, f, f, (), None, 1)),)),
    ],
)
def test_another_version_of_a_function_is_another_key(build, tmp_path):
    first, again, other = (build(version(tmp_path, n)) for n in (1, 1, 2))
    assert first.cache_key == again.cache_key == key_of(again)
    assert first.cache_key != other.cache_key
