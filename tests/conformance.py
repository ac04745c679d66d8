"""A pytest plugin that writes docs/conformance.md: op × property × backend, as tests found it.

    python -m pytest -p conformance --conformance docs/conformance.md

A property is some tests of the suite, named below; of each, one case for every op and backend
runs, and nothing else does. Works under pytest-xdist: what a test is about travels in its report.
"""

import platform
from collections import defaultdict
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest

BACKENDS = ("numba", "triton", "torch")

PROPERTIES = {
    "values and first gradients": ["test_value_and_gradients"],
    "every dtype, and mixtures": [
        "test_every_dtype",
        "test_mixed_dtypes_are_promoted",
        "test_x_of_another_dtype_is_promoted",
    ],
    "any strides": ["test_strides_do_not_matter", "test_upstream_gradient_of_any_strides"],
    "any arguments frozen": ["test_frozen_inputs_get_no_gradient"],
    "NaN and infinity": [
        "test_special_values_in_x_follow_the_reference",
        "test_special_values_in_the_upstream_gradient_follow_the_reference",
    ],
    "the same bit for bit": ["test_results_are_the_same_bit_for_bit"],
    "inputs are not written to": ["test_inputs_are_not_written_to"],
    "saves its inputs alone": ["test_only_inputs_are_saved_for_backward"],
    "gradcheck": ["test_gradcheck", "test_gradcheck_to_second_order"],
    "gradgradcheck": ["test_gradgradcheck", "test_gradcheck_to_second_order"],
    "physics-informed loss": ["test_a_physics_informed_loss_trains"],
    "dropout: masks of the definition": [
        "test_masks_are_those_of_the_definition_bit_for_bit",
        "test_kernels_draw_the_masks_of_the_definition",
        "test_gradients_of_parameters_use_the_masks_of_forward",
    ],
    "dropout: seeds and generators": [
        "test_equal_seeds_are_equal_bit_for_bit_and_calls_differ",
        "test_dropout_draws_from_the_generator",
    ],
    "dropout: checkpointing": ["test_checkpointing_repeats_the_masks"],
    "torch.library.opcheck": [
        "test_opcheck_of_forward",
        "test_opcheck_of_backward",
        "test_opcheck",
    ],
    "torch.compile": [
        "test_compiled_module_equals_eager",
        "test_compiled_training_and_inference",
        "test_registered_op",
    ],
    "torch.export": ["test_export_with_a_dynamic_batch", "test_export"],
    "torch.func": ["test_function_transforms", "test_transforms_over_stacked_parameters"],
    "autocast": ["test_autocast_rounds_the_output_alone"],
    "GradScaler": ["test_training_with_a_gradient_scaler"],
    "half, bfloat16, double": ["test_conversion_of_a_module", "test_module_moves_between_dtypes"],
    "meta device": ["test_meta_device_and_to_empty"],
    "state_dict of the plain network": ["test_state_dict_goes_both_ways"],
    "deepcopy, pickle, torch.save": ["test_deepcopy_is_independent", "test_pickle_and_save"],
    "weight decay groups": ["test_weight_decay_groups"],
    "parametrizations and hooks": ["test_parametrized_weights_and_hooks"],
    "eight threads": ["test_eight_threads_call_one_module"],
    "forked workers": ["test_forked_workers_after_first_use"],
    "fuse and unfuse": [
        "test_values_and_gradients_stay",
        "test_chains_of_linear_layers_become_an_mlp",
    ],
    "DDP": ["test_two_processes_train_as_one"],
    "launches that a graph can capture": [
        "test_launches_are_captured_on_the_device_of_the_tensors"
    ],
    "CUDA graphs": ["test_forward_and_backward_as_one_callable", "test_training_step"],
}
"""Properties and the functions that test them."""

OPS = {
    "elementwise_mlp": (
        "ElementwiseMLP", "elementwise", "elementwise_mlp_dropout", "sequential",
        "sequential_without_bias", "reference_elementwise",
    ),
    "additive_mlp": (
        "AdditiveMLP", "relu", "tanh", "stacked", "additive", "additive_dropout",
        "additive_mlp_many_out", "additive_mlp_dropout", "own_class", "reference_additive",
    ),
    "sine_sum": ("SineSum", "sines", "reference_sines"),
    "mlp": ("MLP",),
    "piecewise_linear": (),
}  # fmt: skip
"""Ops, and what parameters of tests call them."""

OP_OF_TEST = {
    "test_kernels_draw_the_masks_of_the_definition": "elementwise_mlp",
    "test_gradients_of_parameters_use_the_masks_of_forward": "elementwise_mlp",
    "test_equal_seeds_are_equal_bit_for_bit_and_calls_differ": "additive_mlp",
    "test_checkpointing_repeats_the_masks": "additive_mlp",
    "test_parametrized_weights_and_hooks": "additive_mlp",
    "test_forked_workers_after_first_use": "additive_mlp",
    "test_two_processes_train_as_one": "additive_mlp",
    "test_chains_of_linear_layers_become_an_mlp": "mlp",
}
"""The op of tests that are about one and do not say so."""

OP_OF_FILE = {"test_general": "additive_mlp", **{f"test_{op}": op for op in OPS}}

BACKEND_OF_TEST = {
    "test_launches_are_captured_on_the_device_of_the_tensors": "triton",
    "test_forward_and_backward_as_one_callable": "triton",
    "test_training_step": "triton",
}
"""The backend of tests that are about one and do not say so; on the CPU others run on numba."""


def _of_modules():
    names = list(PROPERTIES)
    return names[names.index("autocast") : names.index("launches that a graph can capture")]


