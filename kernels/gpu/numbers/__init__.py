"""The mathematics of single numbers: activations, sines, random words, orders, searches."""
