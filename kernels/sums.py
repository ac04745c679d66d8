"""Sums in an order that depends on nothing but how many numbers there are."""

import torch


def by_halves(parts: torch.Tensor) -> torch.Tensor:
    """Σ over the first dimension, which stays as one of 1: half of it onto the other half, again.

    Args:
        parts: Shape ``[n, …]``, n ≥ 1.
    """
    while len(parts) > 1:
        half = len(parts) // 2
        rest = parts[2 * half :]
        parts = torch.cat([parts[:half] + parts[half : 2 * half], rest])
    return parts