OF_MODULES = _of_modules()
OF_THE_HOST = [
    "physics-informed loss",
    "torch.compile",
    "torch.export",
    "torch.func",
    *OF_MODULES,
]
"""What does not depend on the kernels: tests run on the default backend of the CPU, numba."""


OF_ONE_OP = [
    "dropout: seeds and generators",
    "dropout: checkpointing",
    "parametrizations and hooks",
    "forked workers",
    "DDP",
]
"""What is of code that the ops share: additive_mlp stands for all."""


def reason(op, name, backend, on_cuda):
    """Why a property needs no test with an op and a backend; ``None`` where it needs one."""
    if name.startswith("dropout") and op in ("sine_sum", "piecewise_linear"):
        return "the op has no dropout"
    if op == "piecewise_linear" and name in OF_MODULES:
        return "of modules, and this op is a function"
    if name == "physics-informed loss" and op not in ("elementwise_mlp", "sine_sum"):
        return "an example: gradgradcheck is the test of second derivatives"
    if name in OF_ONE_OP and op != "additive_mlp":
        return "of code that the ops share: see additive_mlp"
    if "graph" in name and backend != "triton":
        return "of CUDA alone"
    if name in OF_THE_HOST and backend != "numba":
        return "of the code around the kernels, which the backends share: see numba"
    if name == "CUDA graphs" and not on_cuda:
        return "no CUDA device, on which alone graphs are captured"
    return "plain PyTorch: it defines the property" if backend == "torch" else None


def pytest_addoption(parser):
    parser.addoption("--conformance", metavar="FILE", help="write the table of properties here")


def pytest_configure(config):
    if config.getoption("--conformance"):
        config.pluginmanager.register(_Report(config), "conformance-report")


def _parameters(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def _op(item):
    """The op that a test is about, or ``None``."""
    if getattr(item.cls, "name", None):
        return item.cls.name
    if item.function.__name__ in OP_OF_TEST:
        return OP_OF_TEST[item.function.__name__]
    # the id, too: parameters may be functions that build a module
    words = {v for v in _parameters(item).values() if isinstance(v, str)}
    words |= set(item.callspec.id.split("-")) if hasattr(item, "callspec") else set()
    for op, names in OPS.items():
        if words & {op, *names}:
            return op
    return OP_OF_FILE.get(Path(item.path).stem)


def _backend(item):
    for key in ("backend", "kernel_backend", "fast_backend"):
        if key in _parameters(item):
            return _parameters(item)[key]
    return BACKEND_OF_TEST.get(item.function.__name__, "numba")


class _Report:
    """Chooses the tests where they are collected, and writes the page where reports arrive."""

    def __init__(self, config):
        self.path = Path(config.getoption("--conformance"))
        self.collects_reports = not hasattr(config, "workerinput")
        self.outcomes = defaultdict(list)
        self.reasons = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        properties_of = defaultdict(list)
        for name, tests in PROPERTIES.items():
            for test in tests:
                properties_of[test].append(name)
        groups = defaultdict(list)
        for item in items:
            name, op = item.function.__name__, _op(item)
            if op is not None and name in properties_of:
                groups[name, item.cls, op, _backend(item)].append(item)
        chosen = {}
        for (name, _, op, backend), same in groups.items():
            # the first cases are often degenerate ones
            item = same[len(same) // 2]
            item.user_properties += [("conformance", [op, p, backend]) for p in properties_of[name]]
            chosen[item] = None
        others = [item for item in items if item not in chosen]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item in chosen]

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        for key, about in report.user_properties:
            if key == "conformance":
                self.outcomes[tuple(about)].append(report.outcome)
                if report.outcome == "skipped":
                    self.reasons[tuple(about)] = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_sessionfinish(self):
        if self.collects_reports:
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_text(page(self.outcomes, self.reasons), "utf-8")


def _cell(outcomes, why, notes):
    """What the tests said; a reason as the number of its note."""
    failed, passed = outcomes.count("failed"), outcomes.count("passed")
    if failed:
        return f"**{failed} of {len(outcomes)} fail**"
    if passed:
        return f"pass ({passed})"
    if why is None:
        return "not tested"
    if why not in notes:
        notes.append(why)
    return f"n/a [{notes.index(why) + 1}]"


def page(outcomes, reasons):
    """The page, from the outcomes of (op, property, backend) and the reasons of what skipped."""
    import torch

    on_cuda = torch.cuda.is_available()
    packages = ("fastmlp", "torch", "numba", "triton")
    versions = [f"{name} {metadata.version(name).split('+')[0]}" for name in packages]
    versions += [f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"]
    lines = [
        "# Conformance",
        "",
        "Which property of which op holds on which backend, as tests found it: how many tests",
        "passed, or why there is nothing to pass. `make conformance` writes this page. It runs one",
        "case of every test for each op and backend; `make test` runs all.",
        "",
        f"{date.today()}, {', '.join(versions)}.",
        f"Triton's kernels ran {'on a CUDA device' if on_cuda else 'in its interpreter'}.",
    ]
    notes = []
    for op in OPS:
        lines += ["", f"## {op}", "", "| property | " + " | ".join(BACKENDS) + " |"]
        lines.append("|---" * (len(BACKENDS) + 1) + "|")
        for name in PROPERTIES:
            cells = []
            for backend in BACKENDS:
                about = op, name, backend
                why = reasons.get(about) or reason(*about, on_cuda)
                cells.append(_cell(outcomes.get(about, []), why, notes))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Why there is nothing to pass", ""]
    lines += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"
