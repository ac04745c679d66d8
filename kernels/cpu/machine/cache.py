"""Compiled kernels on disk: a file for each, named by the digest of all it was made of.

A file holds a checksum of everything else in it and of its own name. What does not verify is not
looked into, is compiled anew and replaced: a damaged disk, a crash, a full disk or another version
cost time, never a result. Files are written under another name, flushed and renamed, so that any
number of processes and versions may share a directory, a network file system's too; there is no
index that could disagree with the files.

A checksum is no signature: whoever may write a kernel may run code as its reader. So a file is read
only if nobody but its owner (and the owner's group) may write it, and if it is the user's own or
root's. Another user's is read where an environment variable names the directory, as for a cluster's
shared software, and not everybody may write there.
"""

import contextlib
import hashlib
import os
import pickle
import stat
import sys
import time
from pathlib import Path
from uuid import uuid4

import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.environment import Environment, lookup_environment
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from ... import notice
from .digest import digest, forget, platform

try:
    import fcntl
except ImportError:  # Windows: processes do not wait for each other
    fcntl = None

_MAGIC = b"fastmlp kernel, format 2\n"
_CHECKSUM = hashlib.sha256().digest_size
_SUFFIX = ".kernel"
_BINARY = 0 if os.name == "posix" else os.O_BINARY

PATIENCE = 60.0
"""Seconds to wait for another process that compiles the same kernel; then both do."""

UNUSED = 90 * 86400.0
"""Seconds after which a kernel that no process loads is deleted: of a version that is gone."""


