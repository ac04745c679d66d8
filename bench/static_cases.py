"""The kernels that `static_cost.py` compiles: their constants, shapes and hot loops."""

import itertools
from functools import partial
from typing import NamedTuple


class Hot(NamedTuple):
    """What one iteration of the hot loop does.

    Args:
        math: Arithmetic instructions per element without which a loop cannot be the hot one.
        tiles: Tiles per iteration.
        iterations: Iterations until an element is done: units, where the loop is over units.
        per: Parts an element's work is divided into: waves, for a count per sine.
        whole: One tile and its units unrolled: no loop is hot, the whole program is counted.
    """

    math: int
    tiles: int = 1
    iterations: int = 1
    per: int = 1
    whole: bool = False


class Case(NamedTuple):
    """A kernel's module and constants; ``hot`` is None where only spills and fp64 matter.

    ``config`` is that of the launch where it depends on the model, ``types`` what pointers point
    to if not to ``dtype``, ``options`` those of the compilation but for the warps; ``of_many`` has
    it compiled with a leading model axis.
    """

    module: str
    constants: dict
    hot: Hot | None = None
    dtype: str = "fp32"
    everywhere: bool = False
    config: object = None
    types: dict = {}  # noqa: RUF012
    options: dict = {}  # noqa: RUF012
    of_many: bool = False


def cases():
    """The kernels by label. Tiles, units and waves of a program are added when compiled."""
    h = 14
    elementwise, additive, backward, sine = (
        partial(Case, module)
        for module in ("elementwise_mlp", "additive_mlp", "subnet.additive_bwd", "sine_sum")
    )
    hidden = {"N_HIDDEN": h}
    one_out = {"n_out": 1, "dy_row_stride": 1, "ONE_OUT": True, "BLOCK_IN": 64, "BLOCK_OUT": 1}
    one_out = {**hidden, **one_out}
    fwd = {**one_out, "EVEN_IN": True, "BLOCK_IN": 16}
    many_out = {**hidden, "ONE_OUT": False, "EVEN_IN": False, "BLOCK_IN": 16, "BLOCK_OUT": 8}
    waves = {"FACTOR": 1 / 64, "SCALE": 3.1415, "TURNS": 0.5}
    plain = {**waves, "amplitude_ptr": None, "phase_ptr": None}
    search = Case("piecewise_linear", {"STEPS": 10})
    table = {
        "elementwise_mlp_fwd": elementwise(hidden, Hot(2 * h)),
        "elementwise_mlp_bwd_x": elementwise(hidden, Hot(2, iterations=h)),
        "elementwise_mlp_bwd_params": elementwise(hidden, Hot(3 * h, tiles=2)),
        "additive_mlp_fwd": additive(fwd, Hot(2 * h)),
        "additive_mlp_bwd_x": backward(one_out, Hot(2, iterations=h)),
        "additive_mlp_bwd_params": backward(one_out, Hot(3 * h, tiles=2)),
        "sine_sum_fwd": sine(plain, Hot(9)),
        "sine_sum_bwd_x": sine(plain, Hot(9)),
        "sine_sum_bwd_params": sine(plain, Hot(9 * 8, per=8)),
        "piecewise_linear_fwd": search,
        "piecewise_linear_bwd_x": search,
        "piecewise_linear_bwd_tables": search,
        "sum_pieces": Case("machine.pieces", {}),
    }
    # other branches of the same kernels
    variants = {
        ("elementwise_mlp_fwd", "100 units"): {"N_HIDDEN": 100},
        ("elementwise_mlp_fwd", "fp64"): {},
        ("elementwise_mlp_bwd_params", "fp64"): {},
        ("additive_mlp_fwd", "32 units"): {"N_HIDDEN": 32},
        ("additive_mlp_fwd", "many outputs"): many_out,
        ("additive_mlp_fwd", "bf16"): {},
        ("additive_mlp_fwd", "fp64"): {},
        ("additive_mlp_bwd_params", "16 units"): {"N_HIDDEN": 16},
        ("additive_mlp_bwd_params", "many outputs"): {**many_out, "BLOCK_IN": 64},
        ("additive_mlp_bwd_params", "bf16"): {},
        ("additive_mlp_bwd_params", "fp64"): {},
        ("sine_sum_fwd", "amplitude, phase"): waves,
        ("sine_sum_bwd_params", "amplitude, phase"): waves,
        ("sine_sum_bwd_params", "amplitude, phase, fp64"): waves,
    }
    for (label, what), changes in variants.items():
        constants = changes if label.startswith("sine") else {**table[label].constants, **changes}
        dtype = next((t for t in ("bf16", "fp64") if t in what), "fp32")
        if "many" in what:
            constants = changes
        table[f"{label}, {what}"] = table[label]._replace(
            hot=None, constants=constants, dtype=dtype
        )
    table |= _subnet_cases(hidden, one_out, many_out) | _mlp_cases()
    for label in ("sine_sum_fwd", "elementwise_mlp_fwd", "additive_mlp_bwd_params", "mlp_bwd"):
        table[f"{label}, of many models"] = table[label]._replace(of_many=True)
    return {**table, **_training_cases(), **_lane_cases(), **_least_squares_cases()}


