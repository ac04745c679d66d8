"""Rules about the source: which layer may import which, and what may not be written at all."""

import ast
import re
from pathlib import Path

import pytest
import source_rules

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "fastmlp").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
CPU = sorted((ROOT / "kernels" / "cpu").rglob("*.py"))
GPU = sorted((ROOT / "kernels" / "gpu").rglob("*.py"))
EVERYTHING = sorted(
    path
    for folder in ("fastmlp", "kernels", "tests", "bench", "examples")
    for path in (ROOT / folder).rglob("*.py")
)

# what each layer of fastmlp/ may import of fastmlp; imports only go down
ALLOWED = {
    "modules": {"modules.checks", "arguments", "op_arguments", "functional", "reference"},
    "functional": {"boundary", "ops", "reference", "functional", "arguments", "op_arguments"},
    "op_arguments": {"arguments"},
    "ops": {"ops", "backends", "boundary", "op_arguments", "reference", "kernels.sums"},
    "reference": {"reference", "dropout", "featurewise"},
    "dropout": set(),
    "featurewise": set(),
    "arguments": {"boundary"},
    "backends": set(),
    "boundary": set(),
    "stacked": {"arguments", "op_arguments", "functional", "ops", "kernels.spec"},
    "ensemble": {"stacked", "arguments", "models", "kernels.spec"},
    "explanation": {"backends", "boundary", "functional"},
    "graphs": {"boundary", "parts"},
    "ahead": {"arguments"},
    "parts": set(),
    "drop_in": {"functional", "reference.layers"},
    "models": {"drop_in", "parts", "modules", "reference", "arguments", "kernels.spec"},
    "probes": {"drop_in", "parts"},
    "patterns": {"probes", "drop_in", "models", "parts", "modules", "backends", "kernels.spec"},
    "convert": {"arguments", "patterns", "drop_in", "models", "parts", "modules", "reference"},
    # whole runs drive kernels themselves: an op for each step would cost more than the step
    "training": {
        "parts",
        "training",
        "boundary",
        "ensemble",
        "models",
        "reference",
        "backends",
        "arguments",
        "kernels",
        "plotting",
    },
    "plotting": {"arguments", "functional"},
    "adam": {"backends", "boundary"},
    "optim": {"adam", "training"},
    "piecewise": {"piecewise", "models", "functional", "arguments", "plotting", "kernels.spec"},
    "spectral": {"training", "arguments"},
    "diagnostics": {"arguments", "models", "reference", "kernels.spec"},
    # the two ends of the package: what users import, and the report about it
    "__init__": {
        "kernels",
        "functional",
        "reference",
        "backends",
        "modules",
        "convert",
        "training",
        "optim",
        "spectral",
        "piecewise",
        "plotting",
        "diagnostics",
        "ensemble",
        "explanation",
        "graphs",
        "ahead",
    },
    "__main__": {"", "functional", "reference", "backends", "warm"},
    "warm": {"", "ahead", "training", "kernels"},
}


def name_of(path):
    return str(path.relative_to(ROOT))


def imports(tree, *, nested=True):
    """Absolute names that a module imports; ``from a import b`` gives ``a.b``."""
    nodes = ast.walk(tree) if nested else _outside_functions(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module + "." if node.module else "")
            yield from (start + alias.name for alias in node.names)


def _outside_functions(tree):
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))


