"""The modules: one file each, named as the op."""
