"""A net of layers as one vector of integers, and what its places hold.

The number of layers L, L + 1 widths, L addresses of weights [out, in], L addresses of biases, 0 for
none. Of a net without addresses, as plain Python reserves memory for it, the first L + 2 do.
"""

from array import array

from numba.extending import register_jitable


def pack(widths, addresses):
    """The vector of a net whose weights and biases lie at these addresses, in turns."""
    return array("q", [len(widths) - 1, *widths, *addresses[::2], *addresses[1::2]])


@register_jitable
def n_words(n_layers):
    """Length of the vector."""
    return 2 + 3 * n_layers


@register_jitable
def lay(words, n_layers, widths, has_bias, at, item):
    """Fill the vector of a net whose parameters lie one after the other from an address on."""
    words[0] = n_layers
    for layer in range(n_layers + 1):
        words[1 + layer] = widths[layer]
    for layer in range(n_layers):
        wide, width = widths[layer], widths[layer + 1]
        words[2 + n_layers + layer] = at
        at += wide * width * item
        words[2 + 2 * n_layers + layer] = at if has_bias else 0
        at += width * has_bias * item


@register_jitable
def depth(words):
    """Number of layers."""
    return words[0]


@register_jitable
def width_of(words, layer):
    """Numbers behind a layer; behind layer 0, of an input."""
    return words[1 + layer]


@register_jitable
def weight_at(words, layer):
    """Address of the weights between what is behind a layer and the next, [out, in]."""
    return words[2 + words[0] + layer]


@register_jitable
def bias_at(words, layer):
    """Address of the biases that go with :func:`weight_at`; 0 for none."""
    return words[2 + 2 * words[0] + layer]
