"""Whether a forward that is not known computes what a kernel does: it is run, and compared.

How a probe proves it. A copy of the module gets random parameters and inputs, for two numbers of
rows and three sizes of the input. Its output, its gradients and where a NaN goes are compared with
the formula: in float64, where the forward takes it, to 1e-10 of the largest number; and in the
module's own dtype by the rule of the tests, twice the formula's own error and some ulps. Two
functions that agree so at thousands of random points have the same formula, or differ at inputs of
no measure. Dropout is first replaced by a smooth function of its input and p that is no other's, so
training is compared as exactly as evaluation; the agreement tells its places, and a p of each
layer's own tells whose it is. What remains random, or keeps a state, does not agree with itself.
"""

import contextlib
import copy
import inspect
import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastmlp.drop_in import Plan
from fastmlp.parts import Unknown, oddity_of

# rows of a probe's input and its size
_PROBES = ((5, 1.0), (1, 1.0), (5, 1e3), (5, 1e-3))
_EXACT = 1e-10  # of the largest value, in float64
_SLACK, _ULPS = 2.0, 64  # in any other dtype, as tests/closeness.py
_SCALES = (math.pi, 2 * math.pi, 1.0)
# what a class may not define, for it would decide what a forward reads, or whether it is called
_DECISIVE = {"__getattr__", "__getattribute__", "__call__", "_call_impl", "_wrapped_call_impl"}


class _Substitute(TorchFunctionMode):
    """Replaces dropout that is at work by a smooth function, and notes its p."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (F.dropout, torch.dropout):
            return func(*args, **(kwargs or {}))

        def call(input, p=0.5, training=True, inplace=False, train=None):
            if not (training if train is None else train) or p == 0:
                return input
            self.seen.add(p)
            return _mark(input, p)

        return call(*args, **(kwargs or {}))


def _mark(x, p):
    """What stands for dropout: no ReLU, no sum and no other p undoes it; it keeps the sign."""
    return x * (1 + 0.5 * p * torch.sin(x))


@contextlib.contextmanager
def undisturbed():
    """Gradients whatever the mode of the caller, whose random numbers stay as they are."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        yield


def plan_for(module: nn.Module) -> Plan:
    """Find out which kernel computes the forward of a module of an unknown class.

    Raises:
        Unknown: None does, as far as can be told, with the reason.
    """
    cls = type(module)
    _check(module)
    with undisturbed():
        try:
            return _found(module)
        except Unknown:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}".split("\n")[0]
            raise Unknown(f"a probe of the forward of {cls.__name__} raised {told}") from None


def _check(module):
    """Refuse what no probe can judge."""
    cls = type(module)
    bases = (base for base in cls.__mro__ if base not in (nn.Module, object))
    decisive = sorted({name for base in bases for name in vars(base)} & _DECISIVE)
    if decisive:
        raise Unknown(f"its class {cls.__name__} defines {', '.join(decisive)}")
    arguments = list(inspect.signature(cls.forward).parameters.values())[1:]
    if len(arguments) != 1 or arguments[0].kind is not arguments[0].POSITIONAL_OR_KEYWORD:
        raise Unknown(f"the forward of {cls.__name__} does not take exactly one argument")
    for path, inner in module.named_modules():
        oddity = oddity_of(inner, f"layer {path}" if path else "it", hooks=bool(path))
        if oddity is not None:
            raise Unknown(oddity)
        if "_compiled_call_impl" in vars(inner):
            raise Unknown("it is compiled")
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter:
            raise Unknown(f"{name} is a {type(parameter).__name__}, no plain Parameter")
    if buffers := [name for name, _ in module.named_buffers()]:
        raise Unknown(f"it has parameters or buffers of its own: {', '.join(buffers)}")
    if len({(p.dtype, p.device) for p in module.parameters()}) > 1:
        raise Unknown("its parameters have several dtypes or devices")


def is_candidate(module: nn.Module) -> bool:
    """Tell whether a module of an unknown class has the parameters of a model that kernels know."""
    cls = type(module)
    # of theirs the forward is known, or a scripted module's cannot be asked for
    if cls.__module__.split(".")[0] in ("torch", "fastmlp") or isinstance(module, nn.Sequential):
        return False
    if cls.forward is nn.Module.forward:  # a container
        return False
    return bool(_orders(module)) or _frequencies(module) is not None


def _orders(module):
    """The orders in which a module's three linear layers can be a subnet and a read-out."""
    layers = [(path, m) for path, m in module.named_modules() if type(m) is nn.Linear]
    owned = {id(p) for _, layer in layers for p in layer.parameters()}
    if len(layers) != 3 or any(id(p) not in owned for p in module.parameters()):
        return []
    around = {path.split(".")[0] for path, _ in layers}
    if len(around) == 1 and "forward" in vars(type(module._modules[around.pop()])):
        return []  # one part of it is the candidate
    return [
        tuple(tuple(path.split(".")) for path, _ in order)
        for order in itertools.permutations(layers)
        if all(path for path, _ in order)
        and order[0][1].in_features == order[1][1].out_features == 1
        and order[0][1].out_features == order[1][1].in_features
    ]


