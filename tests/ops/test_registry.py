"""Ops are registered once a process, also where the package is imported again."""

import subprocess
import sys

RELOAD = """
import sys, torch, fastmlp

def step(module, backend=None):
    run = torch.compile(module, backend=backend, fullgraph=True) if backend else module
    x = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.sum(), [x, *module.parameters()])]

def same(a, b):
    return all(map(torch.equal, a, b))

modules, wanted = [], None
for generation in range(3):
    torch.manual_seed(0)
    modules.append(fastmlp.AdditiveMLP(3, 4))
    wanted = wanted or step(modules[0])
    for module in modules:
        assert same(step(module), wanted), generation
        assert same(step(module, "aot_eager"), wanted), generation
    old = [name for name in sys.modules if name.partition(".")[0] == "fastmlp"]
    for name in old:
        del sys.modules[name]
    import fastmlp
    assert type(modules[-1]) is not fastmlp.AdditiveMLP

# an op whose code changed runs the new code; one whose schema changed is another op
from fastmlp.ops import registry
schema = "twice(Tensor x) -> Tensor"
first = registry.define(schema)
registry.impl(first, lambda x: 2 * x, "CompositeExplicitAutograd")
assert registry.define(schema) == first == "twice"
registry.impl(first, lambda x: x + x + 1, "CompositeExplicitAutograd")
other = registry.define("twice(Tensor x, float by) -> Tensor")
registry.impl(other, lambda x, by: by * x, "CompositeExplicitAutograd")
x = torch.ones(())
print(registry.op(first)(x).item(), registry.op(other)(x, 5.0).item())
"""


def test_the_package_is_imported_again_and_older_modules_go_on():
    result = subprocess.run(
        [sys.executable, "-c", RELOAD], capture_output=True, text=True, check=False
    )
    assert result.stdout == "3.0 5.0\n", result.stderr
