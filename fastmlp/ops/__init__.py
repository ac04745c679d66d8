"""One file per op: its declaration; `fused.py` turns one into an autograd rule and library ops."""
