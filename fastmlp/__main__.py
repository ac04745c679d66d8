"""What is installed, which backend serves which device, and a self-test of every kernel."""

import argparse
import platform
import sys
from importlib import metadata

import torch

import fastmlp
from fastmlp import backends, functional, reference
from fastmlp.warm import warm

DESCRIPTION = """\
Show versions, devices and backends, then run every op on every backend that works here and
compare values and gradients with float64. The exit status is 1 if one is wrong."""

WARM = """\
Compile the CPU's kernels and keep them in the cache directory, so that the first call of every
later process is fast: in an image, set XDG_CACHE_HOME to a directory that all users may read. The
usual kernels are float32 ops and fit. With --all also float64, wide, unshared and stochastic
subnets, and Levenberg–Marquardt, which takes minutes."""

# the rule of the project's tests: twice plain PyTorch's own error, plus a few ulps
SLACK, FLOOR = 2.0, 4.0
CONSTANTS = ("breakpoints", "anchors")
"""Arguments without a gradient."""


def _inputs(op):
    """Keyword arguments of one call, drawn on the CPU in float32."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    if op == "sine_sum":
        # all angles lie in the first quadrant, so every term and every derivative is positive
        return {"x": draw(40, 8).sigmoid(), "w": draw(16).sigmoid(), "scale": 1.5}
    if op == "mlp":
        weights, biases = [draw(14, 8), draw(2, 14)], [draw(14), draw(2)]
        return {"x": draw(40, 8), "weights": weights, "biases": biases}
    if op == "piecewise_linear":
        breakpoints, values, slopes = draw(5).abs().sort().values, draw(6).abs(), draw(6).abs()
        table = {"anchors": torch.zeros_like(values), "values": values, "slopes": slopes}
        return {"x": draw(40, 8).abs(), "breakpoints": breakpoints, **table}
    subnet = {
        "x": draw(40, 8),
        "fc1_weight": draw(14, 1),
        "fc1_bias": draw(14),
        "fc2_weight": draw(1, 14),
        "fc2_bias": draw(1),
    }
    if op == "elementwise_mlp":
        return subnet
    return {**subnet, "fc3_weight": draw(2, 8), "fc3_bias": draw(2)}


def _evaluate(module, op, inputs, convert):
    """Value and gradients of one call on converted inputs, in float64 on the CPU."""
    leaves = []

    def leaf(name, value):
        if isinstance(value, list):
            return [leaf(name, item) for item in value]
        if not torch.is_tensor(value) or name in CONSTANTS:
            return convert(value) if torch.is_tensor(value) else value
        leaves.append(convert(value).requires_grad_())
        return leaves[-1]

    y = getattr(module, op)(**{name: leaf(name, value) for name, value in inputs.items()})
    dy = (
        torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float32, device="cpu")
        .reshape(y.shape)
        .to(y)
    )
    gradients = torch.autograd.grad(y, leaves, dy)
    return [t.detach().double().cpu() for t in (y, *gradients)]


def _errors(results, exact, terms):
    """Largest error of the value and of the gradients, in ulps of the terms' size."""
    eps = torch.finfo(torch.float32).eps
    ulps = [
        ((ours - e).abs() / (eps * size)).nan_to_num(torch.inf).max().item()
        for ours, e, size in zip(results, exact, terms, strict=True)
    ]
    return ulps[0], max(ulps[1:])


def self_test(op, backend, device):
    """Errors of one op on one backend: ours and PyTorch's own, each for value and gradients."""
    inputs = _inputs(op)
    exact = _evaluate(reference, op, inputs, lambda t: t.double())
    # with nothing negative every ReLU is open, and the value is the sum of the terms' sizes
    terms = _evaluate(reference, op, inputs, lambda t: t.double().abs())
    torchs = _evaluate(reference, op, inputs, lambda t: t.to(device, copy=True))
    with fastmlp.backend(backend):
        ours = _evaluate(functional, op, inputs, lambda t: t.to(device, copy=True))
    return _errors(ours, exact, terms), _errors(torchs, exact, terms)


def _print_versions():
    print(f"fastmlp {fastmlp.__version__}, Python {platform.python_version()}, {sys.platform}")
    print(f"  torch   {torch.__version__}")  # with the CUDA version, which the metadata lacks
    for name in ("triton", "numba", "numpy"):
        try:
            print(f"  {name:7} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name:7} not installed")


def _print_devices():
    print(f"  cpu     {torch.get_num_threads()} threads, backend {backends.choose('cpu')}")
    print(f"          {_explained('cpu')}")
    for i in range(torch.cuda.device_count()):
        name, (major, minor) = torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)
        backend = backends.choose("cuda")
        print(f"  cuda:{i}  {name}, compute capability {major}.{minor}, backend {backend}")
        print(f"          {_explained(f'cuda:{i}')}")
    if not torch.cuda.is_available():
        print("  cuda    none")


def _explained(device):
    module = fastmlp.AdditiveMLP(8, 14, device=device)
    return fastmlp.explain(module, torch.zeros(2, 8, device=device))


def _served_device(backend):
    """The device on which a backend is tested, or the reason why it cannot be."""
    with fastmlp.backend(backend):
        if torch.cuda.is_available() and backend != "numba":
            return "cuda"
        backends.choose("cpu")
        return "cpu"


def _test_backend(backend, device):
    passed = True
    for op in functional.__all__:
        try:
            ours, torchs = self_test(op, backend, device)
        except Exception as error:
            message = str(error).splitlines()[0] if str(error) else ""
            print(f"  {op:16} {backend:8} FAILED: {type(error).__name__}: {message}")
            passed = False
            continue
        ok = all(o <= SLACK * t + FLOOR for o, t in zip(ours, torchs, strict=True))
        passed &= ok
        cells = [f"{o:.2f} ({t:.2f})" for o, t in zip(ours, torchs, strict=True)]
        verdict = "ok" if ok else "FAILED"
        print(f"  {op:16} {backend:8} {device:7} {cells[0]:>15} {cells[1]:>15}  {verdict}")
    return passed


def _warm(everything):
    try:
        kept_in = warm(everything)
    except ValueError as reason:
        print(reason, file=sys.stderr)
        return 1
    if kept_in is None:
        print("there is no cache directory that may be written", file=sys.stderr)
        return 1
    print(f"Compiled kernels are in {kept_in}.")
    return 0


def main(argv=None):
    """Print the report, or compile ahead; return the exit status."""
    parser = argparse.ArgumentParser("python -m fastmlp", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="warm")
    ahead = commands.add_parser("warm", help="compile the CPU's kernels ahead", description=WARM)
    ahead.add_argument("--all", action="store_true", help="not the usual ones alone")
    arguments = parser.parse_args(argv)
    if arguments.command == "warm":
        return _warm(arguments.all)
    _print_versions()
    _print_devices()
    print("\nLargest error against float64, in float32 ulps of the summed terms (PyTorch's own):")
    print(f"  {'op':16} {'backend':8} {'device':7} {'value':>15} {'gradients':>15}")
    passed = True
    for backend in backends.BACKENDS:
        try:
            device = _served_device(backend)
        except ValueError as reason:
            print(f"  {'–':16} {backend:8} not tested: {reason}")
        else:
            passed &= _test_backend(backend, device)
    print("\nAll is well." if passed else "\nSomething is wrong: see FAILED above.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
