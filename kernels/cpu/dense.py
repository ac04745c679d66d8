"""Subnets that the canonical form does not cover: smooth activations, dropout, one per feature."""


def is_canonical(fc1_weight, seed, activation) -> bool:
    """Whether this is one ReLU subnet for all, without dropout: what the canonical form covers."""
    return activation == "relu" and seed is None and fc1_weight.dim() == 2


def dense_fwd(x, *arguments):
    raise NotImplementedError("the Numba kernels know ReLU without dropout alone")


def dense_bwd(dy, x, *arguments, needs):
    raise NotImplementedError("the Numba kernels know ReLU without dropout alone")
