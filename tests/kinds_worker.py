"""Rows of the table of kinds in a process of their own: ``kinds_worker.py ROW …``.

Prints a line for each row and net before it runs, and what is wrong behind it.
"""

import os
import sys

import kinds_modes  # noqa: F401
import kinds_programs  # noqa: F401
import kinds_tensors  # noqa: F401
import kinds_tracers  # noqa: F401
from kinds import KINDS, judge

if __name__ == "__main__":
    # a stream of its own: Gloo of PyTorch 2.9 prints on the standard output
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for row in sys.argv[1:]:
        for net in KINDS[row].nets:
            print(f"\n{row} {net}", end=" ", flush=True, file=results)
            try:
                judge(KINDS[row], net)
            except Exception as error:
                text = str(error).replace("\n", " ")
                print(f"{type(error).__name__}: {text}", end="", flush=True, file=results)
            else:
                print("right", end="", flush=True, file=results)
