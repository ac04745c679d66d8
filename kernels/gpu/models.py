"""What the kernels know of each model: a row for training whole, a branch for least squares.

Training: a row of x is ``PER_ROW`` items, each of them what the model takes at a time: a number, or
the numbers of the last dimension. A tile is some items; sums over units and features are within it,
so that `machine/verbs.py` bounds the sizes of a model. Gradients are summed tile by tile in
registers. `training/loop.py` has the contract of a verb.

Least squares: rows of ∂y/∂θ, a tile of rows at a time, float64. The models are those of
`kernels/cpu/models.py`, in the same words and with the same flat θ. One verb a model::

    verb(theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride, SIZES, ACTS, NUMBERS)

returns output m, f_m(x; θ), of some rows, x being 0 from row ``stop`` on, and unless ``out_ptr`` is
None writes their Jacobian times ``root``, the square roots of the rows' weights: ∂f_m/∂θ_p of a row
goes to ``out_ptr[p·stride + place]``. So the columns of a matrix lie one after the other, whatever
the groups are that a model makes them in.
"""

from typing import NamedTuple

from .. import spec
from ..lm import MAX_WIDTH
from ..spec import ADDITIVE, MLP, SINE
from .layers import jacobian as layer_rows
from .layers import verbs as layers
from .layers.rows import padded
from .machine.keys import Values
from .machine.launch import block_of
from .numbers.activations import ACTIVATIONS
from .sines import jacobian as sine_rows
from .sines import verbs as sines
from .subnet import jacobian as subnet_rows
from .subnet import verbs as subnet

VERBS = {
    "sine_sum": sines.verb_of,
    "elementwise_mlp": subnet.elementwise_verb,
    "additive_mlp": subnet.additive_verb,
    "general": subnet.general_verb,
    "mlp": layers.verb_of,
}
"""Every model by the name of its op: the function of its sizes and constants, as in
`kernels/cpu/models.py`, of the numbers in a row of x, the rows of a batch and the compute
type that gives the :class:`Verb`."""


class Jacobian(NamedTuple):
    """How least squares evaluates one structure.

    Args:
        function: The verb.
        constants: Its SIZES, ACTS and NUMBERS.
        n_out: Outputs M.
        rows: Most rows of a tile, a power of two of at least 16.
        warps: Warps that evaluate a tile.
        columns: Columns of J that are multiplied at a time, at most, by eight warps.
    """

    function: object
    constants: tuple
    n_out: int
    rows: int
    warps: int
    columns: int


def jacobian_of(net, reals):
    """The verb of a description for least squares; sines count in turns, as on the CPU.

    Sizes are those with which nothing is spilled, by the counts of bench/static_cost.py.

    Raises:
        ValueError: A layer wider than the kernels take, or no model.
    """
    # what follows has branches for them
    spec.for_each(spec.MODELS, (MLP, ADDITIVE, SINE), "model")
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    model = spec.model_of(net)
    if model.model == SINE:
        block = block_of(model.width, 64)
        sizes = sine_rows.Sizes(model.width, model.amplitude, model.phase, block)
        constants = sizes, (), sine_rows.Numbers(*reals)
        return Jacobian(sine_rows.sine_jacobian, constants, 1, min(128, 1024 // block), 4, 32)
    if model.model == ADDITIVE:
        block = block_of(model.n_in, 16)
        n_in, n_hidden, n_out, bias = model.n_in, model.n_hidden, model.n_out, model.bias
        places = spec.subnet_places(1, n_hidden, bias, n_out * n_in)
        sizes = subnet_rows.Sizes(n_in, n_hidden, n_out, bias, *places, block)
        constants = (
            sizes,
            subnet_rows.Acts(functions[model.activation]),
            subnet_rows.Numbers(*reals),
        )
        return Jacobian(subnet_rows.additive_jacobian, constants, model.n_out, 64, 4, 32)
    widths, biases, codes = spec.layers_of(net, model.n_layers)
    if max(widths) > MAX_WIDTH:
        raise ValueError(f"its widest layer has {max(widths)} numbers, at most {MAX_WIDTH}")
    acts = Values(functions[code] for code in codes)
    constants = layer_rows.Sizes(tuple(widths), tuple(biases), model.n_layers), acts, tuple(reals)
    warps = max(1, padded(max(widths)) // 32)
    return Jacobian(layer_rows.mlp_jacobian, constants, widths[-1], 16, warps, 16)
