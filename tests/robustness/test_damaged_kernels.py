"""Files of compiled kernels, damaged in every way and place: refused, compiled anew, replaced.

Each damage goes the whole way of a kernel's first call in a process. Every run takes a share of
them, ``--hypothesis-profile thorough`` (``make thorough``) all :data:`DAMAGES`.
"""

import random

import pytest

pytest.importorskip("numba")
pytest.importorskip("hypothesis")

from fastmlp.kernels.cpu.machine import cache, jit
from hypothesis import settings

DAMAGES = 3000
SHARE = 2
"""Damages of a run for each example of Hypothesis's profile."""


def make(value):
    """The kernel of one version of a program: all versions have one name, file and line."""

    def answer(x):
        return x + value

    return jit.kernel(answer)


def compiled(argument):
    """Whether a process's first call compiled version 1, and what it gave."""
    kernel = make(1)
    result = kernel(argument)
    assert sum(kernel.stats.cache_misses.values()) + sum(kernel.stats.cache_hits.values()) == 1
    return sum(kernel.stats.cache_misses.values()) == 1, result


HEAD = len(cache._MAGIC) + cache._CHECKSUM
PLACES = {
    "format": lambda draw, size: draw.randrange(len(cache._MAGIC)),
    "checksum": lambda draw, size: draw.randrange(len(cache._MAGIC), HEAD),
    "beginning": lambda draw, size: draw.randrange(HEAD, HEAD + 64),
    "middle": lambda draw, size: draw.randrange(HEAD + 64, size - 64),
    "end": lambda draw, size: draw.randrange(size - 64, size),
}


def _flip(draw, content, at, others):
    content[at] ^= 1 << draw.randrange(8)


def _overwrite(draw, content, at, others):
    content[at : at + 16] = draw.randbytes(len(content[at : at + 16]))


def _truncate(draw, content, at, others):
    del content[at:]


def _lose_tail(draw, content, at, others):
    content[at:] = bytes(len(content) - at)


def _lose_block(draw, content, at, others):
    content[at : at + 512] = bytes(len(content[at : at + 512]))


def _insert(draw, content, at, others):
    content[at:at] = draw.randbytes(draw.randrange(1, 64))


def _append(draw, content, at, others):
    content += draw.randbytes(draw.randrange(1, 64))


def _swap(draw, content, at, others):
    """All of another kernel's file, which is in good order."""
    content[:] = draw.choice(others)


def _mix(draw, content, at, others):
    """The beginning of one file, the end of another."""
    content[at:] = draw.choice(others)[at:]


KINDS = _flip, _overwrite, _truncate, _lose_tail, _lose_block, _insert, _append, _swap, _mix


def test_every_damaged_file_is_compiled_anew_and_none_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path))
    # other keys: of other types, of other versions
    arguments = {1: 2, 1.5: 2.5}
    paths = {}
    for argument, expected in arguments.items():
        before = set(tmp_path.glob("fastmlp/*.kernel"))
        assert compiled(argument) == (True, expected)
        (paths[argument],) = set(tmp_path.glob("fastmlp/*.kernel")) - before
    before = set(paths.values())
    for value in (2, 3):
        make(value)(1)
    foreign = [path.read_bytes() for path in set(tmp_path.glob("fastmlp/*.kernel")) - before]
    assert len(foreign) == 2

    draw = random.Random(0)
    n_damages = min(DAMAGES, SHARE * settings.default.max_examples)
    done = 0
    while done < n_damages:
        damage = KINDS[done % len(KINDS)]
        place = PLACES[[*PLACES][done // len(KINDS) % len(PLACES)]]
        argument = draw.choice([*arguments])
        path = paths[argument]
        whole = path.read_bytes()
        others = [p.read_bytes() for p in paths.values() if p is not path] + foreign
        content = bytearray(whole)
        damage(draw, content, place(draw, len(whole)), others)
        if content == whole:  # zeros over zeros
            continue
        path.write_bytes(content)
        told = damage.__name__, done
        assert compiled(argument) == (True, arguments[argument]), told
        assert cache.read(path) is not None, told
        assert compiled(argument) == (False, arguments[argument]), told
        done += 1
