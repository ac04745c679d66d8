"""A sanitizer for Triton kernels in the interpreter: every launch of every test is watched.

- ``memory.py``: every address of every load, store and atomic lies in the storage of the argument
  from which its pointer comes.
- ``races.py``: what two programs touch, and one of them writes, is ordered by an atomic with
  release and acquire; what two threads of a program touch, and one of them writes, by a barrier.
- ``numerics.py``: arithmetic is as inexact as PTX's.
- ``watch.py``: where all of it enters the interpreter; programs run in a random order.

``plugin.py`` fails the test in which something is found.
"""
