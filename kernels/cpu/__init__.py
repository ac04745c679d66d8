"""The Numba wing: one file per op; `jit.py` compiles, `cache.py` keeps, `pool.py` deals out."""
