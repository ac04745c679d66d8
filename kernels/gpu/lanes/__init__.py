"""Whole training runs of small models, one in each lane: in the registers of a thread."""