def _base():
    """Where caches are kept and whether the environment names it; (``None``, False): nowhere."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR).absolute(), True
    variable = {"win32": "LOCALAPPDATA", "darwin": None}.get(sys.platform, "XDG_CACHE_HOME")
    named = Path(os.environ.get(variable or "") or "")
    if named.is_absolute():  # a relative one is to be ignored, the specification says
        return named, True
    try:
        home = Path.home()
    except RuntimeError:
        return None, False
    below = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    return (home / below, False) if home.is_absolute() else (None, False)


def user_cache_directory():
    """Where compiled kernels are kept, or ``None`` where there is no such place."""
    base, _ = _base()
    return None if base is None else base / "fastmlp"


def _is_trusted(status, directory):
    """Whether nobody can have written a file but who may run code here anyway."""
    if not stat.S_ISREG(status.st_mode):
        return False
    if os.name != "posix":
        return True
    if status.st_mode & stat.S_IWOTH:
        return False
    if status.st_uid in (0, os.geteuid()):
        return True
    places = directory, directory.parent
    return _base()[1] and not any(place.stat().st_mode & stat.S_IWOTH for place in places)


def _checksum(name, payload):
    return hashlib.sha256(_MAGIC + name.encode() + b"\n" + payload).digest()


def verified(name, content):
    """The payload in the content of the file of that name, or ``None``: it is not what was kept."""
    start = len(_MAGIC) + _CHECKSUM
    payload = content[start:]
    return payload if content[:start] == _MAGIC + _checksum(name, payload) else None


def read(path):
    """The verified payload of a file, or ``None`` if there is none that can be trusted."""
    try:
        # a pipe would otherwise wait for its writer
        flags = os.O_RDONLY | (os.O_NONBLOCK if os.name == "posix" else _BINARY)
        with os.fdopen(os.open(path, flags), "rb") as opened:
            status = os.fstat(opened.fileno())
            content = opened.read() if _is_trusted(status, path.parent) else b""
    except OSError:
        return None
    payload = verified(path.name, content)
    if payload is None:
        return None
    if time.time() - status.st_mtime > UNUSED / 90:
        with contextlib.suppress(OSError):
            os.utime(path)  # in use
    return payload


def write(path, payload):
    """Put a payload there for good, or leave nothing: no room, or not allowed."""
    # not by the user's mask: what everybody may write, nobody reads; what is warmed, all may read
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:12]}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
    with contextlib.suppress(OSError):
        try:
            _make(path.parent)
            with os.fdopen(os.open(temporary, flags, 0o644), "wb") as file:
                file.write(_MAGIC + _checksum(path.name, payload) + payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sweep(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _make(directory):
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(0o755, exist_ok=True)


def _sweep(directory):
    """Delete what nobody has used for long, and what a process that was killed left behind."""
    now = time.time()
    limits = {_SUFFIX: UNUSED, ".tmp": UNUSED / 90, ".nbi": UNUSED, ".nbc": UNUSED}
    # versions before this format kept folders of Numba's files, which they may still be reading
    for path in [*directory.iterdir(), *directory.glob("[0-9a-f]" * 16 + "/*.nb[ic]")]:
        with contextlib.suppress(OSError):
            status = path.stat()
            used = max(status.st_mtime, status.st_atime)
            if path.suffix in limits and now - used > limits[path.suffix]:
                path.unlink()
                if path.parent != directory:
                    path.parent.rmdir()  # once it is empty


def reduced(compiled):
    """What is kept of a compiled function: the environments of its parts without their modules."""
    *parts, environments = compiled._reduce()
    parts.append([(e.globals["__name__"], e.consts, e.env_name) for e in environments])
    return parts


def _rebuilt(target_context, *parts):
    *parts, environments = parts
    return CompileResult._rebuild(target_context, *parts, [_environment(*e) for e in environments])


def _environment(module, constants, name):
    """The constants of a part of a kernel.

    Numba would import the module that the part is of, which machine code has no use for: with some
    of Numba's own comes half a second of SciPy.
    """
    found = lookup_environment(name)
    if found is None:
        found = Environment({"__name__": module})
        found.consts[:] = constants
        found.env_name = name
        Environment._memo[name] = found
    return found


class KernelCache(_Cache):
    """What Numba asks before it compiles one function, and tells after.

    Args:
        name: Of the function, for people who look into the directory.
        *sources: What the function is made of, options included: see :func:`.digest.digest`.
    """

    cache_path = property(lambda self: str(user_cache_directory()))

    def __init__(self, name, *sources):
        self._name = "".join(c for c in name if c.isalnum() or c in "._")
        self._sources = sources
        self._lock = None
        self._unsay = None

    def load_overload(self, sig, target_context):
        """The compiled function, of this or of another process; ``None``: compile it."""
        # all that a compilation needs would take 0.4 s to import; loaded code needs the runtime for
        # its allocations, nothing else
        rtsys.initialize(target_context)
        path = self._path(sig, target_context.codegen())
        found = self._load(path, target_context)
        if found is not None:
            return found
        keeps = self._take_turn(path)
        self._unsay = notice.soon(
            f"compiling kernels, once; they are kept in {path.parent}"
            if keeps
            else "compiling kernels, for this process alone: there is no cache directory that may "
            "be written"
        )
        return self._wait(path, target_context) if keeps else None

    def save_overload(self, sig, data):
        path = self._path(sig, data.codegen)
        if path is not None and not data.library.has_dynamic_globals:
            write(path, dumps(reduced(data)))

    def release(self):
        """The compilation is over, however it ended."""
        if self._unsay is not None:
            self._unsay()
        if self._lock is not None:
            os.close(self._lock)
        self._unsay = self._lock = None
        forget()

    def _path(self, sig, codegen):
        directory = user_cache_directory()
        if directory is None:
            return None
        try:
            key = digest(_MAGIC, self._sources, repr(sig), platform(codegen))
        except TypeError:  # something that another version of Numba brings
            return None
        return directory / f"{self._name}-{key[:40]}{_SUFFIX}"

    def _load(self, path, target_context):
        payload = None if path is None else read(path)
        if payload is None:
            return None
        try:
            return _rebuilt(target_context, *pickle.loads(payload))
        except Exception:
            # written in good order, by a Numba that has changed under the same version
            return None

    def _take_turn(self, path):
        """Open the file whose lock tells who compiles; whether there is a place to write to."""
        if path is None:
            return False
        with contextlib.suppress(OSError):
            _make(path.parent)
            if fcntl is not None:
                number = path.stem[-2:]
                flags = os.O_RDWR | os.O_CREAT
                self._lock = os.open(path.with_name(f"{number}.lock"), flags, 0o644)
            return True
        return False

    def _wait(self, path, target_context):
        """Wait while another process compiles this kernel; what it has saved, or ``None``."""
        deadline, pause = time.monotonic() + PATIENCE, 0.0
        while self._lock is not None and time.monotonic() < deadline:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError:  # a file system without locks
                return None
            else:
                found = self._load(path, target_context)
                if found is None and pause:
                    # what the other has not saved, nobody else need wait for
                    os.close(self._lock)
                    self._lock = None
                return found
            pause = min(0.1, pause + 0.02)
            time.sleep(pause)
            if path.exists() and (found := self._load(path, target_context)) is not None:
                return found
        return None

    # Numba's other wishes

    def enable(self):
        pass

    def disable(self):
        pass

    def flush(self):
        pass
