"""Triton's interpreter, hastened: for the tests, and for dry runs of what is meant for a device."""

import inspect
from functools import cache


def hasten():
    """Let Triton's interpreter look up the language's builtins once.

    It searches Triton's modules for them each time a kernel or a function in it is called: half the
    time of the tests.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    @cache
    def builtins(package):
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch(package, *rest):
        for name in builtins(package):
            member = getattr(package, name)
            if is_builtin(member):  # not one that is patched already
                interpreter._patch_attr(package, name, member, *rest)

    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        interpreter._patch_builtin = patch
