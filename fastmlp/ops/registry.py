"""The registered ops ``fastmlp::…``: defined once a process, however often the package is imported.

PyTorch takes one definition of an op a process, and calls what was registered for it for ever.
Notebooks, Spyder and Streamlit import a package again after they have deleted it from
``sys.modules``, while models, compiled graphs and exported programs of the first import live on.
So what is registered with PyTorch only forwards to a table that outlives the package's modules; an
import writes its own functions into it, and every op runs the code that was imported last. An op
whose schema has changed becomes an overload of its own, and the older one goes on as it was.
"""

import torch


def _new_library():
    return torch.library.Library("fastmlp", "DEF")


# PyTorch hands the caller's file name to C++, where a path that is no UTF-8 is an error
_new_library.__code__ = _new_library.__code__.replace(co_filename="fastmlp/ops/registry.py")

# the namespace of the ops is one object for the life of the process
_kept = vars(torch.ops.fastmlp).setdefault("_kept", {"overloads": {}, "functions": {}})
if "library" not in _kept:
    _kept["library"] = _new_library()


def define(schema):
    """Name of the op of this schema, as :func:`impl` takes it; for :func:`op` too."""
    overloads = _kept["overloads"]
    if schema not in overloads:
        name, arguments = schema.split("(", 1)
        if any(known.split("(", 1)[0] == name for known in overloads):
            name += f".reloaded_{len(overloads)}"
        _kept["library"].define(f"{name}({arguments}")
        overloads[schema] = name
    return overloads[schema]


def op(name):
    """What calls the op, a ``torch._ops.OpOverload``."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.fastmlp, packet), overload or "default")


def impl(name, function, dispatch_key, *, with_keyset=False):
    """``torch.library.Library.impl``."""
    library = _kept["library"]
    if forward := _forwards(name, dispatch_key, function):
        library.impl(name, forward, dispatch_key, with_keyset=with_keyset)


def register_fake(name, function):
    """``torch.library.register_fake``."""
    if forward := _forwards(name, "fake", function):
        torch.library.register_fake(f"fastmlp::{name}", forward, lib=_kept["library"])


def register_vmap(name, function):
    """``torch.library.register_vmap``."""
    if forward := _forwards(name, "vmap", function):
        torch.library.register_vmap(f"fastmlp::{name}", forward, lib=_kept["library"])


def register_decomposition(name, function):
    """``torch._decomp.register_decomposition``."""
    if forward := _forwards(name, "decomposition", function):
        torch._decomp.register_decomposition(op(name))(forward)


def _forwards(name, what, function):
    """Put a function into the table. Returns what to register, ``None`` where that is done."""
    functions = _kept["functions"]
    known = (name, what) in functions
    functions[name, what] = function
    return None if known else lambda *args, **kwargs: functions[name, what](*args, **kwargs)
