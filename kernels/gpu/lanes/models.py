"""The models that can be trained a model a lane, and which of them are."""

import itertools
import math
from typing import NamedTuple

import triton.language as tl

from ... import spec
from ...spec import CODES
from ..numbers.activations import ACTIVATIONS
from .layers import LayerConstants, LayerSizes, layers
from .sines import SineConstants, SineSizes, sines

LANES = 32
"""Models of a program, one a thread of its one warp: few spread over many multiprocessors."""

MOST_PARAMETERS = {tl.float32: 32, tl.float64: 8}
"""Of a model whose parameters, moments and gradients are registers: four for each, eight in
float64, of 255. Compiled for sm_80, sm_90 and sm_100 with Triton 3.7 no step of such a model
touches local or shared memory; with all options at once, an order, weights, a bound on the gradient
and its norm, validation and patience, a net of 31 has 11 spills on sm_90."""

MOST_WORK = 1 << 12
"""Products of a step, beyond which one thread is too slow for a model, however many there are.

A model's numbers must not depend on how many there are. Counted for sm_90, not measured: a step of
SineSum(8) on 60 rows (3 840) is some 16 000 instructions of a warp, 9 µs or more whether one model
is in it or 32, and the same for 16 000 models on an H200. With a program each a step of XOR's net
took 7 µs there with 64 models, and among 4096 twelve of a whole multiprocessor (2026-11).
"""

PER_SINE = 8
"""What a sine and its cosine cost, in products of a layer forward and backward."""

ITEMS = {24: 4, 32: 2}
"""Items of a batch that a thread takes side by side, up to so many parameters: their arithmetic
fills the time in which that of one waits for itself. Beyond, there are no registers for two."""


class LaneVerb(NamedTuple):
    """How to launch the training of one structure, a model a lane.

    Args:
        function: The verb.
        sizes: SIZES of the verb.
        constants: CONSTANTS of the verb.
        products: What an item costs, in products of a layer.
    """

    function: object
    sizes: tuple
    constants: tuple
    products: int


def _sines(structure, n_in):
    sizes, (turns, factor) = spec.SineSizes(*structure.sizes), structure.constants
    verb_sizes = SineSizes(*sizes, n_in)
    return LaneVerb(sines, verb_sizes, SineConstants(turns, factor), sizes.width * PER_SINE)


def _chain(widths, bias, hidden, output, n_in):
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    sizes = LayerSizes(widths, len(widths) - 1, bias, n_in // widths[0])
    products = sum(math.prod(pair) for pair in itertools.pairwise(widths))
    return LaneVerb(layers, sizes, LayerConstants(functions[hidden], functions[output]), products)


def _mlp(structure, n_in):
    sizes, widths = spec.layer_sizes(structure.sizes)
    return _chain(widths, sizes.bias, sizes.hidden, sizes.output, n_in)


def _subnet(structure, n_in):
    sizes = spec.SubnetSizes(*structure.sizes)
    if sizes.featurewise or sizes.readout:
        return None
    widths = 1, sizes.n_hidden, 1
    return _chain(widths, sizes.bias, sizes.activation, CODES["identity"], n_in)


VERBS = {"sine_sum": _sines, "mlp": _mlp, "elementwise_mlp": _subnet, "general": _subnet}
"""Models by the name of their op, as in `models.py` of the wing: function of a structure and of the
numbers in a row of x that gives the :class:`LaneVerb`, or ``None``."""


def verb_of(structure, n_in, compute):
    """The :class:`LaneVerb` of a structure; ``None`` where it is trained another way."""
    most = MOST_PARAMETERS[compute]
    if structure.kind not in VERBS or structure.draws or structure.n_parameters > most:
        return None
    return VERBS[structure.kind](structure, n_in)


def is_small(verb, batch_rows, steps_per_epoch, n_val_rows):
    """Whether models are trained a model a lane, by their rows.

    Args:
        verb: Their :class:`LaneVerb`.
        batch_rows: Rows of a step.
        steps_per_epoch: How many.
        n_val_rows: Rows to validate with after each epoch.
    """
    rows = max(batch_rows, n_val_rows / steps_per_epoch)
    return verb.products * verb.sizes.per_row * rows <= MOST_WORK


def items_of(n_parameters, n_items, is_apart):
    """Items that a thread takes side by side: no more than a batch has, one where lanes read rows
    of their own, for addresses are registers too."""
    fitting = next((items for most, items in ITEMS.items() if n_parameters <= most), 1)
    return 1 if is_apart else min(fitting, 1 << (n_items.bit_length() - 1))
