"""Hide the packages named in ``ABSENT`` from this process and from those that it starts.

Python imports this by itself where the folder is on ``PYTHONPATH``: see `make absent`.
"""

import os
import sys

ABSENT = os.environ.get("ABSENT", "").split()


class _Hider:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Hider)
