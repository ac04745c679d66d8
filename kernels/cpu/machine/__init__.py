"""How kernels are compiled, kept, cut into pieces and run: no mathematics."""
