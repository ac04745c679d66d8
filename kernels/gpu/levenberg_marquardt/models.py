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
from ...spec import ADDITIVE, MLP, SINE
from ..layers.jacobian import mlp_jacobian
from ..layers.rows import padded
from ..machine.launch import block_of
from ..numbers.activations import ACTIVATIONS
from ..sines.jacobian import sine_jacobian
from ..subnet.jacobian import additive_jacobian


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
    if net[0] == MLP:
        n_layers = net[1]
        widths, biases = net[2 : 3 + n_layers], net[3 + n_layers : 3 + 2 * n_layers]
        if max(widths) > MAX_WIDTH:
            raise ValueError(f"its widest layer has {max(widths)} numbers, at most {MAX_WIDTH}")
        acts = tuple(functions[code] for code in net[3 + 2 * n_layers :])
        widest = padded(max(widths))
        constants = (tuple(widths), tuple(biases), n_layers), acts, tuple(reals)
        return Verb(mlp_jacobian, constants, widths[-1], 16, max(1, widest // 32), 16)
    if net[0] == ADDITIVE:
        _, n_in, n_hidden, n_out, bias, code = net
        block = block_of(n_in, 16)
        constants = (n_in, n_hidden, n_out, bias, block), (functions[code],), tuple(reals)
        return Verb(additive_jacobian, constants, n_out, 64, 4, 32)
    if net[0] != SINE:
        raise ValueError(f"{net[0]} is no model")
    _, _, width, _, has_amplitude, has_phase = net
    block = block_of(width, 64)
    constants = (width, has_amplitude, has_phase, block), (), tuple(reals)
    return Verb(sine_jacobian, constants, 1, min(128, 1024 // block), 4, 32)
