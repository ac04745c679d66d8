"""The Numba wing: one file per op; `jit.py` compiles and caches, `pool.py` deals out pieces."""
