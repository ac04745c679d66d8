"""Linear layers, one behind the other."""
