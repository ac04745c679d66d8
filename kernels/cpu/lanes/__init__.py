"""Whole training runs of small models, one in each lane of vectors."""
