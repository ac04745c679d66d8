"""Rows of ∂y/∂θ of every model that Levenberg–Marquardt knows, a tile of rows at a time, float64.

The models are those of `kernels/cpu/levenberg_marquardt/models.py`, in the same words and with
the same flat θ. One verb a model::

    verb(theta_ptr, x_ptr, rows, stop, root, m, out_ptr, places, stride, SIZES, ACTS, NUMBERS)

returns output m, f_m(x; θ), of some rows, x being 0 from row ``stop`` on, and unless ``out_ptr`` is
None writes their Jacobian times ``root``, the square roots of the rows' weights: ∂f_m/∂θ_p of a row
goes to ``out_ptr[p·stride + place]``. So the columns of a matrix lie one after the other, whatever
the groups are that a model makes them in.
"""

from typing import NamedTuple

from ... import spec
from ...lm import MAX_WIDTH
from ...spec import ADDITIVE, SINE
from ..layers import jacobian as layers
from ..layers.rows import padded
from ..machine.launch import block_of
from ..numbers.activations import ACTIVATIONS
from ..sines import jacobian as sines
from ..subnet import jacobian as subnet


class Verb(NamedTuple):
    """How to evaluate one structure.

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


def verb_of(net, reals):
    """The :class:`Verb` of a description; sines count in turns, as on the CPU.

    Sizes are those with which nothing is spilled, by the counts of bench/static_cost.py.

    Raises:
        ValueError: A layer wider than the kernels take, or no model.
    """
    functions = spec.for_each(spec.ACTIVATIONS, ACTIVATIONS)
    model = spec.model_of(net)
    if model.model == SINE:
        block = block_of(model.width, 64)
        sizes = sines.Sizes(model.width, model.amplitude, model.phase, block)
        constants = sizes, (), sines.Numbers(*reals)
        return Verb(sines.sine_jacobian, constants, 1, min(128, 1024 // block), 4, 32)
    if model.model == ADDITIVE:
        block = block_of(model.n_in, 16)
        n_in, n_hidden, n_out, bias = model.n_in, model.n_hidden, model.n_out, model.bias
        places = spec.subnet_places(1, n_hidden, bias, n_out * n_in)
        sizes = subnet.Sizes(n_in, n_hidden, n_out, bias, *places, block)
        constants = sizes, subnet.Acts(functions[model.activation]), subnet.Numbers(*reals)
        return Verb(subnet.additive_jacobian, constants, model.n_out, 64, 4, 32)
    widths, biases, codes = spec.layers_of(net, model.n_layers)
    if max(widths) > MAX_WIDTH:
        raise ValueError(f"its widest layer has {max(widths)} numbers, at most {MAX_WIDTH}")
    acts = tuple(functions[code] for code in codes)
    constants = layers.Sizes(tuple(widths), tuple(biases), model.n_layers), acts, tuple(reals)
    warps = max(1, padded(max(widths)) // 32)
    return Verb(layers.mlp_jacobian, constants, widths[-1], 16, warps, 16)
