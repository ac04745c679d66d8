"""The Numba wing: one file per op; see `jit.py` for compilation and caching, `pool.py` for threads."""
