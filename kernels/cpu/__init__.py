"""The Numba wing: one file per op; `machine/` compiles, keeps and deals out."""