def _subnet_cases(hidden, one_out, many_out):
    """The general subnets, as they differ by activation, dropout and one subnet a feature."""
    import triton.language as tl
    from fastmlp.kernels.gpu.machine.launch import config_for

    h = hidden["N_HIDDEN"]
    forward, backward = "subnet.general_fwd", "subnet.general_bwd"
    fwd, bwd = partial(Case, forward), partial(Case, backward)
    off = {"FEATUREWISE": False, "DROPOUT": (-1, 1.0) * 3, "seed_ptr": None, "FIRST_MASK": 0}
    tanh = {**off, "ACT": "tanh"}
    featurewise = {**off, "ACT": "relu", "FEATUREWISE": True}
    dropout = {"ACT": "relu", "FEATUREWISE": False, "DROPOUT": (13107, 1.25) * 3, "FIRST_MASK": 2}
    narrow = {**one_out, "BLOCK_IN": 16}
    elementwise = {"n_in": 1, "x_row_stride": 1, "fc3_weight_ptr": None, "fc3_bias_ptr": None}
    elementwise = {**one_out, **tanh, **elementwise, "BLOCK_IN": 1}
    # values and slopes: a loop over units, unrolled with dropout; sums of all units in one loop
    return {
        "general_fwd": fwd({**narrow, **tanh}, Hot(18, iterations=h)),
        "general_fwd, softplus": fwd({**narrow, **off, "ACT": "softplus"}, Hot(18, iterations=h)),
        "general_fwd, relu, featurewise": fwd({**narrow, **featurewise}, Hot(3, iterations=h)),
        "general_fwd, relu, dropout": fwd({**narrow, **dropout}, Hot(4 * h)),
        "general_fwd, elementwise": Case(forward, {**elementwise, "BLOCK_ROWS": 1024}),
        "general_bwd_x": bwd({**one_out, **tanh}, Hot(18, iterations=h)),
        "general_bwd_x, relu, featurewise": bwd({**one_out, **featurewise}, Hot(3, iterations=h)),
        "general_bwd_x, relu, dropout": bwd({**one_out, **dropout}, Hot(4 * h, whole=True)),
        "general_bwd_params": bwd({**one_out, **tanh}, Hot(20 * h)),
        "general_bwd_params, relu, featurewise": bwd({**one_out, **featurewise}, Hot(6 * h)),
        "general_bwd_params, relu, dropout": bwd({**one_out, **dropout}, Hot(6 * h)),
        "general_bwd_params, elementwise": Case(
            "subnet.general_bwd", {**elementwise, "BLOCK_ROWS": 256}
        ),
        "general_bwd_params, softplus": bwd({**one_out, **off, "ACT": "softplus"}, Hot(20 * h)),
        "general_bwd_params, fp64": Case(backward, {**one_out, **tanh}, dtype="fp64"),
        "general_bwd_readout": Case(backward, {**many_out, **dropout}),
        "general_bwd_readout, canonical": Case(
            backward,
            {**many_out, **off, "ACT": None},
            everywhere=True,
            config=config_for("additive_mlp_bwd_readout", tl.float32),
        ),
    }


