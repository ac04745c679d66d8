"""What was found, until the test in which it was found has failed of it."""

from contextlib import contextmanager

_found = {}


def note(what, where):
    """Keep a finding: the first of each kind and place, for one fault shows a thousand times."""
    _found.setdefault(what, where)


def take():
    """All findings as lines; none is left."""
    lines = [f"{what}: {where}" for what, where in _found.items()]
    _found.clear()
    return lines


@contextmanager
def collected():
    """Findings of the block, in a list that is filled at its end; no test fails of them."""
    found = []
    try:
        yield found
    finally:
        found.extend(take())
