"""The subnet 1 → H → 1 of every number."""
