"""What tells constants apart in the names under which Triton keeps compiled kernels on disk.

Triton asks a constant for its ``cache_key`` and takes its text where it has none. The text of a
tuple has of each function the name alone, so a kernel would be found that was compiled with another
version of it.
"""

import triton.language as tl


def key_of(values):
    """The text of a tuple, functions by their sources."""
    return f"{type(values).__qualname__}({', '.join(map(_key_of_one, values))})"


def _key_of_one(value):
    if isinstance(value, tl.constexpr):
        value = value.value
    return key_of(value) if isinstance(value, tuple) else getattr(value, "cache_key", str(value))


class Values(tuple):
    """Constants of a kernel, functions among them."""

    cache_key = property(key_of)