def options(tree):
    """Names and values of keyword arguments and of dictionaries that may become such."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield key.value, value


class _WithoutTypes(ast.NodeTransformer):
    """Drops what is there for type checkers alone, and never run."""

    def visit_If(self, node):
        only_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if only_types else self.generic_visit(node)


def parse(path):
    return _WithoutTypes().visit(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_imports_only_go_down(path):
    layer = path.relative_to(ROOT / "fastmlp").with_suffix("").parts[0]
    for name in imports(parse(path)):
        assert not name.startswith("."), f"{name}: imports within fastmlp/ are absolute"
        if name.split(".")[0] == "fastmlp":
            inner = name.removeprefix("fastmlp").removeprefix(".")
            assert any(
                inner == allowed or inner.startswith(allowed + ".") for allowed in ALLOWED[layer]
            ), f"{layer} imports {name}"


def test_reference_imports_torch_and_the_standard_library():
    package = ROOT / "fastmlp"
    files = package / "dropout.py", package / "featurewise.py"
    for file in (*files, *(package / "reference").glob("[!_]*.py")):
        own = ("fastmlp.dropout.", "fastmlp.featurewise.", "fastmlp.reference.")
        names = {*imports(parse(file))}
        names = {name.split(".")[0] for name in names if not name.startswith(own)}
        assert names <= {"torch", "math", "functools", "collections", "typing"}, file


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_kernels_import_nothing_of_the_package(path):
    for name in imports(parse(path)):
        assert not name.startswith("fastmlp"), name
        assert not name.startswith(("torch.nn", "torch.autograd")), name
        if name.startswith("."):
            # of its own wing, or of what both share
            up = len(name) - len(name.lstrip("."))
            assert up <= len(path.relative_to(ROOT / "kernels").parts), name


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_kernels_speak_of_no_object_of_the_package(path):
    # what comes to them is a tensor, an array, a number, or a record of their own floor
    assert not re.findall(r"\bfastmlp\.(?!kernels\b|dropout\b)\w+", path.read_text("utf-8"))


@pytest.mark.parametrize("wing", ["gpu", "cpu"])
def test_each_wing_imports_its_own_compiler_only(wing):
    other = {"gpu": "numba", "cpu": "triton"}[wing]
    for path in {"gpu": GPU, "cpu": CPU}[wing]:
        assert all(name.split(".")[0] != other for name in imports(parse(path))), path


def test_each_op_has_its_file_on_every_floor():
    def stems(folder):
        return {path.stem for path in (ROOT / folder).glob("*.py")}

    around = {"__init__", "derivatives", "fused", "mapped", "planned", "registry", "transforms"}
    ops = stems("fastmlp/ops") - around
    # piecewise_linear has its module in fastmlp/piecewise, beside the tables it evaluates; that of
    # the ops of many models is made of all modules, in fastmlp/ensemble.py, as their reference is
    without = {
        "fastmlp/modules": {"piecewise_linear", "ensemble"},
        "fastmlp/reference": {"ensemble"},
    }
    for folder in ("fastmlp/reference", "fastmlp/modules", "kernels/gpu", "kernels/cpu"):
        elsewhere = without.get(folder, set())
        present = stems(folder) | elsewhere
        assert ops <= present, folder
    assert {f"test_{op}" for op in ops} <= stems("tests/ops")


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_heavy_packages_are_imported_on_first_use(path):
    for name in imports(parse(path), nested=False):
        assert name.split(".")[0] not in ("triton", "numba", "matplotlib", "tqdm"), name
        assert not name.startswith(("fastmlp.kernels.gpu", "fastmlp.kernels.cpu")), name


@pytest.mark.parametrize("path", KERNELS, ids=name_of)
def test_fastmath_keeps_nan_and_infinity(path):
    # fastmath=True also passes every test of special values on some machines
    for name, value in options(parse(path)):
        if name == "fastmath":
            assert not (isinstance(value, ast.Constant) and value.value is not False), (
                f"line {value.lineno}: name the flags"
            )
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Constant):
            assert node.value not in ("nnan", "ninf", "fast"), f"line {node.lineno}"


@pytest.mark.parametrize("path", CPU, ids=name_of)
def test_numba_neither_threads_nor_caches_in_its_own_way(path):
    for name, value in options(parse(path)):
        off = isinstance(value, ast.Constant) and value.value is False
        assert name not in ("parallel", "cache") or off, f"line {value.lineno}: {name}"
    for node in ast.walk(parse(path)):
        assert not (isinstance(node, ast.Attribute) and node.attr == "prange")


@pytest.mark.parametrize("path", GPU, ids=name_of)
def test_no_float_atomics(path):
    for node in ast.walk(parse(path)):
        assert not (isinstance(node, ast.Attribute) and node.attr.startswith("atomic"))


@pytest.mark.parametrize("path", GPU, ids=name_of)
def test_scalar_arguments_of_kernels_are_cast_by_tl_cast(path):
    # the interpreter passes Python numbers, which have no method `to`
    for function in ast.walk(parse(path)):
        if not isinstance(function, ast.FunctionDef) or not _is_kernel(function):
            continue
        scalars = {a.arg for a in function.args.args if not a.arg.endswith("_ptr")}
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                value = node.func.value
                is_scalar = isinstance(value, ast.Name) and value.id in scalars
                assert not (node.func.attr == "to" and is_scalar), f"line {node.lineno}"


def _is_kernel(function):
    return function.name.endswith("_kernel") and function.decorator_list


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_files_are_short(path):
    n_lines = len(path.read_text("utf-8").splitlines())
    assert n_lines <= 420, f"{n_lines} lines; about 400 is the limit"


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_environment_variables_do_not_change_results(path):
    allowed = {"FASTMLP_BACKEND", "TRITON_INTERPRET", "XDG_CACHE_HOME", "LOCALAPPDATA"}
    allowed.add("NUMBA_DISABLE_JIT")  # there is nothing to run then but the reference
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            read = {
                constant.value
                for constant in ast.walk(parse(path))
                if isinstance(constant, ast.Constant)
                and isinstance(constant.value, str)
                and constant.value.isupper()
                and "_" in constant.value
            }
            assert read <= allowed, read


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_no_exception_is_swallowed_blindly(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            ends = isinstance(node.body[-1], (ast.Raise, ast.Return)) or path.stem == "__main__"
            assert caught not in ("", "BaseException", "Exception") or ends, f"line {node.lineno}"


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_modules_are_recognised_in_one_place(path):
    # or there are two answers to what a module is
    assert path.name == "models.py" or not list(source_rules.recognitions(parse(path)))


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_allocations_name_their_device(path):
    # or they land on the default device, which a user may have set to another
    assert not list(source_rules.without_device(parse(path)))
    from_torch = [n for n in imports(parse(path)) if n.split(".")[0] == "torch"]
    assert not {name.split(".")[-1] for name in from_torch} & source_rules.makers(), (
        "call it by torch.<name>"
    )


def test_the_package_prints_only_on_request():
    for path in [*PACKAGE, *KERNELS]:
        if path.stem == "__main__":
            continue
        tree = parse(path)
        requested = {
            node
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and ast.unparse(branch.test) == "verbose"
            for statement in branch.body
            for node in ast.walk(statement)
        }
        for node in set(ast.walk(tree)) - requested:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{name_of(path)}:{node.lineno}"


# longer than 60 lines, or with more than 10 parameters, and why; a function that makes another for
# a scalar type has its lines too
LARGE = {
    # the settings of a run, each by its name
    "fastmlp/training/fit.py": {"fit"},
    "fastmlp/training/least_squares.py": {"fit"},
    "fastmlp/training/problem.py": {"make_problem"},
    # the declaration of an op, each part by its name
    "fastmlp/ops/fused.py": {"__init__"},
    # sums stay in registers: of a column with the bias, then of three columns at a time
    "kernels/cpu/lanes/layers.py": {"_add_gradients"},
    # the loop over steps, whose views and counters every phase of it reads; a call with all of them
    # cost more than a short step
    "kernels/cpu/lanes/loop.py": {"trainer", "build"},
    "kernels/cpu/training/loop.py": {"trainer", "build", "advance"},
    "kernels/gpu/training/loop.py": {"train_kernel"},
    "kernels/gpu/lanes/loop.py": {"train_lanes_kernel"},
    # makes two functions, of 38 and 51 lines
    "kernels/cpu/layers/blocks.py": {"blocks"},
    # one pass over the data, block by block: buffers of a block, then each unit's sums
    "kernels/cpu/sines/rows.py": {"backward", "sine_sum_bwd"},
    "kernels/cpu/subnet/additive.py": {"backward", "additive_mlp_bwd"},
    "kernels/cpu/subnet/featurewise.py": {"backward", "featurewise_bwd"},
    "kernels/cpu/subnet/general.py": {"backward", "general_bwd"},
    # the same in registers, which a tuple of all accumulators would have to pass on
    "kernels/gpu/subnet/additive_bwd.py": {"additive_mlp_bwd_params_kernel"},
    "kernels/gpu/subnet/general_bwd.py": {"general_bwd_params_kernel"},
    "kernels/gpu/subnet/verbs.py": {"subnet"},
    # one reflection after the other, of four columns at a time: 61 lines
    "kernels/cpu/numbers/linalg.py": {"fold"},
}


def test_no_file_imports_itself_by_way_of_others():
    graph = {}
    for path in [*PACKAGE, *KERNELS]:
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        parts = ["fastmlp", *parts] if parts[0] == "kernels" else parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        graph[name] = {*source_rules.imported(parse(path), ".".join(parts[:-1]))}
    assert source_rules.rings(graph) == []


@pytest.mark.parametrize("path", [*CPU, *GPU], ids=name_of)
def test_files_of_a_wing_import_what_stands_below(path):
    wing = ROOT / "kernels" / path.relative_to(ROOT).parts[1]
    assert not list(source_rules.climbs(wing, path, parse(path)))


@pytest.mark.parametrize("wing", ["gpu", "cpu"])
def test_a_wing_shows_its_launchers(wing):
    folder = ROOT / "kernels" / wing
    assert len(list(folder.glob("*.py"))) <= 12
    inner = {path.name for path in folder.iterdir() if path.is_dir()} - {"__pycache__"}
    assert inner <= source_rules.FLOORS.keys()


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_only_compilers_and_optional_packages_are_imported_late(path):
    assert not list(source_rules.lazy(parse(path)))


@pytest.mark.parametrize(
    "path", [*KERNELS, *(ROOT / "fastmlp" / "training").glob("*.py")], ids=name_of
)
def test_a_model_is_read_by_names(path):
    assert not list(source_rules.positions(parse(path)))


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_private_names_stay_in_their_file(path):
    assert not list(source_rules.private(parse(path)))


@pytest.mark.parametrize("path", [*PACKAGE, *KERNELS], ids=name_of)
def test_functions_are_small(path):
    # a kernel takes all that it reads
    n_parameters = None if path in KERNELS else 10
    found = {*source_rules.large(parse(path), 60, n_parameters)}
    assert found <= LARGE.get(name_of(path), set())


PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", [*PROSE, *PACKAGE, *KERNELS], ids=name_of)
def test_files_that_are_named_exist(path):
    named = re.findall(
        r"\b(?:fastmlp|kernels|bench|tests|docs)/[\w/]+\.(?:py|md)", path.read_text("utf-8")
    )
    missing = {name for name in named if "my_op" not in name and not (ROOT / name).exists()}
    assert not missing
