"""The steps of `bench/on_device.py`, one file per question, and what drives them."""
