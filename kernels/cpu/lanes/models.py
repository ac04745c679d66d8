"""The models that can be trained a model a lane, and which of them are."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from ...spec import ADDITIVE, CODES, KINK_SLOPES, SINE, layers_of, model_of
from ..machine.vectors import LANE_BYTES
from .layers import LAYER, layers_backward, layers_forward, layers_jacobian
from .least_squares import lane_solver
from .least_squares_places import RUN, row_vectors
from .loop import trainer
from .sines import SINES, sines_backward, sines_forward, sines_jacobian

UNITS = 2
"""The mask of hidden unit 0 of a subnet of numbers: see `numbers/philox.py`."""

KEPT_BYTES = 1 << 14
"""Of a block's activations, about: with the parameters they stay in a level-1 cache."""


MOST_PARAMETERS = {"layers": 320, "sines": 32}
"""Of a model that is trained a model a lane, by its kind.

Sums of sines in batches of one row, 1, 20 and 1000 models against a model at a time: SineSum(8)
1.02, 5.4 and 8.0 times as fast, SineSum(32) 0.37, 2.5 and 3.9, SineSum(64) 0.27, 1.1 and 2.3; on
all of 60 rows 1.6, 3.1 and 3.5; 0.64, 1.2 and 2.1; 0.28, 0.88 and 1.2 (AMD EPYC, 2 threads, best of
3 in turn under load, 2026-11).
"""

MOST_WORK = 1 << 12
"""Products of a step, beyond which a model has enough to do for vectors of its own.

One model alone, a lane for each group of rows, against one with vectors of its own: 1.2 to 1.6
times as fast with SineSum(8) on 60 rows (3 840), 0.90 to 0.95 with 1-10-1 on 60 (1 200), 0.37 with
1-10-10-1 on 64 (7 680), 0.44 with 8-16-4 on 64 (12 300). It gains with its company: see
:data:`MOST_PARAMETERS` (AMD EPYC, 2 threads, 2026-11).
"""


MOST_ROWS = 1 << 16
"""Of such a model's epoch: each lane has an order of rows, 8 MB for so many."""

GROUP_ROWS, MOST_GROUPS = 4, 8


def groups_of(batch_rows):
    """How many groups the rows of a batch are dealt into: by their number alone."""
    groups = 1
    while groups < MOST_GROUPS and 2 * groups * GROUP_ROWS <= batch_rows:
        groups *= 2
    return groups


PER_SINE = 8
"""What a sine and its cosine cost, in products of a layer forward and backward."""


def is_small(structure, n_in, n_rows, batch_rows):
    """Whether models of a structure are trained a model a lane.

    Args:
        structure: As :func:`net_of` takes it.
        n_in: Numbers in a row of x.
        n_rows: Rows of an epoch.
        batch_rows: Rows of a step.
    """
    if structure.kind not in ("sine_sum", *_LAYERS):
        return False
    n = sum(math.prod(shape) for shape in structure.shapes)
    kind = "sines" if structure.kind == "sine_sum" else "layers"
    if n > MOST_PARAMETERS[kind] or n_rows > MOST_ROWS:
        return False
    records = net_of(structure, n_in, 1).records
    products = records["items"] * records["width"]
    products *= PER_SINE if kind == "sines" else records["wide"]
    return int(products.sum()) * batch_rows <= MOST_WORK


class Net(NamedTuple):
    """A structure as the verbs want it.

    Args:
        kind: ``"layers"`` or ``"sines"``.
        records: Array of what the verbs know of it, for a block of ``block_rows`` rows.
        block_rows: Most rows of a block.
        n_kept: Vectors of a block's memory.
        n_widest: Vectors of the gradient of its widest layer.
    """

    kind: str
    records: np.ndarray
    block_rows: int
    n_kept: int
    n_widest: int


def net_of(structure, n_in, rows):
    """The :class:`Net` of a structure.

    Args:
        structure: Its ``kind``, ``sizes`` and ``constants`` are those of `../models.py`.
        n_in: Numbers in a row of x.
        rows: Most rows that a step or a validation takes.
    """
    if structure.kind == "sine_sum":
        return _sines(structure.sizes, structure.constants, n_in, rows)
    return _layers(_LAYERS[structure.kind](structure, n_in), rows)


def _rows(vectors, rows, n_bytes=KEPT_BYTES):
    """Rows of a block, of so many vectors each: whole groups of four."""
    fitting = n_bytes // LANE_BYTES // vectors // 4 * 4
    return max(1, min(rows, max(4, fitting)))


def _sines(sizes, constants, n_in, rows, beside=0, n_bytes=KEPT_BYTES):
    (width, amplitude, phase), (turns, factor) = sizes, constants
    waves = width * (2 if amplitude else 1)
    rows = _rows(n_in * (waves + 1) + beside, rows, n_bytes)
    n = rows * n_in
    net = np.zeros(1, SINES)
    net["items"], net["width"], net["turns"], net["factor"] = n_in, width, turns, factor
    net["amplitude"] = width if amplitude else -1
    net["phase"] = width * (1 + amplitude) if phase else -1
    net["values"], net["cosines"], net["sines"] = 0, n, n * (1 + width)
    return Net("sines", net, rows, n * (1 + waves), n)


