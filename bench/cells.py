"""What all tables share: names, and how numbers are written."""

from providers import BASELINE

PEERS = {BASELINE: "PyTorch", "torch_compile": "torch.compile", "jax": "JAX"}
TITLES = {
    "additive_mlp": "AdditiveMLP",
    "elementwise_mlp": "ElementwiseMLP",
    "mlp": "MLP",
    "sine_sum": "SineSum",
    "piecewise_linear": "piecewise_linear",
}
MODES = {
    "inference": "inference",
    "forward": "forward",
    "forward_backward": "forward + backward",
    "training_step": "training step with Adam",
}


def table(columns, rows):
    """A table of Markdown: a column of names, then numbers."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return "\n".join([head, f"|---|{'---:|' * (len(columns) - 1)}", *lines])


def ratio(value):
    """A peer's time over fastmlp's: bold where the peer is faster."""
    text = f"{value:.2g}×" if value < 10 else f"{value:.0f}×"
    return text if value >= 1 else f"**{text}**"


def duration(us):
    """Microseconds, in the unit that reads best."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us:.3g} µs"