def _mlp_cases():
    """Whole nets: that of experiment 2, and wide ones."""
    import triton.language as tl
    from fastmlp.kernels.gpu.machine.launch import mlp_config

    nets = {
        "": (1, 10, 10, 10, 1),
        ", 64-64-64-16": (64, 64, 64, 16),
        ", 128-128-128": (128, 128, 128),
    }
    table = {}
    for name in ("mlp_fwd", "mlp_bwd"):
        for what, widths in nets.items():
            constants = {
                "WIDTHS": widths, "N_LAYERS": len(widths) - 1, "HIDDEN": "relu",
                "OUTPUT": "identity", "DROPOUT": (-1, 1.0) * len(widths), "seed_ptr": None,
            }  # fmt: skip
            config = mlp_config(name, widths, tl.float32)
            table[name + what] = Case("mlp", constants, config=config, everywhere=False)
    return table


# what pointers of the training kernel point to, where not to numbers of the compute type
_TRAINING_TYPES = {
    **dict.fromkeys(
        ("starts_ptr", "models_ptr", "steps_ptr", "rows_ptr", "seeds_ptr", "streams_ptr"), "i64"
    ),
    **dict.fromkeys(("state_ptr", "hyper_ptr", "rates_ptr"), "fp64"),
    **dict.fromkeys(("train_loss_ptr", "val_loss_ptr", "grad_norm_ptr"), "fp64"),
    "trained_ptr": "i8",
}


def _training_cases():
    """Whole training runs, in the shapes of the experiments."""
    import triton.language as tl
    from fastmlp.kernels.gpu import models
    from fastmlp.kernels.gpu.machine.launch import Config
    from fastmlp.kernels.gpu.numbers.activations import ACTIVATIONS
    from fastmlp.kernels.gpu.training import loop

    codes = {name: code for code, name in enumerate(ACTIVATIONS)}

    def case(kind, sizes, constants, n_in, batch_rows, optimizer, shuffled, **options):
        dtype, loss = options.get("dtype", "fp32"), options.get("loss", "mse")
        compute = tl.float64 if dtype == "fp64" else tl.float32
        verb = models.VERBS[kind](sizes, constants, n_in, batch_rows, compute)
        n_parameters = options.get("n_parameters", 64)
        return Case(
            "training.loop",
            {
                "MODEL": verb.function, "UPDATE": loop.OPTIMIZERS[optimizer], "LOSS": loss,
                "SHUFFLE": shuffled, "DRAWS": kind in ("general", "mlp") and any(constants),
                "SIZES": verb.sizes, "CONSTANTS": verb.constants, "BLOCK": n_parameters,
                "weight_ptr": None, "val_weight_ptr": None,
                **({} if options.get("tracked") else {"grad_norm_ptr": None}),
            },
            dtype=dtype,
            everywhere=options.get("everywhere", True),
            config=Config(rows=verb.sizes.items, cols=1, warps=verb.warps),
            types=_TRAINING_TYPES,
        )  # fmt: skip

    def sine(width, batch_rows, shuffled, **options):
        sizes, constants = (width, 0, 0), (0.5, 1 / width)
        return case("sine_sum", sizes, constants, 1, batch_rows, "adamw", shuffled, **options)

    def subnets(activation, featurewise, p, **options):
        sizes = 14, 1, 64, 1, codes[activation], featurewise, 1
        return case("general", sizes, (p, p, p), 64, 100, "adam", True, n_parameters=128, **options)

    def mlp(widths, hidden, output, batch_rows, optimizer, shuffled, *, rates=(0.0,), **options):
        sizes = len(widths) - 1, 1, codes[hidden], codes[output], *widths
        return case("mlp", sizes, rates, widths[0], batch_rows, optimizer, shuffled, **options)

    once = {"everywhere": False}
    return {
        "train, SineSum(8)": sine(8, 60, True),
        "train, SineSum(1024), batch 1": sine(1024, 1, False, **once),
        "train, SineSum(8), grad_norm": sine(8, 60, True, tracked=True, **once),
        "train, SineSum(8), fp64": sine(8, 60, False, dtype="fp64", **once),
        "train, AdditiveMLP(64, 14)": case(
            "additive_mlp", (14, 1, 64, 1), (), 64, 100, "adam", True, n_parameters=128
        ),
        "train, AdditiveMLP(64, 14), dropout": subnets("relu", 0, 0.2, **once),
        "train, AdditiveMLP(64, 14), tanh, per feature": subnets("tanh", 1, 0.0, **once),
        "train, ElementwiseMLP(14), bce": case(
            "elementwise_mlp", (14, 1), (), 1, 100, "sgd", True, loss="bce_with_logits", **once
        ),
        "train, 2-5-1, sigmoid": mlp((2, 5, 1), "sigmoid", "sigmoid", 4, "sgd", False, **once),
        "train, 2-5-1, sigmoid, fp64": mlp(
            (2, 5, 1), "sigmoid", "sigmoid", 4, "sgd", False, dtype="fp64", **once
        ),
        "train, 1-10-10-10-1": mlp(
            (1, 10, 10, 10, 1), "leaky_relu", "identity", 1280, "adam", True
        ),
        "train, 1-10-10-10-1, dropout": mlp(
            (1, 10, 10, 10, 1), "relu", "identity", 1280, "adam", True, rates=(0.1,) * 5, **once
        ),
    }


