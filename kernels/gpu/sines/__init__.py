"""Sums of sines."""
