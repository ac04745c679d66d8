"""A plugin of pytest: keeps the tests that touch the device, most telling first.

A test touches it when it takes the fixture `device`, or a backend other than the CPU's, or lies
with the kernels of the GPU, or says so by its name.
"""

SKIPPED = ("test_layers.py", "test_packaging.py", "test_static_cost.py")
"""Tests of sources, packages and compilation, whatever their names say."""

WORDS = ("cuda", "triton", "graph")


def rank(item):
    """0 for captures, 1 for kernels of the GPU, 2 for what else, 3 for plain PyTorch there."""
    name = item.nodeid.lower()
    if any(skipped in name for skipped in SKIPPED):
        return None
    params = getattr(getattr(item, "callspec", None), "params", {})
    backends = {params.get("backend"), params.get("kernel_backend")}
    if "test_cuda_graphs.py" in name:
        return 0
    if "kernels/gpu" in name or "triton" in backends or any(word in name for word in WORDS):
        return 1
    if "torch" in backends:
        return 3
    return 2 if "device" in getattr(item, "fixturenames", ()) else None


def pytest_collection_modifyitems(config, items):
    ranked = [(rank(item), item) for item in items]
    kept = sorted((pair for pair in ranked if pair[0] is not None), key=lambda pair: pair[0])
    config.hook.pytest_deselected(items=[item for order, item in ranked if order is None])
    items[:] = [item for _, item in kept]