def _lane_cases():
    """Whole training runs of small models, a model a lane: hot is the loop over a batch's items."""
    import triton.language as tl
    from fastmlp.kernels.gpu.lanes import models
    from fastmlp.kernels.gpu.lanes.update import OPTIMIZERS
    from fastmlp.kernels.gpu.machine.launch import Config
    from fastmlp.kernels.runs import Structure
    from fastmlp.kernels.spec import CODES

    nothing = dict.fromkeys(
        ("weight_ptr", "val_x_ptr", "val_y_ptr", "val_weight_ptr", "best_ptr", "grad_norm_ptr")
    )

    def case(kind, sizes, constants, n, n_in, batch_rows, optimizer, math, *, everywhere=False,
             dtype="fp32", **changes):  # fmt: skip
        compute = tl.float64 if dtype == "fp64" else tl.float32
        structure = Structure(kind, sizes, constants, None, False, ((n,),), (True,), ("theta",))
        verb, update = models.verb_of(structure, n_in, compute), OPTIMIZERS[optimizer]
        items = models.items_of(n, batch_rows, "SHUFFLE" in changes)
        constants = {
            "MODEL": verb.function, "SIZES": verb.sizes, "CONSTANTS": verb.constants,
            "UPDATE": update, "MOMENTS": 0 if optimizer == "sgd" else update.moments,
            "TRAINED": (1,) * n, "LOSS": "mse", "SHUFFLE": False, "APART": False, "CLIPS": False,
            "ITEMS": items, "N": n, "LANES": models.LANES, **nothing,
        }  # fmt: skip
        for name, value in changes.items():
            if name in nothing:
                del constants[name]  # an address
            else:
                constants[name] = value
        return Case(
            "lanes.loop",
            constants,
            # an order of rows has a loop within
            None if constants["SHUFFLE"] else Hot(math, tiles=items),
            dtype=dtype,
            everywhere=everywhere,
            config=Config(rows=models.LANES, cols=1, warps=1),
            types=_TRAINING_TYPES,
        )

    def mlp(widths, hidden, output, *others, **options):
        sizes = len(widths) - 1, 1, CODES[hidden], CODES[output], *widths
        n = sum((a + 1) * b for a, b in itertools.pairwise(widths))
        return case("mlp", sizes, (0.0,), n, widths[0], *others, **options)

    def sine(width, optimizer, **options):
        constants = (0.5, 1 / width)
        options = {"math": 9 * width, **options}
        return case("sine_sum", (width, 0, 0), constants, width, 1, 60, optimizer, **options)

    anywhere = {"everywhere": True}
    patience = dict.fromkeys(("val_x_ptr", "val_y_ptr", "best_ptr"))
    all_options = {**dict.fromkeys(nothing), "APART": True, "SHUFFLE": True, "CLIPS": True}
    return {
        "train_lanes, 2-5-1, sigmoid": mlp(
            (2, 5, 1), "sigmoid", "sigmoid", 4, "sgd", 100, **anywhere
        ),
        "train_lanes, SineSum(8)": sine(8, "adamw", **anywhere),
        "train_lanes, 1-10-1": mlp((1, 10, 1), "relu", "identity", 60, "adam", 50, **anywhere),
        "train_lanes, 1-10-1, shuffled": mlp(
            (1, 10, 1), "relu", "identity", 60, "adam", 50, SHUFFLE=True
        ),
        "train_lanes, 1-10-1, tanh, patience": mlp(
            (1, 10, 1), "tanh", "identity", 60, "adam", 50, **patience
        ),
        "train_lanes, SineSum(8), all options, fp64": sine(8, "adam", dtype="fp64", **all_options),
    }


