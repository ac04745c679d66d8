"""Whole training runs."""