def _frequencies(module):
    """Path of a module's only parameter, if its numbers are in one row, or ``None``."""
    named = list(module.named_parameters(remove_duplicate=False))
    if len(named) != 1 or named[0][1].numel() not in named[0][1].shape:
        return None
    return tuple(named[0][0].split("."))


def _found(module):
    dtype = next(module.parameters()).dtype
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise Unknown(f"its parameters must be floating point, got {dtype}")
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)

    plain = copy.deepcopy(module).to_empty(device="cpu").requires_grad_(True)
    for parameter in plain.parameters():
        parameter.data = draw(*parameter.shape).to(dtype)
    # what casts its input cannot compute in float64
    wide = copy.deepcopy(plain).double()
    copies = [plain]
    if dtype != torch.float64 and _dtype_of_answer(wide, torch.float64) == torch.float64:
        copies.append(wide)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    cast = dtype if _dtype_of_answer(plain, other) == dtype else None
    if _frequencies(module) is not None and not _orders(module):
        return _sines(module, copies, cast, draw)
    differences = []
    for order in _orders(module):
        try:
            return _additive(module, order, copies, cast, draw)
        except Unknown as difference:
            differences.append(difference)
    raise differences[0]


def _n_features(module):
    """Inputs that a module takes: of its last layer, or one."""
    orders = _orders(module)
    return None if not orders else module.get_submodule(".".join(orders[0][2])).in_features


def _dtype_of_answer(plain, dtype):
    """Of the output for an input of a dtype; ``None`` where the forward takes none."""
    n_in = _n_features(plain)
    for shape in ((5,), (5, 1), (1,)) if n_in is None else ((5, n_in),):
        y = _attempt(plain.eval().forward, torch.ones(shape, dtype=dtype, device="cpu"))
        if y is not None:
            return y.dtype
    return None


def _attempt(function, x):
    """What a function gives, or ``None`` where it refuses."""
    try:
        return function(x)
    except Exception:
        return None


# ---- the subnet with a read-out


def _additive(module, order, copies, cast, draw):
    plan = Plan(order, dtype=cast)
    n_in = module.get_submodule(".".join(order[2])).in_features
    for plain in copies:
        for n, size in _PROBES:
            _compare(plain.eval(), plan, size * draw(n, n_in), (None,) * 3, "evaluation")
    marked, sources = _with_marks(copies[-1], module, draw(5, n_in))
    for places in _placements(sources):
        values = tuple(p if p is None else sources[p] for p in places)
        try:
            _compare(marked.train(), plan, draw(5, n_in), places, "training")
        except Unknown as difference:
            failed = difference
            continue
        for n in (1, 4):
            _compare(marked.train(), plan, draw(n, n_in), places, "training")
        return plan._replace(dropout=values)
    if sources:
        raise Unknown("its dropout is elsewhere than at the subnet's input, hidden units, output")
    raise failed


def _placements(sources):
    """Which mark may be at each place: every one that was seen is somewhere."""
    some = itertools.product((None, *sources), repeat=3)
    return [places for places in some if {*places} - {None} == {*sources}]


def _with_marks(plain, module, x):
    """A copy in which each p of a dropout is its owner's alone, and the owner of each p seen.

    The owners are layers, and numbers of the module's that turn out to be a p, 0 among them, which
    may be set later.
    """
    marked, x = copy.deepcopy(plain), x.to(next(plain.parameters()).dtype)
    marks = (0.5 + 0.4 / n for n in itertools.count(2))
    owners = {}
    for path, layer in marked.named_modules():
        if type(layer) is nn.Dropout:
            layer.p = next(marks)
            owners[layer.p] = "layer", tuple(path.split("."))
    with _Substitute() as evaluation:
        marked.eval().forward(x)
    if evaluation.seen:
        raise Unknown("it drops numbers in evaluation mode")
    numbers = {n: v for n, v in vars(marked).items() if type(v) in (int, float) and 0 <= v <= 1}
    for name, value in numbers.items():
        vars(marked)[name] = mark = next(marks)
        with _Substitute() as tried:
            _attempt(marked.train().forward, x)
        if mark in tried.seen:
            owners[mark] = "attribute", name
        else:
            vars(marked)[name] = value
    with _Substitute() as training:
        marked.train().forward(x)
    return marked, {p: owners.get(p, ("number", float(p))) for p in training.seen}


def _formula(parameters, places, x):
    w1, b1, w2, b2, w3, b3 = parameters
    before, inside, after = (
        (lambda v: v) if p is None else (lambda v, p=p: _mark(v, p)) for p in places
    )
    hidden = before(x).unsqueeze(-1) * w1[:, 0]
    hidden = inside(torch.relu(hidden if b1 is None else hidden + b1))
    f = (hidden * w2[0]).sum(-1)
    return F.linear(after(f if b2 is None else f + b2), w3, b3)


def _compare(plain, plan, x, places, mode):
    """Raise unless the copy agrees with the formula, dropout standing for its marks."""
    layers = [plain.get_submodule(".".join(path)) for path in plan.layers]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    _agree(plain, parameters, lambda ps, v: _formula(ps, places, v), x, mode, "AdditiveMLP")


