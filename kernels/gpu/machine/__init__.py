"""How kernels are launched and their sums cut into pieces: no mathematics."""