def _chain(items, widths, biases, codes, nets=1):
    """Layers one after the other; the first is no layer but the inputs."""
    layers, at = np.zeros(len(widths), LAYER), 0
    biases = np.broadcast_to(biases, len(widths) - 1)
    for i, width in enumerate(widths):
        layer, wide = layers[i], widths[i - 1] if i else 0
        layer["items"], layer["nets"], layer["width"], layer["wide"] = items, nets, width, wide
        if i == 0:
            continue
        layer["activation"], bias = codes[i - 1], biases[i - 1]
        layer["weight"], layer["bias"] = at, at + nets * width * wide if bias else -1
        at += nets * width * (wide + bias)
    return layers


def _mlp(structure, n_in):
    n_layers, bias, hidden, last, *widths = structure.sizes
    codes = [hidden] * (n_layers - 1) + [last]
    layers = _chain(n_in // widths[0], widths, bias, codes)
    rates = structure.constants
    # one number is that behind each hidden layer
    layers["p"] = (0.0, *rates * (n_layers - 1), 0.0) if len(rates) == 1 else rates
    layers["stream"] = range(n_layers + 1)
    return layers


def _subnet(n_items, n_hidden, bias, code, dropout=(0.0, 0.0, 0.0), nets=1):
    layers = _chain(n_items, (1, n_hidden, 1), bias, (code, CODES["identity"]), nets)
    layers["p"], layers["mask"] = dropout, (0, UNITS, 1)
    return layers


def _with_readout(layers, features, n_out, bias):
    rows = layers[-1]["items"] // features
    n = int(_parameters(layers).sum())
    (readout,) = _chain(rows, (features, n_out), bias, (CODES["identity"],))[1:]
    readout["weight"] += n
    readout["bias"] += n if bias else 0
    return np.append(layers, readout)


def _elementwise(structure, n_in):
    n_hidden, bias = structure.sizes
    return _subnet(n_in, n_hidden, bias, CODES["relu"])


def _additive(structure, n_in):
    n_hidden, bias, features, n_out = structure.sizes
    layers = _subnet(n_in, n_hidden, bias, CODES["relu"])
    return _with_readout(layers, features, n_out, bias)


def _general(structure, n_in):
    n_hidden, bias, features, n_out, code, featurewise, has_readout = structure.sizes
    nets = features if featurewise else 1
    layers = _subnet(n_in, n_hidden, bias, code, structure.constants, nets)
    return _with_readout(layers, features, n_out, bias) if has_readout else layers


_LAYERS = {
    "mlp": _mlp,
    "elementwise_mlp": _elementwise,
    "additive_mlp": _additive,
    "general": _general,
}


def _layers(layers, rows, beside=0, n_bytes=KEPT_BYTES):
    """Lay a chain's memory out for a block of rows, with so many vectors a row beside it."""
    numbers = layers["items"] * layers["width"]
    drops = layers["p"] > 0
    rectifies = (layers["activation"] == CODES["relu"]) & ~drops
    rectifies[0] = False
    # outputs and slopes of each layer, factors of dropout; of the inputs a copy if they are dropped
    outputs = numbers.copy()
    outputs[0] *= drops[0]
    slopes = numbers * ~rectifies * (layers["activation"] != CODES["identity"])
    slopes[0] = 0
    factors = numbers * drops
    rows = _rows(int((outputs + slopes + factors).sum()) + beside, rows, n_bytes)
    places = rows * np.concatenate([[0], np.cumsum(np.concatenate([outputs, slopes, factors]))])
    n = len(layers)
    layers["values"] = places[:n]
    layers["rectifies"] = rectifies
    layers["slopes"] = np.where(rectifies, places[:n], places[n : 2 * n])
    layers["factors"] = places[2 * n : 3 * n]
    return Net("layers", layers, rows, int(places[-1]), rows * int(numbers[1:].max()))


VERBS = {"layers": (layers_forward, layers_backward), "sines": (sines_forward, sines_backward)}


@cache
def trainer_of(kind):
    """Compute dtype to the compiled trainer of one kind of model."""
    return trainer(*VERBS[kind])


MOST_OF_LEAST_SQUARES = 64
"""Parameters of a model whose least squares are solved a model a lane: see the next."""

MOST_OF_A_JACOBIAN = 1 << 12
"""Numbers in its Jacobian.

256 models on one thread, times as fast as a model at a time, on 8, 60, 250 and 1000 rows:
SineSum(4) 10, 4.2, 3.0 and 2.3; SineSum(16) 8.5, 3.1, 2.4 and 2.1; SineSum(64) 4.9, 2.5, 1.6 and
1.2; tanh 1-8-1 9.7, 3.9, 2.3 and 1.8; 1-32-1 (97 parameters) 3.7, 2.3, 1.4 and 1.0; 2-8-2 7.4, 2.6,
1.4 and 1.05. A model alone leaves seven lanes of eight empty, and is up to four times as slow: of
so few numbers that a step of it stays below 0.1 ms (AMD EPYC, Zen 5, 2026-11).
"""

JACOBIAN_BYTES = 1 << 16
"""Of a block's activations and Jacobian, about.

1-8-1 with tanh on 60 rows: 1.91 µs a Jacobian with 16 KB, 1.77 with 32, 1.61 with 64, 1.72 with 128
(AMD EPYC, Zen 5, one thread, 2026-11).
"""


def lane_rows(words, numbers):
    """Most rows of a model whose least squares are solved a model a lane; 0 for no model.

    That is where it has enough to do for vectors of its own, or where a leaky ReLU has a slope that
    the verbs do not know.

    Args:
        words: Its integers in `../models.py`.
        numbers: Its numbers.
    """
    model = model_of(words)
    if model.model == SINE:
        n_parameters, leaky = model.width * (1 + model.amplitude + model.phase), set()
    else:
        layers = _layers_of_words(words)
        n_parameters = int(_parameters(layers).sum())
        codes = layers["activation"][1:]
        leaky = {s for c, s in zip(codes, numbers, strict=False) if c == CODES["leaky_relu"]}
    if n_parameters > MOST_OF_LEAST_SQUARES or not leaky <= {KINK_SLOPES["leaky_relu"]}:
        return 0
    return MOST_OF_A_JACOBIAN // (n_parameters * _features_of(words)[1])


def _layers_of_words(words):
    model = model_of(words)
    if model.model == ADDITIVE:
        layers = _subnet(model.n_in, model.n_hidden, model.bias, model.activation)
        return _with_readout(layers, model.n_in, model.n_out, model.bias)
    widths, biases, codes = layers_of(words, model.n_layers)
    return _chain(1, widths, biases, codes)


def net_of_words(words, numbers, rows):
    """The :class:`Net` of a model in the words of `../models.py`, for blocks of least squares.

    Args:
        words: Its integers.
        numbers: Its numbers.
        rows: Most rows of a model.
    """
    model = model_of(words)
    if model.model == SINE:
        n = model.width * (1 + model.amplitude + model.phase)
        sizes = model.width, model.amplitude, model.phase
        return _sines(sizes, numbers, 1, rows, row_vectors(n), JACOBIAN_BYTES)
    layers = _layers_of_words(words)
    n = int(_parameters(layers).sum())
    return _layers(layers, rows, row_vectors(n), JACOBIAN_BYTES)


def _features_of(words):
    """Inputs and outputs of a row."""
    model = model_of(words)
    if model.model in (SINE, ADDITIVE):
        return model.n_in, model.n_out
    widths, _, _ = layers_of(words, model.n_layers)
    return widths[0], widths[-1]


def _parameters(layers):
    """Of each layer."""
    return (
        layers["width"]
        * layers["nets"]
        * (layers["wide"] + (layers["bias"] >= 0))
        * (layers["wide"] > 0)
    )


class LaneSolver:
    """Solves least squares of models of one kind a model a lane, as far as Cholesky goes.

    Args:
        words: Integers of a model in `../models.py`.
        numbers: Its numbers.
        n_parameters: How many it has.
        data: Records of the rows, :data:`.lm.DATA`, of all models or of each.
        n_rows: Most rows of those that :func:`lane_rows` lets in.
    """

    def __init__(self, words, numbers, n_parameters, data, n_rows):
        self.n_rows = n_rows
        self._net = net_of_words(words, numbers, n_rows)
        n_in, n_out = _features_of(words)
        self._run, self._data = np.zeros(1, RUN), data
        for name, value in {
            "p": n_parameters, "data": data.ctypes.data,
            "data_step": data.strides[0] if len(data) > 1 else 0,
            "net": self._net.records.ctypes.data, "n_net": len(self._net.records),
            "n_rows": n_rows, "n_in": n_in, "n_out": n_out, "block_rows": self._net.block_rows,
            "n_kept": self._net.n_kept, "n_widest": self._net.n_widest,
            "is_ragged": (data["n_rows"] < n_rows).any(), "has_weights": data["weight"].any(),
        }.items():  # fmt: skip
            self._run[name] = value

    def bind(self, **addresses):
        """Function ``(budget, first, last)``, of the addresses that `lm_runs` takes."""
        for name, address in addresses.items():
            self._run[name] = address

        def solve(budget, first, last):
            solver_of(self._net.kind)(self._run.ctypes.data, budget, first, last)

        return solve


SOLVED = {
    "layers": (layers_forward, layers_jacobian),
    "sines": (sines_forward, sines_jacobian),
}


@cache
def solver_of(kind):
    """The compiled solver of one kind of model."""
    return lane_solver(*SOLVED[kind])
