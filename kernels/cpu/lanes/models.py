"""The models that can be trained a model a lane, and which of them are."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from ...spec import CODES
from ..machine.vectors import LANE_BYTES
from .layers import LAYER, layers_backward, layers_forward
from .loop import trainer
from .sines import SINES, sines_backward, sines_forward

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
        return _sines(structure, n_in, rows)
    return _layers(_LAYERS[structure.kind](structure, n_in), rows)


def _rows(vectors, rows):
    """Rows of a block, of so many vectors each: whole groups of four."""
    fitting = KEPT_BYTES // LANE_BYTES // vectors // 4 * 4
    return max(1, min(rows, max(4, fitting)))


def _sines(structure, n_in, rows):
    (width, amplitude, phase), (turns, factor) = structure.sizes, structure.constants
    waves = width * (2 if amplitude else 1)
    rows = _rows(n_in * (waves + 1), rows)
    n = rows * n_in
    net = np.zeros(1, SINES)
    net["items"], net["width"], net["turns"], net["factor"] = n_in, width, turns, factor
    net["amplitude"] = width if amplitude else -1
    net["phase"] = width * (1 + amplitude) if phase else -1
    net["values"], net["cosines"], net["sines"] = 0, n, n * (1 + width)
    return Net("sines", net, rows, n * (1 + waves), n)


def _chain(items, widths, bias, codes, nets=1):
    """Layers one after the other; the first is no layer but the inputs."""
    layers, at = np.zeros(len(widths), LAYER), 0
    for i, width in enumerate(widths):
        layer, wide = layers[i], widths[i - 1] if i else 0
        layer["items"], layer["nets"], layer["width"], layer["wide"] = items, nets, width, wide
        if i == 0:
            continue
        layer["activation"] = codes[i - 1]
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
    n = sum((layer["wide"] + bias) * layer["width"] * layer["nets"] for layer in layers[1:])
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


def _layers(layers, rows):
    """Lay a chain's memory out for a block of rows."""
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
    rows = _rows(int((outputs + slopes + factors).sum()), rows)
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
