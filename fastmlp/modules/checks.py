"""What several modules share: checks of constructor arguments."""

from fastmlp.arguments import integer, sequence, told


def sizes_of(hidden_features, largest):
    """A width, or widths, each from 1 to ``largest``, as a tuple of ints."""
    widths = sequence(hidden_features)
    if widths is not None:
        return tuple(
            integer(f"hidden_features[{i}]", width, 1, largest) for i, width in enumerate(widths)
        )
    try:
        return (integer("hidden_features", hidden_features, 1, largest),)
    except TypeError:
        raise TypeError(
            "hidden_features must be an int or a list or tuple of ints, "
            f"got {told(hidden_features)}"
        ) from None
