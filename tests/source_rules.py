"""What `test_layers.py` finds in the sources: who imports whom, private names, long functions."""

import ast
import inspect
import re

import torch
from torch.utils._device import _device_constructors

COMPILERS = "triton", "numba", "llvmlite"
OPTIONAL = "matplotlib", "tqdm"

# floors of a wing: a file imports those of its own folder and those below
FLOORS = {
    "machine": 0,
    "numbers": 1,
    "subnet": 2,
    "layers": 2,
    "sines": 2,
    "models": 3,  # a file: what the kernels know of each model
    "training": 4,
    "levenberg_marquardt": 4,
    "lanes": 5,  # whole runs of small models, side by side
    "": 6,  # the launchers
}


def imported(tree, package):
    """Absolute names of the modules, or of the names in them, that a file imports anywhere.

    Args:
        tree: The file's syntax tree.
        package: Dotted name of the package that the file is in.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def rings(graph):
    """Sets of files that import each other, as sorted lists.

    Args:
        graph: Module name to the names that it imports; names of what is in a module count for it.
    """
    edges = {}
    for name, targets in graph.items():
        files = {wanted if wanted in graph else wanted.rpartition(".")[0] for wanted in targets}
        edges[name] = (files & graph.keys()) - {name}
    # what nobody in the rest imports, or what imports nobody in it, is in no ring
    rest = set(edges)
    while True:
        wanted = {target for name in rest for target in edges[name]}
        left = {name for name in rest if name in wanted and edges[name] & rest}
        if left == rest:
            break
        rest = left
    return sorted(rest)


def climbs(wing, path, tree):
    """Imports of a file in a wing of what stands above it, or beside it in another folder.

    Args:
        wing: Path of the wing.
        path: Path of the file.
        tree: Its syntax tree.
    """
    inner = path.relative_to(wing).parts
    name = inner[0].removesuffix(".py")
    folder = name if name in FLOORS else ""
    for name in imported(tree, ".".join(("wing", *inner[:-1]))):
        parts = name.split(".")
        if parts[0] != "wing":
            continue
        other = parts[1] if parts[1] in FLOORS else ""
        if other != folder and FLOORS[other] >= FLOORS[folder]:
            yield name


def lazy(tree):
    """Imports within functions of what is neither a compiler, nor a wing, nor optional."""
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for name in imported(function, ""):
            allowed = name.split(".")[0] in (*COMPILERS, *OPTIONAL)
            if not allowed and not name.startswith(
                ("fastmlp.kernels.gpu.", "fastmlp.kernels.cpu.")
            ):
                yield name


VECTORS = {"sizes", "constants", "reals", "limits", "choices", "SIZES", "CONSTANTS"}
VECTORS |= {"NUMBERS", "ACTS", "net", "data", "structure"}
"""Names of what a specification, or a state, goes by where it is a vector."""


def positions(tree):
    """Subscripts of such vectors by a literal, where a record has names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            name = ast.unparse(node.value).rpartition(".")[2]
            index = node.slice
            while isinstance(index, ast.BinOp) and isinstance(index.op, ast.Add):
                index = index.left
            is_literal = isinstance(index, ast.Constant) and isinstance(index.value, int)
            if name in VECTORS and is_literal:
                yield ast.unparse(node)


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private(tree):
    """Private names of other files of ours that a file takes."""
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").split(".")[0] == "fastmlp"
        ):
            for alias in node.names:
                if _is_private(alias.name):
                    yield alias.name
                modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner in modules and owner.islower():
                yield f"{owner}.{node.attr}"


def _n_lines(function):
    """Lines of code, without the docstring, and without blank lines."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    text = "\n".join(ast.unparse(statement) for statement in body)
    return len(text.splitlines())


def large(tree, n_lines, n_parameters=None):
    """Functions of more statements' lines, or of more parameters, than that."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            arguments = function.args
            n = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            if _n_lines(function) > n_lines or (n_parameters is not None and n > n_parameters):
                yield function.name


MODELS = {"ElementwiseMLP", "AdditiveMLP", "MLP", "SineSum", "NAMESAKES"}


def recognitions(tree):
    """Places where a module's type is compared with classes of ours."""
    for node in ast.walk(tree):
        asked = ()
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = node.args[1:]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            asked = (node.left, *node.comparators)
        elif isinstance(node, ast.Subscript) and "type(" in ast.unparse(node.slice):
            asked = (node.value,)
        words = {word for part in asked for word in re.findall(r"\w+", ast.unparse(part))}
        if words & MODELS:
            yield node.lineno


def makers():
    """Names after ``torch.`` or ``nn.`` of what PyTorch makes on the default device."""
    functions = {function.__name__ for function in _device_constructors()}
    layers = {
        name
        for name, cls in vars(torch.nn).items()
        if inspect.isclass(cls) and "device" in inspect.signature(cls).parameters
    }
    return functions | {"normal", "fftfreq", "rfftfreq"} | layers


def without_device(tree):
    """Calls that make a tensor or a layer and do not say on which device."""
    known = makers()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            root = ast.unparse(node.func).split(".")[0]
            named = {keyword.arg for keyword in node.keywords}  # None: a dictionary, unseen
            if root in ("torch", "nn") and node.func.attr in known and not named & {"device", None}:
                yield node.lineno