def _agree(plain, parameters, formula, x, mode, kind):
    dtype = next(p for p in parameters if p is not None).dtype
    exact = [None if p is None else p.detach().double().requires_grad_() for p in parameters]
    with _Substitute():
        ours = answer(plain.forward, x.to(dtype), parameters)
    x = x.to(dtype)
    own = answer(lambda v: formula(parameters, v), x, parameters)
    right = answer(lambda v: formula(exact, v), x.double(), exact)
    names = ["the output", "the output where x is NaN", "the gradient of x"]
    names += ["the gradient of a parameter"] * (len(right) - 3)
    for name, our, short, wanted in zip(names, ours, own, right, strict=True):
        if not is_close(our, short, wanted, dtype):
            raise Unknown(
                f"its forward differs from {kind}'s in {mode} mode, "
                f"for x of shape {list(x.shape)}, in {name}"
            )


def answer(function, x, parameters):
    """The output, where a NaN goes, and all gradients."""
    x = x.detach().clone().requires_grad_()
    holed = x.detach().clone()
    holed.view(-1)[0] = torch.nan
    inputs = [x, *(p for p in parameters if p is not None)]
    y = function(x)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    gradients = torch.autograd.grad((weights * y).sum(), inputs, allow_unused=True)
    return [y, function(holed), *gradients]


def is_close(ours, own, exact, dtype):
    """Whether what a forward gives is right: ``own`` is the formula's answer in the same dtype."""
    if ours is None or ours.shape != exact.shape or ours.dtype != dtype:
        return False
    ours, own, exact = (t.detach().double() for t in (ours, own, exact))
    known = exact.isfinite()
    if not torch.equal(ours.isnan(), exact.isnan()):
        return False
    scale = exact[known].abs().max().item() if known.any() else 0.0
    bound = _EXACT * scale
    if dtype != torch.float64:
        error = (own - exact)[known].abs().max().item() if known.any() else 0.0
        bound = _SLACK * error + _ULPS * torch.finfo(dtype).eps * scale
    return bool(((ours - exact)[known].abs() <= bound).all())


# ---- sines


def _sines(module, copies, cast, draw):
    path = _frequencies(module)
    name = ".".join(path)
    plain = copies[-1].eval()
    w = plain.get_parameter(name)
    n = w.numel() + 2
    shapes = []
    for given in (("n",), (1,), ("n", 1), (1, 1), ()):
        out = _shape(plain, given, (n, n + 1))
        if out is not None:
            shapes.append((given, out))
    if not shapes:
        raise Unknown("its forward takes neither numbers nor columns of them")
    scale, reduction = _scale(plain, w, shapes[0][0])
    plan = Plan((path,), dtype=cast, sines=(scale, reduction), shapes=tuple(shapes))
    for one, training in itertools.product(copies, (False, True)):
        parameter = one.get_parameter(name)
        for given, out in shapes:
            for rows, size in ((n, 1.0), (n, 10.0), (n, 1e-3)):
                shape = [rows if d == "n" else d for d in given]
                target = [rows if d == "n" else d for d in out]

                def formula(ps, v, target=target):
                    waves = torch.sin(v.reshape(-1, 1) * (scale * ps[0].reshape(-1)))
                    y = waves.mean(-1) if reduction == "mean" else waves.sum(-1)
                    return y.reshape(target)

                mode = "training" if training else "evaluation"
                x = size * draw(*shape)
                _agree(one.train(training), [parameter], formula, x, mode, "SineSum")
    return plan


def _shape(plain, given, numbers):
    """Dimensions of the output for an input of such dimensions, or ``None`` if it is refused."""
    found = set()
    dtype = next(plain.parameters()).dtype
    for n in numbers:
        shape = [n if d == "n" else d for d in given]
        y = _attempt(plain.forward, torch.ones(shape, dtype=dtype, device="cpu"))
        if y is None:
            return None
        found.add(tuple("n" if d == n and "n" in given else d for d in y.shape))
    if len(found) != 1:
        return None
    (out,) = found
    fits = out.count("n") == given.count("n") and all(d in ("n", 1) for d in out)
    return out if fits else None


def _scale(plain, w, given):
    """Radians per unit and the reduction, from the slope at 0 with all frequencies 1."""
    kept = w.detach().clone()
    w.data.fill_(1.0)
    step = 2.0**-20
    shape = [2 if d == "n" else d for d in given]
    x = torch.full(shape, step, dtype=w.dtype, device="cpu")
    slope = plain.forward(x).detach().double().reshape(-1)[0].item() / step
    w.data.copy_(kept)
    close = 1e-5 if w.dtype == torch.float32 else 1e-9
    for scale in _SCALES:
        for factor, reduction in ((1, "mean"), (w.numel(), "sum")):
            if math.isclose(slope, scale * factor, rel_tol=close):
                return scale, reduction
    raise Unknown(f"its slope at 0 with frequencies of 1 is {slope:.6g}, no known scale")
