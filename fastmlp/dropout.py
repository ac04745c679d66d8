"""The dropout masks of the ops, in plain PyTorch: what every backend reproduces."""

import torch


def dropout_places(dropout):
    """The three dropout probabilities (input, hidden, output) that ``dropout`` stands for."""
    return tuple(dropout) if isinstance(dropout, (tuple, list)) else (dropout,) * 3


def dropout_masks(seed, n, n_hidden, dropout, dtype=torch.float32):
    """What the elements of a scalar subnet are multiplied by under dropout: 0 or 1/(1 − p).

    The masks of an element are a function of the seed and of the element's place alone: Philox4x32
    with 10 rounds, key the 64 bits of the seed, counter (place, low and high 32 bits; block; 0).
    The four words of block b are eight halves, low half first, for the masks 8b … 8b + 7. Mask 0
    is the input's, mask 1 the output's, mask 2 + k that of hidden unit k. An element is dropped
    where the half is below round(65536·p).

    Args:
        seed: Key. Shape ``[1]``, int64.
        n: Number of elements.
        n_hidden: Number of hidden units H.
        dropout: Probabilities of dropping an input, a hidden unit, an output.
        dtype: Dtype of the results.

    Returns:
        Factors of shapes ``[n]`` (input), ``[n, H]`` (hidden) and ``[n]`` (output); ``None`` where
        the probability is 0.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011, section 3.2.
    """
    p_input, p_hidden, p_output = dropout
    halves = _halves(seed, n, 2 + (n_hidden if p_hidden > 0 else 0))

    def factors(chosen, p):
        return None if p == 0 else _factors(halves[..., chosen], p, dtype)

    return factors(0, p_input), factors(slice(2, None), p_hidden), factors(1, p_output)


def layer_dropout_masks(seed, n, widths, p, dtype=torch.float32):
    """What the hidden units of a dense network are multiplied by under dropout: 0 or 1/(1 − p).

    As :func:`dropout_masks`, where the last word of the counter tells the layer: the counter is
    (row, low and high 32 bits; block; l) for hidden layer l = 1, 2, …, and unit k of the layer has
    mask k.

    Args:
        seed: Key. Shape ``[1]``, int64.
        n: Number of rows.
        widths: Units of each hidden layer.
        p: Probability of dropping a unit.
        dtype: Dtype of the results.

    Returns:
        A list of factors, shape ``[n, width]`` for each hidden layer.
    """
    return [layer_mask(seed, n, width, layer, p, dtype) for layer, width in enumerate(widths, 1)]


def layer_mask(seed, n, width, layer, p, dtype=torch.float32):
    """The factors of one layer as :func:`layer_dropout_masks` has them, shape ``[n, width]``.

    Layer 0 is the input of the network, the last one its output.
    """
    return _factors(_halves(seed, n, width, layer), p, dtype)


def layer_rates(dropout, n_layers):
    """The probabilities of the input and behind each layer that ``dropout`` stands for.

    One number is that of the hidden layers; L + 1 of them are themselves.
    """
    if isinstance(dropout, (tuple, list)):
        return tuple(dropout)
    return 0.0, *[dropout] * (n_layers - 1), 0.0


def _halves(seed, n, n_masks, layer=0):
    """The first ``n_masks`` halves of every place, [n, n_masks]."""
    place = torch.arange(n, device=seed.device)
    halves = []
    for block in range((n_masks + 7) // 8):
        for word in _philox(seed, place, block, layer):
            halves += [word & 0xFFFF, word >> 16]
    return torch.stack(halves[:n_masks], -1)


def _factors(halves, p, dtype):
    kept = (halves >= round(65536 * p)).to(dtype)
    return kept * (0.0 if p == 1 else 1 / (1 - p))


def _philox(seed, place, block, layer=0):
    """The four 32-bit words of Philox4x32-10, as int64."""
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = place & low, (place >> 32) & low, torch.full_like(place, block), layer
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64
        c0, c2 = ((product1 >> 32) & low) ^ c1 ^ k0, ((product0 >> 32) & low) ^ c3 ^ k1
        c1, c3 = product1 & low, product0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3
