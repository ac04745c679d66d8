"""The Triton wing: one file per op; block sizes and warps live in `machine/launch.py`."""