def _least_squares_cases():
    """Levenberg–Marquardt in the shapes of the experiments, all in float64."""
    import torch
    from fastmlp.kernels.gpu.levenberg_marquardt.sums import Sums
    from fastmlp.kernels.gpu.machine.launch import Config
    from fastmlp.kernels.gpu.numbers.activations import ACTIVATIONS

    relu, linear, sigmoid = (list(ACTIVATIONS).index(n) for n in ("relu", "identity", "sigmoid"))
    deep = 0, 3, 8, 64, 64, 1, 1, 1, 1, relu, relu, linear
    # description, its numbers, parameters, rows, inputs, type of the data
    shapes = {
        "AdditiveMLP(64, 14)": ((1, 64, 14, 1, 1, relu), (0,), 108, 90_000, 64, "fp32"),
        "SineSum(8)": ((2, 1, 8, 1, 0, 0), (0.5, 1 / 8), 8, 60, 1, "fp64"),
        "2-5-1, sigmoid": ((0, 2, 2, 5, 1, 1, 1, sigmoid, sigmoid), (0, 0), 21, 4, 2, "fp64"),
        "ElementwiseMLP(10)": ((0, 2, 1, 10, 1, 1, 1, relu, linear), (0, 0), 31, 10_000, 1, "fp64"),
        "6-6-10": ((0, 2, 6, 6, 10, 0, 0, linear, linear), (0, 0), 96, 1000, 6, "fp64"),
        "8-64-64-1": (deep, (0, 0, 0), 4801, 1000, 8, "fp64"),
    }  # fmt: skip
    table = {}
    for name, (net, reals, n_parameters, n_rows, n_in, dtype) in shapes.items():
        x = torch.empty(n_rows, n_in, device="meta")
        for kernel, launch in Sums(net, reals, n_parameters, x, None, None).launches().items():
            warps = launch.pop("num_warps")
            table[f"{kernel}, {name}, fp64"] = Case(
                "levenberg_marquardt.sums",
                {**launch, "weight_ptr": None},
                dtype="fp64",
                everywhere=kernel != "lm_loss" and n_parameters < 1000,
                config=Config(rows=launch["BLOCK_ROWS"], cols=1, warps=warps),
                types={"asked_ptr": "i8", "x_ptr": dtype, "y_ptr": dtype},
            )
    for name in ("AdditiveMLP(64, 14)", "8-64-64-1"):
        case = table[f"lm_jacobian, {name}, fp64"]
        constants = {**case.constants, "SLAB": case.constants["BLOCK_ROWS"], "gram_ptr": None}
        table[f"lm_jacobian, rows of {name}, fp64"] = case._replace(constants=constants)
    # so many columns are multiplied by cuBLAS
    del table["lm_jacobian, 8-64-64-1, fp64"]
    return table
