"""The verb of every model that can be trained whole: see :mod:`.loop` for its contract.

A row of x is ``PER_ROW`` items, each of them what the model takes at a time: a number, or the
numbers of the last dimension. A tile is some items; sums over units and features are within it, so
that `machine/verbs.py` bounds the sizes of a model. Gradients are summed tile by tile in registers.
"""

from ..layers import verbs as layers
from ..sines import verbs as sines
from ..subnet import verbs as subnet

VERBS = {
    "sine_sum": sines.verb_of,
    "elementwise_mlp": subnet.elementwise_verb,
    "additive_mlp": subnet.additive_verb,
    "general": subnet.general_verb,
    "mlp": layers.verb_of,
}
"""Every model by the name of its op: the function of its sizes and constants, as in
`kernels/cpu/training/models.py`, of the numbers in a row of x, the rows of a batch and the compute
type that gives the :class:`Verb`."""
