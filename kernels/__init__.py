"""Kernels: numbers in, numbers out; no autograd, no modules.

`gpu/` holds the Triton wing and `cpu/` the Numba wing, one file per op under the same file name.
"""

if __name__ != "fastmlp.kernels":
    raise ImportError(
        "this folder is the package `fastmlp.kernels`: "
        "run `pip install -e .` and import it by that name"
    )
